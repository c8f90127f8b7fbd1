#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| volferry_protocol_fuzz::compressed::run(data));
