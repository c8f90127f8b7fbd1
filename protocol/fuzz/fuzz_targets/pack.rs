#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| volferry_protocol_fuzz::pack::run(data));
