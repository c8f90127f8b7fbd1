//! The report as data: what the JSON holds. docs/bench.md explains every field.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde::{Deserialize, Serialize};
use volferry_agent::trace::Sample;
use volferry_protocol::digest::Digest;
use volferry_protocol::waits::Limited;

use crate::ceiling::{Kind, Measured};
use crate::cost::Cost;
use crate::limits::Limits;
use crate::machine::Machine;
use crate::roofline::Prediction;
use crate::settings::Tuning;
use crate::shape::Facts;
use crate::stats::Summary;

/// What the form is called.
pub const SCHEMA: &str = "volferry-bench";

/// The form's version; raised when a field changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

/// One benchmark.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// [`SCHEMA_VERSION`] of the writer.
    pub schema_version: u32,
    /// When it began, RFC 3339.
    pub date: String,
    /// The version of volferry that was measured.
    pub volferry: String,
    /// Where it ran.
    pub machine: Machine,
    /// Within which walls.
    pub limits: Limits,
    /// What was read.
    pub source: Volume,
    /// What was written.
    pub target: Volume,
    /// Where the generated sources were.
    pub scratch: Volume,
    /// What the generated data follows from.
    pub seed: u64,
    /// Bytes of each generated volume.
    pub size_bytes: u64,
    /// Files of the generated tree.
    pub files: u64,
    /// How the agents were set.
    pub tuning: Tuning,
    /// Whether all caches were dropped before each clone; else only those of the generated files.
    pub drops_caches: bool,
    /// What could be spent, and what was.
    pub budget: Budget,
    /// The parts of a clone, each alone.
    pub ceilings: Vec<Ceiling>,
    /// The clones.
    pub clones: Vec<CloneResult>,
    /// The ends, where they were pods: then `machine`, `limits` and `ceilings` are the source's, and the
    /// target's where only that can be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<Pods>,
    /// What else went on.
    pub noise: Noise,
    /// What the reader should know before believing the numbers.
    pub warnings: Vec<String>,
}

/// A path, and what is there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Where.
    pub path: String,
    /// `file`, `device`, `directory`, or `new` for what was not there.
    pub kind: String,
    /// The kind of the filesystem, such as `ext4`; absent for a device, or where it can't be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
}

/// Where two pods were, and what each of them could.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pods {
    /// The source's storage class.
    pub from_class: String,
    /// The target's storage class.
    pub to_class: String,
    /// `block` or `filesystem`.
    pub mode: String,
    /// The source.
    pub source: PodEnd,
    /// The target.
    pub target: PodEnd,
}

/// One of two pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PodEnd {
    /// Its node.
    pub node: String,
    /// What the node is.
    pub machine: Machine,
    /// Within which walls.
    pub limits: Limits,
    /// All that was measured there.
    pub ceilings: Vec<Ceiling>,
}

/// What could be spent, and what was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Seconds that all might take.
    pub seconds: f64,
    /// Bytes that might be written.
    pub bytes: u64,
    /// Seconds that it took.
    pub spent_seconds: f64,
    /// Bytes that were written.
    pub spent_bytes: u64,
}

/// The measurements of one part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ceiling {
    /// Which part.
    pub kind: Kind,
    /// The generated volume that it was measured with, of a part that is measured with each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<String>,
    /// How many threads or streams worked.
    pub threads: usize,
    /// Why it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Every measurement.
    pub repeats: Vec<Measured>,
}

/// The clones of one volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloneResult {
    /// The profile, `files`, or `source`.
    pub name: String,
    /// What it holds.
    pub facts: Facts,
    /// Why it was not cloned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// Every clone.
    pub repeats: Vec<CloneRun>,
    /// What the ceilings say; absent where one is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// The last clone, moment by moment.
    pub trace: Vec<Sample>,
}

/// One clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CloneRun {
    /// What it cost, both ends together.
    #[serde(flatten)]
    pub cost: Cost,
    /// Processor seconds of the source agent.
    pub source_cpu_seconds: f64,
    /// Processor seconds of the target agent.
    pub target_cpu_seconds: f64,
    /// The digest that both ends agree on.
    pub digest: Digest,
    /// What the agents saw as the limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limited>,
    /// Where pods cloned: seconds from the making of the `VolumeClone` to its end, with all that
    /// Kubernetes and the controller did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object_seconds: Option<f64>,
}

/// What else went on while processors were measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// The part of the machine's processors that others used, from 0 to 1.
    pub others_share: f64,
    /// The part that the hypervisor gave to others.
    pub stolen_share: f64,
    /// The part of a processor that a thread got that wanted all of it.
    pub granted_share: f64,
}

impl Ceiling {
    /// A part that was not measured yet.
    #[must_use]
    pub const fn new(kind: Kind, threads: usize) -> Self {
        Self {
            kind,
            volume: None,
            threads,
            skipped: None,
            repeats: Vec::new(),
        }
    }

    /// What was measured, in words.
    #[must_use]
    pub fn title(&self) -> String {
        let sentence = self.kind.sentence();
        let volume = self.volume.as_deref();
        volume.map_or_else(
            || sentence.to_owned(),
            |volume| format!("{sentence}: {volume}"),
        )
    }

    /// Bytes a second.
    #[must_use]
    pub fn rate(&self) -> Option<Summary> {
        Summary::of(self.repeats.iter().map(Measured::rate))
    }

    /// Seconds of a measurement.
    #[must_use]
    pub fn seconds(&self) -> Option<Summary> {
        Summary::of(self.repeats.iter().map(|repeat| repeat.cost.seconds))
    }

    /// Processor seconds of a measurement.
    #[must_use]
    pub fn cpu_seconds(&self) -> Option<Summary> {
        Summary::of(self.repeats.iter().map(|repeat| repeat.cost.cpu_seconds))
    }

    /// Processor seconds for each byte.
    #[must_use]
    pub fn cpu_per_byte(&self) -> Option<f64> {
        let counted = self.repeats.iter().filter(|repeat| repeat.bytes > 0);
        let each = counted.map(|repeat| repeat.cost.cpu_seconds / repeat.bytes as f64);
        Summary::of(each).map(|summary| summary.median)
    }
}

impl CloneResult {
    /// Seconds of a clone.
    #[must_use]
    pub fn seconds(&self) -> Option<Summary> {
        Summary::of(self.repeats.iter().map(|run| run.cost.seconds))
    }

    /// Processor seconds of a clone.
    #[must_use]
    pub fn cpu_seconds(&self) -> Option<Summary> {
        Summary::of(self.repeats.iter().map(|run| run.cost.cpu_seconds))
    }

    /// By how much the measured time differs from the predicted one, as a part of the measured.
    #[must_use]
    pub fn error(&self) -> Option<f64> {
        let measured = self.seconds()?.median;
        Some((self.prediction.as_ref()?.seconds - measured) / measured)
    }

    /// The same of the processor time.
    #[must_use]
    pub fn cpu_error(&self) -> Option<f64> {
        let measured = self.cpu_seconds()?.median;
        Some((self.prediction.as_ref()?.cpu_seconds - measured) / measured)
    }
}

impl Report {
    /// The ceiling of this kind, if it was measured.
    #[must_use]
    pub fn ceiling(&self, kind: Kind) -> Option<&Ceiling> {
        let mut of_kind = self.ceilings.iter().filter(|ceiling| ceiling.kind == kind);
        of_kind.next().filter(|ceiling| !ceiling.repeats.is_empty())
    }

    /// Reads a report.
    ///
    /// # Errors
    /// A sentence that says why the text is none.
    pub fn read(text: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Form {
            schema: String,
            schema_version: u32,
        }
        let form: Form = serde_json::from_str(text)
            .map_err(|error| format!("it is no report of volferry bench: {error}"))?;
        if (form.schema.as_str(), form.schema_version) != (SCHEMA, SCHEMA_VERSION) {
            return Err(format!(
                "it is a {} of version {}, and this program reads {SCHEMA} of version {SCHEMA_VERSION}",
                form.schema, form.schema_version
            ));
        }
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    /// The report as text.
    ///
    /// # Errors
    /// When a number can't be written.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

impl Volume {
    /// Looks at what is at `path`.
    #[must_use]
    pub fn look_at(path: &Path) -> Self {
        let shown = path.display().to_string();
        let Ok(metadata) = fs::metadata(path) else {
            let above = path.parent().filter(|above| *above != Path::new(""));
            let above = fs::metadata(above.unwrap_or_else(|| Path::new(".")));
            return Self {
                path: shown,
                kind: "new".into(),
                filesystem: above.ok().and_then(|above| filesystem(above.dev())),
            };
        };
        let is_device = metadata.file_type().is_block_device();
        let kind = match () {
            () if is_device => "device",
            () if metadata.is_dir() => "directory",
            () => "file",
        };
        Self {
            path: shown,
            kind: kind.into(),
            filesystem: (!is_device).then(|| filesystem(metadata.dev())).flatten(),
        }
    }
}

/// The kind of the filesystem on the device of this number.
fn filesystem(device: u64) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let number = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let mount = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some(&number))?;
    let (_, after) = mount.split_once(" - ")?;
    after.split(' ').next().map(str::to_owned)
}

#[cfg(test)]
pub(crate) mod tests;
