use uuid::Uuid;

use super::*;
use crate::report::tests::example;
use crate::roofline::{Roofline, What};

/// After so many tenths of a second, at 1 GiB/s.
fn sample(tenths: u32) -> Sample {
    let seconds = f64::from(tenths) / 10.0;
    let bytes = u64::from(tenths) * (1 << 30) / 10;
    let end = EndSample {
        data_bytes: bytes,
        wire_bytes: bytes,
        durable_bytes: bytes / 2,
        entries: 7,
        queued: 3,
        ..EndSample::default()
    };
    Sample {
        seconds,
        source: Some(end),
        target: Some(end),
    }
}

/// A report with everything that a page shows.
fn full() -> Report {
    let mut report = example();
    let roofline = Roofline {
        ceilings: &report.ceilings,
        cpus: 2,
        quic: false,
        memory_bytes: 0,
    };
    let clone = &report.clones[0];
    let prediction = roofline.predict(What::Volume, &clone.name, &clone.facts);
    let clone = &mut report.clones[0];
    clone.prediction = prediction;
    clone.trace = (0..20).map(sample).collect();
    for ceiling in &mut report.ceilings {
        if ceiling.kind == Kind::TargetWrite {
            for repeat in &mut ceiling.repeats {
                let latency = Latency::of(vec![0.001, 0.002, 0.1]).unwrap();
                repeat.latencies.insert("write".into(), latency);
            }
        }
    }
    report
}

/// Every element that is opened is closed.
fn check(html: &str) {
    for element in [
        "html", "main", "section", "figure", "svg", "text", "div", "span", "p", "table",
    ] {
        let opened = html.matches(&format!("<{element}>")).count()
            + html.matches(&format!("<{element} ")).count();
        assert_eq!(
            opened,
            html.matches(&format!("</{element}>")).count(),
            "{element}"
        );
    }
    // Nothing is fetched and nothing runs.
    for foreign in [
        "<script", "http://", "https://", "url(", "@import", "<link", "src=",
    ] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
}

#[test]
fn a_page_shows_everything_and_names_break_nothing() {
    let html = render(&[("one", &full())]);
    check(&html);
    for part in [
        "Roofline",
        "bound by",
        "BLAKE3",
        "Throughput by stage",
        "p99",
        "polyline",
        "a &lt;processor&gt; &amp; more",
    ] {
        assert!(html.contains(part), "{part}");
    }
    assert!(!html.contains("<processor>") && !html.contains("<was>"));
}

#[test]
fn several_reports_are_compared_first() {
    let mut other = full();
    other.seed = 2;
    let html = render(&[("one", &full()), ("other", &other)]);
    check(&html);
    assert!(html.contains("comparison"));
    assert!(html.contains("other has the seed 2"));
}

#[test]
fn a_report_without_measurements_is_a_page_too() {
    let mut report = example();
    report.clones.clear();
    for ceiling in &mut report.ceilings {
        ceiling.repeats.clear();
    }
    check(&render(&[("empty", &report)]));
}

#[test]
fn a_trace_of_one_end_is_a_page() {
    let header = Header {
        trace_version: 1,
        clone_id: Uuid::nil(),
        agent: "<agent>".into(),
    };
    let mut samples: Vec<_> = (0..9).map(sample).collect();
    for sample in &mut samples {
        sample.source = None;
    }
    let html = render_trace(&header, &samples);
    check(&html);
    assert!(html.contains("written") && html.contains("to be written"));
    check(&render_trace(&header, &[]));
}

#[test]
fn a_rate_is_what_was_added_in_half_a_second() {
    let points: Vec<_> = (0..=20)
        .map(|tenth| f64::from(tenth) / 10.0)
        .map(|at| (at, at * 3.0))
        .collect();
    let rates = rate(&points);
    assert_eq!(rates.len(), 20);
    assert!(
        rates.iter().all(|(_, rate)| (rate - 3.0).abs() < 1e-9),
        "{rates:?}"
    );
    assert_eq!(rate(&[(1.0, 5.0), (1.0, 6.0)]), []);
}
