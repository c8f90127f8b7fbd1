//! A preamble has one form: what is read is written back byte for byte.

use volferry_protocol::frame::Preamble;

use super::input::Input;

pub fn run(data: &[u8]) {
    let bytes: [u8; Preamble::LEN] = Input::new(data).array();
    if let Ok(preamble) = Preamble::decode(&bytes) {
        assert_eq!(preamble.encode(), bytes);
    }
}
