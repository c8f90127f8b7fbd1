//! A record has one form, and a path that comes out of one leads nowhere but down.
//!
//! An input is records; its first 64 bytes are a header of a tree frame as well.

use volferry_protocol::codec::Reader;
use volferry_protocol::compression::Codecs;
use volferry_protocol::tree::frame::{PACK_LEN_MAX, TreeFrame};
use volferry_protocol::tree::record::Record;

pub fn run(data: &[u8]) {
    let mut reader = Reader::new(data);
    let mut again = Vec::new();
    while !reader.is_empty() {
        let Ok(record) = Record::decode(&mut reader) else {
            break;
        };
        record.encode(&mut again);
        assert!(data.starts_with(&again), "{record:?}");
        check_names(&record);
    }
    let Some(header) = data.first_chunk::<{ TreeFrame::HEADER_LEN }>() else {
        return;
    };
    if let Ok(frame) = TreeFrame::decode(header, Codecs::all()) {
        let mut again = Vec::new();
        frame.encode(&mut again);
        assert_eq!(again, header, "{frame:?}");
        if let TreeFrame::Pack { payload_len, .. } | TreeFrame::Piece { payload_len, .. } = frame {
            assert!((1..=PACK_LEN_MAX).contains(&payload_len));
            let compressed = frame.compressed();
            assert!(compressed.is_none_or(|to| (1..payload_len).contains(&to.len)));
        }
    }
}

fn check_names(record: &Record<'_>) {
    let check = |name: &[u8]| {
        assert!((1..=255).contains(&name.len()) && name != b"." && name != b"..");
        assert!(!name.contains(&b'/') && !name.contains(&0));
    };
    match record {
        Record::Enter(path) => {
            let mut names = path.as_bytes().split(|byte| *byte == b'/');
            assert!(
                path.is_root()
                    || names.all(|name| {
                        check(name);
                        true
                    })
            );
        }
        Record::File { entry, .. }
        | Record::LargeFile { entry, .. }
        | Record::Special { entry, .. }
        | Record::Keep { entry, .. } => check(entry.name.as_bytes()),
        Record::Offer(offer) => check(offer.name.as_bytes()),
        Record::Link { name, group } => {
            check(name.as_bytes());
            assert!(*group > 0);
        }
        Record::Directory(_) | Record::Forget { .. } => {}
    }
}
