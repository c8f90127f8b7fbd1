//! A message survives being written and read again, and shows no secret.

use volferry_protocol::frame::ControlFrame;
use volferry_protocol::message::Message;

pub fn run(data: &[u8]) {
    if let Some((header, _)) = data.split_first_chunk() {
        let len = ControlFrame::message_len(*header);
        assert!(len.is_ok_and(|len| len <= ControlFrame::MESSAGE_LEN_MAX) || len.is_err());
    }
    let Ok(message) = ControlFrame::decode(data) else {
        return;
    };
    let frame = ControlFrame::encode(&message).expect("what was read can be written");
    let (header, json) = frame.split_first_chunk().expect("a frame has a header");
    assert_eq!(ControlFrame::message_len(*header), Ok(json.len()));
    assert_eq!(ControlFrame::decode(json).as_ref(), Ok(&message));
    if let Message::Welcome(welcome) = &message {
        let secret = format!("{:?}", welcome.token.token().0);
        let shown = format!("{message:?}");
        assert!(!shown.contains(&secret), "the token is shown: {shown}");
    }
}
