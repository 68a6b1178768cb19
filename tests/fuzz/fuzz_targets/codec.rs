//! libFuzzer feeds `standin_fuzz::codec`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::codec::run(bytes));
