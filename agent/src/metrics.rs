//! Prometheus metrics of an agent: the progress, read at each scrape, and what went wrong, counted.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Encoder, Gauge, GaugeVec, IntCounterVec, Opts, Registry, TextEncoder};
use volferry_protocol::failure::Failure;
use volferry_protocol::waits::Limit;

use crate::cpu::{CpuMeter, peak_memory_bytes};
use crate::progress::{Progress, Report};

/// The metrics of one agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    rejections: IntCounterVec,
    failures: IntCounterVec,
}

/// A metric that is read from the progress: name, help, whether it only grows, how to read it.
type Reading = (&'static str, &'static str, Kind, fn(&Report) -> f64);

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

const READINGS: &[Reading] = &[
    (
        "volferry_logical_bytes",
        "Bytes of the volume",
        Kind::Gauge,
        |r| r.logical_bytes as f64,
    ),
    (
        "volferry_durable_bytes",
        "Bytes durable at the target",
        Kind::Gauge,
        |r| r.durable_bytes as f64,
    ),
    (
        "volferry_resumed_bytes",
        "Bytes durable before this session",
        Kind::Gauge,
        |r| r.resumed_bytes as f64,
    ),
    (
        "volferry_data_bytes_total",
        "Bytes in blocks that hold data",
        Kind::Counter,
        |r| r.data_bytes as f64,
    ),
    (
        "volferry_zero_bytes_total",
        "Bytes that are zero",
        Kind::Counter,
        |r| r.zero_bytes as f64,
    ),
    (
        "volferry_entries",
        "Names of a tree that were read or made",
        Kind::Gauge,
        |r| r.entries as f64,
    ),
    (
        "volferry_wire_bytes_total",
        "Bytes on data connections before encryption",
        Kind::Counter,
        |r| r.wire_bytes as f64,
    ),
    (
        "volferry_compressed_bytes_total",
        "Bytes of data that travelled compressed, as they were",
        Kind::Counter,
        |r| r.compression.compressed_bytes as f64,
    ),
    (
        "volferry_compressed_to_bytes_total",
        "Bytes that these had become",
        Kind::Counter,
        |r| r.compression.compressed_to_bytes as f64,
    ),
    (
        "volferry_sent_bytes_total",
        "Bytes of data that went from end to end, in all sessions",
        Kind::Counter,
        |r| r.sent_bytes as f64,
    ),
    (
        "volferry_resent_bytes_total",
        "Bytes of data that went more than once",
        Kind::Counter,
        |r| r.resent_bytes as f64,
    ),
    (
        "volferry_checked_bytes_total",
        "Bytes of the target read to compare or verify them",
        Kind::Counter,
        |r| r.checked_bytes as f64,
    ),
    (
        "volferry_sessions_total",
        "Sessions; each reconnect begins one",
        Kind::Counter,
        |r| r.sessions as f64,
    ),
    (
        "volferry_data_connections",
        "Data connections that there are now",
        Kind::Gauge,
        |r| r.connections as f64,
    ),
    (
        "volferry_bytes_per_second",
        "Durable bytes a second over ten seconds",
        Kind::Gauge,
        |r| r.bytes_per_second,
    ),
    (
        "volferry_volume_wait_seconds_total",
        "Time that data connections waited for the volume",
        Kind::Counter,
        |r| r.waits.volume_wait_seconds,
    ),
    (
        "volferry_peer_wait_seconds_total",
        "Time that data connections waited for the peer",
        Kind::Counter,
        |r| r.waits.peer_wait_seconds,
    ),
    (
        "volferry_throttle_wait_seconds_total",
        "Time that data connections waited for the bandwidth limit",
        Kind::Counter,
        |r| r.waits.throttle_wait_seconds,
    ),
    (
        "volferry_volume_io_seconds_total",
        "Time that threads read or wrote the volume",
        Kind::Counter,
        |r| r.waits.volume_io_seconds,
    ),
    (
        "volferry_volume_cpu_seconds_total",
        "Time that threads looked for zeros and hashed",
        Kind::Counter,
        |r| r.waits.volume_cpu_seconds,
    ),
    (
        "volferry_bandwidth_limit_bytes_per_second",
        "Bytes that may be sent each second; 0 for no limit",
        Kind::Gauge,
        |r| r.bandwidth_limit as f64,
    ),
    (
        "volferry_pressure_limit_bytes_per_second",
        "Bytes that may move each second because of the pressure on the node; 0 for no limit",
        Kind::Gauge,
        |r| r.pressure_limit as f64,
    ),
];

impl Metrics {
    /// Metrics of the agent whose progress and threads these are.
    #[must_use]
    pub fn new(progress: Arc<Progress>, cpu: CpuMeter) -> Self {
        let counter_vec = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label]);
            counters.unwrap_or_else(|error| unreachable!("metric names are constants: {error}"))
        };
        let rejections = counter_vec(
            "volferry_rejections_total",
            "Peers that were turned away",
            "reason",
        );
        let failures = counter_vec("volferry_failures_total", "Sessions that failed", "code");
        let registry = Registry::new();
        let collectors: [Box<dyn Collector>; 3] = [
            Box::new(rejections.clone()),
            Box::new(failures.clone()),
            Box::new(Readings { progress, cpu }),
        ];
        for collector in collectors {
            if let Err(error) = registry.register(collector) {
                unreachable!("each metric is registered once: {error}");
            }
        }
        Self {
            registry,
            rejections,
            failures,
        }
    }

    /// A peer was turned away, for a reason in one word.
    pub fn count_rejection(&self, reason: &str) {
        self.rejections.with_label_values(&[reason]).inc();
    }

    /// A session failed.
    pub fn count_failure(&self, failure: &Failure) {
        self.failures
            .with_label_values(&[failure.code.label()])
            .inc();
    }

    /// The text exposition format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "the metrics can't be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}

/// Reads the progress at each scrape.
struct Readings {
    progress: Arc<Progress>,
    cpu: CpuMeter,
}

impl Collector for Readings {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let report = self.progress.report();
        let cpu_seconds = self.cpu.total().as_secs_f64();
        let peak = peak_memory_bytes() as f64;
        let readings = READINGS
            .iter()
            .map(|(name, help, kind, read)| (*name, *help, *kind, read(&report)));
        let process = [
            (
                "volferry_cpu_seconds_total",
                "Processor time of the agent",
                Kind::Counter,
                cpu_seconds,
            ),
            (
                "volferry_peak_memory_bytes",
                "Largest resident size of the process",
                Kind::Gauge,
                peak,
            ),
        ];
        readings
            .chain(process)
            .flat_map(|(name, help, kind, value)| family(name, help, kind, value))
            .chain(limit_share(&report))
            .collect()
    }
}

/// The share of what limits the clone most, by its name; the others are 0.
fn limit_share(report: &Report) -> Vec<MetricFamily> {
    let opts = Opts::new(
        "volferry_limit_share",
        "Share of the time for which this limited the clone, where it is the largest",
    );
    let Ok(shares) = GaugeVec::new(opts, &["limit"]) else {
        unreachable!("the metric's name is a constant");
    };
    for limit in Limit::ALL {
        let share = if limit == report.limit {
            report.limit_share
        } else {
            0.0
        };
        shares.with_label_values(&[limit.label()]).set(share);
    }
    shares.collect()
}

fn family(name: &str, help: &str, kind: Kind, value: f64) -> Vec<MetricFamily> {
    let collected = match kind {
        Kind::Counter => Counter::new(name, help).map(|counter| {
            counter.inc_by(value);
            counter.collect()
        }),
        Kind::Gauge => Gauge::new(name, help).map(|gauge| {
            gauge.set(value);
            gauge.collect()
        }),
    };
    collected.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use volferry_protocol::failure::FailureCode;

    use super::*;
    use crate::progress::End;

    #[test]
    fn every_metric_is_rendered() {
        let progress = Arc::new(Progress::new(End::Source, Uuid::nil()));
        progress.set_volume(4096, 0);
        progress.set_moved(17, 0);
        let metrics = Metrics::new(progress, CpuMeter::default());
        metrics.count_rejection("expired");
        metrics.count_failure(&Failure::new(FailureCode::Silent, ""));
        let text = metrics.render();
        for (name, ..) in READINGS {
            assert!(
                text.contains(&format!("\n{name} ")),
                "{name} is missing in:\n{text}"
            );
        }
        assert!(text.contains("volferry_data_bytes_total 17\n"));
        assert!(text.contains("volferry_logical_bytes 4096\n"));
        assert!(text.contains("volferry_rejections_total{reason=\"expired\"} 1\n"));
        assert!(text.contains("volferry_failures_total{code=\"silent\"} 1\n"));
        assert!(text.contains("volferry_cpu_seconds_total "));
        assert!(text.contains("volferry_limit_share{limit=\"source_cpu\"} 0\n"));
    }
}
