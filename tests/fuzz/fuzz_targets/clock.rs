//! libFuzzer feeds `standin_fuzz::clock`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::clock::run(bytes));
