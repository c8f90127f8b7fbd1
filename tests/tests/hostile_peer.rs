//! A peer with good credentials and bad intentions, or merely broken: it gets nothing written that
//! was not checked, and the honest end says whose fault it was.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::json;
use volferry_protocol::compression::Codec;
use volferry_protocol::digest::{Digest, Subtree};
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::{ControlFrame, DataFrame, Preamble, SessionToken};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, ChunkSize};
use volferry_protocol::message::{Hello, Message, Watermark};
use volferry_protocol::receipt::{AgentStats, Receipt, Verified};
use volferry_tests::MIB;
use volferry_tests::agents::{Agent, Agents};
use volferry_tests::http::{eventually, metric, wait_until_settled};
use volferry_tests::peer::{self, FakeSource, FakeTarget, Peer, Wire, chunk, header};
use volferry_tests::programs::Ended;
use volferry_tests::volume::{self, DIRT};
use volferry_transport::Role;

/// Bytes of the volumes here: four chunks.
const SIZE: u64 = 4 * MIB;

/// A target agent over a dirty file, and a source that the test plays.
struct AgainstTarget {
    agents: Agents,
    target: Agent,
    source: FakeSource,
}

impl AgainstTarget {
    fn new() -> Self {
        Self::with(|hello| hello)
    }

    /// The source says what `say` makes of its hello.
    fn with(say: impl FnOnce(Hello) -> Hello) -> Self {
        let agents = Agents::default();
        let volume = agents.path("target");
        volume::create_dirty(&volume, SIZE);
        let target = agents.start_target(&volume, &["--overwrite", "--stall-timeout", "8s"]);
        let credentials = agents.identity.good(Role::Source);
        let clone_id = agents.identity.clone_id;
        let hello = say(peer::hello(clone_id, SIZE));
        let source = FakeSource::welcomed_with(target.address(), credentials, hello);
        Self {
            agents,
            target,
            source,
        }
    }

    /// Expects that the target told the source this failure, ended with it, and left all but its
    /// first `written` bytes as they were.
    #[track_caller]
    fn fails(mut self, code: FailureCode, words: &str, written: u64) {
        let told = self.source.control.hear_failure();
        assert_eq!(told.code, code, "{}", told.text);
        assert!(told.text.contains(words), "{}", told.text);
        drop(self.source);
        let exit_code = i32::from(code.class().exit_code());
        self.target.end().failed(exit_code, &[words]);
        let left = self.agents.receipt(Role::Target);
        // After a lost connection it waits for its source to come back.
        let left_code = match code {
            FailureCode::Disconnected => FailureCode::Stalled,
            code => code,
        };
        assert_eq!(left["failure"]["code"], left_code.label());
        volume::assert_holds_only(&self.agents.path("target"), written, SIZE, DIRT);
    }
}

fn data() -> Vec<u8> {
    (0..MIB)
        .map(|at| u8::try_from(at % 251).unwrap() | 1)
        .collect()
}

/// The proof that the sources here are otherwise honest: this one is, and gets its receipt.
#[test]
fn a_source_played_by_a_test_can_clone() {
    let data = data();
    let plain = (0..4).map(|index| chunk(index, &data));
    clones(AgainstTarget::new(), &plain.collect::<Vec<_>>());
    let compressed =
        |index, codec| peer::chunk_compressed(index, &data, codec, &peer::compress(codec, &data));
    let chunks = [
        compressed(0, Codec::Lz4),
        compressed(1, Codec::Zstd),
        chunk(2, &data),
        compressed(3, Codec::Zstd),
    ];
    clones(AgainstTarget::with(peer::able_to_compress), &chunks);
}

fn clones(mut ends: AgainstTarget, chunks: &[Vec<u8>]) {
    let data = data();
    let mut wire = ends.source.open_data(0);
    chunks.iter().for_each(|chunk| wire.send(chunk));
    wire.send(&header(DataFrame::End { frames: 4 }));
    wire.close();
    let finish = peer::finish(&[&data[..]; 4]);
    let digest = finish.digest;
    ends.source.control.say(&Message::Finish(finish));
    let receipt = loop {
        match ends.source.control.hear().unwrap() {
            Message::Receipt(receipt) => break receipt,
            other => assert!(matches!(other, Message::Watermark(_)), "{other:?}"),
        }
    };
    assert_eq!(receipt.digest, digest);
    drop(ends.source);
    let _proven = ends.target.end().succeeded();
    let content = volume::read(&ends.agents.path("target"), 0, SIZE);
    assert!(content == data.repeat(4));
}

#[test]
fn a_chunk_that_was_corrupted_on_the_way_is_not_written() {
    let ends = AgainstTarget::new();
    let mut changed = data();
    changed[12345] ^= 1;
    let frame = peer::chunk_with_digest(2, &changed, Digest::of_chunk(&data()));
    let mut wire = ends.source.open_data(0);
    wire.send(&frame);
    let words = "chunk 2 (bytes 2097152..3145728) arrived with other bytes";
    ends.fails(FailureCode::Integrity, words, 0);
}

/// Whatever a compressed payload says of itself, it becomes the chunk or nothing.
#[test]
fn compressed_payloads_that_are_none() {
    let data = data();
    let words = "chunk 2 (bytes 2097152..3145728) arrived with other bytes";
    for codec in Codec::ALL.iter().copied() {
        let good = peer::compress(codec, &data);
        let longer = peer::compress(codec, &data.repeat(64));
        let shorter = peer::compress(codec, &data[1..]);
        let mut bent = good.clone();
        bent[good.len() / 2] ^= 0xff;
        let cut = good[..good.len() - 1].to_vec();
        for bytes in [longer, shorter, bent, cut, vec![0xff; 4096], vec![0]] {
            let ends = AgainstTarget::with(peer::able_to_compress);
            let mut wire = ends.source.open_data(0);
            wire.send(&peer::chunk_compressed(2, &data, codec, &bytes));
            ends.fails(FailureCode::Integrity, words, 0);
        }
    }
}

/// Nothing is allocated for a length that can't be, and what was not agreed on is not done.
#[test]
fn compressed_headers_that_are_none() {
    let data = data();
    let good = peer::chunk_compressed(0, &data, Codec::Lz4, &peer::compress(Codec::Lz4, &data));
    let bent = |codec: u8, len: u64| {
        let mut frame = good.clone();
        frame[1] = codec;
        frame[16..24].copy_from_slice(&len.to_be_bytes());
        frame
    };
    for (frame, words) in [
        (bent(1, 0), "0 bytes by codec 1"),
        (bent(1, MIB), "1048576 bytes by codec 1"),
        (bent(2, u64::MAX), "18446744073709551615 bytes by codec 2"),
        (bent(3, 5), "5 bytes by codec 3"),
        (bent(0, 5), "5 bytes by codec 0"),
    ] {
        let ends = AgainstTarget::with(peer::able_to_compress);
        let mut wire = ends.source.open_data(0);
        wire.send(&frame);
        ends.fails(FailureCode::Protocol, words, 0);
    }
    let ends = AgainstTarget::new();
    let mut wire = ends.source.open_data(0);
    wire.send(&good);
    let words = "compressed by lz4, on which the ends have not agreed";
    ends.fails(FailureCode::Protocol, words, 0);
}

#[test]
fn a_digest_of_another_volume_is_not_receipted() {
    let mut ends = AgainstTarget::new();
    let data = data();
    let mut wire = ends.source.open_data(0);
    (0..4).for_each(|index| wire.send(&chunk(index, &data)));
    wire.send(&header(DataFrame::End { frames: 4 }));
    let mut finish = peer::finish(&[&data[..]; 4]);
    finish.digest.0[31] ^= 1;
    ends.source.control.say(&Message::Finish(finish));
    ends.fails(
        FailureCode::Integrity,
        "the chunks that arrived make another",
        SIZE,
    );
}

/// Whatever lies in a header, nothing of it is written.
#[test]
fn frames_that_are_none() {
    let bytes = data();
    let good = chunk(0, &bytes);
    let bent = |at: usize, byte: u8| {
        let mut frame = good.clone();
        frame[at] = byte;
        frame
    };
    let chunk_header = |index, payload_len| {
        header(DataFrame::Chunk {
            index: ChunkIndex(index),
            digest: Digest::of_chunk(&bytes),
            payload_len,
            compressed: None,
        })
    };
    let zero = |start, end| {
        let (start, end) = (ChunkIndex(start), ChunkIndex(end));
        header(DataFrame::Zero {
            chunks: ChunkRange { start, end },
        })
    };
    let mib = u32::try_from(MIB).unwrap();
    for (frame, words) in [
        (bent(0, 9), "kind 9 is not known"),
        (bent(0, 0), "kind 0 is not known"),
        (bent(3, 1), "reserved bytes are not zero"),
        (chunk_header(4, mib), "lie outside the volume"),
        (chunk_header(u64::MAX, mib), "lie outside the volume"),
        (chunk_header(0, 0), "0 bytes of payload"),
        (chunk_header(0, mib + 1), "1048577 bytes of payload"),
        (chunk_header(0, u32::MAX), "4294967295 bytes of payload"),
        // All 256 blocks are said to hold data, and the payload to be one byte short.
        (
            [chunk_header(0, mib - 1), good[56..].to_vec()].concat(),
            "the zero map of chunk 0",
        ),
        (zero(0, 0), "lie outside the volume"),
        (zero(0, 5), "lie outside the volume"),
        (zero(3, u64::MAX), "lie outside the volume"),
        (header(DataFrame::End { frames: 1 }), "ended after 0 frames"),
        (b"\xff".repeat(4096), "is no frame"),
    ] {
        let ends = AgainstTarget::new();
        let mut wire = ends.source.open_data(1);
        wire.send(&frame);
        ends.fails(FailureCode::Protocol, words, 0);
    }
}

#[test]
fn a_chunk_that_comes_twice() {
    let ends = AgainstTarget::new();
    let mut wire = ends.source.open_data(0);
    wire.send(&chunk(0, &data()));
    wire.send(&chunk(0, &data()));
    ends.fails(FailureCode::Protocol, "chunks 0..1 came twice", MIB);
}

/// The second of two is refused before it is written: what the first brought stays.
#[test]
fn a_chunk_that_came_is_not_overwritten() {
    let data = data();
    let mut other = data.clone();
    other[0] ^= 1;
    let chunks = ChunkRange {
        start: ChunkIndex(0),
        end: ChunkIndex(2),
    };
    for second in [chunk(0, &other), header(DataFrame::Zero { chunks })] {
        let ends = AgainstTarget::new();
        let volume = ends.agents.path("target");
        let mut wire = ends.source.open_data(0);
        wire.send(&chunk(0, &data));
        eventually("the first is written", || {
            volume::read(&volume, 0, MIB) == data
        });
        let mut wire = ends.source.open_data(1);
        wire.send(&second);
        let told = {
            let mut source = ends.source;
            source.control.hear_failure()
        };
        assert_eq!(told.code, FailureCode::Protocol);
        assert!(told.text.contains("came twice"), "{}", told.text);
        ends.target.end().failed(5, &["came twice"]);
        assert!(volume::read(&volume, 0, MIB) == data);
        volume::assert_holds_only(&volume, MIB, SIZE, DIRT);
    }
}

#[test]
fn zeros_over_a_chunk_that_came() {
    let ends = AgainstTarget::new();
    let mut wire = ends.source.open_data(0);
    wire.send(&chunk(0, &data()));
    let chunks = ChunkRange {
        start: ChunkIndex(0),
        end: ChunkIndex(1),
    };
    wire.send(&header(DataFrame::Zero { chunks }));
    ends.fails(FailureCode::Protocol, "chunks 0..1 came twice", MIB);
}

#[test]
fn a_connection_that_ends_within_a_frame() {
    for len in [17, 56 + 5, 56 + 32 + 4096, 56 + 32 + (1 << 20) - 1] {
        let ends = AgainstTarget::new();
        let mut wire = ends.source.open_data(0);
        wire.send(&chunk(0, &data())[..len]);
        wire.close();
        ends.fails(FailureCode::Disconnected, "closed", 0);
    }
}

#[test]
fn a_source_that_leaves_before_all_was_sent() {
    let mut ends = AgainstTarget::new();
    let data = data();
    let mut wire = ends.source.open_data(0);
    wire.send(&chunk(0, &data));
    wire.send(&header(DataFrame::End { frames: 1 }));
    let finish = peer::finish(&[&data[..]; 4]);
    ends.source.control.say(&Message::Finish(finish));
    ends.source.control.close();
    ends.target.end().failed(5, &["closed"]);
    let left = ends.agents.receipt(Role::Target);
    assert_eq!(left["failure"]["code"], "stalled");
    volume::assert_holds_only(&ends.agents.path("target"), MIB, SIZE, DIRT);
}

/// It goes on pinging, and still doesn't hold the target for ever.
#[test]
fn a_source_that_finishes_before_all_was_sent() {
    let mut ends = AgainstTarget::new();
    let data = data();
    for (number, chunks) in [(0, 0..2), (1, 2..3)] {
        let mut wire = ends.source.open_data(number);
        let frames = chunks.end - chunks.start;
        chunks.for_each(|index| wire.send(&chunk(index, &data)));
        wire.send(&header(DataFrame::End { frames }));
        wire.close();
    }
    let finish = peer::finish(&[&data[..]; 4]);
    ends.source.control.say(&Message::Finish(finish));
    ends.source.control.say(&Message::Ping);
    let words = "the source finished, and chunk 3 never came";
    ends.fails(FailureCode::Protocol, words, 3 * MIB);
}

#[test]
fn messages_at_the_wrong_time() {
    let hello = |ends: &AgainstTarget| peer::hello(ends.agents.identity.clone_id, SIZE);
    let ends = AgainstTarget::new();
    let again = Message::Hello(hello(&ends));
    let finish = Message::Finish(peer::finish(&[&data()[..]; 4]));
    for (messages, words) in [
        (vec![again], "sent hello in the stage transfer"),
        (
            vec![Message::Watermark(Watermark::default())],
            "sent watermark in the stage transfer",
        ),
        (
            vec![finish.clone(), finish],
            "sent finish in the stage verify",
        ),
    ] {
        let mut ends = AgainstTarget::new();
        for message in messages {
            ends.source.control.say(&message);
        }
        ends.fails(FailureCode::Protocol, words, 0);
    }
}

/// Who can't be understood is told so, whatever it says behind that.
#[test]
fn a_message_that_is_none() {
    for json in ["null", "{}", "{\"type\":\"solar_flare\"}"] {
        let mut ends = AgainstTarget::new();
        ends.source.control.say_json(json);
        ends.source.control.send(&[b' '; 4096]);
        let words = "the source agent sent what is no frame";
        ends.fails(FailureCode::Protocol, words, 0);
    }
}

/// Only the control connection knows the token; and each number comes in once.
#[test]
fn data_connections_that_do_not_belong_to_the_session() {
    let mut ends = AgainstTarget::new();
    let data = data();
    let mut first = ends.source.open_data(0);
    first.send(&chunk(0, &data));
    let strange = SessionToken([0; 32]);
    for mut wire in [
        ends.source.open_data_with(1, strange),
        ends.source.open_data(0),
        ends.source.open_data(2),
        ends.source.open_data(u16::MAX),
    ] {
        wire.send(&chunk(1, &data));
        wire.wait_until_closed();
    }
    let admin = ends.target.admin();
    let counted = "volferry_rejections_total{reason=\"no_session\"}";
    eventually(counted, || metric(admin, counted) == 4.0);
    volume::assert_holds_only(&ends.agents.path("target"), MIB, SIZE, DIRT);

    // The session goes on as if nobody had come.
    let mut second = ends.source.open_data(1);
    (1..4).for_each(|index| second.send(&chunk(index, &data)));
    first.send(&header(DataFrame::End { frames: 1 }));
    second.send(&header(DataFrame::End { frames: 3 }));
    let finish = peer::finish(&[&data[..]; 4]);
    ends.source.control.say(&Message::Finish(finish));
    while !matches!(ends.source.control.hear().unwrap(), Message::Receipt(_)) {}
    drop((ends.source, first, second));
    let _proven = ends.target.end().succeeded();
}

#[test]
fn a_second_source_is_told_that_the_target_is_busy() {
    let mut ends = AgainstTarget::new();
    let volume = ends.agents.path("source");
    volume::create(&volume, SIZE, 1);
    let second =
        ends.agents
            .start_source(ends.target.address(), &volume, &["--connect-timeout", "1"]);
    second
        .end()
        .failed(5, &["this target serves another session"]);
    let failure = &ends.agents.receipt(Role::Source)["failure"];
    assert_eq!(failure["code"], "busy");
    assert_eq!(failure["retryable"], true);
    let admin = ends.target.admin();
    assert!(metric(admin, "volferry_rejections_total{reason=\"busy\"}") >= 1.0);
    assert!(ends.target.is_running());
    ends.source.control.close();
    ends.target.end().failed(5, &["closed"]);
}

/// A greeting that makes no sense costs the target nothing: it waits on for its source.
#[test]
fn greetings_that_make_no_sense() {
    let agents = Agents::default();
    let [source_volume, target_volume] = ["source", "target"].map(|name| agents.path(name));
    volume::create(&source_volume, SIZE, 1);
    volume::create_dirty(&target_volume, SIZE);
    let mut target = agents.start_target(&target_volume, &["--overwrite"]);
    let admin = target.admin();
    let peer = Peer::default();
    let dial = || peer.dial(target.address(), agents.identity.good(Role::Source));

    let mut dropped = 0.0;
    for bytes in [
        [b'x'; Preamble::LEN],
        [0; Preamble::LEN],
        *b"VFRY\x09\x01..................................",
        *b"VFRY\x01\x07..................................",
    ] {
        let mut wire = dial();
        wire.send(&bytes);
        wire.wait_until_closed();
        dropped += 1.0;
        let counted = "volferry_rejections_total{reason=\"no_preamble\"}";
        eventually(counted, || metric(admin, counted) == dropped);
    }

    let hello = Message::Hello(peer::hello(agents.identity.clone_id, SIZE));
    let with = |field: &str, value| {
        let mut json = serde_json::to_value(&hello).unwrap();
        // Each is another run of a source: an old greeting would be no session.
        json["instance"] = json!(uuid::Uuid::new_v4());
        json[field] = value;
        let json = json.to_string().into_bytes();
        [&u32::try_from(json.len()).unwrap().to_be_bytes()[..], &json].concat()
    };
    let mut failed = 0.0;
    for (bytes, code) in [
        (b"\xff\xff\xff\xff".to_vec(), "protocol"),
        (b"\x00\x10\x00\x01".to_vec(), "protocol"),
        (b"\0\0\0\x00".to_vec(), "protocol"),
        (b"\0\0\0\x04null".to_vec(), "protocol"),
        (b"\0\0\0\x04\xff\xfe\xfd\xfc".to_vec(), "protocol"),
        (with("type", json!("solar_flare")), "protocol"),
        (with("type", json!("finish")), "protocol"),
        (with("chunk_size", json!(3)), "protocol"),
        (with("chunk_size", json!(1u64 << 40)), "protocol"),
        (with("volume_size", json!(u64::MAX)), "protocol"),
        (with("volume_size", json!(-1)), "protocol"),
        (with("streams", json!(0)), "protocol"),
        (with("required_features", json!(["warp"])), "unsupported"),
        (with("clone_id", json!(uuid::Uuid::new_v4())), "wrong_clone"),
        (with("agent", json!("x"))[..40].to_vec(), "disconnected"),
    ] {
        let counted = format!("volferry_failures_total{{code=\"{code}\"}}");
        let before = metric(admin, &counted);
        let mut wire = dial();
        wire.send(&Preamble::Control.encode());
        wire.send(&bytes);
        wire.close();
        eventually(&counted, || metric(admin, &counted) == before + 1.0);
        failed += 1.0;
    }
    assert_eq!(failed, 15.0);
    volume::assert_holds_only(&target_volume, 0, SIZE, DIRT);

    let source = agents.start_source(target.address(), &source_volume, &[]);
    let _proven = source.end().succeeded();
    let ended = target.end().succeeded();
    assert!(
        ended.peak_memory_bytes < 96 << 20,
        "nothing large is taken in"
    );
    volume::assert_same(&source_volume, &target_volume, SIZE);
}

/// A source agent against a target that the test plays.
#[track_caller]
fn against_source(play: impl FnOnce(&mut FakeTarget, Wire, &Hello)) -> (Ended, Agents) {
    let agents = Agents::default();
    let volume = agents.path("source");
    volume::create_dense(&volume, SIZE, 1);
    let peer = Peer::default();
    let mut target = peer.listen(agents.identity.good(Role::Target));
    let impatient = ["--connect-timeout", "1", "--stall-timeout", "3s"];
    let source = agents.start_source(target.address(), &volume, &impatient);
    let (control, hello) = target.greet();
    assert_eq!(hello.volume_size, SIZE);
    assert_eq!(hello.clone_id, agents.identity.clone_id);
    play(&mut target, control, &hello);
    drop(target);
    (source.end(), agents)
}

/// Welcomes with one data connection, takes all there is, and gives the source's digest.
fn take_all(target: &mut FakeTarget, control: &mut Wire, hello: &Hello) -> Digest {
    let mut welcome = peer::welcome(hello);
    welcome.streams = 1;
    let token = welcome.token.token();
    control.say(&Message::Welcome(welcome));
    let (mut data, preamble) = target.accept();
    assert_eq!(preamble, Preamble::Data { number: 0, token });
    data.wait_until_closed();
    data.close();
    loop {
        match control.hear().unwrap() {
            Message::Finish(finish) => return finish.digest,
            other => assert_eq!(other, Message::Ping),
        }
    }
}

fn receipt(hello: &Hello, digest: Digest) -> Message {
    Message::Receipt(Box::new(Receipt {
        receipt_version: Receipt::VERSION,
        clone_id: hello.clone_id,
        digest,
        chunk_size: hello.chunk_size,
        verified: Verified::Digest,
        logical_bytes: hello.volume_size,
        data_bytes: hello.volume_size,
        zero_bytes: 0,
        wire_bytes: 0,
        resumed_bytes: 0,
        sent_bytes: 0,
        resent_bytes: 0,
        matched_bytes: 0,
        repaired_bytes: 0,
        sessions: 1,
        seconds: 1.0,
        bytes_per_second: 1.0,
        finished_unix_seconds: 1,
        source: AgentStats::default(),
        target: AgentStats::default(),
        limit: None,
        tree: None,
    }))
}

/// The proof that the targets here are otherwise honest.
#[test]
fn a_source_believes_a_receipt_for_its_digest() {
    let (ended, agents) = against_source(|target, mut control, hello| {
        let digest = take_all(target, &mut control, hello);
        control.say(&receipt(hello, digest));
        control.wait_until_closed();
    });
    let _proven = ended.succeeded();
    assert_eq!(agents.receipt(Role::Source)["logical_bytes"], SIZE);
}

#[test]
fn a_source_does_not_believe_a_receipt_for_another_digest() {
    let (ended, agents) = against_source(|target, mut control, hello| {
        let mut digest = take_all(target, &mut control, hello);
        digest.0[0] ^= 1;
        control.say(&receipt(hello, digest));
        control.wait_until_closed();
    });
    ended.failed(7, &["the target's receipt is for digest"]);
    assert_eq!(agents.receipt(Role::Source)["failure"]["code"], "integrity");
}

#[test]
fn a_source_does_not_believe_a_receipt_for_another_clone() {
    let (ended, _) = against_source(|target, mut control, hello| {
        let digest = take_all(target, &mut control, hello);
        let mut other = hello.clone();
        other.clone_id = uuid::Uuid::new_v4();
        control.say(&receipt(&other, digest));
        control.wait_until_closed();
    });
    ended.failed(7, &["receipt"]);
}

#[test]
fn welcomes_that_make_no_sense() {
    let subtree = |level, start| Subtree {
        level,
        start: ChunkIndex(start),
        digest: Digest([7; 32]),
    };
    type Bend = Box<dyn FnOnce(&mut volferry_protocol::message::Welcome)>;
    let bends: [(Bend, &str); 6] = [
        (Box::new(|welcome| welcome.streams = 0), "grants 0 streams"),
        (
            Box::new(|welcome| welcome.streams = 65),
            "grants 65 streams",
        ),
        (
            Box::new(|welcome| welcome.chunk_size = ChunkSize::MAX),
            "chose a chunk size of 8388608",
        ),
        (
            Box::new(move |welcome| welcome.durable = vec![subtree(0, 4)]),
            "the target's durable set",
        ),
        (
            Box::new(move |welcome| welcome.durable = vec![subtree(63, 1)]),
            "the target's durable set",
        ),
        (
            Box::new(move |welcome| welcome.durable = vec![subtree(0, 1), subtree(0, 1)]),
            "the target's durable set",
        ),
    ];
    for (bend, words) in bends {
        let (ended, agents) = against_source(|_, mut control, hello| {
            let mut welcome = peer::welcome(hello);
            bend(&mut welcome);
            control.say(&Message::Welcome(welcome));
            let told = control.hear_failure();
            assert_eq!(told.code, FailureCode::Protocol);
            assert!(told.text.contains(words), "{}", told.text);
        });
        ended.failed(5, &[words]);
        assert_eq!(agents.receipt(Role::Source)["failure"]["code"], "protocol");
    }
}

#[test]
fn answers_that_are_none() {
    let too_long = u32::try_from(ControlFrame::MESSAGE_LEN_MAX + 1).unwrap();
    for bytes in [
        &b"\xff\xff\xff\xff"[..],
        &too_long.to_be_bytes(),
        b"\0\0\0\0",
        b"\0\0\0\x04null",
        b"\0\0\0\x02{}",
        b"\0\0\0\x04\xff\xfe\xfd\xfc",
    ] {
        let words = "the target agent sent what is no frame";
        let (ended, _) = against_source(|_, mut control, _| {
            control.send(bytes);
            control.send(&[b' '; 4096]);
            let told = control.hear_failure();
            assert_eq!(told.code, FailureCode::Protocol);
            assert!(told.text.contains(words), "{}", told.text);
        });
        ended.failed(5, &[words]);
    }
}

#[test]
fn a_receipt_before_anything_was_sent() {
    let (ended, agents) = against_source(|_, mut control, hello| {
        control.say(&receipt(hello, Digest([0; 32])));
        control.wait_until_closed();
    });
    ended.failed(5, &["sent receipt in the stage handshake"]);
    assert!(agents.receipt(Role::Source).get("digest").is_none());
}

/// A peer's words are shown as the peer's, and can't drive a terminal.
#[test]
fn words_of_a_target_are_tamed() {
    let (ended, _) = against_source(|_, mut control, _| {
        let text = format!("\x1b[2J\x07all is well{}", "!".repeat(100_000));
        control.say(&Message::Error(Failure::new(
            FailureCode::TargetWrite,
            text,
        )));
        control.wait_until_closed();
    });
    let ended = ended.failed(4, &["the target agent says: [2Jall is well"]);
    assert!(!ended.stderr.contains(['\x1b', '\x07']));
    assert!(ended.stderr.len() < 10_000);
}

#[test]
fn a_target_that_hangs_up() {
    let (ended, agents) = against_source(|_, control, _| control.close());
    ended.failed(5, &["closed"]);
    assert_eq!(agents.receipt(Role::Source)["failure"]["code"], "connect");
}

/// No buffer, no read: a target that takes nothing costs the source nothing but its budget.
#[test]
fn a_target_that_takes_nothing() {
    let agents = Agents::default();
    let volume = agents.path("source");
    volume::create_dense(&volume, 160 * MIB, 1);
    let peer = Peer::default();
    let mut target = peer.listen(agents.identity.good(Role::Target));
    let mut source = agents.start_source(
        target.address(),
        &volume,
        &["--memory-mib", "16", "--stall-timeout", "30s"],
    );
    let admin = source.admin();
    let (mut control, hello) = target.greet();
    let mut welcome = peer::welcome(&hello);
    welcome.streams = 1;
    control.say(&Message::Welcome(welcome));
    let (data, _) = target.accept();
    // It sends what the sockets take, and then waits.
    eventually("the first chunk", || {
        metric(admin, "volferry_wire_bytes_total") > 0.0
    });
    wait_until_settled(admin, "volferry_peak_memory_bytes");
    control.close();
    let ended = source.end().failed(5, &["closed"]);
    drop(data);
    let peak = ended.peak_memory_bytes;
    assert!(peak < 64 << 20, "the source took {peak} bytes");
}
