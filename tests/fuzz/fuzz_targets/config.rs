//! libFuzzer feeds `standin_fuzz::config`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::config::run(bytes));
