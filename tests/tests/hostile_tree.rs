//! A source with good credentials and bad intentions: nothing outside of the target's directory is
//! made, changed or read, whatever it sends.
//!
//! The classes of attack are those of the advisories on rsync's receiver, 3.2 to 3.5. What each
//! became here:
//!
//! | advisory | class | test |
//! |---|---|---|
//! | CVE-2022-29154 | the sender chooses names that lead elsewhere | `names_that_lead_elsewhere` |
//! | CVE-2024-12084 | a length of the sender overruns a buffer | `lengths_that_can_not_be` |
//! | CVE-2024-12086 | the receiver tells what its own files hold | `what_is_there_is_never_read`, `what_is_held_is_not_told_and_not_kept` |
//! | CVE-2024-12087 | a link that was sent, then a path through it | `paths_through_links` |
//! | CVE-2024-12088 | a link that leads out is followed later | `paths_through_links` |
//! | CVE-2024-12747 | a file becomes a link between two looks | `what_is_there_is_never_followed` |
//! | CVE-2025-10158 | an index of the sender outside of what there is | `numbers_that_can_not_be` |
//!
//! CVE-2024-12085 (uninitialized memory in an answer) has no counterpart: there is none.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;

use rustix::process::Signal;
use volferry_protocol::compression::Codec;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::FailureCode;
use volferry_protocol::message::{Finish, Message, Sent, TREE_FEATURES};
use volferry_protocol::tree::file_digest::{self, PIECE_LEN, PieceDigest};
use volferry_protocol::tree::frame::TreeFrame;
use volferry_protocol::tree::offer::{Holding, Offer, Stamp, Voucher};
use volferry_protocol::tree::path::{Name, TreePath};
use volferry_protocol::tree::record::{Entry, Metadata, Record, Special, Time, Xattr};
use volferry_protocol::tree::session::TreeFinish;
use volferry_protocol::tree::set_digest::TreeCounts;
use volferry_protocol::zero_map::ZeroMap;
use volferry_tests::MIB;
use volferry_tests::agents::{Agent, Agents};
use volferry_tests::peer::{
    FakeSource, Peer, Wire, able_to_compress, compress, compressed_to, hello_tree, pack,
    pack_compressed, tree_header, welcome,
};
use volferry_transport::Role;

/// A target agent over a directory, beside another directory that is nobody's business.
struct AgainstTarget {
    agents: Agents,
    target: Agent,
    source: FakeSource,
    wire: Wire,
}

impl AgainstTarget {
    fn new(arguments: &[&str], plant: impl FnOnce(&PathBuf, &PathBuf)) -> Self {
        let agents = Agents::default();
        let (outside, inside) = (agents.path("outside"), agents.path("target"));
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("canary"), "alive").unwrap();
        fs::create_dir(&inside).unwrap();
        plant(&inside, &outside);
        let target = agents.start_target(&inside, arguments);
        let credentials = agents.identity.good(Role::Source);
        let hello = able_to_compress(hello_tree(agents.identity.clone_id));
        let source = FakeSource::welcomed_with(target.address(), credentials, hello);
        let wire = source.open_data(0);
        Self {
            agents,
            target,
            source,
            wire,
        }
    }

    fn fresh() -> Self {
        Self::new(&[], |_, _| {})
    }

    /// Sends frames as the only connection, and says that this is all.
    fn send_all(&mut self, frames: &[Vec<u8>]) {
        frames.iter().for_each(|frame| self.wire.send(frame));
        let frames = frames.len() as u64;
        self.wire.send(&tree_header(TreeFrame::End { frames }));
        self.source.control.say(&Message::Finish(Finish {
            digest: Digest([7; 32]),
            connections: None,
            sent: Sent::default(),
            source: Box::default(),
            tree: Some(TreeFinish::default()),
        }));
    }

    /// Expects that the target told this failure and ended with it, and that nothing outside of its
    /// directory is another.
    #[track_caller]
    fn fails(mut self, code: FailureCode, words: &str) -> Agents {
        let told = self.source.control.hear_failure();
        assert_eq!(told.code, code, "{}", told.text);
        assert!(
            told.text.contains(words),
            "{words:?} is not in {}",
            told.text
        );
        drop((self.source, self.wire));
        self.target
            .end()
            .failed(i32::from(code.class().exit_code()), &[words]);
        let outside = self.agents.path("outside");
        let names: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["canary"]);
        assert_eq!(fs::read_to_string(outside.join("canary")).unwrap(), "alive");
        assert_eq!(fs::metadata(outside.join("canary")).unwrap().nlink(), 1);
        self.agents
    }
}

const STAMP: Stamp = Stamp([8; 16]);

fn records(records: &[Record<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    records.iter().for_each(|record| record.encode(&mut bytes));
    bytes
}

fn enter(path: &[u8]) -> Record<'static> {
    Record::Enter(TreePath::new(path).unwrap())
}

fn entry(name: &str) -> Entry<'_> {
    Entry {
        name: Name::new(name.as_bytes()).unwrap(),
        group: 0,
        metadata: Metadata {
            mode: 0o644,
            ..Metadata::default()
        },
    }
}

fn file<'a>(name: &'a str, data: &'a [u8]) -> Record<'a> {
    Record::File {
        entry: entry(name),
        stamp: STAMP,
        digest: file_digest::of_bytes(data),
        zero_map: ZeroMap::all_data(u32::try_from(data.len()).unwrap()),
        data,
    }
}

fn link_to<'a>(name: &'a str, target: &'a [u8]) -> Record<'a> {
    Record::Special {
        entry: entry(name),
        special: Special::Symlink(target),
    }
}

fn begin(file: u64, size: u64) -> Vec<u8> {
    tree_header(TreeFrame::Begin {
        file,
        size,
        stamp: STAMP,
        path_len: 0,
    })
}

fn piece(file: u64, index: u64, bytes: &[u8]) -> Vec<u8> {
    let zero_map = ZeroMap::all_data(u32::try_from(bytes.len()).unwrap());
    let mut frame = tree_header(TreeFrame::Piece {
        file,
        index,
        len: zero_map.chunk_len(),
        payload_len: zero_map.chunk_len(),
        digest: PieceDigest::of(index, bytes).chaining_value,
        compressed: None,
    });
    zero_map.encode(&mut frame);
    frame.extend(bytes);
    frame
}

/// The proof that the sources here are otherwise honest: their frames are applied, and only the
/// digest, which they don't compute, is missed.
#[test]
fn a_source_played_by_a_test_is_understood() {
    let mut ends = AgainstTarget::fresh();
    let directory = records(&[
        enter(b"dir"),
        Record::Directory(Metadata::default()),
        file("a", b"b"),
    ]);
    let many = records(&[enter(b"dir"), file("many", &[b'c'; 4096])]);
    let compressed = |codec| pack_compressed(1, &many, codec, &compress(codec, &many));
    for codec in Codec::ALL.iter().copied() {
        ends.send_all(&[pack(0, &directory), compressed(codec)]);
        let agents = ends.fails(FailureCode::Integrity, "what was written makes");
        let read = |name: &str| fs::read_to_string(agents.path(name)).unwrap();
        assert_eq!(read("target/dir/a"), "b");
        assert_eq!(read("target/dir/many"), "c".repeat(4096));
        ends = AgainstTarget::fresh();
    }
}

/// Whatever a compressed payload says of itself, it becomes the pack or the piece, or nothing.
#[test]
fn compressed_payloads_that_are_none() {
    let many = records(&[enter(b""), file("many", &[b'c'; 4096])]);
    for codec in Codec::ALL.iter().copied() {
        let good = compress(codec, &many);
        let cut = good[..good.len() - 1].to_vec();
        let longer = compress(codec, &many.repeat(8));
        for bytes in [cut, longer, vec![0xff; 100], vec![0]] {
            let mut ends = AgainstTarget::fresh();
            ends.wire.send(&pack_compressed(7, &many, codec, &bytes));
            let agents = ends.fails(FailureCode::Integrity, "pack 7");
            assert!(!agents.path("target/many").exists());
        }
        let mut ends = AgainstTarget::fresh();
        ends.wire.send(&begin(1, 8192));
        let (content, other) = ([1; 8192], compress(codec, &[2; 8192]));
        let zero_map = ZeroMap::all_data(8192);
        let mut frame = tree_header(TreeFrame::Piece {
            file: 1,
            index: 0,
            len: 8192,
            payload_len: 8192,
            digest: PieceDigest::of(0, &content).chaining_value,
            compressed: Some(compressed_to(codec, &other)),
        });
        zero_map.encode(&mut frame);
        frame.extend(&other);
        ends.wire.send(&frame);
        let _agents = ends.fails(FailureCode::Integrity, "");
    }
    let mut ends = AgainstTarget::fresh();
    let mut frame = pack_compressed(0, &many, Codec::Lz4, &many);
    ends.wire.send(&frame);
    let _agents = ends.fails(FailureCode::Protocol, "by codec 1");
    ends = AgainstTarget::fresh();
    frame[1] = 4;
    ends.wire.send(&frame);
    let _agents = ends.fails(FailureCode::Protocol, "by codec 4");
}

/// CVE-2022-29154: the names of the source lead nowhere but down.
#[test]
fn names_that_lead_elsewhere() {
    // A name is checked where records are made, so a bad one is put in by hand.
    let bad_name = |name: &[u8]| {
        let good = records(&[enter(b""), file(&"x".repeat(name.len()), b"y")]);
        let at = good.windows(2).position(|two| two == b"xx").unwrap_or(8);
        let mut bad = good;
        bad[at..at + name.len()].copy_from_slice(name);
        bad
    };
    let bad_path = |path: &[u8]| {
        let mut bad = vec![1];
        bad.extend(u32::try_from(path.len()).unwrap().to_be_bytes());
        bad.extend(path);
        bad
    };
    for (bytes, words) in [
        (bad_name(b".."), "\"..\""),
        (bad_name(b"a/b"), "slash"),
        (bad_name(b"../outside/canary"), "slash"),
        (bad_name(b"/etc"), "slash"),
        (bad_name(b"a\0b"), "zero byte"),
        (bad_path(b"/etc"), "empty"),
        (bad_path(b"../outside"), "\"..\""),
        (bad_path(b"a/../../outside"), "\"..\""),
        (bad_path(b"a//b"), "empty"),
        (bad_path(b"./a"), "\".\""),
        (bad_path(&b"a/".repeat(200_000)), "bytes"),
    ] {
        let mut ends = AgainstTarget::fresh();
        ends.wire.send(&pack(0, &bytes));
        let _agents = ends.fails(FailureCode::Protocol, words);
    }
    // Names that are the clone's own, or the filesystem's.
    let staging = |ends: &AgainstTarget| format!(".volferry-{}", ends.agents.identity.clone_id);
    for place in [0, 1, 2] {
        let mut ends = AgainstTarget::fresh();
        let staging = staging(&ends);
        let records = match place {
            0 => records(&[enter(b""), file(&staging, b"x")]),
            1 => records(&[
                enter(format!("{staging}/links").as_bytes()),
                file("1", b"x"),
            ]),
            _ => records(&[enter(b"lost+found"), file("x", b"x")]),
        };
        ends.wire.send(&pack(0, &records));
        let _agents = ends.fails(FailureCode::Protocol, "never travels");
    }
}

/// CVE-2024-12087 and CVE-2024-12088: no link that the source made is ever followed.
#[test]
fn paths_through_links() {
    let through = |target: &'static [u8]| {
        [
            records(&[enter(b""), link_to("way", target)]),
            records(&[enter(b"way"), file("canary", b"dead")]),
        ]
    };
    for target in [&b"../outside"[..], b"/tmp", b"/proc/self/root", b"."] {
        let mut ends = AgainstTarget::fresh();
        let [link, file] = through(target);
        // One pack after the other, and both in one.
        ends.wire.send(&pack(0, &[link, file].concat()));
        let _agents = ends.fails(FailureCode::Protocol, "no directory");
    }
    // A directory's metadata is not put on what a link leads to either.
    let mut ends = AgainstTarget::fresh();
    let list = records(&[
        enter(b""),
        link_to("way", b"../outside"),
        enter(b"way/canary"),
        Record::Directory(Metadata::default()),
    ]);
    ends.send_all(&[pack(0, &list)]);
    let _agents = ends.fails(FailureCode::Protocol, "no directory");
    // A file of the name of a link doesn't go where the link leads.
    let mut ends = AgainstTarget::fresh();
    let list = records(&[enter(b""), link_to("a", b"../outside/new"), file("a", b"x")]);
    ends.wire.send(&pack(0, &list));
    let _agents = ends.fails(FailureCode::Protocol, "twice");
}

/// CVE-2024-12747: links and files that are there already, planted by somebody before or between,
/// are replaced and never opened.
#[test]
fn what_is_there_is_never_followed() {
    let mut ends = AgainstTarget::new(&["--overwrite"], |inside, outside| {
        symlink(outside, inside.join("dir")).unwrap();
        symlink(outside.join("canary"), inside.join("file")).unwrap();
        fs::create_dir(inside.join("full")).unwrap();
        symlink(outside, inside.join("full/way")).unwrap();
        // Another name of the canary, which must not be written through.
        fs::hard_link(outside.join("canary"), inside.join("hard")).unwrap();
    });
    let large = vec![3; PIECE_LEN as usize];
    let digest = file_digest::of_bytes(&large);
    let large_record = Record::LargeFile {
        entry: entry("hard"),
        file: 1,
        size: u64::from(PIECE_LEN),
        digest,
    };
    let list = records(&[
        enter(b"dir"),
        Record::Directory(Metadata::default()),
        file("canary", b"dead"),
        enter(b""),
        file("file", b"dead"),
        file("full", b"now a file"),
        large_record,
    ]);
    ends.send_all(&[pack(0, &list), piece(1, 0, &large), begin(1, MIB)]);
    let agents = ends.fails(FailureCode::Integrity, "what was written makes");
    assert_eq!(
        fs::read_to_string(agents.path("target/dir/canary")).unwrap(),
        "dead"
    );
    assert!(
        !fs::symlink_metadata(agents.path("target/dir"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(fs::read(agents.path("target/hard")).unwrap(), large);
}

/// CVE-2024-12086: a target tells a source nothing of what it holds. A file that is not sent whole
/// is not completed from one that is there.
#[test]
fn what_is_there_is_never_read() {
    let mut ends = AgainstTarget::new(&["--overwrite"], |inside, _| {
        fs::write(inside.join("large"), vec![1; 2 << 20]).unwrap();
    });
    let bytes = vec![1; 2 << 20];
    let list = records(&[
        enter(b""),
        Record::LargeFile {
            entry: entry("large"),
            file: 1,
            size: 2 << 20,
            digest: file_digest::of_bytes(&bytes),
        },
    ]);
    let first = piece(1, 0, &bytes[..1 << 20]);
    ends.send_all(&[pack(0, &list), begin(1, 2 * MIB), first]);
    let _agents = ends.fails(FailureCode::Protocol, "never came to its end");
}

/// CVE-2024-12084: lengths are compared with what is there before anything is done with them.
#[test]
fn lengths_that_can_not_be() {
    let good = records(&[enter(b""), file("name", b"content")]);
    for cut in [1, 3, 6, 8, 20, good.len() - 1] {
        let mut ends = AgainstTarget::fresh();
        ends.wire.send(&pack(0, &good[..cut]));
        let _agents = ends.fails(FailureCode::Protocol, "");
    }
    let header = |payload_len, len| {
        tree_header(TreeFrame::Piece {
            file: 1,
            index: 0,
            len,
            payload_len,
            digest: Digest([1; 32]),
            compressed: None,
        })
    };
    for frame in [
        header(u32::MAX, u32::MAX),
        header(5, 4),
        header(0, 4),
        vec![9; 64],
        vec![0; 64],
    ] {
        let mut ends = AgainstTarget::fresh();
        ends.wire.send(&frame);
        let _agents = ends.fails(FailureCode::Protocol, "no frame");
    }
    // Attributes that Linux would take, but that never travel; owners that mean something else.
    let with = |change: fn(&mut Metadata)| {
        let mut metadata = Metadata::default();
        change(&mut metadata);
        records(&[enter(b"d"), Record::Directory(metadata)])
    };
    for bytes in [
        with(|metadata| metadata.uid = u32::MAX),
        with(|metadata| metadata.mode = 0o40_755),
        with(|metadata| metadata.mtime.nanoseconds = 1_000_000_000),
        with(|metadata| {
            metadata.xattrs = vec![Xattr {
                name: b"system.nfs4_acl".to_vec(),
                value: Vec::new(),
            }];
        }),
    ] {
        let mut ends = AgainstTarget::fresh();
        ends.wire.send(&pack(0, &bytes));
        let _agents = ends.fails(FailureCode::Protocol, "");
    }
}

/// CVE-2025-10158: numbers of files, pieces and links that nothing has.
#[test]
fn numbers_that_can_not_be() {
    let bytes = vec![5; PIECE_LEN as usize];
    let name = Name::new(b"a").unwrap();
    let link = |group| records(&[enter(b""), Record::Link { name, group }]);
    let grouped = |name| {
        let Record::File {
            mut entry,
            stamp,
            digest,
            zero_map,
            data,
        } = file(name, b"x")
        else {
            unreachable!()
        };
        entry.group = 5;
        Record::File {
            entry,
            stamp,
            digest,
            zero_map,
            data,
        }
    };
    let large = |size, digest| Record::LargeFile {
        entry: entry("large"),
        file: 1,
        size,
        digest,
    };
    let digest = file_digest::of_bytes(&bytes);
    let outside = tree_header(TreeFrame::ZeroPieces {
        file: 1,
        index: u64::MAX - 3,
        count: 2,
        last_len: 1,
    });
    let far = tree_header(TreeFrame::ZeroPieces {
        file: 1,
        index: 1 << 42,
        count: 2,
        last_len: 1,
    });
    let cases: Vec<(Vec<Vec<u8>>, FailureCode, &str)> = vec![
        (vec![outside], FailureCode::Protocol, "no frame"),
        (vec![far], FailureCode::Protocol, "never came to its end"),
        (
            vec![pack(0, &link(77))],
            FailureCode::Protocol,
            "never came",
        ),
        (vec![pack(0, &link(0))], FailureCode::Protocol, "no group"),
        (
            vec![pack(0, &link(u64::MAX))],
            FailureCode::Protocol,
            "beyond all that",
        ),
        (
            vec![pack(0, &records(&[enter(b""), grouped("a"), grouped("b")]))],
            FailureCode::Protocol,
            "same number",
        ),
        (
            vec![pack(0, &records(&[Record::Forget { file: 1 }]))],
            FailureCode::Protocol,
            "before its directory",
        ),
        (
            vec![piece(1, 0, &bytes), piece(1, 0, &bytes)],
            FailureCode::Protocol,
            "came twice",
        ),
        (
            vec![piece(1, 0, &bytes)],
            FailureCode::Protocol,
            "never came to its end",
        ),
        (
            vec![pack(0, &records(&[enter(b""), large(u64::MAX, digest)]))],
            FailureCode::Protocol,
            "never came to its end",
        ),
        // A content that is not what its record says.
        (
            vec![
                begin(1, MIB),
                piece(1, 0, &bytes),
                pack(
                    0,
                    &records(&[enter(b""), large(u64::from(PIECE_LEN), Digest([1; 32]))]),
                ),
            ],
            FailureCode::Integrity,
            "other bytes",
        ),
        (
            vec![begin(1, MIB), begin(1, MIB)],
            FailureCode::Protocol,
            "came twice",
        ),
        // Another size than it began with.
        (
            vec![
                begin(1, 5),
                piece(1, 0, &bytes),
                pack(0, &records(&[enter(b""), large(MIB, digest)])),
            ],
            FailureCode::Protocol,
            "never came to its end",
        ),
    ];
    for (frames, code, words) in cases {
        let mut ends = AgainstTarget::fresh();
        ends.send_all(&frames);
        let agents = ends.fails(code, words);
        assert!(!agents.path("target/large").exists());
    }
    // More files at once than anybody has.
    let mut ends = AgainstTarget::fresh();
    for file in 0..2100 {
        ends.wire.send(&piece(file, 1, b"x"));
    }
    let _agents = ends.fails(FailureCode::Protocol, "too many large files");
}

/// A target says what it holds of this clone's own files, and of others only when it was told to
/// compare; and nothing is kept that it did not say to hold.
#[test]
fn what_is_held_is_not_told_and_not_kept() {
    let plant = |inside: &PathBuf, outside: &PathBuf| {
        fs::write(inside.join("held"), "secret").unwrap();
        symlink(outside.join("canary"), inside.join("link")).unwrap();
        fs::write(inside.join("twice"), "secret").unwrap();
        fs::hard_link(inside.join("twice"), inside.join("hard")).unwrap();
    };
    let offers = |names: &[&'static str]| {
        let offer = |name: &&'static str| {
            Record::Offer(Offer {
                name: Name::new(name.as_bytes()).unwrap(),
                size: 6,
                mtime: Time::default(),
                stamp: STAMP,
            })
        };
        let list: Vec<_> = std::iter::once(enter(b""))
            .chain(names.iter().map(offer))
            .collect();
        pack(0, &records(&list))
    };
    let answer = |ends: &mut AgainstTarget| match ends.source.control.hear() {
        Ok(Message::Answer(answer)) => answer.holdings,
        other => panic!("no answer: {other:?}"),
    };
    let mut ends = AgainstTarget::new(&["--overwrite"], plant);
    ends.wire.send(&offers(&["held", "link", "hard", "absent"]));
    assert_eq!(answer(&mut ends), vec![Holding::Nothing; 4]);
    ends.wire.send(&offers(&["held"; 129]));
    let _agents = ends.fails(FailureCode::Protocol, "more files are offered");

    let mut ends = AgainstTarget::new(&["--delta", "--checksum"], plant);
    ends.wire.send(&offers(&["held", "link", "hard", "absent"]));
    let holdings = answer(&mut ends);
    let [Holding::All { digest, .. }, rest @ ..] = &holdings[..] else {
        panic!("it was to compare: {holdings:?}");
    };
    assert_eq!(*digest, file_digest::of_bytes(b"secret"));
    assert_eq!(rest, vec![Holding::Nothing; 3]);

    let keep = |name: &'static str| Record::Keep {
        entry: entry(name),
        size: 6,
        digest: file_digest::of_bytes(b"secret"),
        data_bytes: 6,
        voucher: Voucher(Digest([1; 32])),
    };
    let same = TreeFrame::SamePieces {
        file: 1,
        index: 0,
        count: 1,
    };
    let probe = TreeFrame::Probe {
        file: 1 << 63 | 1,
        index: 0,
        count: 1,
    };
    for frames in [
        vec![pack(0, &records(&[enter(b""), keep("held")]))],
        vec![pack(0, &records(&[enter(b""), keep("link")]))],
        vec![tree_header(same)],
        vec![begin(1, MIB), tree_header(same)],
        vec![tree_header(probe)],
    ] {
        let mut ends = AgainstTarget::new(&["--delta"], plant);
        ends.send_all(&frames);
        let _agents = ends.fails(FailureCode::Protocol, "the target does not hold");
    }
}

/// Nothing that was changed on the way is put in its place.
#[test]
fn what_was_corrupted_on_the_way() {
    let good = pack(0, &records(&[enter(b""), file("file", b"content")]));
    let mut bent = good;
    *bent.last_mut().unwrap() ^= 1;
    let mut lying = records(&[enter(b""), file("file", b"content")]);
    *lying.last_mut().unwrap() ^= 1;
    let mut bent_piece = piece(1, 0, &[1; 5000]);
    bent_piece[3000] ^= 1;
    for frame in [bent, pack(0, &lying), bent_piece] {
        let mut ends = AgainstTarget::fresh();
        ends.wire.send(&frame);
        let agents = ends.fails(FailureCode::Integrity, "other bytes");
        assert!(!agents.path("target/file").exists());
    }
}

/// A receipt is for what the target made, and not for what the source says of it.
#[test]
fn a_finish_that_lies() {
    let mut ends = AgainstTarget::fresh();
    ends.wire.send(&tree_header(TreeFrame::End { frames: 0 }));
    ends.source.control.say(&Message::Finish(Finish {
        digest: Digest([7; 32]),
        connections: None,
        sent: Sent::default(),
        source: Box::default(),
        tree: Some(TreeFinish {
            counts: TreeCounts {
                files: 9,
                ..TreeCounts::default()
            },
            ..TreeFinish::default()
        }),
    }));
    let _agents = ends.fails(FailureCode::Integrity, "9 names");
}

// ---- A target that a test plays ----

/// A target refuses a data connection which its source takes for granted: offers went out on it, no answer
/// comes, and there is nothing else to send. The source says what it lost, and comes again.
#[test]
fn a_data_connection_that_is_refused_is_noticed_where_an_answer_is_awaited() {
    let agents = Agents::default();
    let volume = agents.path("source");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("file"), "content").unwrap();
    let peer = Peer::default();
    let mut target = peer.listen(agents.identity.good(Role::Target));
    let source = agents.start_source(target.address(), &volume, &[]);
    let (mut control, hello) = target.greet();
    let mut welcome = welcome(&hello);
    welcome.tree = hello.tree;
    welcome.features = TREE_FEATURES.iter().map(ToString::to_string).collect();
    welcome.offer = true;
    welcome.streams = 1;
    control.say(&Message::Welcome(welcome));
    let (refused, _) = target.accept();
    drop(refused);
    let failure = control.hear_failure();
    assert_eq!(failure.code, FailureCode::Disconnected, "{failure}");
    assert!(failure.text.contains("sending to the target"), "{failure}");
    control.close();

    let (_control, again) = target.greet();
    assert_eq!(again.instance, hello.instance);
    assert!(again.attempt > hello.attempt);
    source.signal(Signal::TERM);
    let _ended = source.end();
}
