//! libFuzzer feeds `standin_fuzz::seal`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::seal::run(bytes));
