//! What is cloned: volumes and a tree that are made, as large as budget and storage bear, and the
//! user's own.

use std::fs::{self, File};
use std::io::Write;
use std::time::{Duration, Instant};

use volferry_protocol::failure::{Failure, FailureCode};

use super::Runner;
use crate::place::is_empty;
use crate::profile::Profile;
use crate::roofline::What;
use crate::shape::{self, Facts, Shape};

/// Bytes of a generated volume at most, where none were told.
const SIZE_MAX: u64 = 1 << 30;

/// And at least.
const SIZE_MIN: u64 = 64 << 20;

/// The part of the time that one pass over a volume may take.
const PASS_SHARE: f64 = 0.03;

/// Bytes that are written to see how fast the storage is.
const PROBE_LEN: u64 = 64 << 20;

/// Files of the generated tree for each MiB of a volume, where none were told.
const FILES_PER_MIB: u64 = 5;

/// Names of a user's tree that are counted before it is left alone.
const NAMES_MAX: u64 = 1_000_000;

/// What can be cloned.
pub(super) struct Shapes {
    pub(super) volumes: Vec<Shape>,
    pub(super) tree: Option<Shape>,
    /// The user's own, or why it is left out.
    pub(super) source: Result<Shape, String>,
}

impl Shapes {
    /// The user's own, if it is a block volume.
    pub(super) fn own_volume(&self) -> Option<&Shape> {
        self.source.as_ref().ok().filter(|shape| shape.is_volume())
    }

    /// In the order of the report's clones.
    pub(super) fn all(&self) -> Vec<(&Shape, Option<What>)> {
        let volumes = self.volumes.iter().map(|shape| (shape, Some(What::Volume)));
        let tree = self.tree.iter().map(|shape| (shape, Some(What::Tree)));
        // A tree of somebody else's has other files than ours: the ceilings say nothing of it.
        let source = self.source.iter();
        let source = source.map(|shape| (shape, shape.is_volume().then_some(What::Volume)));
        volumes.chain(tree).chain(source).collect()
    }
}

impl Runner<'_> {
    /// Makes what is to be cloned, and looks at the user's own.
    pub(super) fn make(&mut self) -> Result<Shapes, Failure> {
        let settings = self.settings;
        // First, since nothing has to be made to find that it can't be read.
        let source = self.own_source()?;
        let size = match settings.size {
            Some(size) => size,
            None => self.choose_size()?,
        };
        self.report.size_bytes = size;
        let files = match settings.files {
            _ if self.place.is_device() => 0,
            Some(files) => files,
            None => (size >> 20) * FILES_PER_MIB,
        };
        self.report.files = files;
        self.check_budget(size, files)?;
        let mut volumes = Vec::new();
        for profile in &settings.profiles {
            (self.on_step)(&format!("making the volume {profile}"));
            let scratch = self.place.scratch();
            let shape = shape::make_volume(scratch, *profile, size, settings.seed, self.stop)?;
            self.report.budget.spent_bytes += shape.facts.read_bytes;
            volumes.push(shape);
        }
        // The densest first: with it the storage is measured.
        volumes.sort_by_key(|shape| std::cmp::Reverse(shape.facts.read_bytes));
        let tree = match files {
            0 => None,
            files => {
                (self.on_step)(&format!("making {files} small files"));
                let profile = settings.profiles.first().copied();
                let profile = profile.unwrap_or(Profile::Random);
                let scratch = self.place.scratch();
                let made = shape::make_tree(scratch, profile, files, settings.seed, self.stop)?;
                self.report.budget.spent_bytes += shape::tree_bytes(files);
                Some(made)
            }
        };
        Ok(Shapes {
            volumes,
            tree,
            source,
        })
    }

    /// Fails where what is to be cloned can't be made.
    fn check_budget(&self, size: u64, files: u64) -> Result<(), Failure> {
        if let Some(capacity) = self.place.capacity()?
            && size > capacity
        {
            let text = format!(
                "volumes of {size} bytes are too large for the target device, which holds {capacity}; choose a \
                 smaller --size"
            );
            return Err(Failure::new(FailureCode::TargetTooSmall, text));
        }
        let volumes = size.saturating_mul(self.settings.profiles.len() as u64);
        let needed = volumes.saturating_add(shape::tree_bytes(files));
        let (bytes, is_of) = match self.place.free_bytes()? {
            free if free / 2 < self.settings.budget_bytes => (free / 2, "half of the free space"),
            _ => (self.settings.budget_bytes, "the budget (--budget-bytes)"),
        };
        if needed <= bytes {
            return Ok(());
        }
        let text = format!(
            "{needed} bytes have to be made to be cloned, and {is_of} is {bytes}; choose a smaller --size, fewer \
             --files, fewer profiles or another place by --scratch"
        );
        Err(Failure::new(FailureCode::Usage, text))
    }

    /// A size that the storage can bear within the budget.
    fn choose_size(&mut self) -> Result<u64, Failure> {
        self.check_budget(SIZE_MIN, 0)?;
        (self.on_step)("seeing how fast the storage is");
        let path = self.place.scratch().join("probe");
        let failed = |error: std::io::Error| {
            let text = format!("{} can't be written: {error}", path.display());
            Failure::new(FailureCode::TargetWrite, text)
        };
        let since = Instant::now();
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut left = PROBE_LEN;
        let piece = vec![0xa5; 1 << 20];
        while left > 0 && since.elapsed() < Duration::from_secs(5) {
            self.stop.check()?;
            file.write_all(&piece).map_err(failed)?;
            left = left.saturating_sub(piece.len() as u64);
        }
        file.sync_all().map_err(failed)?;
        let written = PROBE_LEN - left;
        let rate = written as f64 / since.elapsed().as_secs_f64();
        fs::remove_file(&path).map_err(failed)?;
        self.report.budget.spent_bytes += written;
        let affordable = rate * self.settings.budget.as_secs_f64() * PASS_SHARE;
        // A third of the bytes for what is made and written once in each of some rounds; the other half of the free
        // space is for clones, and trees stay until the end.
        let free = self.place.free_bytes()? / (2 * (self.settings.profiles.len() as u64 + 1));
        let affordable = affordable
            .min(self.settings.budget_bytes as f64 / 12.0)
            .min(free as f64)
            .min(self.place.capacity()?.unwrap_or(u64::MAX) as f64);
        let steps = (affordable / SIZE_MIN as f64).floor().max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between one and a few thousand"
        )]
        let size = (steps as u64).saturating_mul(SIZE_MIN);
        Ok(size.min(SIZE_MAX))
    }

    /// The user's own source, or why it is not cloned.
    fn own_source(&mut self) -> Result<Result<Shape, String>, Failure> {
        let settings = self.settings;
        let path = &settings.source;
        let metadata = fs::metadata(path).map_err(|error| {
            let text = format!("{} can't be looked at: {error}", path.display());
            Failure::new(FailureCode::SourceOpen, text)
        })?;
        let facts = match metadata.is_dir() {
            true => self.look_at_own_tree(),
            false => shape::look_at_volume(path, settings.tuning.chunk_size),
        };
        match facts {
            Ok(facts) => Ok(Ok(Shape {
                name: "source".into(),
                path: path.clone(),
                facts,
            })),
            Err(failure) if failure.code == FailureCode::Cancelled => Err(failure),
            Err(failure) => {
                let text = format!("{} is not cloned: {failure}", path.display());
                (self.on_step)(&text);
                self.report.warnings.push(text);
                Ok(Err(failure.text))
            }
        }
    }

    /// What is known of the user's own tree, unless it is none to be cloned.
    fn look_at_own_tree(&self) -> Result<Facts, Failure> {
        let path = &self.settings.source;
        let reason = match () {
            () if self.place.is_device() => "a directory can't be cloned to a block device",
            // It is not what it was.
            () if self.place.lies_in(path) => "generated sources are made in it",
            () if is_empty(path)? => "it is empty",
            () => return shape::look_at_tree(path, NAMES_MAX, self.stop),
        };
        Err(Failure::new(FailureCode::Usage, reason))
    }

    /// A volume that holds next to nothing.
    pub(super) fn make_session(&self) -> Result<Shape, Failure> {
        let path = self.place.scratch().join("session.img");
        let size = u64::from(self.settings.tuning.chunk_size.bytes());
        File::create_new(&path)
            .and_then(|file| file.set_len(size))
            .map_err(|error| {
                let text = format!("{} can't be made: {error}", path.display());
                Failure::new(FailureCode::TargetWrite, text)
            })?;
        Ok(Shape {
            name: "session".into(),
            path,
            facts: Facts::default(),
        })
    }
}
