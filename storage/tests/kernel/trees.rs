//! Trees on filesystems: walked and made again within one process, by several threads. What whole
//! agents make of the nastiest tree is in tests/tests/clone_tree.rs.

mod offers;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{IoSliceMut, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::SystemTime;

use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use uuid::Uuid;
use volferry_protocol::digest::Digest;
use volferry_protocol::session::fence::Remembered;
use volferry_protocol::tree::file_digest;
use volferry_protocol::tree::session::{TreeSummary, TreeTerms};
use volferry_storage::BufferPool;
use volferry_storage::tree::{
    Outgoing, Restore, RestoreWorker, TreeError, TreeSource, TreeTarget, TreeTargetOptions, Walk,
    WalkEnd, WalkOptions, Walked,
};

use crate::support::{Filesystem, run, skip};

const CLONE: Uuid = Uuid::from_u128(7);

#[test]
fn a_tree_is_made_again_on_every_filesystem() {
    for mkfs in ["mkfs.ext4", "mkfs.xfs", "mkfs.btrfs"] {
        let (Some(source), Some(target)) = (Filesystem::new(mkfs), Filesystem::new(mkfs)) else {
            continue;
        };
        let (from, to) = (source.path().join("tree"), target.path().join("tree"));
        plant(&from);
        let (read, written) = clone(
            &from,
            &to,
            TreeTargetOptions {
                direct: true,
                ..Default::default()
            },
        );
        assert_eq!(read.digest, written.digest, "{mkfs}");
        assert_eq!(read.counts, written.counts);
        assert_eq!(read.data_bytes, written.data_bytes);
        assert!(written.fidelity.is_empty(), "{:?}", written.fidelity);
        assert_eq!(
            digest(&to).summary.digest,
            read.digest,
            "{mkfs}: digested again"
        );
        assert_same(&from, &to);
    }
}

#[test]
fn overwriting_merges_and_deleting_makes_it_exact() {
    let new = || Filesystem::new("mkfs.ext4");
    let (Some(source), Some(target)) = (new(), new()) else {
        return;
    };
    let (from, to) = (source.path().join("tree"), target.path().join("tree"));
    plant(&from);
    plant(&to);
    // What is there is of other kinds, leads elsewhere, and hands down what nobody asked for.
    let outside = target.path().join("outside");
    fs::write(&outside, "untouched").unwrap();
    fs::remove_file(to.join("small")).unwrap();
    symlink(&outside, to.join("small")).unwrap();
    fs::remove_file(to.join("large")).unwrap();
    fs::hard_link(&outside, to.join("large")).unwrap();
    fs::remove_file(to.join("link")).unwrap();
    fs::create_dir_all(to.join("link/full/of/things")).unwrap();
    fs::remove_dir_all(to.join("dir")).unwrap();
    symlink(target.path(), to.join("dir")).unwrap();
    fs::write(to.join("extra"), "extra").unwrap();
    fs::create_dir(to.join(format!(".volferry-{CLONE}"))).unwrap();
    run("setfacl", &["-d", "-m", "u:12345:rwx"], &to).unwrap();
    run("setfattr", &["-n", "user.extra", "-v", "x"], &to).unwrap();
    let refused = TreeTarget::open(&to, CLONE, TreeTargetOptions::default()).unwrap_err();
    assert!(matches!(refused, TreeError::NotEmpty { .. }), "{refused}");

    let overwrite = TreeTargetOptions {
        overwrite: true,
        ..Default::default()
    };
    let (read, written) = clone(&from, &to, overwrite);
    assert_eq!(read.digest, written.digest);
    assert_eq!(fs::read_to_string(&outside).unwrap(), "untouched");
    assert_eq!(fs::read_to_string(to.join("extra")).unwrap(), "extra");
    fs::remove_file(to.join("extra")).unwrap();
    run("touch", &["-r", from.to_str().unwrap()], &to).unwrap();
    assert_same(&from, &to);

    fs::create_dir_all(to.join("more/extra")).unwrap();
    let exact = TreeTargetOptions {
        overwrite: true,
        delete_extra: true,
        direct: true,
        ..Default::default()
    };
    let (read, written) = clone(&from, &to, exact);
    assert_eq!(read.digest, written.digest);
    assert_same(&from, &to);
}

#[test]
fn a_tree_deeper_than_any_path_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    // Made by a chain of shells, each a piece deeper.
    let name = "d".repeat(200);
    let script = "import os,sys\nos.chdir(sys.argv[1])\nfor i in range(60):\n os.mkdir(sys.argv[2]); os.chdir(sys.argv[2])\n open('file','w').write(str(i))\n os.link('file','again')\n";
    let made = Command::new("python3")
        .args(["-c", script])
        .arg(&from)
        .arg(&name)
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return skip("python3 makes the tree").unwrap_or_default();
    }
    let (read, written) = clone(&from, &to, TreeTargetOptions::default());
    assert_eq!((read.digest, read.counts.links), (written.digest, 60));
    assert_eq!(digest(&to).summary.digest, read.digest);
    let again = TreeTargetOptions {
        overwrite: true,
        delete_extra: true,
        ..Default::default()
    };
    let (read, written) = clone(&from, &to, again);
    assert_eq!(read.digest, written.digest);
    for path in [from, to] {
        run("rm", &["-rf"], &path).unwrap();
    }
}

/// The records of files that come in pieces don't wait until a pack is full of them: the target holds
/// each of these files open.
#[test]
fn many_files_that_come_in_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    for number in 0..2100 {
        let file = File::create(from.join(number.to_string())).unwrap();
        file.set_len(262_145).unwrap();
    }
    // One thread: another, with nothing to do, would send what it has packed.
    let (read, written) = clone_by(1, &from, &to, TreeTargetOptions::default());
    assert_eq!((read.digest, read.counts.files), (written.digest, 2100));
}

#[test]
fn a_file_that_changes_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    let path = from.join("growing");
    fs::write(&path, vec![1; 5 << 20]).unwrap();
    let walked = walk(3, &from, Grows(path));
    assert_eq!(walked.changed.paths, ["growing"]);
    assert!(digest(&from).changed.paths.is_empty());
}

/// Small files that are read together don't come into the page cache, and are the same as one by one.
#[test]
fn small_files_are_read_together_past_the_page_cache() {
    let Some(filesystem) = filesystem_read_together() else {
        return;
    };
    let from = filesystem.path().join("from");
    fs::create_dir(&from).unwrap();
    let sizes = [1, 511, 4095, 4096, 4097, 9000, 262_143, 262_144].into_iter();
    let files: Vec<_> = (0..100)
        .zip(sizes.cycle())
        .map(|(number, size)| {
            let path = from.join(number.to_string());
            fs::write(&path, vec![number; size]).unwrap();
            (
                drop_pages(&path),
                file_digest::of_bytes(&vec![number; size]),
            )
        })
        .collect();
    let met = Met::default();
    let together = walk(2, &from, &met);
    assert_eq!(together.summary.counts.files, 100);
    for (file, _) in &files {
        assert!(!is_cached(file));
    }
    let met = met.0.into_inner().unwrap();
    for (number, (_, digest)) in (0..).zip(&files) {
        assert_eq!(met[&number].0, *digest, "file {number}");
    }
}

/// What the page cache holds is read from it: else it would have to reach the disk first.
#[test]
fn small_files_that_are_cached_are_not_read_from_the_disk() {
    let Some(filesystem) = Filesystem::new("mkfs.ext4") else {
        return;
    };
    let from = filesystem.path().join("from");
    fs::create_dir(&from).unwrap();
    for number in 0..20 {
        fs::write(from.join(number.to_string()), vec![number; 5000]).unwrap();
    }
    let met = Met::default();
    assert_eq!(walk(1, &from, &met).summary.counts.files, 20);
    let met = met.0.into_inner().unwrap();
    for number in 0..20 {
        let (digest, read_bytes) = met[&number];
        let content = vec![number; 5000];
        assert_eq!(digest, file_digest::of_bytes(&content));
        assert_eq!(read_bytes, 0, "it was read from the disk");
    }
}

/// Files that change when they were read together already are read again.
#[test]
fn small_files_that_changed_are_read_again() {
    let Some(filesystem) = filesystem_read_together() else {
        return;
    };
    let from = filesystem.path().join("from");
    fs::create_dir(&from).unwrap();
    let paths: Vec<_> = (0..20)
        .map(|number| from.join(number.to_string()))
        .collect();
    for path in &paths {
        fs::write(path, vec![1; 5000]).unwrap();
        drop_pages(path);
    }
    let changes = Changes(Mutex::new(paths));
    let walked = walk(1, &from, changes);
    assert!(walked.changed.paths.is_empty(), "{:?}", walked.changed);
    assert_eq!(walked.summary.digest, digest(&from).summary.digest);
}

/// A directory is looked at again when the last of its files was read, whoever read it.
#[test]
fn an_entry_that_appears_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir(&from).unwrap();
    // Many batches of small files, and a large one, which tells that it is read.
    for number in 0..200 {
        fs::write(from.join(format!("small {number}")), "small").unwrap();
    }
    fs::write(from.join("large"), vec![1; 1 << 20]).unwrap();
    let appears = Appears(from.join("late"));
    assert_eq!(walk(3, &from, appears).changed.paths, ["."]);
    assert!(digest(&from).changed.paths.is_empty());
}

/// A file that grows whenever a piece of it comes.
struct Grows(PathBuf);

impl WalkEnd for Grows {
    fn put(&self, outgoing: Outgoing) -> bool {
        if matches!(outgoing, Outgoing::Piece { .. }) {
            let mut file = OpenOptions::new().append(true).open(&self.0).unwrap();
            file.write_all(b"more").unwrap();
        }
        true
    }
}

/// A filesystem whose small files are read together.
fn filesystem_read_together() -> Option<Filesystem> {
    let system = rustix::system::uname();
    let release = system.release().to_string_lossy();
    let mut numbers = release
        .split(|it: char| !it.is_ascii_digit())
        .map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < (6, 5) => {
            skip("before Linux 6.5 small files are read one by one")
        }
        _ => Filesystem::new("mkfs.ext4"),
    }
}

/// Has the page cache forget a file.
fn drop_pages(path: &Path) -> File {
    let file = File::open(path).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    file
}

/// Whether the beginning of a file can be read without waiting for a disk.
fn is_cached(file: &File) -> bool {
    let mut byte = [0];
    let (buffers, flags) = (&mut [IoSliceMut::new(&mut byte)], ReadWriteFlags::NOWAIT);
    match rustix::io::preadv2(file, buffers, 0, flags) {
        Ok(len) => len == 1,
        Err(errno) => {
            assert_eq!(errno, Errno::AGAIN);
            false
        }
    }
}

/// Makes all files anew, shorter, longer or as long, when the first was read.
struct Changes(Mutex<Vec<PathBuf>>);

impl WalkEnd for Changes {
    fn put(&self, _: Outgoing) -> bool {
        true
    }

    fn file(&self, path: &[u8], _: Digest) {
        let name = str::from_utf8(path).unwrap();
        let others = std::mem::take(&mut *self.0.lock().unwrap());
        let others = others.iter().filter(|other| !other.ends_with(name));
        for (other, size) in others.zip([0, 4096, 5000, 9000, 300_000].into_iter().cycle()) {
            fs::write(other, vec![2; size]).unwrap();
        }
    }
}

/// The digests of files whose names are numbers, and how many bytes their thread had read from disks.
#[derive(Default)]
struct Met(Mutex<HashMap<u8, (Digest, u64)>>);

impl WalkEnd for &Met {
    fn put(&self, _: Outgoing) -> bool {
        true
    }

    fn file(&self, path: &[u8], digest: Digest) {
        let number = str::from_utf8(path).unwrap().parse().unwrap();
        let counts = fs::read_to_string("/proc/thread-self/io").unwrap();
        let mut counts = counts.lines();
        let read_bytes = counts.find_map(|count| count.strip_prefix("read_bytes: "));
        let read_bytes = read_bytes.unwrap().parse().unwrap();
        self.0.lock().unwrap().insert(number, (digest, read_bytes));
    }
}

/// Makes a file when a piece comes.
struct Appears(PathBuf);

impl WalkEnd for Appears {
    fn put(&self, outgoing: Outgoing) -> bool {
        if matches!(outgoing, Outgoing::Piece { .. }) {
            fs::write(&self.0, "late").unwrap();
        }
        true
    }
}

/// A tree with one of everything.
fn plant(root: &Path) {
    fs::create_dir(root).unwrap();
    let at = |name: &str| root.join(name);
    fs::write(at("empty"), "").unwrap();
    fs::write(at("small"), "small").unwrap();
    fs::write(at("zeros"), vec![0; 100_000]).unwrap();
    let large: Vec<u8> = (0..=252).cycle().take((3 << 20) + 777).collect();
    fs::write(at("large"), &large).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len(300 << 20).unwrap();
    sparse.write_all_at(b"island", 170 << 20).unwrap();
    fs::hard_link(at("large"), at("link")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::hard_link(at("small"), at("dir/link of small")).unwrap();
    fs::hard_link(at("small"), at("dir/and another")).unwrap();
    symlink("../../nowhere", at("dangling")).unwrap();
    symlink("/etc/passwd", at("dir/out")).unwrap();
    for many in 0..300 {
        fs::write(at(&format!("dir/file {many}")), vec![7; many * 97]).unwrap();
    }
    fs::create_dir_all(at("dir/deep/er/and/deeper")).unwrap();
    run("mkfifo", &[], &at("fifo")).unwrap();
    run("mknod", &["-m", "600"], &at("null")).unwrap_or_default();
    for (arguments, name) in [(&["c", "1", "3"][..], "null"), (&["b", "7", "200"], "loop")] {
        let made = Command::new("mknod").arg(at(name)).args(arguments).status();
        assert!(made.unwrap().success());
    }
    run("chown", &["-h", "1234:4321"], &at("dangling")).unwrap();
    run("chown", &["1234:4321"], &at("small")).unwrap();
    fs::set_permissions(at("small"), Permissions::from_mode(0o6751)).unwrap();
    fs::set_permissions(at("dir"), Permissions::from_mode(0o3775)).unwrap();
    fs::set_permissions(at("dir/deep"), Permissions::from_mode(0o000)).unwrap();
    for name in ["user.note", "trusted.secret", "security.other"] {
        run("setfattr", &["-n", name, "-v", "value"], &at("small")).unwrap();
    }
    run(
        "setfattr",
        &["-h", "-n", "trusted.of-link", "-v", "x"],
        &at("dangling"),
    )
    .unwrap();
    run("setfacl", &["-m", "u:99:rw,d:u:98:rwx"], &at("dir")).unwrap();
    run("setfacl", &["-m", "g:97:r"], &at("large")).unwrap();
    for name in ["small", "dir", "fifo", "large"] {
        run(
            "touch",
            &["-h", "-d", "2001-02-03T04:05:06.123456789Z"],
            &at(name),
        )
        .unwrap();
    }
    run(
        "touch",
        &["-h", "-d", "1969-12-31T23:59:58.5Z"],
        &at("dangling"),
    )
    .unwrap();
    run("touch", &["-d", "2010-01-01T00:00:00.1Z"], root).unwrap();
}

/// What rsync finds to do: nothing.
#[track_caller]
fn assert_same(from: &Path, to: &Path) {
    let slash = |path: &Path| format!("{}/", path.display());
    let output = Command::new("rsync")
        .args(["-aHAXSn", "--checksum", "--delete", "--itemize-changes"])
        .args([slash(from), slash(to)])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.is_empty(),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let blocks = |path: &Path| fs::metadata(path.join("sparse")).unwrap().blocks();
    assert!(
        blocks(to) <= blocks(from) + 2048,
        "it stays sparse: {}",
        blocks(to)
    );
}

/// Walks and makes again with two threads each and little memory.
fn clone(from: &Path, to: &Path, options: TreeTargetOptions) -> (TreeSummary, TreeSummary) {
    clone_by(2, from, to, options)
}

fn clone_by(
    readers: usize,
    from: &Path,
    to: &Path,
    options: TreeTargetOptions,
) -> (TreeSummary, TreeSummary) {
    let mut target = TreeTarget::open(to, CLONE, options).unwrap();
    let restore = Arc::new(
        target
            .prepare(TreeTerms::default(), 1, &Remembered::default())
            .unwrap(),
    );
    let walked = walk(
        readers,
        from,
        To(Mutex::new(Some(restore.worker())), Arc::clone(&restore)),
    );
    assert!(walked.changed.paths.is_empty(), "{:?}", walked.changed);
    let written = restore.complete().unwrap();
    restore.conclude().unwrap();
    (walked.summary, written)
}

/// A run that is killed anywhere in its last steps leaves them to another, which knows the directory again.
#[test]
fn what_is_proven_is_concluded_by_whoever_comes_next() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("a/b")).unwrap();
    fs::write(from.join("a/b/file"), "content").unwrap();
    fs::write(from.join("file"), vec![7; 5000]).unwrap();
    fs::set_permissions(&from, Permissions::from_mode(0o751)).unwrap();
    let root = File::open(&from).unwrap();
    root.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let options = TreeTargetOptions::default();
    let mut target = TreeTarget::open(&to, CLONE, options).unwrap();
    let prepared = target.prepare(TreeTerms::default(), 1, &Remembered::default());
    let restore = Arc::new(prepared.unwrap());
    let end = To(Mutex::new(Some(restore.worker())), Arc::clone(&restore));
    let read = walk(2, &from, end).summary;
    assert_eq!(restore.complete().unwrap().digest, read.digest);
    let (witness, root) = (restore.witness().unwrap(), restore.root_metadata());
    drop((target, restore));

    let staging = to.join(format!(".volferry-{CLONE}"));
    let conclude = || {
        let mut target = TreeTarget::claim(&to, CLONE, options).unwrap();
        assert!(target.bears_out(witness).unwrap());
        target.conclude(root.as_ref(), false).unwrap();
        assert!(target.bears_out(witness).unwrap());
        let refused = target.check_free(None).unwrap_err();
        assert!(matches!(refused, TreeError::NotEmpty { .. }), "{refused}");
        assert_eq!(digest(&to).summary.digest, read.digest);
        assert!(!staging.exists());
    };
    assert!(
        staging.join("journal").exists(),
        "nothing was concluded yet"
    );
    conclude();
    // Nothing is left to be done, or only the metadata of the root, or some of what the clone kept.
    conclude();
    fs::set_permissions(&to, Permissions::from_mode(0o700)).unwrap();
    File::create(to.join("gone")).unwrap();
    fs::remove_file(to.join("gone")).unwrap();
    assert_ne!(digest(&to).summary.digest, read.digest);
    conclude();
    fs::create_dir_all(staging.join("links")).unwrap();
    fs::write(staging.join("links/7"), "").unwrap();
    conclude();

    fs::write(to.join("a/more"), "more").unwrap();
    let target = TreeTarget::claim(&to, CLONE, options).unwrap();
    assert!(!target.bears_out(witness).unwrap());
}

fn digest(path: &Path) -> Walked {
    walk(2, path, Nowhere)
}

fn walk<End: WalkEnd>(readers: usize, from: &Path, end: End) -> Walked {
    let source = TreeSource::open(from).unwrap();
    let options = WalkOptions {
        terms: TreeTerms::default(),
        direct: true,
        offer: false,
        compare: false,
        epoch: 1,
        read_back: false,
    };
    let pool = BufferPool::new(8 << 20, 1 << 20).unwrap();
    let walk = Walk::new(source, options, pool, end);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..readers).map(|_| scope.spawn(|| walk.run())).collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap().unwrap());
    });
    let walked = walk.finish();
    assert!(walked.is_complete);
    walked
}

struct Nowhere;

impl WalkEnd for Nowhere {
    fn put(&self, _: Outgoing) -> bool {
        true
    }
}

/// Applies what comes, at once, by workers that alternate.
struct To(Mutex<Option<RestoreWorker>>, Arc<Restore>);

impl WalkEnd for To {
    fn put(&self, outgoing: Outgoing) -> bool {
        let worker = self.0.lock().unwrap().take();
        let mut worker = worker.unwrap_or_else(|| self.1.worker());
        match outgoing {
            Outgoing::Pack { bytes, .. } => worker.apply_pack(&bytes).map(drop),
            Outgoing::Piece {
                file,
                index,
                digest,
                zero_map,
                bytes,
                ..
            } => worker.write_piece(file, index, digest, &zero_map, &bytes),
            Outgoing::ZeroPieces {
                file,
                index,
                count,
                last_len,
            } => worker.zero_pieces(file, index, count, last_len),
            Outgoing::Begin {
                file,
                size,
                stamp,
                path,
            } => worker.begin_file(file, size, stamp, &path),
            Outgoing::Probe { .. } | Outgoing::SamePieces { .. } => panic!("nothing was offered"),
        }
        .unwrap();
        let before = self.0.lock().unwrap().replace(worker);
        drop(before);
        true
    }

    fn file(&self, path: &[u8], digest: Digest) {
        assert!(!path.is_empty() && digest.0 != [0; 32]);
    }
}
