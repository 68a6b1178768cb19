//! libFuzzer feeds `standin_fuzz::kernel`.
#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| standin_fuzz::kernel::run(bytes));
