//! libFuzzer feeds `standin_fuzz::detector`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::detector::run(bytes));
