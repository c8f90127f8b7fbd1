//! The rows of the report: which volume is cloned, onto what.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::args::Args;
use crate::devices::{self, Devices};
use crate::error::{At as _, Error};
use crate::size::{GIB, PIECE, Size, pieces};
use crate::tools::Tools;
use crate::{input, signals, tree};

/// One kind of volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Row {
    /// Random data between two devices in memory.
    DenseMemory,
    /// Random data from file to file on the disk.
    DenseDisk,
    /// A file of which one sixteenth is data.
    Sparse,
    /// An ext4 image made from a real tree.
    Image,
    /// A real tree, as a directory.
    TreeReal,
    /// A directory tree of files of 1 KiB.
    TreeSmall,
    /// A directory with one large file.
    TreeLarge,
    /// A directory with as many empty entries as there are small files.
    TreeWide,
    /// Directories within each other.
    TreeDeep,
}

/// A row made ready: the volume exists, the target can be prepared again and again.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The row.
    pub row: Row,
    /// What is read.
    pub source: PathBuf,
    /// What is written.
    pub target: PathBuf,
    /// Size of both.
    pub size_bytes: u64,
    /// Bytes of the source that are allocated; the report's rates count these.
    pub data_bytes: u64,
    /// BLAKE3 of the source's logical bytes.
    digest: blake3::Hash,
    devices: Option<Devices>,
    /// What is cloned, and where to, when that is a directory.
    pub tree: Option<(tree::Facts, tree::Place)>,
}

impl Row {
    /// The row's name in the report and on the command line.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::DenseMemory => "dense-memory",
            Self::DenseDisk => "dense-disk",
            Self::Sparse => "sparse",
            Self::Image => "image",
            Self::TreeReal => "tree-real",
            Self::TreeSmall => "tree-small",
            Self::TreeLarge => "tree-large",
            Self::TreeWide => "tree-wide",
            Self::TreeDeep => "tree-deep",
        }
    }

    /// Why this machine can't run the row.
    pub(crate) fn refusal(self, args: &Args, tools: &Tools) -> Option<String> {
        match self {
            Self::DenseMemory => {
                if !rustix::process::geteuid().is_root() {
                    return Some("needs root for loop devices".into());
                }
                let needed = args.size.0 * 2 + HEADROOM;
                let short = volferry_benchmark::machine::available_memory() < needed;
                let reason = short.then(|| format!("needs {} of free memory", Size(needed)));
                tools.missing(&devices::PROGRAMS).or(reason)
            }
            Self::Image => tools.missing(&["mkfs.ext4"]),
            _ if self.is_tree() => {
                let needs_root = !rustix::process::geteuid().is_root();
                let reason = needs_root.then(|| "needs root for filesystems".into());
                tools.missing(&tree::PROGRAMS).or(reason)
            }
            _ => None,
        }
    }

    /// Whether what is cloned is a directory.
    pub(crate) const fn is_tree(self) -> bool {
        matches!(
            self,
            Self::TreeReal | Self::TreeSmall | Self::TreeLarge | Self::TreeWide | Self::TreeDeep
        )
    }

    /// Makes the volume; `scratch` is a directory for this row alone.
    pub(crate) fn stage(self, args: &Args, scratch: &Path, tools: &Tools) -> Result<Stage, Error> {
        if self.is_tree() {
            return self.stage_tree(args, scratch);
        }
        let (source, devices) = match self {
            Self::DenseMemory => {
                let devices = Devices::make(scratch, args.size, tools)?;
                (devices.source.clone(), Some(devices))
            }
            Self::DenseDisk => (input::dense(&args.out, args.size)?, None),
            Self::Sparse => (input::sparse(&args.out, Size(args.size.0 * 4))?, None),
            _ => (input::image(&args.out, &args.image_from, tools)?, None),
        };
        let in_file = || args.out.join("target.img");
        let target = devices
            .as_ref()
            .map_or_else(in_file, |devices| devices.target.clone());
        let metadata = fs::metadata(&source).at("look at", &source)?;
        let size_bytes = if devices.is_some() {
            args.size.0
        } else {
            metadata.len()
        };
        let allocated = metadata.blocks() * 512;
        let data_bytes = if devices.is_some() {
            size_bytes
        } else {
            allocated.min(size_bytes)
        };
        let digest = digest_of(&source)?;
        Ok(Stage {
            row: self,
            source,
            target,
            size_bytes,
            data_bytes,
            digest,
            devices,
            tree: None,
        })
    }

    fn stage_tree(self, args: &Args, scratch: &Path) -> Result<Stage, Error> {
        let source = match self {
            Self::TreeReal => args.image_from.clone(),
            Self::TreeSmall => tree::small(&args.out, args.files)?,
            Self::TreeLarge => tree::large(&args.out, args.size)?,
            Self::TreeWide => tree::wide(&args.out, args.files)?,
            _ => tree::deep(&args.out)?,
        };
        let facts = tree::Facts::of(&source)?;
        let place = tree::Place::new(&args.out, scratch);
        Ok(Stage {
            row: self,
            source,
            target: place.path().to_owned(),
            size_bytes: facts.bytes,
            data_bytes: facts.bytes,
            digest: blake3::hash(b""),
            devices: None,
            tree: Some((facts, place)),
        })
    }
}

impl Stage {
    /// Whether the ends are devices.
    pub(crate) const fn is_device(&self) -> bool {
        self.devices.is_some()
    }

    /// Makes the target as it is before every clone: a new, empty file, or a device full of bytes
    /// that are wrong everywhere. (A device emptied instead would make its memory be allocated
    /// anew in the timed part, and where the machine is virtual that is what would be measured.)
    pub(crate) fn prepare_target(&self, tools: &Tools) -> Result<(), Error> {
        if let Some((facts, place)) = &self.tree {
            return place.make(facts, tools);
        }
        if self.is_device() {
            return self.spoil();
        }
        let file = File::create(&self.target).at("create", &self.target)?;
        file.set_len(self.size_bytes).at("resize", &self.target)
    }

    /// Flushes the target to stable storage; part of the timed part.
    pub(crate) fn flush_target(&self) -> Result<(), Error> {
        if self.tree.is_some() {
            let root = File::open(&self.target).at("open", &self.target)?;
            return rustix::fs::syncfs(root)
                .map_err(std::io::Error::from)
                .at("flush", &self.target);
        }
        let file = File::options()
            .write(true)
            .open(&self.target)
            .at("open", &self.target)?;
        file.sync_all().at("flush", &self.target)
    }

    /// Whether the target's logical bytes are the source's, read from stable storage.
    pub(crate) fn is_identical(&self, tools: &Tools) -> Result<bool, Error> {
        if self.tree.is_some() {
            return tree::is_identical(&self.source, &self.target, tools);
        }
        drop_caches()?;
        Ok(digest_of(&self.target)? == self.digest)
    }

    /// Reads the source, so that it is in the page cache, as far as it fits.
    pub(crate) fn read_source(&self) -> Result<(), Error> {
        match &self.tree {
            Some((facts, _)) => facts.read(&self.source),
            None => digest_of(&self.source).map(|_digest| ()),
        }
    }

    /// Bytes that the target occupies.
    pub(crate) fn allocated_bytes(&self) -> Result<u64, Error> {
        if self.tree.is_some() {
            return tree::allocated_bytes(&self.target);
        }
        if let Some(devices) = &self.devices {
            return devices.allocated_bytes();
        }
        let metadata = fs::metadata(&self.target).at("look at", &self.target)?;
        Ok(metadata.blocks() * 512)
    }

    fn spoil(&self) -> Result<(), Error> {
        let file = File::options()
            .write(true)
            .open(&self.target)
            .at("open", &self.target)?;
        let wrong = vec![0xA5; PIECE];
        for (offset, len) in pieces(0..self.size_bytes) {
            signals::check()?;
            file.write_all_at(&wrong[..len], offset)
                .at("write", &self.target)?;
        }
        file.sync_all().at("flush", &self.target)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.is_device() && self.tree.is_none() {
            // As large as the source and of no further use; there may be none.
            let _ = fs::remove_file(&self.target);
        }
    }
}

/// Makes every clone start cold. Without root the page cache stays as it is.
pub(crate) fn drop_caches() -> Result<(), Error> {
    const SWITCH: &str = "/proc/sys/vm/drop_caches";
    rustix::fs::sync();
    match fs::write(SWITCH, "3") {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        outcome => outcome.at("write", SWITCH),
    }
}

fn digest_of(path: &Path) -> Result<blake3::Hash, Error> {
    let mut file = File::open(path).at("open", path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE];
    loop {
        signals::check()?;
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(hasher.finalize()),
            len => hasher.update(&buffer[..len]),
        };
    }
}

/// For the page cache of the devices and the peers' own needs.
const HEADROOM: u64 = 2 * GIB;
