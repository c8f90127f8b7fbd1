//! The bytes that never change, spelled out field by field.
//!
//! Agents of different versions meet, and receipts outlive releases: whatever this file pins, every
//! later version has to write and read alike. A change here is a new version of the protocol
//! (another ALPN) or of the receipt, never an edit.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Debug;

use uuid::Uuid;
use volferry_protocol::compression::{Codec, Codecs, Compressed};
use volferry_protocol::digest::{Digest, Subtree};
use volferry_protocol::failure::{Failure, FailureClass, FailureCode};
use volferry_protocol::frame::{
    ALPN, ControlFrame, DataFrame, FrameError, Preamble, SessionToken, decode_zero_map,
};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};
use volferry_protocol::journal::{Checkpoint, JOURNAL_MAGIC, Witness, replay};
use volferry_protocol::message::{
    Finish, Hello, Message, Sent, TokenText, Want, Watermark, Welcome,
};
use volferry_protocol::range_set::ChunkSet;
use volferry_protocol::receipt::{AgentStats, CompressionStats, Receipt, TransportStats, Verified};
use volferry_protocol::waits::{Limit, Limited, Waits};
use volferry_protocol::zero_map::ZeroMap;

const TOKEN: SessionToken = SessionToken([0xa7; 32]);
const DIGEST: Digest = Digest([0xd1; 32]);

#[test]
fn the_version_is_named_by_alpn() {
    assert_eq!(ALPN, b"volferry/1");
}

#[test]
fn preamble_bytes_never_change() {
    let control = bytes(&[
        b"VFRY",  // magic
        &[1],     // version
        &[1],     // control
        &[0, 0],  // no number
        &[0; 32], // no token
    ]);
    let data = bytes(&[
        b"VFRY",       // magic
        &[1],          // version
        &[2],          // data
        &[0x01, 0x02], // connection 258
        &[0xa7; 32],   // session token
    ]);
    check_preamble(Preamble::Control, &control);
    check_preamble(
        Preamble::Data {
            number: 258,
            token: TOKEN,
        },
        &data,
    );
}

#[test]
fn a_preamble_of_another_kind_is_refused() {
    let check = |at: usize, byte: u8, error: FrameError| {
        let mut bytes = Preamble::Control.encode();
        bytes[at] = byte;
        assert_eq!(Preamble::decode(bytes[..].try_into().unwrap()), Err(error));
    };
    check(0, b'v', FrameError::Magic(*b"vFRY"));
    check(4, 2, FrameError::Version(2));
    check(5, 3, FrameError::Kind(3));
    check(7, 1, FrameError::Reserved);
    check(39, 1, FrameError::Reserved);
}

#[test]
fn chunk_header_bytes_never_change() {
    let chunk = DataFrame::Chunk {
        index: ChunkIndex(0x0102),
        digest: DIGEST,
        payload_len: 0x3000,
        compressed: None,
    };
    let header = bytes(&[
        &[1],                      // chunk
        &[0, 0, 0],                // reserved
        &[0, 0, 0x30, 0],          // payload of 12 KiB
        &[0, 0, 0, 0, 0, 0, 1, 2], // chunk 258
        &[0; 8],                   // no count
        &[0xd1; 32],               // chunk digest
    ]);
    check_header(chunk, &header);
}

#[test]
fn compressed_chunk_header_bytes_never_change() {
    for (codec, number) in [(Codec::Lz4, 1), (Codec::Zstd, 2)] {
        let chunk = DataFrame::Chunk {
            index: ChunkIndex(0x0102),
            digest: DIGEST,
            payload_len: 0x3000,
            compressed: Some(Compressed { codec, len: 0x0203 }),
        };
        let header = bytes(&[
            &[1],                      // chunk
            &[number],                 // codec
            &[0, 0],                   // reserved
            &[0, 0, 0x30, 0],          // payload of 12 KiB
            &[0, 0, 0, 0, 0, 0, 1, 2], // chunk 258
            &[0, 0, 0, 0, 0, 0, 2, 3], // 515 bytes on the wire
            &[0xd1; 32],               // chunk digest
        ]);
        check_header(chunk, &header);
        // A session uses only what its ends agreed on.
        let refused = DataFrame::decode(header[..].try_into().unwrap(), &geometry(), Codecs::NONE);
        assert_eq!(refused, Err(FrameError::NotAgreed { codec }));
        for (codec, len) in [
            (number, 0),
            (number, 0x3000),
            (0, 1),
            (3, 1),
            (number, 1 << 32),
        ] {
            let mut bent = header.clone();
            bent[1] = codec;
            bent[16..24].copy_from_slice(&u64::to_be_bytes(len));
            assert_eq!(
                decode_header(&bent),
                Err(FrameError::Compressed { codec, len })
            );
        }
    }
}

#[test]
fn zero_header_bytes_never_change() {
    let chunks = ChunkRange {
        start: ChunkIndex(0x0102),
        end: ChunkIndex(0x0202),
    };
    let header = bytes(&[
        &[2],                      // zero
        &[0, 0, 0],                // reserved
        &[0; 4],                   // no payload
        &[0, 0, 0, 0, 0, 0, 1, 2], // from chunk 258
        &[0, 0, 0, 0, 0, 0, 1, 0], // 256 chunks
        &[0; 32],                  // no digest
    ]);
    check_header(DataFrame::Zero { chunks }, &header);
}

#[test]
fn end_header_bytes_never_change() {
    let header = bytes(&[
        &[3],                         // end
        &[0, 0, 0],                   // reserved
        &[0; 4],                      // no payload
        &[0; 8],                      // no chunk
        &[0, 0, 0, 0, 0, 1, 0, 0xff], // after 65791 frames
        &[0; 32],                     // no digest
    ]);
    check_header(DataFrame::End { frames: 65791 }, &header);
}

#[test]
fn offer_header_bytes_never_change() {
    let offer = DataFrame::Offer {
        index: ChunkIndex(0x0102),
        digest: DIGEST,
    };
    let header = bytes(&[
        &[4],                      // offer
        &[0, 0, 0],                // reserved
        &[0; 4],                   // no payload
        &[0, 0, 0, 0, 0, 0, 1, 2], // chunk 258
        &[0; 8],                   // no count
        &[0xd1; 32],               // chunk digest
    ]);
    check_header(offer, &header);
}

/// What a kind of frame has no use for is zero: a frame has one form only.
#[test]
fn a_header_with_bytes_where_none_belong_is_refused() {
    let check = |frame: DataFrame, unused: &[usize]| {
        for at in unused {
            let mut header = encoded(frame);
            header[*at] = 1;
            assert_eq!(
                decode_header(&header),
                Err(FrameError::Reserved),
                "{frame:?} byte {at}"
            );
        }
    };
    let chunks = ChunkRange::one(ChunkIndex(1));
    check(
        DataFrame::Chunk {
            index: ChunkIndex(1),
            digest: DIGEST,
            payload_len: 1,
            compressed: None,
        },
        &[2, 3],
    );
    check(DataFrame::Zero { chunks }, &[1, 3, 4, 7, 24, 55]);
    check(DataFrame::End { frames: 1 }, &[1, 3, 4, 7, 8, 15, 24, 55]);
    check(
        DataFrame::Offer {
            index: ChunkIndex(1),
            digest: DIGEST,
        },
        &[1, 3, 4, 7, 16, 23],
    );
}

#[test]
fn a_header_for_another_volume_is_refused() {
    let past = ChunkIndex(geometry().chunk_count());
    let check = |frame: DataFrame, error: FrameError| {
        assert_eq!(decode_header(&encoded(frame)), Err(error));
    };
    let outside = FrameError::Outside(ChunkRange::one(past));
    check(
        DataFrame::Chunk {
            index: past,
            digest: DIGEST,
            payload_len: 1,
            compressed: None,
        },
        outside,
    );
    check(
        DataFrame::Zero {
            chunks: ChunkRange::one(past),
        },
        outside,
    );
    check(
        DataFrame::Offer {
            index: past,
            digest: DIGEST,
        },
        outside,
    );
    let none = ChunkRange {
        start: ChunkIndex(1),
        end: ChunkIndex(1),
    };
    check(DataFrame::Zero { chunks: none }, FrameError::Outside(none));
    for payload_len in [0, 65537] {
        let index = ChunkIndex(0);
        let error = FrameError::PayloadLen {
            index,
            payload_len,
            chunk_len: 65536,
        };
        check(
            DataFrame::Chunk {
                index,
                digest: DIGEST,
                payload_len,
                compressed: None,
            },
            error,
        );
    }
    let mut header = encoded(DataFrame::End { frames: 0 });
    header[0] = 5;
    assert_eq!(decode_header(&header), Err(FrameError::Kind(5)));
}

#[test]
fn zero_map_bytes_never_change() {
    // Blocks 1 and 9 to 15 of the chunk hold data, the others are zero.
    let mut chunk = vec![0; 65536];
    chunk[4096] = 1;
    chunk[9 * 4096..].fill(1);
    let wire = [
        0b1111_1101, // blocks 7 to 0
        0b0000_0001, // blocks 15 to 8
    ];
    let map = ZeroMap::scan(&chunk);
    let mut encoded = Vec::new();
    map.encode(&mut encoded);
    assert_eq!(encoded, wire);
    assert_eq!(
        decode_zero_map(&wire, ChunkIndex(0), 65536, 8 * 4096),
        Ok(map)
    );
    let refused = FrameError::ZeroMap {
        index: ChunkIndex(0),
    };
    assert_eq!(
        decode_zero_map(&wire, ChunkIndex(0), 65536, 4096),
        Err(refused)
    );
}

#[test]
fn control_frame_bytes_never_change() {
    let frame = bytes(&[
        &[0, 0, 0, 15],        // length
        br#"{"type":"ping"}"#, // message
    ]);
    assert_eq!(ControlFrame::encode(&Message::Ping), Ok(frame));
    assert_eq!(ControlFrame::message_len([0, 0x10, 0, 0]), Ok(1 << 20));
    let too_long = Err(FrameError::MessageTooLong(0x0010_0001));
    assert_eq!(ControlFrame::message_len([0, 0x10, 0, 1]), too_long);
}

#[test]
fn messages_never_change() {
    check_message(&Message::Hello(hello()), include_str!("golden/hello.json"));
    check_message(
        &Message::Welcome(welcome()),
        include_str!("golden/welcome.json"),
    );
    check_message(&Message::Ping, include_str!("golden/ping.json"));
    check_message(
        &Message::Watermark(watermark()),
        include_str!("golden/watermark.json"),
    );
    check_message(
        &Message::Finish(finish()),
        include_str!("golden/finish.json"),
    );
    check_message(&Message::Want(want()), include_str!("golden/want.json"));
    check_message(
        &Message::Receipt(Box::new(receipt())),
        include_str!("golden/receipt.json"),
    );
    check_message(
        &Message::Error(failure()),
        include_str!("golden/error.json"),
    );
}

/// What the agents tell of what compression saved.
#[test]
fn compression_in_messages_never_changes() {
    let source = AgentStats {
        compression: CompressionStats {
            compressed_bytes: 65_536,
            compressed_to_bytes: 20_480,
        },
        ..stats("volferry-source 0.1.0")
    };
    let source = Box::new(source);
    check_message(
        &Message::Finish(Finish { source, ..finish() }),
        include_str!("golden/finish-compression.json"),
    );
}

/// What the agents tell of their transport and their waiting, and the limit that follows from it.
#[test]
fn statistics_in_messages_never_change() {
    let told = |agent| AgentStats {
        transport: TransportStats {
            transport: Some("quic".into()),
            transport_why: Some("as told".into()),
            connections_max: None,
        },
        compression: CompressionStats::default(),
        waits: Some(Waits {
            volume_wait_seconds: 1.0,
            peer_wait_seconds: 2.5,
            throttle_wait_seconds: 0.5,
            volume_io_seconds: 0.75,
            volume_cpu_seconds: 0.25,
        }),
        ..stats(agent)
    };
    let source = Box::new(told("volferry-source 0.1.0"));
    let finish = Finish { source, ..finish() };
    check_message(
        &Message::Finish(finish),
        include_str!("golden/finish-waits.json"),
    );
    let receipt = Receipt {
        limit: Some(Limited {
            limit: Limit::SourceCpu,
            share: 0.75,
        }),
        ..receipt()
    };
    check_message(
        &Message::Receipt(Box::new(receipt)),
        include_str!("golden/receipt-limit.json"),
    );
}

/// Streams that are added while the clone runs, and what decides for them.
#[test]
fn streams_in_messages_never_change() {
    let wants = Hello {
        streams_max: Some(16),
        ..hello()
    };
    check_message(
        &Message::Hello(wants),
        include_str!("golden/hello-streams.json"),
    );
    let grants = Welcome {
        streams_max: Some(8),
        ..welcome()
    };
    check_message(
        &Message::Welcome(grants),
        include_str!("golden/welcome-streams.json"),
    );
    let tells = Watermark {
        waits: Some(Waits {
            volume_wait_seconds: 1.0,
            peer_wait_seconds: 2.5,
            throttle_wait_seconds: 0.5,
            volume_io_seconds: 0.75,
            volume_cpu_seconds: 0.25,
        }),
        ..watermark()
    };
    check_message(
        &Message::Watermark(tells),
        include_str!("golden/watermark-waits.json"),
    );
    let limits = Watermark {
        bandwidth_limit: Some(1_048_576),
        ..watermark()
    };
    check_message(
        &Message::Watermark(limits),
        include_str!("golden/watermark-limit.json"),
    );
    let source = AgentStats {
        transport: TransportStats {
            connections_max: Some(5),
            ..TransportStats::default()
        },
        ..stats("volferry-source 0.1.0")
    };
    let had = Finish {
        connections: Some(5),
        source: Box::new(source),
        ..finish()
    };
    check_message(
        &Message::Finish(had),
        include_str!("golden/finish-streams.json"),
    );
}

/// An older peer says less: what it leaves out is empty.
#[test]
fn missing_optional_fields_are_empty() {
    let older = Message::Hello(Hello {
        instance: Uuid::nil(),
        take_over: false,
        features: vec![],
        required_features: vec![],
        agent: String::new(),
        ..hello()
    });
    check_reads(include_str!("golden/hello-least.json"), &older);
    let older = Message::Welcome(Welcome {
        durable: vec![],
        offer: false,
        compare: false,
        features: vec![],
        agent: String::new(),
        ..welcome()
    });
    check_reads(include_str!("golden/welcome-least.json"), &older);
    let older = Message::Watermark(Watermark {
        checked_bytes: 0,
        ..watermark()
    });
    check_reads(include_str!("golden/watermark-least.json"), &older);
    let older = Message::Want(Want {
        offer: false,
        ..want()
    });
    check_reads(include_str!("golden/want-least.json"), &older);
}

/// A newer peer says more: what this version doesn't know it ignores, at every depth.
#[test]
fn unknown_fields_are_ignored() {
    check_reads(
        include_str!("golden/hello-newer.json"),
        &Message::Hello(hello()),
    );
    check_reads(
        include_str!("golden/finish-newer.json"),
        &Message::Finish(finish()),
    );
}

#[test]
fn what_is_no_message_is_refused() {
    for json in [
        "",
        "{}",
        "[]",
        r#"{"type":"farewell"}"#,                // a type of the future
        r#"{"type":"watermark","watermark":1}"#, // a field is missing
        r#"{"type":"watermark","watermark":-1,"durable_bytes":0}"#,
        r#"{"type":"ping"}{"type":"ping"}"#, // two in one frame
        r#"{"type":"want"}"#,
        r#"{"type":"want","chunks":[{"start":2,"end":2}]}"#,
        r#"{"type":"want","chunks":[{"start":2,"end":3},{"start":3,"end":4}]}"#,
    ] {
        assert_eq!(
            ControlFrame::decode(json.as_bytes()),
            Err(FrameError::Message),
            "{json}"
        );
    }
    let odd_chunks = include_str!("golden/hello.json").replace("65536", "65535");
    assert_eq!(
        ControlFrame::decode(odd_chunks.as_bytes()),
        Err(FrameError::Message)
    );
}

#[test]
fn a_failure_of_the_future_is_a_failure() {
    let told = Message::Error(Failure::new(FailureCode::Other, "the sun did it"));
    check_reads(
        r#"{"type":"error","code":"solar_flare","text":"the sun did it"}"#,
        &told,
    );
}

#[test]
fn the_session_token_is_never_shown() {
    let shown = |value: &dyn Debug| {
        let text = format!("{value:?} {value:#?}");
        assert!(!text.contains("a7") && !text.contains("167"), "{text}");
    };
    shown(&TOKEN);
    shown(&Preamble::Data {
        number: 1,
        token: TOKEN,
    });
    shown(&TokenText::new(TOKEN));
    shown(&Message::Welcome(welcome()));
}

/// Scripts, dashboards and peers of other versions compare these words.
#[test]
fn failure_codes_never_change() {
    let table: Vec<_> = FailureCode::ALL
        .iter()
        .map(|code| {
            let retry = if code.is_retryable() { " retry" } else { "" };
            format!(
                "{} {} {}{retry}",
                code.class().exit_code(),
                code.class(),
                code.label()
            )
        })
        .collect();
    let pinned: Vec<_> = include_str!("golden/failure-codes.txt").lines().collect();
    assert_eq!(table, pinned);
    let classes = FailureClass::ALL.map(FailureClass::label);
    let used = |label: &&str| {
        table
            .iter()
            .any(|line| line.split(' ').nth(1) == Some(label))
    };
    assert!(
        classes.iter().all(used),
        "every exit code has a failure code"
    );
}

/// A stored receipt is read by every later version.
#[test]
fn receipt_v1_never_changes() {
    let stored = include_str!("golden/receipt-v1.json");
    assert_eq!(serde_json::from_str::<Receipt>(stored).unwrap(), receipt());
    assert_eq!(
        serde_json::to_string_pretty(&receipt()).unwrap(),
        stored.trim_end()
    );
    let first = include_str!("golden/receipt-v1-first.json");
    let older = Receipt {
        sent_bytes: 0,
        resent_bytes: 0,
        matched_bytes: 0,
        repaired_bytes: 0,
        sessions: 0,
        ..receipt()
    };
    assert_eq!(serde_json::from_str::<Receipt>(first).unwrap(), older);
    let newer = stored.replacen('{', r#"{ "fidelity": { "acls": "kept" },"#, 1);
    assert_eq!(serde_json::from_str::<Receipt>(&newer).unwrap(), receipt());
}

/// A journal outlives the agent that wrote it.
#[test]
fn journal_bytes_never_change() {
    let body = bytes(&[
        &[
            0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0x4d, 0xef, // clone id
            0x81, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef,
        ],
        &[0, 0, 1, 0, 0, 0, 0, 0], // volume of 1 TiB
        &[0, 1, 0, 0],             // chunks of 64 KiB
        &[0, 0, 0, 0, 0, 0, 1, 2], // epoch 258
        &[0, 0, 0, 0, 0, 0, 2, 0], // data bytes
        &[0, 0, 0, 0, 0, 0, 3, 0], // taken bytes
        &[0, 0, 0, 0, 0, 0, 4, 0], // matched bytes
        &[0, 0, 0, 0, 0, 0, 5, 0], // mark of the target file
        &[0, 17],                  // bytes of the generation
        b"8:1 1099511627776",      // generation
        &[0, 1],                   // one witness
        &[0, 0, 0, 0, 0, 0, 0, 9], // chunk 9
        &[0xd1; 32],               // its digest
        &[0, 0, 0, 1],             // one subtree
        &[0, 0, 0, 0, 0, 0, 0, 8], // from chunk 8
        &[3],                      // of 8 chunks
        &[0xd1; 32],               // its root
    ]);
    let check = blake3::derive_key("volferry 2026-11-21 journal v1", &body);
    let record = bytes(&[
        &[0, 0, 0, 174], // body length
        &body,
        &check,
    ]);
    assert_eq!(checkpoint().encode(), record);
    assert_eq!(JOURNAL_MAGIC, [b'V', b'F', b'J', b'R', b'N', b'L', 0, 1]);
    let journal = bytes(&[&JOURNAL_MAGIC, &record]);
    assert_eq!(
        hex(&journal),
        include_str!("golden/journal.hex").replace(char::is_whitespace, "")
    );
    let replayed = replay(&journal).unwrap();
    assert_eq!(replayed.checkpoint, Some(checkpoint()));
    assert_eq!(replayed.torn_len, 0);
}

/// A controller keeps a checkpoint, and gives it to the agent of a later version.
#[test]
fn checkpoint_json_never_changes() {
    let stored = include_str!("golden/checkpoint.json");
    assert_eq!(
        serde_json::from_str::<Checkpoint>(stored).unwrap(),
        checkpoint()
    );
    assert_eq!(
        serde_json::to_string_pretty(&checkpoint()).unwrap(),
        stored.trim_end()
    );
    let newer = stored.replacen('{', r#"{ "weather": ["rain"],"#, 1);
    assert_eq!(
        serde_json::from_str::<Checkpoint>(&newer).unwrap(),
        checkpoint()
    );
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(fields: &[&[u8]]) -> Vec<u8> {
    fields.concat()
}

/// A volume of 1000 chunks and a bit.
fn geometry() -> Geometry {
    Geometry::new(1000 * 65536 + 1, ChunkSize::MIN).unwrap()
}

fn encoded(frame: DataFrame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn decode_header(bytes: &[u8]) -> Result<DataFrame, FrameError> {
    DataFrame::decode(bytes.try_into().unwrap(), &geometry(), Codecs::all())
}

fn check_preamble(preamble: Preamble, wire: &[u8]) {
    assert_eq!(preamble.encode(), wire);
    assert_eq!(Preamble::decode(wire.try_into().unwrap()), Ok(preamble));
}

fn check_header(frame: DataFrame, wire: &[u8]) {
    assert_eq!(encoded(frame), wire);
    assert_eq!(decode_header(wire), Ok(frame));
}

fn check_message(message: &Message, json: &str) {
    let json = json.trim_end();
    let frame = ControlFrame::encode(message).unwrap();
    let (header, body) = frame.split_at(ControlFrame::HEADER_LEN);
    assert_eq!(str::from_utf8(body).unwrap(), json);
    assert_eq!(
        ControlFrame::message_len(header.try_into().unwrap()),
        Ok(json.len())
    );
    check_reads(json, message);
}

fn check_reads(json: &str, message: &Message) {
    assert_eq!(
        ControlFrame::decode(json.as_bytes()).as_ref(),
        Ok(message),
        "{json}"
    );
}

fn hello() -> Hello {
    Hello {
        clone_id: Uuid::from_u128(0x01234567_89ab_4def_8123_456789abcdef),
        instance: Uuid::from_u128(0xfedcba98_7654_4321_8fed_cba987654321),
        attempt: 3,
        take_over: true,
        volume_size: 1 << 40,
        chunk_size: ChunkSize::MIN,
        streams: 4,
        streams_max: None,
        generation: "8:1 1099511627776".into(),
        features: vec!["tree".into()],
        required_features: vec!["tree".into()],
        agent: "volferry-source 0.1.0".into(),
        tree: None,
    }
}

fn welcome() -> Welcome {
    Welcome {
        epoch: 2,
        token: TokenText::new(TOKEN),
        chunk_size: ChunkSize::MIN,
        streams: 2,
        streams_max: None,
        durable: vec![Subtree {
            start: ChunkIndex(8),
            level: 3,
            digest: DIGEST,
        }],
        offer: true,
        compare: false,
        features: vec!["tree".into()],
        agent: "volferry-target 0.1.0".into(),
        tree: None,
    }
}

fn watermark() -> Watermark {
    Watermark {
        watermark: ChunkIndex(16),
        durable_bytes: 1 << 20,
        checked_bytes: 1 << 18,
        waits: None,
        bandwidth_limit: None,
    }
}

fn want() -> Want {
    let mut chunks = ChunkSet::default();
    for (start, end) in [(0, 2), (7, 8)] {
        chunks.insert(ChunkRange {
            start: ChunkIndex(start),
            end: ChunkIndex(end),
        });
    }
    Want {
        chunks,
        offer: true,
    }
}

fn checkpoint() -> Checkpoint {
    Checkpoint {
        clone_id: hello().clone_id,
        volume_size: hello().volume_size,
        chunk_size: hello().chunk_size,
        generation: hello().generation,
        epoch: 258,
        data_bytes: 512,
        taken_bytes: 768,
        matched_bytes: 1024,
        target_mark: 1280,
        witnesses: vec![Witness {
            index: ChunkIndex(9),
            digest: DIGEST,
        }],
        durable: welcome().durable,
        shut_out: vec![],
        holder: None,
    }
}

fn finish() -> Finish {
    Finish {
        digest: DIGEST,
        connections: None,
        sent: Sent {
            data_bytes: 4096,
            zero_bytes: 8192,
            wire_bytes: 5000,
        },
        source: Box::new(stats("volferry-source 0.1.0")),
        tree: None,
    }
}

fn failure() -> Failure {
    Failure::new(
        FailureCode::TargetTooSmall,
        "the target volume holds 1 byte",
    )
}

fn receipt() -> Receipt {
    Receipt {
        receipt_version: Receipt::VERSION,
        clone_id: hello().clone_id,
        digest: DIGEST,
        chunk_size: ChunkSize::DEFAULT,
        verified: Verified::Digest,
        logical_bytes: 12288,
        data_bytes: 4096,
        zero_bytes: 8192,
        wire_bytes: 5000,
        resumed_bytes: 1024,
        sent_bytes: 4096,
        resent_bytes: 512,
        matched_bytes: 256,
        repaired_bytes: 128,
        sessions: 3,
        seconds: 0.5,
        bytes_per_second: 24576.0,
        finished_unix_seconds: 1_800_000_000,
        source: stats("volferry-source 0.1.0"),
        target: stats("volferry-target 0.1.0"),
        limit: None,
        tree: None,
    }
}

fn stats(agent: &str) -> AgentStats {
    AgentStats {
        agent: agent.into(),
        cpu_seconds: 0.25,
        peak_memory_bytes: 1 << 25,
        transport: TransportStats::default(),
        compression: CompressionStats::default(),
        waits: None,
    }
}
