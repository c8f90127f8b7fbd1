//! Where a session begins: from nothing, from what a journal or a checkpoint vouches for, or by
//! comparing what the target holds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use uuid::Uuid;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkRange, Geometry};
use volferry_protocol::journal::Checkpoint;
use volferry_protocol::message::Hello;
use volferry_protocol::session::{CannotResume, Standing};
use volferry_storage::{Sink, file_mark};

/// What a clone goes on from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resume {
    /// From what the journal, or a checkpoint that was handed over, says to be durable.
    #[default]
    Journal,
    /// As well from whatever the target holds: chunks whose digests agree are not sent.
    Digest,
    /// From nothing.
    Nothing,
}

/// Reads a checkpoint that `/progress` of another target agent gave: the checkpoint itself, or all
/// of `/progress`.
///
/// # Errors
/// When the file can't be read, is none, or is one of another clone.
pub(crate) fn read_checkpoint(path: &Path, clone_id: Uuid) -> Result<Checkpoint, Failure> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Form {
        Checkpoint(Checkpoint),
        Progress { checkpoint: Checkpoint },
    }
    let usage = |text: String| Failure::new(FailureCode::Usage, text);
    let text = std::fs::read_to_string(path).map_err(|error| {
        usage(format!(
            "the checkpoint {} can't be read: {error}",
            path.display()
        ))
    })?;
    match serde_json::from_str(&text) {
        Ok(Form::Checkpoint(checkpoint) | Form::Progress { checkpoint })
            if checkpoint.clone_id != clone_id =>
        {
            Err(usage(format!(
                "the checkpoint {} is of clone {}, this target belongs to clone {clone_id}",
                path.display(),
                checkpoint.clone_id
            )))
        }
        Ok(Form::Checkpoint(checkpoint) | Form::Progress { checkpoint }) => Ok(checkpoint),
        Err(_no_form) => Err(usage(format!(
            "{} is no checkpoint; take the `checkpoint` of a target agent's /progress",
            path.display()
        ))),
    }
}

/// Where a session begins.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) standing: Standing,
    /// Whether the source offers its chunks by digest first.
    pub(crate) offer: bool,
}

/// What is known before the first session.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) resume: Resume,
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Whether a file that exists may be written, whosever it is.
    pub(crate) may_overwrite: bool,
    /// Whether the volume shares the blocks of what is to be cloned: nobody vouches for that, so it is
    /// compared.
    pub(crate) holds_copy: bool,
    /// Where the target is, for messages.
    pub(crate) path: PathBuf,
}

impl Known {
    /// Where the first session begins, on a volume that was made ready.
    ///
    /// # Errors
    /// When the source is another than the journal's, or the file is not the one that it speaks of.
    pub(crate) fn begin(
        &self,
        geometry: Geometry,
        hello: &Hello,
        sink: &dyn Sink,
    ) -> Result<Begin, Failure> {
        let now = Instant::now();
        let compares = self.holds_copy || self.resume == Resume::Digest;
        let offer = compares && !sink.zeroes_for_free();
        let target_mark = sink.mark();
        let anew = || Begin {
            standing: Standing {
                target_mark,
                ..Standing::new(now, geometry, hello)
            },
            offer,
        };
        let Some(checkpoint) = &self.checkpoint else {
            return Ok(anew());
        };
        let read = |offset, bytes: &mut [u8]| sink.read_at(offset, bytes).is_ok();
        match Standing::resume(now, geometry, hello, checkpoint) {
            Ok(standing) if vouches(checkpoint, geometry, read) => Ok(Begin {
                standing: Standing {
                    target_mark,
                    ..standing
                },
                offer,
            }),
            // Nothing that holds data is durable yet, but the file is the clone's own.
            Ok(_) if checkpoint.witnesses.is_empty() && is_own(checkpoint, sink) => Ok(anew()),
            Ok(_) if self.may_overwrite || is_own(checkpoint, sink) || holds_nothing(sink) => {
                tracing::warn!(
                    volume = %self.path.display(),
                    "the target does not hold what the journal says: the clone starts anew"
                );
                Ok(anew())
            }
            Ok(_) => Err(self.not_the_journals()),
            Err(error) if error.is_source_changed() && self.resume != Resume::Digest => {
                Err(source_changed(&error))
            }
            Err(error) => {
                tracing::warn!(%error, "the journal is not used");
                Ok(anew())
            }
        }
    }
}

impl Known {
    /// Checks that the file may be written, before anything is done to it: making it ready sets its
    /// size, and may zero its tail.
    ///
    /// # Errors
    /// When the leave to write it comes from a journal that speaks of another.
    pub(crate) fn check_file(&self) -> Result<(), Failure> {
        let Some(checkpoint) = self.checkpoint.as_ref().filter(|_| !self.may_overwrite) else {
            return Ok(());
        };
        let Ok(file) = File::open(&self.path) else {
            return Ok(()); // not there yet
        };
        let mark = file.metadata().map_or(0, |metadata| file_mark(&metadata));
        let geometry = Geometry::new(checkpoint.volume_size, checkpoint.chunk_size);
        let read = |offset, bytes: &mut [u8]| file.read_exact_at(bytes, offset).is_ok();
        let is_journals = checkpoint.target_mark == mark
            || geometry.is_ok_and(|geometry| vouches(checkpoint, geometry, read));
        if is_journals || is_blank(&self.path) {
            return Ok(());
        }
        Err(self.not_the_journals())
    }

    fn not_the_journals(&self) -> Failure {
        let text = format!(
            "target volume: {} exists and is not the volume that the journal speaks of; choose \
             another target, or --overwrite it",
            self.path.display()
        );
        Failure::new(FailureCode::TargetInUse, text)
    }
}

/// Where a later session of this agent begins: what is durable is remembered. With `holds_more`, the
/// last session was cut while it compared, and the volume holds more than is known.
///
/// # Errors
/// When the source is another than before.
pub(crate) fn go_on(
    resume: Resume,
    holds_more: bool,
    standing: Standing,
    geometry: Geometry,
    hello: &Hello,
) -> Result<Begin, Failure> {
    match standing.check_source(geometry, hello) {
        Ok(()) => Ok(Begin {
            standing,
            offer: holds_more || resume == Resume::Digest,
        }),
        Err(CannotResume::OtherGeneration { .. }) if resume == Resume::Digest => Ok(Begin {
            standing: Standing {
                target_mark: standing.target_mark,
                ..Standing::new(Instant::now(), geometry, hello)
            },
            offer: true,
        }),
        Err(error) => Err(source_changed(&error)),
    }
}

fn source_changed(error: &CannotResume) -> Failure {
    let text = format!(
        "the clone can't go on from what is durable: {error}. Compare what the target holds \
         (--resume digest), or start anew (--resume none)"
    );
    Failure::new(FailureCode::SourceChanged, text)
}

/// Whether the file is the one that an earlier run of this clone wrote.
fn is_own(checkpoint: &Checkpoint, sink: &dyn Sink) -> bool {
    checkpoint.target_mark != 0 && checkpoint.target_mark == sink.mark()
}

/// Whether a file is there that is nothing but a hole, so that nothing can be lost by writing over
/// it. Its blocks don't tell: some filesystems keep small files elsewhere, others count none at all.
pub(crate) fn is_blank(path: &Path) -> bool {
    let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    is_file
        && File::open(path)
            .is_ok_and(|file| rustix::fs::seek(file, SeekFrom::Data(0)) == Err(Errno::NXIO))
}

/// Whether nothing can be lost by writing over the file.
fn holds_nothing(sink: &dyn Sink) -> bool {
    sink.zeroes_for_free() || sink.allocated_bytes() == Some(0)
}

/// Whether the volume is the one that `checkpoint` speaks of: its witnesses are there. Where nothing
/// but zeros is durable there are none, and little is lost by starting anew. `read` fills bytes from
/// an offset on, and says whether it could.
fn vouches(
    checkpoint: &Checkpoint,
    geometry: Geometry,
    read: impl Fn(u64, &mut [u8]) -> bool,
) -> bool {
    let mut bytes = vec![0; geometry.chunk_size().bytes() as usize];
    let is_there = |index, digest: Digest, bytes: &mut [u8]| {
        let range = geometry.bytes_of(ChunkRange::one(index));
        let bytes = bytes
            .get_mut(..geometry.chunk_len(index) as usize)
            .unwrap_or_default();
        read(range.start(), bytes) && Digest::of_chunk(bytes) == digest
    };
    !checkpoint.witnesses.is_empty()
        && checkpoint
            .witnesses
            .iter()
            .all(|witness| is_there(witness.index, witness.digest, &mut bytes))
}

#[cfg(test)]
mod tests {
    use volferry_protocol::geometry::{ChunkIndex, ChunkSize};
    use volferry_storage::mem::MemVolume;

    use super::*;

    const CHUNK: usize = 65536;

    fn geometry() -> Geometry {
        Geometry::new(4 * CHUNK as u64, ChunkSize::MIN).unwrap()
    }

    fn hello(generation: &str) -> Hello {
        Hello {
            clone_id: Uuid::from_u128(1),
            instance: Uuid::from_u128(2),
            attempt: 1,
            take_over: false,
            volume_size: geometry().volume_size(),
            chunk_size: ChunkSize::MIN,
            streams: 1,
            streams_max: None,
            generation: generation.into(),
            features: vec![],
            required_features: vec![],
            agent: String::new(),
            tree: None,
        }
    }

    /// Chunk 1 of a volume of sevens is durable.
    fn checkpoint() -> Checkpoint {
        let mut standing = Standing::new(Instant::now(), geometry(), &hello("one"));
        let digest = Digest::of_chunk(&[7; CHUNK]);
        standing.ledger.write(ChunkIndex(1), digest, 65536).unwrap();
        standing.ledger.begin_flush();
        standing.ledger.end_flush().unwrap();
        standing.checkpoint(Uuid::from_u128(1), 5)
    }

    fn known(resume: Resume, may_overwrite: bool) -> Known {
        Known {
            resume,
            checkpoint: Some(checkpoint()),
            may_overwrite,
            holds_copy: false,
            path: "target".into(),
        }
    }

    #[test]
    fn a_journal_counts_for_the_volume_and_the_source_it_speaks_of() {
        let same = MemVolume::holding(vec![7; 4 * CHUNK]);
        let begin = |resume, generation: &str, volume: &MemVolume| {
            known(resume, false).begin(geometry(), &hello(generation), volume)
        };
        let durable = |begin: &Begin| begin.standing.ledger.watermark().durable_bytes;

        let on = begin(Resume::Journal, "one", &same).unwrap();
        assert_eq!((durable(&on), on.offer), (CHUNK as u64, false));
        let on = begin(Resume::Digest, "one", &same).unwrap();
        assert_eq!((durable(&on), on.offer), (CHUNK as u64, true));

        let failure = begin(Resume::Journal, "two", &same).unwrap_err();
        assert_eq!(failure.code, FailureCode::SourceChanged);
        assert!(failure.text.contains("--resume digest"), "{failure}");
        let compared = begin(Resume::Digest, "two", &same).unwrap();
        assert_eq!((durable(&compared), compared.offer), (0, true));

        let fresh = MemVolume::fresh(4 * CHUNK);
        let anew = begin(Resume::Journal, "one", &fresh).unwrap();
        assert_eq!((durable(&anew), anew.offer), (0, false));

        let foreign = MemVolume::holding(vec![8; 4 * CHUNK]);
        let failure = begin(Resume::Journal, "one", &foreign).unwrap_err();
        assert_eq!(failure.code, FailureCode::TargetInUse);
        let allowed = known(Resume::Journal, true).begin(geometry(), &hello("one"), &foreign);
        assert_eq!(durable(&allowed.unwrap()), 0);
    }

    #[test]
    fn a_checkpoint_is_read_alone_and_out_of_progress() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("checkpoint.json");
        let json = serde_json::to_string(&checkpoint()).unwrap();
        for text in [
            json.clone(),
            format!("{{\"stage\":\"x\",\"checkpoint\":{json}}}"),
        ] {
            std::fs::write(&path, text).unwrap();
            let own = read_checkpoint(&path, Uuid::from_u128(1));
            assert_eq!(own.unwrap(), checkpoint());
            let failure = read_checkpoint(&path, Uuid::from_u128(2)).unwrap_err();
            assert_eq!(failure.code, FailureCode::Usage);
        }
        std::fs::write(&path, "{}").unwrap();
        let failure = read_checkpoint(&path, Uuid::from_u128(1)).unwrap_err();
        assert_eq!(failure.code, FailureCode::Usage);
    }

    #[test]
    fn another_source_does_not_go_on_where_one_left() {
        let standing = Standing::new(Instant::now(), geometry(), &hello("one"));
        let check = |resume, generation| {
            go_on(
                resume,
                false,
                standing.clone(),
                geometry(),
                &hello(generation),
            )
            .map(|begin| begin.offer)
        };
        assert_eq!(check(Resume::Journal, "one"), Ok(false));
        assert_eq!(check(Resume::Digest, "two"), Ok(true));
        let failure = check(Resume::Journal, "two").unwrap_err();
        assert_eq!(failure.code, FailureCode::SourceChanged);
    }
}
