//! libFuzzer feeds `standin_fuzz::link`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::link::run(bytes));
