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

use crate::api::{Phase, VolumeClone, VolumeCloneStatus};

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
    store: OnceLock<Store<VolumeClone>>,
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All that was decided is done.
    Done,
    /// The API server refused something, or a call failed.
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

    /// This one leads, and `store` has all clones.
    pub(crate) fn lead(&self, store: Store<VolumeClone>) {
        self.leads.set(1);
        // It leads once: afterwards the process ends.
        let _again = self.store.set(store);
    }

    /// A reconcile has ended.
    pub(crate) fn reconciled(&self, outcome: Outcome, taken: Duration) {
        let label = match outcome {
            Outcome::Done => "done",
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
        let strategy = status.strategy.map(|strategy| format!("{strategy:?}"));
        let phase = format!("{:?}", status.phase);
        let labels = [&*phase, strategy.as_deref().unwrap_or("none")];
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
            let mut counts: BTreeMap<String, i64> =
                Phase::ALL.map(|phase| (format!("{phase:?}"), 0)).into();
            for clone in store.state() {
                let status = clone.status.as_ref();
                let phase = status.map_or_else(Phase::default, |status| status.phase);
                *counts.entry(format!("{phase:?}")).or_default() += 1;
            }
            for (phase, count) in counts {
                self.clones.with_label_values(&[&*phase]).set(count);
            }
        }
        let mut text = Vec::new();
        // It writes into memory.
        let _never = TextEncoder::new().encode(&self.registry.gather(), &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ReceiptStatus, Strategy};

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
