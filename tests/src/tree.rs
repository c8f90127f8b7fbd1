//! Trees: the nastiest that can be planted, and a second opinion on whether two are the same.
//!
//! The second opinion is written in the manner of `mtree`: it lists what it finds and compares the
//! lists. It shares no code with what it judges, and follows nothing.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::hash::{DefaultHasher, Hasher};
use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, XattrFlags};

use crate::device::run;

/// Plants a tree with one of everything that a filesystem can hold and that somebody has got wrong,
/// below `root`, which is there. `rich` filesystems take large attributes.
#[must_use]
pub fn plant(root: &Path, rich: bool) -> Option<()> {
    let at = |name: &str| root.join(name);
    plant_names(root);
    plant_files(root);
    // Hard links, also across directories, of files and of what is no file.
    fs::create_dir_all(at("links/below")).unwrap();
    fs::hard_link(at("large"), at("links/large")).unwrap();
    fs::hard_link(at("large"), at("links/below/large")).unwrap();
    fs::hard_link(at("small"), at("links/small")).unwrap();
    run(Command::new("mkfifo").arg(at("fifo")))?;
    fs::hard_link(at("fifo"), at("links/fifo")).unwrap();
    let socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    drop(socket);
    for (name, kind, major, minor) in [("character", "c", "1", "3"), ("block", "b", "7", "201")] {
        run(Command::new("mknod")
            .arg(at(name))
            .args([kind, major, minor]))?;
    }
    symlink("../../../../etc/passwd", at("out")).unwrap();
    symlink("/", at("links/root")).unwrap();
    symlink("x".repeat(1000), at("long target")).unwrap();
    symlink(".", at("self")).unwrap();
    rustix::fs::linkat(CWD, at("out"), CWD, at("links/out"), AtFlags::empty()).unwrap();
    // Many in one directory, and one in many.
    fs::create_dir(at("wide")).unwrap();
    for number in 0..2500 {
        fs::write(at(&format!("wide/{number}")), format!("{number}")).unwrap();
    }
    plant_deep(root);
    plant_attributes(root, rich)?;
    // Owners and modes, times before 1970 and to the nanosecond; what is below before what is above.
    for (name, owner) in [
        ("small", "1000:1001"),
        ("out", "2000:2001"),
        ("fifo", "3:4"),
    ] {
        run(Command::new("chown").arg("-h").arg(owner).arg(at(name)))?;
    }
    run(Command::new("chown")
        .arg("4294967294:4294967294")
        .arg(at("links")))?;
    for (name, mode) in [
        ("small", 0o4755),
        ("large", 0o2640),
        ("empty", 0o000),
        ("wide", 0o1777),
        ("links", 0o2750),
        ("links/below", 0o000),
        ("character", 0o666),
        ("socket", 0o707),
    ] {
        fs::set_permissions(at(name), Permissions::from_mode(mode)).unwrap();
    }
    // A change of owner or mode takes them away.
    set_capability(&at("zeros"));
    for (name, date) in [
        ("small", "2001-02-03T04:05:06.123456789Z"),
        ("out", "1969-12-31T23:59:59.999999999Z"),
        ("links/below", "1970-01-01T00:00:00Z"),
        ("links", "2033-05-18T03:33:20.000000001Z"),
        ("fifo", "1985-10-26T08:21:00.5Z"),
        (".", "2011-11-11T11:11:11.111111111Z"),
    ] {
        run(Command::new("touch").args(["-h", "-d", date]).arg(at(name)))?;
    }
    Some(())
}

fn plant_names(root: &Path) {
    let names: [&[u8]; 14] = [
        b"-rf",
        b"--",
        b"#comment",
        b" ",
        b"new\nline",
        b"carriage\rreturn",
        b"back\\slash",
        b".hidden",
        b"...",
        b"*?[a]",
        b"\xff\xfe not text",
        b"\x1b[31mred",
        "mañana \u{202e}".as_bytes(),
        &[b'n'; 255],
    ];
    let directory = root.join("names");
    fs::create_dir(&directory).unwrap();
    for name in names {
        let path = directory.join(std::ffi::OsStr::from_bytes(name));
        fs::write(&path, name).unwrap();
        let inner = root.join(std::ffi::OsStr::from_bytes(name));
        fs::create_dir(&inner).unwrap();
        fs::write(inner.join(std::ffi::OsStr::from_bytes(name)), name).unwrap();
    }
    // What the root keeps for itself is a name like any other further down.
    fs::create_dir(directory.join("lost+found")).unwrap();
    fs::write(directory.join("lost+found/kept"), "kept").unwrap();
}

fn plant_files(root: &Path) {
    let at = |name: &str| root.join(name);
    fs::write(at("empty"), "").unwrap();
    fs::write(at("small"), "small").unwrap();
    fs::write(at("zeros"), vec![0; 123_456]).unwrap();
    let bytes = |len: usize, seed: usize| -> Vec<u8> {
        (0..len)
            .map(|at| ((at * 31 + at / 255 + seed) % 256).to_le_bytes()[0])
            .collect()
    };
    // Around every boundary: of a block, of what travels inline, of a piece.
    for (number, len) in [
        4095,
        4096,
        4097,
        262_143,
        262_144,
        262_145,
        1 << 20,
        (1 << 20) + 1,
    ]
    .into_iter()
    .enumerate()
    {
        fs::write(at(&format!("edge {len}")), bytes(len, number)).unwrap();
    }
    fs::write(at("large"), bytes((5 << 20) + 4321, 7)).unwrap();
    let sparse = File::create(at("sparse")).unwrap();
    sparse.set_len((40 << 20) + 5).unwrap();
    for place in [0, 1 << 20, (9 << 20) + 100, (33 << 20) - 3] {
        sparse.write_all_at(b"island", place).unwrap();
    }
    File::create(at("hole")).unwrap().set_len(64 << 20).unwrap();
    // Zeros that are allocated, between data.
    let mut mixed = bytes(3 << 20, 9);
    mixed[1 << 20..2 << 20].fill(0);
    mixed[4096 * 3..4096 * 9].fill(0);
    fs::write(at("mixed"), mixed).unwrap();
}

/// Deeper than any path can say.
fn plant_deep(root: &Path) {
    let open = |from: &OwnedFd, name: &str| {
        rustix::fs::openat(
            from,
            name,
            OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap()
    };
    let mode = Mode::from_raw_mode(0o755);
    let mut at: OwnedFd = File::open(root).unwrap().into();
    let name = "deep".repeat(40);
    for _ in 0..40 {
        rustix::fs::mkdirat(&at, &name, mode).unwrap();
        at = open(&at, &name);
    }
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&at, "bottom", flags, mode).unwrap();
    File::from(file).write_all_at(b"bottom", 0).unwrap();
    rustix::fs::linkat(&at, "bottom", &at, "again", AtFlags::empty()).unwrap();
    rustix::fs::symlinkat("bottom", &at, "link").unwrap();
}

fn plant_attributes(root: &Path, rich: bool) -> Option<()> {
    let at = |name: &str| root.join(name);
    let set = |name: &str, attribute: &str, value: &[u8]| {
        rustix::fs::lsetxattr(at(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    for name in ["small", "large", "links"] {
        set(name, "user.text", b"text");
        set(name, "user.binary", b"\0\xff\n");
        set(name, "user.empty", b"");
        set(name, "trusted.secret", b"secret");
        set(name, "security.other", b"other");
    }
    for name in ["out", "fifo", "character"] {
        set(name, "trusted.of-no-file", b"value");
    }
    let len = if rich { 15_000 } else { 2000 };
    set("mixed", "user.large", &vec![7; len]);
    run(Command::new("setfacl")
        .args(["-m", "u:77:rw,g:78:r"])
        .arg(at("edge 4096")))?;
    run(Command::new("setfacl")
        .args(["-m", "u:79:rwx,d:u:80:rx,d:g:81:rwx"])
        .arg(at("wide")))?;
    Some(())
}

fn set_capability(path: &Path) {
    // Version 2, effective: cap_net_bind_service.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(path, "security.capability", &capability, flags).unwrap();
}

/// What `rsync` finds to do to make `target` what `source` is: nothing.
///
/// # Panics
/// When it finds something.
#[track_caller]
pub fn assert_rsync_agrees(source: &Path, target: &Path) {
    let slash = |path: &Path| format!("{}/", path.display());
    let output = Command::new("rsync")
        .args(["-aHAXSn", "--checksum", "--delete", "--itemize-changes"])
        // It takes no path that is too long for the kernel; the second opinion does.
        .args(["--exclude=/lost+found", "--exclude=/deepdeep*"])
        .args([&slash(source), &slash(target)])
        .output()
        .unwrap();
    let (said, complaint) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success() && said.is_empty(),
        "{said}{complaint}"
    );
}

/// Expects that two trees are the same by the second opinion.
///
/// # Panics
/// When they are not.
#[track_caller]
pub fn assert_same(source: &Path, target: &Path) {
    let (left, right) = (list(source), list(target));
    let mut differences = Vec::new();
    for path in left.keys().chain(right.keys()) {
        if left.get(path) != right.get(path) {
            let (left, right) = (left.get(path), right.get(path));
            differences.push(format!("{}: {left:#?} and {right:#?}", path.escape_ascii()));
        }
    }
    differences.sort();
    differences.dedup();
    let count = differences.len();
    differences.truncate(3);
    assert!(
        count == 0,
        "{count} differences:\n{}",
        differences.join("\n")
    );
}

/// All that is below a directory, by its path.
pub type Listing = BTreeMap<Vec<u8>, Line>;

/// What there is to say of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    mode: u32,
    owner: (u32, u32),
    size: Option<i64>,
    modified: (i64, u64),
    device: Option<u64>,
    content: Option<u64>,
    /// How much of it is allocated, roughly: in MiB.
    allocated: Option<i64>,
    target: Option<Vec<u8>>,
    attributes: BTreeMap<String, Vec<u8>>,
    /// The first name of the inode, where it has several.
    first_name: Option<Vec<u8>>,
}

/// Lists the tree at `root`, without the root's `lost+found`.
#[must_use]
pub fn list(root: &Path) -> Listing {
    let mut listing = Listing::new();
    let mut names = BTreeMap::new();
    let top: OwnedFd = File::open(root).unwrap().into();
    list_entry(&top, b".", b"", &mut listing, &mut names);
    // The first name in the order of the listing, whatever the order of the directories.
    let mut firsts: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for (path, inode) in &names {
        firsts.entry(*inode).or_insert_with(|| path.clone());
    }
    for (path, inode) in names {
        if let Some(line) = listing.get_mut(&path) {
            line.first_name = firsts.get(&inode).cloned();
        }
    }
    listing
}

fn list_entry(
    directory: &OwnedFd,
    name: &[u8],
    path: &[u8],
    listing: &mut Listing,
    names: &mut BTreeMap<Vec<u8>, u64>,
) {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let kind = FileType::from_raw_mode(stat.st_mode);
    let is_file = kind == FileType::RegularFile;
    let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
    let open = || {
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
        rustix::fs::openat(directory, name, flags, Mode::empty()).unwrap()
    };
    let target = (kind == FileType::Symlink).then(|| {
        let target = rustix::fs::readlinkat(directory, name, Vec::new());
        target.unwrap().into_bytes()
    });
    let line = Line {
        mode: if kind == FileType::Symlink {
            0
        } else {
            stat.st_mode
        },
        owner: (stat.st_uid, stat.st_gid),
        size: is_file.then_some(stat.st_size),
        modified: (stat.st_mtime, stat.st_mtime_nsec),
        device: is_device.then_some(stat.st_rdev),
        content: is_file.then(|| hash(File::from(open()))),
        allocated: (is_file && stat.st_size > 8 << 20).then_some(stat.st_blocks >> 12),
        target,
        attributes: attributes(directory, name),
        first_name: None,
    };
    listing.insert(path.to_vec(), line);
    if kind != FileType::Directory {
        if stat.st_nlink > 1 {
            names.insert(path.to_vec(), stat.st_ino);
        }
        return;
    }
    let inner = open();
    for entry in rustix::fs::Dir::read_from(&inner).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_bytes();
        let is_of_root = path.is_empty() && name == b"lost+found";
        if name == b"." || name == b".." || is_of_root {
            continue;
        }
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        list_entry(&inner, name, &[path, slash, name].concat(), listing, names);
    }
}

fn hash(mut file: File) -> u64 {
    let mut hasher = DefaultHasher::new();
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes).unwrap() {
            0 => return hasher.finish(),
            // Whatever a read gives, the same bytes give the same hash.
            len => bytes[..len].iter().for_each(|byte| hasher.write_u8(*byte)),
        }
    }
}

fn attributes(directory: &OwnedFd, name: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let place = format!("/proc/self/fd/{}/", directory.as_raw_fd());
    let path = [place.as_bytes(), name].concat();
    let mut names = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(&*path, &mut names[..]).unwrap_or(0);
    let names = names[..len]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(&*path, name, &mut value[..]).unwrap();
        value.truncate(len);
        (String::from_utf8_lossy(name).into_owned(), value)
    };
    names.map(value).collect()
}
