//! libFuzzer feeds `standin_fuzz::files`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::files::run(bytes));
