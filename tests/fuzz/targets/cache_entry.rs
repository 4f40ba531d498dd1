#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| stillhouse_tests::fuzzed::cache_entry(bytes));
