//! Conditions and progress as they stand in the status.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{self as meta, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{Planner, Step};
use crate::api::{ProgressStatus, VolumeCloneStatus};
use crate::reason::Reason;
use crate::world::{TargetReport, World};

/// The conditions of a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Accepted,
    Progressing,
    Ready,
}

impl Condition {
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::Progressing => "Progressing",
            Self::Ready => "Ready",
        }
    }
}

/// Messages are cut there: an API's words may be long, and the status is written often.
const MESSAGE_LEN_MAX: usize = 2048;

/// Sets a condition; its time only moves when it turns.
pub(super) fn set_condition(
    conditions: &mut Vec<meta::Condition>,
    condition: Condition,
    is_true: bool,
    (reason, message): (Reason, &str),
    world: &World,
) {
    let status = if is_true { "True" } else { "False" };
    let mut message = message.to_owned();
    message.truncate(message.floor_char_boundary(MESSAGE_LEN_MAX));
    let found = conditions
        .iter_mut()
        .find(|found| found.type_ == condition.label());
    let turned_at = found
        .as_ref()
        .filter(|found| found.status == status)
        .map_or(Time(world.now), |found| found.last_transition_time.clone());
    let set = meta::Condition {
        type_: condition.label().to_owned(),
        status: status.to_owned(),
        reason: reason.label().to_owned(),
        message,
        observed_generation: world.clone.metadata.generation,
        last_transition_time: turned_at,
    };
    match found {
        Some(found) => *found = set,
        None => conditions.push(set),
    }
}

/// Whether the condition `Progressing` has this reason already.
pub(super) fn is_told(status: &VolumeCloneStatus, reason: Reason) -> bool {
    let mut told = status.conditions.iter();
    told.any(|told| told.type_ == Condition::Progressing.label() && told.reason == reason.label())
}

/// What was refused stays to be read until it is no more refused.
pub(super) fn rejection(world: &World, steps: &[Step]) -> Option<(Reason, String)> {
    let rejections = &world.rejections;
    let mut made = steps.iter().filter(|step| step.makes()).map(Step::what);
    let rejection = made.find_map(|what| rejections.iter().find(|it| it.what == what))?;
    let reason = if rejection.message.contains("exceeded quota") {
        Reason::QuotaExceeded
    } else {
        Reason::Rejected
    };
    let words = format!("{}: {}", rejection.what, rejection.message);
    Some((reason, words))
}

/// The least time between two writes of progress.
const PROGRESS_EVERY_MIN: Duration = Duration::from_secs(10);
/// The longest time between two writes of progress, while there is any.
const PROGRESS_EVERY_MAX: Duration = Duration::from_secs(120);

/// How long the progress in the status may stay as it is: the longer the clone goes on, the longer,
/// so that a long clone is no burden for the API server, and a short one is worth watching.
fn progress_every(status: &VolumeCloneStatus, world: &World) -> Duration {
    let started_at = status.started_at.as_ref();
    let age = started_at.map(|started_at| world.now.duration_since(started_at.0));
    let age = age.and_then(|age| Duration::try_from(age).ok());
    let half = age.unwrap_or_default() / 2;
    half.clamp(PROGRESS_EVERY_MIN, PROGRESS_EVERY_MAX)
}

impl Planner<'_> {
    /// For how long nothing has held the clone up since that moment.
    pub(super) fn goes_on_for(&self, since: Timestamp) -> SignedDuration {
        let mut told = self.status.conditions.iter();
        let told = told.find(|told| told.type_ == Condition::Progressing.label());
        let going = told.filter(|told| told.status == "True");
        going.map_or(SignedDuration::ZERO, |going| {
            let since = since.max(going.last_transition_time.0);
            self.world.now.duration_since(since)
        })
    }

    /// Puts what the target reported into the status, if it is time for that.
    pub(super) fn keep_progress(&mut self, is_urgent: bool) {
        let Some(report) = &self.world.report else {
            return;
        };
        self.note_filled();
        let is_due = match &self.status.progress {
            Some(told) if told.stage == report.stage => {
                let updated_at = told.updated_at.as_ref();
                let age = updated_at.map(|at| self.world.now.duration_since(at.0));
                age.and_then(|age| Duration::try_from(age).ok())
                    .is_none_or(|age| age >= progress_every(&self.status, self.world))
            }
            _ => true,
        };
        if !is_due && !is_urgent {
            return;
        }
        self.status.progress = Some(shown(report, self.world));
        // It speaks of a claim that is known, or of none.
        if let (Some(checkpoint), Some(_)) = (&report.checkpoint, &self.status.filled_uid) {
            self.status.checkpoint = Some(checkpoint.to_string());
        }
    }
}

/// A report as people read it.
fn shown(report: &TargetReport, world: &World) -> ProgressStatus {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let percent = match (report.logical_bytes, report.entries) {
        (0, 0) => String::new(),
        (0, entries) => format!("{entries} names"),
        (all, _) => {
            let percent = u128::from(report.durable_bytes) * 100 / u128::from(all);
            format!("{percent}%")
        }
    };
    ProgressStatus {
        stage: report.stage.clone(),
        logical_bytes: number(report.logical_bytes),
        durable_bytes: number(report.durable_bytes),
        entries: number(report.entries),
        percent,
        rate: rate(report.bytes_per_second),
        bytes_per_second: whole(report.bytes_per_second),
        eta_seconds: report.eta_seconds.map(whole),
        limit: report.limit.clone(),
        updated_at: Some(Time(world.now)),
    }
}

/// The integer below.
#[expect(
    clippy::cast_possible_truncation,
    reason = "a float turns into the nearest integer there is"
)]
pub(super) fn whole(number: f64) -> i64 {
    number as i64
}

/// A rate as people read it.
pub(super) fn rate(bytes_per_second: f64) -> String {
    const UNITS: [&str; 5] = ["B/s", "KiB/s", "MiB/s", "GiB/s", "TiB/s"];
    let mut number = bytes_per_second;
    let mut units = UNITS.iter().peekable();
    while let Some(unit) = units.next() {
        if number < 1024.0 || units.peek().is_none() {
            return match number {
                number if number < 10.0 && *unit != "B/s" => format!("{number:.1} {unit}"),
                number => format!("{number:.0} {unit}"),
            };
        }
        number /= 1024.0;
    }
    String::new()
}
