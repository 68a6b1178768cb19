//! libFuzzer feeds `standin_fuzz::local`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::local::run(bytes));
