//! How a clone went, moment by moment: what `--trace` records and the benchmark draws.
//!
//! A trace is a file of JSON lines: a [`Header`], then a [`Sample`] several times a second.

use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uuid::Uuid;
use volferry_protocol::failure::Failure;
use volferry_protocol::waits::Waits;

use crate::output_files::unwritable;
use crate::progress::{End, Progress, Report};

/// Between two samples of a trace, in milliseconds: short enough to show a flush, long enough that
/// an hour is some megabytes.
pub const INTERVAL_MS: u64 = 200;

/// The form of the trace; raised when a field changes its meaning.
pub const TRACE_VERSION: u32 = 1;

/// The first line of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`TRACE_VERSION`] of the writer.
    pub trace_version: u32,
    /// The clone.
    pub clone_id: Uuid,
    /// Name and version of who recorded it.
    pub agent: String,
}

/// A clone at one moment, at the ends that can be seen. All numbers but `queued` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Seconds since the first agent started.
    pub seconds: f64,
    /// The source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<EndSample>,
    /// The target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<EndSample>,
}

/// One end at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndSample {
    /// Bytes in blocks that hold data: read at the source, written at the target.
    pub data_bytes: u64,
    /// Bytes that are zero.
    pub zero_bytes: u64,
    /// Bytes handed to the transport, or taken from it.
    pub wire_bytes: u64,
    /// Bytes that are durable at the target, as far as this end knows.
    pub durable_bytes: u64,
    /// Names of a tree.
    pub entries: u64,
    /// Chunks or packs that wait: at the source to be sent, at the target to be written.
    #[serde(default)]
    pub queued: u64,
    /// Where the time of connections and threads went.
    #[serde(flatten)]
    pub waits: Waits,
}

impl From<&Report> for EndSample {
    fn from(report: &Report) -> Self {
        Self {
            data_bytes: report.data_bytes,
            zero_bytes: report.zero_bytes,
            wire_bytes: report.wire_bytes,
            durable_bytes: report.durable_bytes,
            entries: report.entries,
            queued: report.queued,
            waits: report.waits,
        }
    }
}

impl Sample {
    /// The end that reports.
    #[must_use]
    pub fn of_one(report: &Report) -> Self {
        let end = Some(report.into());
        let (source, target) = match report.end {
            End::Source => (end, None),
            End::Target => (None, end),
        };
        Self {
            seconds: report.seconds,
            source,
            target,
        }
    }

    /// Both ends at once.
    #[must_use]
    pub fn of_both(source: &Report, target: &Report) -> Self {
        Self {
            seconds: target.seconds.max(source.seconds),
            source: Some(source.into()),
            target: Some(target.into()),
        }
    }
}

/// A trace that is being written, if one is wanted.
#[derive(Debug)]
pub struct Recorder {
    path: PathBuf,
    file: Option<File>,
}

impl Recorder {
    /// Creates the file, or empties it, and writes the header. Without a path nothing is recorded.
    /// `program` is who records.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn open(path: Option<&Path>, clone_id: Uuid, program: &str) -> Result<Self, Failure> {
        let Some(path) = path else {
            return Ok(Self {
                path: PathBuf::new(),
                file: None,
            });
        };
        let create = || {
            let mut file = File::create(path)?;
            let header = Header {
                trace_version: TRACE_VERSION,
                clone_id,
                agent: crate::agent_name(program),
            };
            line(&mut file, &header).map(|()| file)
        };
        let file = create().map_err(|error| unwritable("trace", path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            file: Some(file),
        })
    }

    /// Appends a sample, which is in the file when this returns: the last ones before a crash are
    /// the ones that count. A clone does not fail because its trace can't be written; the trace ends.
    pub fn record(&mut self, sample: &Sample) {
        let Some(file) = &mut self.file else { return };
        if let Err(error) = line(file, sample) {
            tracing::warn!(path = %self.path.display(), %error, "the trace ends here");
            self.file = None;
        }
    }

    /// Records an agent's progress for as long as it is awaited.
    pub async fn watch(&mut self, progress: &Progress) -> Infallible {
        let mut ticks = tokio::time::interval(Duration::from_millis(INTERVAL_MS));
        while self.file.is_some() {
            ticks.tick().await;
            self.record(&Sample::of_one(&progress.report()));
        }
        std::future::pending().await
    }
}

/// Appends a line in one piece.
fn line(file: &mut File, value: &impl Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(value)?;
    bytes.push(b'\n');
    file.write_all(&bytes)
}

/// Reads a trace. A last line that is torn is left out: the agent may have died in it.
///
/// # Errors
/// A sentence that says which line is none of a trace.
pub fn read(text: &str) -> Result<(Header, Vec<Sample>), String> {
    let mut lines = text.lines().enumerate().peekable();
    let (_, first) = lines.next().ok_or("the file is empty")?;
    let header: Header =
        serde_json::from_str(first).map_err(|error| format!("line 1 is no header: {error}"))?;
    if header.trace_version != TRACE_VERSION {
        return Err(format!(
            "the trace has version {}, this program reads {TRACE_VERSION}",
            header.trace_version
        ));
    }
    let mut samples = Vec::new();
    while let Some((number, line)) = lines.next() {
        match serde_json::from_str(line) {
            Ok(sample) => samples.push(sample),
            Err(_torn) if lines.peek().is_none() && !text.ends_with('\n') => {}
            Err(error) => return Err(format!("line {} is no sample: {error}", number + 1)),
        }
    }
    Ok((header, samples))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_as_it_was_written_and_a_torn_end_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let end = EndSample {
            data_bytes: 7,
            queued: 3,
            ..EndSample::default()
        };
        let sample = Sample {
            seconds: 0.5,
            source: Some(end),
            target: None,
        };
        let mut recorder = Recorder::open(Some(&path), Uuid::nil(), "test").unwrap();
        recorder.record(&sample);
        recorder.record(&Sample::default());
        let text = std::fs::read_to_string(&path).unwrap();
        let (header, samples) = read(&text).unwrap();
        assert_eq!((header.clone_id, samples.len()), (Uuid::nil(), 2));
        assert_eq!(samples[0], sample);
        let torn = &text[..text.len() - 9];
        assert_eq!(read(torn).unwrap().1, [sample]);
        assert!(
            read(&format!("{torn}\n{text}"))
                .unwrap_err()
                .contains("line 3")
        );
        assert!(read("").is_err());
        assert!(Recorder::open(Some(dir.path()), Uuid::nil(), "test").is_err());
        let later = text.replacen("\"trace_version\":1", "\"trace_version\":2", 1);
        assert!(read(&later).unwrap_err().contains("version 2"));
    }
}
