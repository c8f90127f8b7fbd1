//! The bytes of trees that never change, beside those of golden.rs.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use volferry_protocol::codec::Reader;
use volferry_protocol::compression::{Codec, Codecs, Compressed};
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::frame::{TreeFrame, pack_digest};
use volferry_protocol::tree::offer::{Offer, Stamp, Voucher};
use volferry_protocol::tree::path::{Name, TreePath};
use volferry_protocol::tree::record::{
    DeviceNumber, Entry, Metadata, Record, Special, Time, Xattr,
};
use volferry_protocol::zero_map::ZeroMap;

const STAMP: Stamp = Stamp([0x57; 16]);
const DIGEST: Digest = Digest([0xd1; 32]);

/// One record of each kind; `golden/pack.hex` was written from the layout in docs/protocol.md, not by
/// this code.
#[test]
fn record_bytes_never_change() {
    let metadata = || Metadata {
        uid: 1000,
        gid: 1001,
        mode: 0o4755,
        atime: Time {
            seconds: -1,
            nanoseconds: 999_999_999,
        },
        mtime: Time {
            seconds: 1,
            nanoseconds: 2,
        },
        xattrs: Vec::new(),
    };
    let name = |name: &'static str| Name::new(name.as_bytes()).unwrap();
    let entry = |text, group| Entry {
        name: name(text),
        group,
        metadata: metadata(),
    };
    let special = |text, special| Record::Special {
        entry: entry(text, 0),
        special,
    };
    let device = |major, minor| DeviceNumber { major, minor };
    let mut half_zero = vec![0; 4096];
    half_zero.extend([b'x'; 4096]);
    let records = [
        Record::Enter(TreePath::ROOT),
        Record::Directory(Metadata {
            xattrs: vec![Xattr {
                name: b"user.a".to_vec(),
                value: b"v".to_vec(),
            }],
            ..metadata()
        }),
        Record::File {
            entry: entry("file", 7),
            stamp: STAMP,
            digest: DIGEST,
            zero_map: ZeroMap::all_data(5),
            data: b"hello",
        },
        Record::File {
            entry: entry("zeros", 0),
            stamp: STAMP,
            digest: DIGEST,
            zero_map: ZeroMap::scan(&half_zero),
            data: &half_zero[4096..],
        },
        Record::LargeFile {
            entry: entry("large", 0),
            file: 9,
            size: 1 << 30,
            digest: DIGEST,
        },
        Record::Enter(TreePath::new(b"dir/inner").unwrap()),
        special("link", Special::Symlink(b"../../etc")),
        special("fifo", Special::Fifo),
        special("socket", Special::Socket),
        special("null", Special::Character(device(1, 3))),
        special("loop", Special::Block(device(7, 1))),
        Record::Link {
            name: name("again"),
            group: 7,
        },
        Record::Forget { file: 9 },
        Record::Offer(Offer {
            name: name("offer"),
            size: 1 << 30,
            mtime: metadata().mtime,
            stamp: STAMP,
        }),
        Record::Keep {
            entry: entry("keep", 0),
            size: 1 << 30,
            digest: DIGEST,
            data_bytes: 4096,
            voucher: Voucher(Digest([0xe2; 32])),
        },
    ];
    let golden: Vec<Vec<u8>> = include_str!("golden/pack.hex").lines().map(unhex).collect();
    assert_eq!(golden.len(), records.len());
    for (record, golden) in records.iter().zip(&golden) {
        let mut bytes = Vec::new();
        record.encode(&mut bytes);
        assert_eq!(&bytes, golden, "{record:?}");
        let mut reader = Reader::new(golden);
        assert_eq!(&Record::decode(&mut reader).unwrap(), record);
        assert!(reader.is_empty());
    }
}

#[test]
fn frame_bytes_never_change() {
    let check = |frame: TreeFrame, parts: &[&[u8]]| {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        assert_eq!(bytes, parts.concat(), "{frame:?}");
        assert_eq!(
            TreeFrame::decode(&bytes.try_into().unwrap(), Codecs::all()),
            Ok(frame)
        );
    };
    let (number, none) = (0x0102_0304_0506_0708, &[0; 8][..]);
    let number_bytes = &[1, 2, 3, 4, 5, 6, 7, 8][..];
    check(
        TreeFrame::End { frames: number },
        &[
            &[3, 0, 0, 0],
            &[0; 4],
            number_bytes,
            none,
            &[0; 8],
            &[0; 32],
        ],
    );
    check(
        TreeFrame::Pack {
            number,
            payload_len: 0x000a_0b0c,
            digest: DIGEST,
            compressed: None,
        },
        &[
            &[4, 0, 0, 0],
            &[0, 10, 11, 12],
            number_bytes,
            none,
            &[0; 8],
            &[0xd1; 32],
        ],
    );
    let compressed = |codec| Some(Compressed { codec, len: 0x0203 });
    check(
        TreeFrame::Pack {
            number,
            payload_len: 0x000a_0b0c,
            digest: DIGEST,
            compressed: compressed(Codec::Lz4),
        },
        &[
            &[4, 1, 0, 0],
            &[0, 10, 11, 12],
            number_bytes,
            none,
            &[0, 0, 2, 3, 0, 0, 0, 0],
            &[0xd1; 32],
        ],
    );
    check(
        TreeFrame::Piece {
            file: number,
            index: 0x0a0b,
            len: 0x000d_0e0f,
            payload_len: 0x000a_0b0c,
            digest: DIGEST,
            compressed: None,
        },
        &[
            &[5, 0, 0, 0],
            &[0, 10, 11, 12],
            number_bytes,
            &[0, 0, 0, 0, 0, 0, 10, 11],
            &[0, 0, 0, 0, 0, 13, 14, 15],
            &[0xd1; 32],
        ],
    );
    check(
        TreeFrame::Piece {
            file: number,
            index: 0x0a0b,
            len: 0x000d_0e0f,
            payload_len: 0x000a_0b0c,
            digest: DIGEST,
            compressed: compressed(Codec::Zstd),
        },
        &[
            &[5, 2, 0, 0],
            &[0, 10, 11, 12],
            number_bytes,
            &[0, 0, 0, 0, 0, 0, 10, 11],
            &[0, 0, 2, 3, 0, 13, 14, 15],
            &[0xd1; 32],
        ],
    );
    check(
        TreeFrame::ZeroPieces {
            file: number,
            index: 0x0a0b,
            count: 0x0100,
            last_len: 0x000d_0e0f,
        },
        &[
            &[6, 0, 0, 0],
            &[0; 4],
            number_bytes,
            &[0, 0, 0, 0, 0, 0, 10, 11],
            &[0, 0, 1, 0, 0, 13, 14, 15],
            &[0; 32],
        ],
    );
    check(
        TreeFrame::Begin {
            file: number,
            size: 0x0a0b,
            stamp: STAMP,
            path_len: 0x0c0d,
        },
        &[
            &[7, 0, 0, 0],
            &[0, 0, 12, 13],
            number_bytes,
            &[0, 0, 0, 0, 0, 0, 10, 11],
            &[0; 8],
            &[0x57; 16],
            &[0; 16],
        ],
    );
    let (index, count) = (0x0a0b, 64);
    for (kind, frame) in [
        (
            8,
            TreeFrame::Probe {
                file: number,
                index,
                count,
            },
        ),
        (
            9,
            TreeFrame::SamePieces {
                file: number,
                index,
                count,
            },
        ),
    ] {
        check(
            frame,
            &[
                &[kind, 0, 0, 0],
                &[0; 4],
                number_bytes,
                &[0, 0, 0, 0, 0, 0, 10, 11],
                &[0, 0, 0, 64, 0, 0, 0, 0],
                &[0; 32],
            ],
        );
    }
}

#[test]
fn the_digest_of_a_pack_never_changes() {
    assert_eq!(pack_digest(b"volferry").to_string(), PACK);
}

const PACK: &str = "869acdf4e77d8a79a4c446fce8e5639809648c332422f55198d74eaff199bb7f";

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}
