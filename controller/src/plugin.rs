//! `kubectl volferry`: what it prints of a clone, from the object alone; and in modules what it does
//! beyond reading.

pub mod bench;
pub mod cancel;
pub mod doctor;
pub mod installation;
pub mod logs;

use std::fmt::Write as _;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;

use crate::api::{Phase, VolumeClone, VolumeCloneStatus};
use crate::names::{End, name};
use crate::reason::Reason;

/// Clones as a table.
#[must_use]
pub fn table(clones: &[VolumeClone], with_namespace: bool) -> String {
    let mut rows = vec![row([
        "NAMESPACE",
        "NAME",
        "PHASE",
        "PROGRESS",
        "RATE",
        "WAITS FOR",
    ])];
    rows.extend(clones.iter().map(|clone| {
        let status = clone.status.clone().unwrap_or_default();
        let progress = status.progress.clone().unwrap_or_default();
        row([
            clone.target_namespace(),
            &clone.name_any(),
            status.phase.label(),
            &progress.percent,
            if status.phase.is_finished() {
                ""
            } else {
                &progress.rate
            },
            waits_for(&status).unwrap_or_default(),
        ])
    }));
    let skipped = usize::from(!with_namespace);
    let width = |column: usize| {
        let widths = rows.iter().map(|row| row[column].chars().count());
        widths.max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate().skip(skipped) {
            let _never = write!(line, "{cell:0$}", width(column) + 3);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(cells: [&str; 6]) -> [String; 6] {
    cells.map(str::to_owned)
}

/// The reason for which a clone does not go on.
fn waits_for(status: &VolumeCloneStatus) -> Option<&str> {
    let mut conditions = status.conditions.iter();
    let found = conditions.find(|it| it.type_ == "Progressing" && it.status == "False")?;
    (status.phase != Phase::Ready).then_some(found.reason.as_str())
}

/// One clone: how far it is, what holds it up, why it goes the way that it goes, where to look next.
#[must_use]
pub fn report(clone: &VolumeClone, now: Timestamp) -> String {
    let status = clone.status.clone().unwrap_or_default();
    let mut text = String::new();
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            let _never = writeln!(text, "{key:12}{value}");
        }
    };
    let shown = |namespace: &str, name: &str| format!("{namespace}/{name}");
    line("clone", &shown(clone.target_namespace(), &clone.name_any()));
    line("source", &source(clone));
    let target = status
        .target_claim
        .as_deref()
        .unwrap_or_else(|| clone.target_claim());
    line("target", &shown(clone.target_namespace(), target));
    line(
        "phase",
        &format!("{}{}", status.phase.label(), since(&status, now)),
    );
    if let Some(progress) = status
        .progress
        .as_ref()
        .filter(|_| status.phase != Phase::Failed)
    {
        line(
            "progress",
            &bar(
                progress.durable_bytes,
                progress.logical_bytes,
                &progress.percent,
            ),
        );
        if !status.phase.is_finished() {
            let left = progress
                .eta_seconds
                .map_or_else(String::new, |left| format!(", {} left", duration(left)));
            line("rate", &format!("{}{left}", progress.rate));
            line("limit", &progress.limit);
        }
    }
    for condition in &status.conditions {
        let mut known = Reason::ALL.iter();
        let meaning = known.find(|reason| reason.label() == condition.reason);
        let message = if condition.message.is_empty() {
            meaning.map_or("", |reason| reason.sentence())
        } else {
            &condition.message
        };
        let verdict = if condition.status == "True" {
            "yes"
        } else {
            "no"
        };
        let words = format!("{verdict}, {}: {message}", condition.reason);
        line(&condition.type_, words.trim_end_matches([':', ' ']));
    }
    for way in &status.considered {
        let verdict = match (status.strategy == Some(way.strategy), way.possible) {
            (true, _) => "chosen",
            (false, true) => "possible",
            (false, false) => "not possible",
        };
        let name = way.strategy.label();
        line("way", &format!("{name}, {verdict}: {}", way.message));
    }
    for (end, attempts) in [
        (End::Source, &status.attempts.source),
        (End::Target, &status.attempts.target),
    ] {
        if attempts.failures > 0 {
            let last = attempts.last_failure.as_deref().unwrap_or_default();
            let count = attempts.failures;
            line(
                end.label(),
                &format!("failed {count} times, the last time: {last}"),
            );
        }
    }
    if let Some(receipt) = &status.receipt {
        line("digest", &receipt.digest);
    }
    let has_pods = matches!(
        status.phase,
        Phase::Preparing | Phase::Cloning | Phase::Verifying
    ) && status.attempts.target.node.is_some();
    for end in End::ALL.into_iter().filter(|_| has_pods) {
        let namespace = end.namespace(clone);
        line(
            "log",
            &format!("kubectl logs -n {namespace} {}", name(clone, end)),
        );
    }
    text
}

/// What the API server said, without its code.
#[must_use]
pub fn in_words(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}

fn source(clone: &VolumeClone) -> String {
    let source = &clone.spec.source;
    let named = |kind: &str, name: &str| format!("{}/{name}{kind}", clone.source_namespace());
    match (&source.persistent_volume_claim, &source.volume_snapshot) {
        (Some(claim), _) => named("", &claim.name),
        (None, Some(snapshot)) => named(" (snapshot)", &snapshot.name),
        (None, None) => String::new(),
    }
}

/// How long it took, or takes by now.
fn since(status: &VolumeCloneStatus, now: Timestamp) -> String {
    let Some(began) = &status.started_at else {
        return String::new();
    };
    let ended = status.finished_at.as_ref().map_or(now, |at| at.0);
    let taken = duration(ended.duration_since(began.0).as_secs());
    match status.finished_at {
        Some(_) => format!(" after {taken}"),
        None => format!(" for {taken}"),
    }
}

fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// A bar of forty characters; of a tree, whose size nobody knows, only the words.
fn bar(done: i64, all: i64, words: &str) -> String {
    const WIDTH: u16 = 40;
    if all <= 0 {
        return words.to_owned();
    }
    let filled = i128::from(done.clamp(0, all)) * i128::from(WIDTH) / i128::from(all);
    let filled = u16::try_from(filled).unwrap_or(WIDTH).min(WIDTH);
    let part = |sign: &str, length: u16| sign.repeat(usize::from(length));
    format!(
        "[{}{}] {words}",
        part("#", filled),
        part(".", WIDTH - filled)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn clone(status: &Value) -> VolumeClone {
        serde_json::from_value(json!({
            "apiVersion": "volferry.io/v1alpha1", "kind": "VolumeClone",
            "metadata": {"name": "copy", "namespace": "home", "uid": "uid"},
            "spec": {"source": {"namespace": "away", "persistentVolumeClaim": {"name": "from"}},
                "target": {"persistentVolumeClaim": {"name": "to"}}},
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn a_report_says_how_far_and_where_to_look() {
        let status = json!({
            "phase": "Cloning", "strategy": "HostAssisted", "targetClaim": "to",
            "startedAt": "2026-01-01T00:00:00Z",
            "considered": [
                {"strategy": "CsiClone", "possible": false, "reason": "x", "message": "other driver"},
                {"strategy": "HostAssisted", "possible": true, "reason": "x", "message": "agents"}],
            "progress": {"stage": "transfer", "logicalBytes": 100, "durableBytes": 25,
                "percent": "25%", "rate": "9 MiB/s", "bytesPerSecond": 9, "etaSeconds": 75,
                "limit": "peer"},
            "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted",
                "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "attempts": {"target": {"failures": 2, "lastFailure": "it was evicted", "node": "n"}},
        });
        let at = "2026-01-01T01:02:03Z".parse().unwrap();
        let expected = "\
clone       home/copy
source      away/from
target      home/to
phase       Cloning for 1h02m
progress    [##########..............................] 25%
rate        9 MiB/s, 1m15s left
limit       peer
Accepted    yes, Accepted: source and target can be cloned, and the source's namespace consents
way         CsiClone, not possible: other driver
way         HostAssisted, chosen: agents
target      failed 2 times, the last time: it was evicted
log         kubectl logs -n away volferry-uid-source
log         kubectl logs -n home volferry-uid-target
";
        assert_eq!(report(&clone(&status), at), expected);
    }

    #[test]
    fn a_table_says_what_each_waits_for() {
        let waits = json!({"phase": "Pending", "conditions": [{"type": "Progressing",
            "status": "False", "reason": "NotGranted", "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let clones = [clone(&waits), clone(&json!({"phase": "Ready"}))];
        let expected = "\
NAMESPACE   NAME   PHASE     PROGRESS   RATE   WAITS FOR
home        copy   Pending                     NotGranted
home        copy   Ready
";
        assert_eq!(table(&clones, true), expected);
        assert!(!table(&clones, false).contains("home"));
    }
}
