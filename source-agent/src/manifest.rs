//! The manifest of a block volume as a file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use volferry_agent::output_files::unwritable;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::Failure;
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::manifest::{chunk_line, first_line};
use volferry_protocol::range_set::ChunkSet;

/// A manifest that is being written.
#[derive(Debug)]
pub struct ManifestFile {
    path: PathBuf,
    file: BufWriter<File>,
    recorded: ChunkSet,
}

impl ManifestFile {
    /// Creates the file, or empties it.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn create(path: &Path, geometry: &Geometry) -> Result<Self, Failure> {
        let create = || {
            let mut file = BufWriter::new(File::create(path)?);
            file.write_all(first_line(geometry).as_bytes())?;
            Ok(file)
        };
        let file = create().map_err(|error| unwritable("manifest", path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
            recorded: ChunkSet::default(),
        })
    }

    /// The chunks that stand in it.
    #[must_use]
    pub const fn recorded(&self) -> &ChunkSet {
        &self.recorded
    }

    /// Adds a chunk that holds data. One that stands there already, since it was sent in an earlier
    /// session, is not added again.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn record(&mut self, index: ChunkIndex, digest: Digest) -> Result<(), Failure> {
        if self.recorded.contains(index) {
            return Ok(());
        }
        self.recorded.insert(ChunkRange::one(index));
        let written = self.file.write_all(chunk_line(index, digest).as_bytes());
        written.map_err(|error| unwritable("manifest", &self.path, &error))
    }

    /// Makes the file complete and durable.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn finish(&mut self) -> Result<(), Failure> {
        let finished = self
            .file
            .flush()
            .and_then(|()| self.file.get_ref().sync_all());
        finished.map_err(|error| unwritable("manifest", &self.path, &error))
    }
}
