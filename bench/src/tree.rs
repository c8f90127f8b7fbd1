//! Trees: what is cloned in the rows of directories, where it goes, and the floor.
//!
//! A target is a new ext4 filesystem for each clone, on a loop device over a file of the disk that
//! is measured. The device passes the page cache, as a disk would: else each byte would be copied and
//! kept twice, below what is measured. An emptied directory would measure something else: ext4 does not use an inode again
//! within minutes after it was freed, and finding those that it may use took two thirds of the
//! processor time of a whole clone, whoever made it.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::devices::Loop;
use crate::error::{At as _, Error};
use crate::floor::Floor;
use crate::size::{GIB, MIB, Size};
use crate::tools::{self, Tools};
use crate::{input, signals};

/// What has to be installed.
pub(crate) const PROGRAMS: [&str; 5] = ["mkfs.ext4", "mount", "umount", "losetup", "rsync"];

/// What a tree holds.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Names, the root's included.
    pub entries: u64,
    /// Bytes of its files.
    pub bytes: u64,
    directories: Vec<PathBuf>,
    /// Files with their sizes, below the root.
    files: Vec<(PathBuf, u64)>,
}

impl Facts {
    /// Walks a tree on one filesystem.
    pub(crate) fn of(root: &Path) -> Result<Self, Error> {
        let device = fs::symlink_metadata(root).at("look at", root)?.dev();
        let mut facts = Self {
            entries: 1,
            bytes: 0,
            directories: Vec::new(),
            files: Vec::new(),
        };
        let mut waiting = vec![root.to_owned()];
        while let Some(directory) = waiting.pop() {
            signals::check()?;
            for entry in fs::read_dir(&directory).at("list", &directory)? {
                let entry = entry.at("list", &directory)?;
                let metadata = entry.metadata().at("look at", entry.path())?;
                let path = entry.path();
                let below = path.strip_prefix(root).unwrap_or(&path).to_owned();
                facts.entries += 1;
                if metadata.is_dir() && metadata.dev() == device {
                    facts.directories.push(below);
                    waiting.push(path);
                } else if metadata.is_file() {
                    facts.bytes += metadata.len();
                    facts.files.push((below, metadata.len()));
                }
            }
        }
        Ok(facts)
    }

    /// Reads each file.
    pub(crate) fn read(&self, root: &Path) -> Result<(), Error> {
        for (file, _) in &self.files {
            signals::check()?;
            let path = root.join(file);
            let mut file = File::open(&path).at("open", &path)?;
            std::io::copy(&mut file, &mut std::io::sink()).at("read", &path)?;
        }
        Ok(())
    }

    /// The bare loop: makes the same directories and files, as large, in `target`, with a thread for
    /// each processor, and flushes once.
    pub(crate) fn floor(&self, source: &Path, target: &Path) -> Result<Floor, Error> {
        let begun = Instant::now();
        for directory in &self.directories {
            let path = target.join(directory);
            fs::create_dir(&path).at("create", &path)?;
        }
        let next = AtomicUsize::new(0);
        let content = vec![0xa5; usize::try_from(MIB).unwrap_or(1 << 20)];
        let make_all = || -> Result<(), Error> {
            while let Some((file, size)) = self.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let path = target.join(file);
                let file = File::create_new(&path).at("create", &path)?;
                let mut at = 0;
                while at < *size {
                    let len = usize::try_from((size - at).min(MIB)).unwrap_or(0);
                    file.write_all_at(&content[..len], at).at("write", &path)?;
                    at += len as u64;
                }
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(make_all)).collect();
            let results = workers.into_iter().map(|worker| worker.join());
            results
                .map(|result| result.unwrap_or(Ok(())))
                .collect::<Result<Vec<()>, Error>>()
        })?;
        let root = File::open(target).at("open", target)?;
        rustix::fs::syncfs(root)
            .map_err(std::io::Error::from)
            .at("flush", source)?;
        Ok(Floor {
            seconds: begun.elapsed().as_secs_f64(),
            bytes: self.bytes,
        })
    }
}

/// Where a tree is cloned to.
#[derive(Debug)]
pub(crate) struct Place {
    mount: PathBuf,
    image: PathBuf,
}

impl Place {
    /// A place below `scratch`, on an image in `out`.
    pub(crate) fn new(out: &Path, scratch: &Path) -> Self {
        Self {
            mount: scratch.join("target"),
            image: out.join("target-tree.img"),
        }
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> &Path {
        &self.mount
    }

    /// Makes a new filesystem that holds `facts` with room to spare, and mounts it.
    pub(crate) fn make(&self, facts: &Facts, tools: &Tools) -> Result<(), Error> {
        self.remove();
        fs::create_dir_all(&self.mount).at("create", &self.mount)?;
        let size = (facts.bytes * 3 / 2 + facts.entries * 8192 + GIB).next_multiple_of(GIB);
        let image = File::create(&self.image).at("create", &self.image)?;
        image.set_len(size).at("resize", &self.image)?;
        let mut mkfs = tools.command("mkfs.ext4");
        // What is left to do in the background would be done while it is measured.
        mkfs.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]);
        mkfs.args(["-N", &(facts.entries * 5 / 4 + 4096).to_string()]);
        tools::run(mkfs.arg(&self.image))?;
        // It goes with the mount.
        let device = Loop::attach(&self.image, &["--direct-io=on"], tools)?;
        let mut mount = tools.command("mount");
        tools::run(mount.arg(device.path()).arg(&self.mount)).map(drop)
    }

    fn remove(&self) {
        // There may be none. What a peer left that was killed may still be at work there, and goes
        // with the last of its files.
        let umount = |how: &[&str]| {
            let mut umount = std::process::Command::new("umount");
            let done = umount.args(how).arg(&self.mount).output();
            done.is_ok_and(|output| output.status.success())
        };
        let _ = umount(&[]) || umount(&["--lazy"]);
        let _ = fs::remove_file(&self.image);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Files of 1 KiB of random bytes, a thousand in each directory.
pub(crate) fn small(out: &Path, count: u64) -> Result<PathBuf, Error> {
    const SIZE: u64 = 1024;
    made(out, &format!("tree-small-{count}"), |root| {
        let random = tempfile::tempfile().at("create", root)?;
        input::fill(&random, root, 0..SIZE * 1000)?;
        let mut content = vec![0; 1024];
        for number in 0..count {
            let directory = root.join((number / 1000).to_string());
            if number % 1000 == 0 {
                signals::check()?;
                fs::create_dir(&directory).at("create", &directory)?;
            }
            random
                .read_exact_at(&mut content, number % 1000 * SIZE)
                .at("read", root)?;
            content[..8].copy_from_slice(&number.to_le_bytes());
            let path = directory.join(number.to_string());
            fs::write(&path, &content).at("write", &path)?;
        }
        Ok(())
    })
}

/// One file of `size` random bytes.
pub(crate) fn large(out: &Path, size: Size) -> Result<PathBuf, Error> {
    made(out, &format!("tree-large-{size}"), |root| {
        let path = root.join("large");
        let file = File::create(&path).at("create", &path)?;
        input::fill(&file, &path, 0..size.0)
    })
}

/// One directory with `count` empty files.
pub(crate) fn wide(out: &Path, count: u64) -> Result<PathBuf, Error> {
    made(out, &format!("tree-wide-{count}"), |root| {
        for number in 0..count {
            let path = root.join(number.to_string());
            File::create(&path).at("create", &path)?;
        }
        Ok(())
    })
}

/// A thousand directories within each other, each with a small file; the peers take no more.
pub(crate) fn deep(out: &Path) -> Result<PathBuf, Error> {
    made(out, "tree-deep", |root| {
        let mut path = root.to_owned();
        for number in 0..1000 {
            path.push("d");
            fs::create_dir(&path).at("create", &path)?;
            let file = path.join("f");
            let mut file = File::create(&file).at("create", &file)?;
            writeln!(file, "{number}").at("write", &path)?;
        }
        Ok(())
    })
}

/// The directory `name`, filled by `fill` unless it is there.
fn made(
    out: &Path,
    name: &str,
    fill: impl FnOnce(&Path) -> Result<(), Error>,
) -> Result<PathBuf, Error> {
    let path = out.join(name);
    if !path.exists() {
        let part = out.join(format!("{name}.part"));
        if part.exists() {
            fs::remove_dir_all(&part).at("remove", &part)?;
        }
        fs::create_dir_all(&part).at("create", &part)?;
        fill(&part)?;
        fs::rename(&part, &path).at("rename", &part)?;
    }
    Ok(path)
}

/// Whether rsync, reading both, finds nothing to do.
pub(crate) fn is_identical(source: &Path, target: &Path, tools: &Tools) -> Result<bool, Error> {
    let mut rsync = tools.command("rsync");
    rsync.args(["-aHAXSnx", "--checksum", "--delete", "--itemize-changes"]);
    rsync.arg("--exclude=/lost+found");
    for path in [source, target] {
        rsync.arg(format!("{}/", path.display()));
    }
    Ok(tools::run(&mut rsync)?.is_empty())
}

/// Bytes that the filesystem of the target holds.
pub(crate) fn allocated_bytes(target: &Path) -> Result<u64, Error> {
    let room = rustix::fs::statvfs(target)
        .map_err(std::io::Error::from)
        .at("look at", target)?;
    Ok((room.f_blocks - room.f_bfree) * room.f_frsize)
}
