//! libFuzzer feeds `standin_fuzz::heartbeat`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::heartbeat::run(bytes));
