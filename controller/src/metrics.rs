//! Prometheus metrics of the controller: what was done is counted, and the clones are looked at with
//! each scrape.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use kube::runtime::reflector::Store;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tokio::time::Instant;

use crate::api::{Phase, Strategy, VolumeClone, VolumeCloneStatus};

/// The metrics of one controller.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    clones: IntGaugeVec,
    running: IntGauge,
    leads: IntGauge,
    ended: IntCounterVec,
    cloned_bytes: IntCounter,
    reconciles: IntCounterVec,
    reconcile_seconds: Histogram,
    began: OnceLock<Instant>,
    store: OnceLock<Store<VolumeClone>>,
}

/// How long who leads may take to learn what there is. In a large cluster that is many thousand objects; after
/// that something is broken which a new start may mend, and another may be well.
const LEARN_TIME_MAX: Duration = Duration::from_secs(300);

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was decided is done.
    Done,
    /// Something may not be removed or noted, which is the controller's to do. What a clone needs and a quota or a
    /// policy refuses stands in its status, and is no such thing.
    Refused,
    /// A call failed.
    Failed,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Metrics of a controller that has done nothing yet.
    ///
    /// # Panics
    /// Never: the names are right and differ, which a test sees.
    #[must_use]
    #[expect(
        clippy::expect_used,
        reason = "names that are fixed are right or never"
    )]
    pub fn new() -> Self {
        const RIGHT: &str = "the names are right and differ";
        let clones = Opts::new("volferry_controller_clones", "VolumeClones by their phase");
        let ended = Opts::new(
            "volferry_controller_clones_ended_total",
            "VolumeClones that came to an end, by phase and strategy",
        );
        let reconciles = Opts::new(
            "volferry_controller_reconciles_total",
            "Looks at a VolumeClone, by their outcome",
        );
        let seconds = HistogramOpts::new(
            "volferry_controller_reconcile_seconds",
            "Time that a look at a VolumeClone took",
        );
        let metrics = Self {
            registry: Registry::new(),
            clones: IntGaugeVec::new(clones, &["phase"]).expect(RIGHT),
            running: IntGauge::new(
                "volferry_controller_clones_running",
                "Clones by agents that were let in",
            )
            .expect(RIGHT),
            leads: IntGauge::new("volferry_controller_leads", "Whether this one leads")
                .expect(RIGHT),
            ended: IntCounterVec::new(ended, &["phase", "strategy"]).expect(RIGHT),
            cloned_bytes: IntCounter::new(
                "volferry_controller_cloned_bytes_total",
                "Bytes of volumes that agents cloned and proved",
            )
            .expect(RIGHT),
            reconciles: IntCounterVec::new(reconciles, &["outcome"]).expect(RIGHT),
            reconcile_seconds: Histogram::with_opts(seconds).expect(RIGHT),
            began: OnceLock::new(),
            store: OnceLock::new(),
        };
        let Self {
            registry,
            clones,
            running,
            leads,
            ended,
            cloned_bytes,
            reconciles,
            reconcile_seconds,
            began: _,
            store: _,
        } = &metrics;
        let all: [Box<dyn prometheus::core::Collector>; 7] = [
            Box::new(clones.clone()),
            Box::new(running.clone()),
            Box::new(leads.clone()),
            Box::new(ended.clone()),
            Box::new(cloned_bytes.clone()),
            Box::new(reconciles.clone()),
            Box::new(reconcile_seconds.clone()),
        ];
        for collector in all {
            registry.register(collector).expect(RIGHT);
        }
        metrics
    }

    /// This one leads, and begins to look what there is.
    pub(crate) fn begin(&self) {
        let _again = self.began.set(Instant::now());
    }

    /// Since when it leads without knowing what there is, if that is too long.
    #[must_use]
    pub fn is_lost(&self) -> Option<Duration> {
        let learns = self.began.get().filter(|_| self.store.get().is_none())?;
        Some(learns.elapsed()).filter(|passed| *passed >= LEARN_TIME_MAX)
    }

    /// It knows, and `store` has all clones.
    pub(crate) fn lead(&self, store: Store<VolumeClone>) {
        self.leads.set(1);
        // A series that begins with its first end shows no increase: that would go unseen.
        let ways = Strategy::ALL.iter().map(|&way| Some(way));
        for way in ways.chain([None]) {
            for phase in [Phase::Ready, Phase::Failed] {
                self.ended.with_label_values(&ending(phase, way));
            }
        }
        // It leads once: afterwards the process ends.
        let _again = self.store.set(store);
    }

    /// A reconcile has ended.
    pub(crate) fn reconciled(&self, outcome: Outcome, taken: Duration) {
        let label = match outcome {
            Outcome::Done => "done",
            Outcome::Refused => "refused",
            Outcome::Failed => "failed",
        };
        self.reconciles.with_label_values(&[label]).inc();
        self.reconcile_seconds.observe(taken.as_secs_f64());
    }

    /// So many clones were let in.
    pub(crate) fn running(&self, count: usize) {
        self.running.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// A clone has come to its end with this status.
    pub(crate) fn ended(&self, status: &VolumeCloneStatus) {
        let labels = ending(status.phase, status.strategy);
        self.ended.with_label_values(&labels).inc();
        if let Some(receipt) = &status.receipt {
            let bytes = u64::try_from(receipt.logical_bytes).unwrap_or(0);
            self.cloned_bytes.inc_by(bytes);
        }
    }

    /// All of it, as Prometheus reads it.
    #[must_use]
    pub fn render(&self) -> String {
        if let Some(store) = self.store.get() {
            let mut counts: BTreeMap<_, i64> = Phase::ALL.map(|phase| (phase.label(), 0)).into();
            for clone in store.state() {
                let status = clone.status.as_ref();
                let phase = status.map_or_else(Phase::default, |status| status.phase);
                *counts.entry(phase.label()).or_default() += 1;
            }
            for (phase, count) in counts {
                self.clones.with_label_values(&[phase]).set(count);
            }
        }
        let mut text = Vec::new();
        // It writes into memory.
        let _never = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

/// The labels of an end: the phase, and the way if one was chosen.
fn ending(phase: Phase, way: Option<Strategy>) -> [&'static str; 2] {
    [phase.label(), way.map_or("none", Strategy::label)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ReceiptStatus;

    #[tokio::test(start_paused = true)]
    async fn who_never_learns_what_there_is_is_not_well() {
        let waits = Metrics::new();
        let learns = Metrics::new();
        learns.begin();
        let knows = Metrics::new();
        knows.begin();
        knows.lead(kube::runtime::reflector::store().0);
        let are_lost = || [&waits, &learns, &knows].map(|it| it.is_lost().is_some());
        tokio::time::advance(LEARN_TIME_MAX - Duration::from_secs(1)).await;
        assert_eq!(are_lost(), [false; 3]);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(are_lost(), [false, true, false]);
    }

    #[test]
    fn a_first_failure_is_an_increase() {
        let metrics = Metrics::new();
        metrics.lead(kube::runtime::reflector::store().0);
        let zero = |text: &str| {
            let lines = text.lines();
            lines
                .filter(|line| line.starts_with("volferry_controller_clones_ended_total{"))
                .filter(|line| line.ends_with(" 0"))
                .count()
        };
        let before = metrics.render();
        assert_eq!(zero(&before), 8, "{before}");
        metrics.ended(&VolumeCloneStatus {
            phase: Phase::Failed,
            ..VolumeCloneStatus::default()
        });
        assert_eq!(zero(&metrics.render()), 7, "one of those that were there");
    }

    #[test]
    fn what_was_done_is_counted() {
        let metrics = Metrics::new();
        metrics.reconciled(Outcome::Failed, Duration::from_millis(7));
        metrics.running(3);
        let receipt = ReceiptStatus {
            logical_bytes: 1 << 30,
            ..ReceiptStatus::default()
        };
        metrics.ended(&VolumeCloneStatus {
            phase: Phase::Ready,
            strategy: Some(Strategy::HostAssisted),
            receipt: Some(receipt),
            ..VolumeCloneStatus::default()
        });
        let text = metrics.render();
        for line in [
            "volferry_controller_reconciles_total{outcome=\"failed\"} 1",
            "volferry_controller_reconcile_seconds_count 1",
            "volferry_controller_clones_running 3",
            "volferry_controller_leads 0",
            "volferry_controller_clones_ended_total{phase=\"Ready\",strategy=\"HostAssisted\"} 1",
            "volferry_controller_cloned_bytes_total 1073741824",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
