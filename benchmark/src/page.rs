//! Reports and traces as one page: HTML with SVG within, for light and dark, narrow and wide. No
//! script, and nothing from elsewhere.

use std::fmt::Write as _;

use volferry_agent::trace::{EndSample, Header, Sample};

use crate::ceiling::Kind;
use crate::compare::Comparison;
use crate::report::{Ceiling, CloneResult, Report};
use crate::stats::Latency;

mod chart;

use chart::{Bar, Dot, Line, bars, dots, escape, lines};

/// The page of one report, or of several with what differs between them first.
#[must_use]
pub fn render(reports: &[(&str, &Report)]) -> String {
    let mut body = String::new();
    if reports.len() > 1 {
        body += &comparison(&Comparison::of(reports));
    }
    for (name, report) in reports {
        let title = match reports.len() {
            1 => "volferry bench".to_owned(),
            _ => format!("volferry bench: {name}"),
        };
        body += &one(&title, report);
    }
    page("volferry bench", &body)
}

/// The page of a trace.
#[must_use]
pub fn render_trace(header: &Header, samples: &[Sample]) -> String {
    let facts = format!(
        "clone {}, recorded by {}, {} samples",
        header.clone_id,
        header.agent,
        samples.len()
    );
    let body = format!(
        "<header><h1>volferry trace</h1><p>{}</p></header><section>{}</section>",
        escape(&facts),
        over_time(samples)
    );
    page("volferry trace", &body)
}

fn page(title: &str, body: &str) -> String {
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{}</title>\
         <style>\n{STYLE}</style></head><body><main>\n{body}</main></body></html>\n",
        escape(title)
    )
}

const STYLE: &str = include_str!("page/style.css");

const GIB: f64 = (1_u64 << 30) as f64;

fn one(title: &str, report: &Report) -> String {
    let machine = &report.machine;
    let mut facts = vec![
        report.date.clone(),
        format!("volferry {}", report.volferry),
        format!("{} × {}", machine.cpus, machine.cpu_model),
        format!("{:.1} GiB of memory", machine.memory_bytes as f64 / GIB),
        format!("Linux {}", machine.kernel),
        format!("{} to {}", report.source.path, report.target.path),
        format!("seed {}", report.seed),
    ];
    facts.extend(
        report
            .limits
            .cpus
            .map(|cpus| format!("limited to {cpus} CPU")),
    );
    let memory = report.limits.memory_bytes;
    facts.extend(memory.map(|bytes| format!("limited to {:.2} GiB", bytes as f64 / GIB)));
    let mut html = format!(
        "<header><h1>{}</h1><p>{}</p></header>",
        escape(title),
        escape(&facts.join(" · "))
    );
    for warning in &report.warnings {
        // Writing to a String can't fail; so in the rest of this file.
        let _ = write!(html, "<p class=\"warning\">{}</p>", escape(warning));
    }
    let clones = report.clones.iter();
    let cards: String = clones.clone().map(card).collect();
    let _ = write!(
        html,
        "<section><h2>Clones</h2><div class=\"cards\">{cards}</div></section>"
    );
    let rooflines: String = clones.clone().map(roofline).collect();
    let _ = write!(
        html,
        "<section><h2>Roofline</h2><p>How long each part alone would take: the longest is what a \
         clone can't be faster than. Processor time of all stages adds up. The mark is the clone \
         as it was measured.</p><div class=\"grid\">{rooflines}</div></section>"
    );
    let _ = write!(
        html,
        "<section><h2>Ceilings</h2><p>Each part of a clone alone, in GiB/s; the bar spans all \
         repeats, the dot is the median.</p>{}</section>",
        ceilings(report)
    );
    let parts: String = clones.clone().map(cpu_parts).collect();
    let _ = write!(
        html,
        "<section><h2>Processor time</h2><p>In seconds of one processor, both ends \
         together.</p><div class=\"grid\">{parts}</div></section>"
    );
    let _ = write!(
        html,
        "<section><h2>Latency</h2><p>Of single operations of one chunk, and of flushes, in \
         milliseconds; from the repeat in the middle.</p>{}</section>",
        latencies(report)
    );
    let times: String = clones
        .filter(|clone| clone.trace.len() > 1)
        .map(|clone| {
            format!(
                "<h3>{}</h3>{}",
                escape(&clone.name),
                over_time(&clone.trace)
            )
        })
        .collect();
    let _ = write!(html, "<section><h2>Over time</h2>{times}</section>");
    html
}

/// What a clone came to.
fn card(clone: &CloneResult) -> String {
    let name = escape(&clone.name);
    let Some(seconds) = clone.seconds() else {
        let reason = clone.skipped.as_deref().unwrap_or("not measured");
        let predicted = clone.prediction.as_ref().map_or_else(String::new, |found| {
            format!("<br>predicted {:.2} s", found.seconds)
        });
        return format!(
            "<div class=\"card\"><h3>{name}</h3><p>{}{predicted}</p></div>",
            escape(reason)
        );
    };
    let rate = clone.facts.data_bytes as f64 / GIB / seconds.median;
    let names = match clone.facts.names {
        0 => String::new(),
        names => format!(", {:.0} names/s", names as f64 / seconds.median),
    };
    let predicted = match (&clone.prediction, clone.error()) {
        (Some(prediction), Some(error)) => format!(
            "predicted {:.2} s ({:+.0} %), bound by {}",
            prediction.seconds,
            error * 100.0,
            escape(&prediction.binding)
        ),
        _ => "no prediction".to_owned(),
    };
    let repeats = match clone.repeats.len() {
        1 => "cloned once".to_owned(),
        count => format!("{count} repeats, spread {:.0} %", seconds.spread_percent()),
    };
    format!(
        "<div class=\"card\"><h3>{name}</h3><p class=\"big\">{:.2} s</p>\
         <p>{rate:.2} GiB/s of data{names}<br>{repeats}<br>{predicted}</p></div>",
        seconds.median
    )
}

fn roofline(clone: &CloneResult) -> String {
    let (Some(prediction), Some(measured)) = (&clone.prediction, clone.seconds()) else {
        return String::new();
    };
    let all = prediction.bounds.iter().map(|bound| Bar {
        name: bound.name.clone(),
        value: bound.seconds,
        is_own: bound.name == prediction.binding,
    });
    let measured = ("measured", measured.median);
    bars(&clone.name, "s", &all.collect::<Vec<_>>(), Some(measured))
}

fn cpu_parts(clone: &CloneResult) -> String {
    let (Some(prediction), Some(measured)) = (&clone.prediction, clone.cpu_seconds()) else {
        return String::new();
    };
    let part = |name: &str, value, is_own| Bar {
        name: name.to_owned(),
        value,
        is_own,
    };
    let mut all = vec![
        part("measured", measured.median, true),
        part("predicted", prediction.cpu_seconds, true),
    ];
    let parts = prediction.cpu_parts.iter();
    all.extend(parts.map(|bound| part(&bound.name, bound.seconds, false)));
    bars(&clone.name, "CPU-s", &all, None)
}

fn ceilings(report: &Report) -> String {
    let of_bytes = report
        .ceilings
        .iter()
        .filter(|one| one.kind != Kind::Session);
    let rows = of_bytes.filter_map(|ceiling| {
        let rate = ceiling.rate()?;
        let cost = ceiling.cpu_per_byte().unwrap_or(0.0) * GIB;
        Some(Dot {
            name: ceiling.title(),
            low: rate.min / GIB,
            middle: rate.median / GIB,
            high: rate.max / GIB,
            more: format!("{cost:.2} CPU-s/GiB"),
        })
    });
    dots("GiB/s", &rows.collect::<Vec<_>>())
}

fn latencies(report: &Report) -> String {
    let mut rows = Vec::new();
    let kinds = [
        Kind::SourceRead,
        Kind::ScratchRead,
        Kind::TargetWrite,
        Kind::ReadWrite,
    ];
    let of_storage = |ceiling: &&Ceiling| kinds.contains(&ceiling.kind);
    for ceiling in report.ceilings.iter().filter(of_storage) {
        let mut repeats: Vec<_> = ceiling.repeats.iter().collect();
        repeats.sort_by(|one, other| one.cost.seconds.total_cmp(&other.cost.seconds));
        let Some(middle) = repeats.get(repeats.len() / 2) else {
            continue;
        };
        for (operation, latency) in &middle.latencies {
            rows.push(latency_row(
                &format!("{}: {operation}", ceiling.title()),
                latency,
            ));
        }
    }
    dots(
        "ms, from the median to the longest; the dot is the 90th percentile",
        &rows,
    )
}

fn latency_row(name: &str, latency: &Latency) -> Dot {
    let ms = 1000.0;
    Dot {
        name: name.to_owned(),
        low: latency.p50 * ms,
        middle: latency.p90 * ms,
        high: latency.max * ms,
        more: format!(
            "p50 {:.2}, p99 {:.2}, max {:.2}, of {}",
            latency.p50 * ms,
            latency.p99 * ms,
            latency.max * ms,
            latency.count
        ),
    }
}

/// The charts of a trace.
fn over_time(samples: &[Sample]) -> String {
    let mut html = String::new();
    let is_tree = samples.iter().any(|sample| {
        let ends = [sample.source, sample.target];
        ends.iter().flatten().any(|end| end.entries > 0)
    });
    let source =
        |of: fn(&EndSample) -> f64| series(samples, |sample| sample.source.map(|end| of(&end)));
    let target =
        |of: fn(&EndSample) -> f64| series(samples, |sample| sample.target.map(|end| of(&end)));
    let data = |end: &EndSample| end.data_bytes as f64 / GIB;
    let wire = |end: &EndSample| end.wire_bytes as f64 / GIB;
    let durable = |end: &EndSample| end.durable_bytes as f64 / GIB;
    html += &lines(
        "Throughput by stage",
        "GiB/s",
        &[
            Line::new("read", rate(&source(data))),
            Line::new("sent", rate(&source(wire))),
            Line::new("received", rate(&target(wire))),
            Line::new("written", rate(&target(data))),
        ],
    );
    html += &lines(
        "So far",
        "GiB",
        &[
            Line::new("read", source(data)),
            Line::new("written", target(data)),
            Line::new("durable, zeros included", target(durable)),
        ],
    );
    if is_tree {
        let names = |end: &EndSample| end.entries as f64;
        html += &lines(
            "Names",
            "names/s",
            &[
                Line::new("read", rate(&source(names))),
                Line::new("made", rate(&target(names))),
            ],
        );
    }
    let queued = |end: &EndSample| end.queued as f64;
    html += &lines(
        "Queues",
        "chunks that wait",
        &[
            Line::new("to be sent", source(queued)),
            Line::new("to be written", target(queued)),
        ],
    );
    let volume = |end: &EndSample| end.waits.volume_wait_seconds;
    let peer = |end: &EndSample| end.waits.peer_wait_seconds;
    let throttle = |end: &EndSample| end.waits.throttle_wait_seconds;
    html += &lines(
        "What connections wait for",
        "connections",
        &[
            Line::new("source: its volume", rate(&source(volume))),
            Line::new("source: its peer", rate(&source(peer))),
            Line::new("source: the bandwidth limit", rate(&source(throttle))),
            Line::new("target: its volume", rate(&target(volume))),
            Line::new("target: its peer", rate(&target(peer))),
        ],
    );
    let io = |end: &EndSample| end.waits.volume_io_seconds;
    let cpu = |end: &EndSample| end.waits.volume_cpu_seconds;
    html += &lines(
        "What threads do",
        "threads",
        &[
            Line::new("source: read", rate(&source(io))),
            Line::new("source: compute", rate(&source(cpu))),
            Line::new("target: write", rate(&target(io))),
            Line::new("target: compute", rate(&target(cpu))),
        ],
    );
    format!("<div class=\"grid\">{html}</div>")
}

/// A number over time.
fn series(samples: &[Sample], of: impl Fn(&Sample) -> Option<f64>) -> Vec<(f64, f64)> {
    let points = samples
        .iter()
        .filter_map(|sample| Some((sample.seconds, of(sample)?)));
    points.collect()
}

/// How fast a number grows, over the last half second.
fn rate(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    /// Long enough to bridge the steps in which counters are published.
    const WINDOW: f64 = 0.5;
    let mut first = 0;
    let mut rates = Vec::new();
    for (index, (at, value)) in points.iter().enumerate() {
        // The youngest that is as old as the window, or the oldest there is.
        while first + 1 < index
            && points
                .get(first + 1)
                .is_some_and(|(then, _)| at - then >= WINDOW)
        {
            first += 1;
        }
        if let Some((then, before)) = points.get(first)
            && at > then
        {
            rates.push((*at, (value - before).max(0.0) / (at - then)));
        }
    }
    rates
}

fn comparison(comparison: &Comparison) -> String {
    let mut html = "<header><h1>volferry bench: comparison</h1></header><section><ol>".to_owned();
    for report in &comparison.reports {
        let _ = write!(html, "<li>{}</li>", escape(report));
    }
    html += "</ol>";
    for note in &comparison.notes {
        let _ = write!(html, "<p class=\"warning\">{}</p>", escape(note));
    }
    html += "<div class=\"grid\">";
    for row in &comparison.rows {
        let values = row.values.iter().enumerate();
        let last = row.values.len().saturating_sub(1);
        let all = values.filter_map(|(index, value)| {
            Some(Bar {
                name: format!("[{}]", index + 1),
                value: value.as_ref()?.median,
                is_own: index == last,
            })
        });
        let change = match row.change() {
            Some(change) if row.is_beyond_noise() => format!(", {:+.0} %", change * 100.0),
            Some(change) => format!(", {:+.0} %, within the noise", change * 100.0),
            None if row.values.contains(&None) => ", not in every report".to_owned(),
            None => String::new(),
        };
        let title = format!("{}{change}", row.name);
        html += &bars(&title, row.unit, &all.collect::<Vec<_>>(), None);
    }
    html + "</div></section>"
}

#[cfg(test)]
mod tests;
