#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ztseg_fuzz::policy::check(bytes));
