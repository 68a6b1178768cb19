//! libFuzzer feeds `standin_fuzz::election`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::election::run(bytes));
