//! Several reports beside each other.

use crate::report::Report;
use crate::stats::Summary;

/// Rows of what all or some of the reports measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// What each report is called.
    pub reports: Vec<String>,
    /// What was measured.
    pub rows: Vec<Row>,
    /// In what the reports differ besides their numbers.
    pub notes: Vec<String>,
}

/// One number of each report.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// In what.
    pub unit: &'static str,
    /// Of each report; `None` where it was not measured.
    pub values: Vec<Option<Summary>>,
}

impl Row {
    /// By how much the last differs from the first, as a part of the first.
    #[must_use]
    pub fn change(&self) -> Option<f64> {
        let (first, last) = (
            self.values.first()?.as_ref()?,
            self.values.last()?.as_ref()?,
        );
        (first.median > 0.0).then(|| (last.median - first.median) / first.median)
    }

    /// Whether the first and the last differ by more than their repeats do.
    #[must_use]
    pub fn is_beyond_noise(&self) -> bool {
        let both = self.values.first().zip(self.values.last());
        let Some((Some(first), Some(last))) = both else {
            return false;
        };
        first.max < last.min || last.max < first.min
    }
}

impl Comparison {
    /// Compares reports, each with what it is called.
    #[must_use]
    pub fn of(reports: &[(&str, &Report)]) -> Self {
        let mut rows: Vec<Row> = Vec::new();
        for (index, (_, report)) in reports.iter().enumerate() {
            for (name, unit, value) in numbers(report) {
                let known = rows
                    .iter()
                    .position(|row| row.name == name && row.unit == unit);
                let at = known.unwrap_or_else(|| {
                    rows.push(Row {
                        name,
                        unit,
                        values: vec![None; reports.len()],
                    });
                    rows.len() - 1
                });
                if let Some(slot) = rows.get_mut(at).and_then(|row| row.values.get_mut(index)) {
                    *slot = value;
                }
            }
        }
        rows.retain(|row| row.values.iter().any(Option::is_some));
        let named = reports.iter().map(|(name, report)| {
            let machine = &report.machine;
            format!(
                "{name}: {}, volferry {}, {} × {}, {} to {}",
                report.date,
                report.volferry,
                machine.cpus,
                machine.cpu_model,
                report.source.path,
                report.target.path
            )
        });
        Self {
            reports: named.collect(),
            rows,
            notes: notes(reports),
        }
    }
}

/// Everything in a report that can be compared.
fn numbers(report: &Report) -> Vec<(String, &'static str, Option<Summary>)> {
    const GIB: f64 = (1_u64 << 30) as f64;
    let scaled = |summary: Option<Summary>, by: f64| {
        summary.map(|summary| Summary {
            median: summary.median * by,
            min: summary.min * by,
            max: summary.max * by,
        })
    };
    let ceilings = report.ceilings.iter().map(|ceiling| {
        let name = ceiling.title();
        match ceiling.repeats.iter().all(|repeat| repeat.bytes == 0) {
            true => (name, "s", ceiling.seconds()),
            false => (name, "GiB/s", scaled(ceiling.rate(), 1.0 / GIB)),
        }
    });
    let clones = report.clones.iter().flat_map(|clone| {
        let name = format!("clone of {}", clone.name);
        [
            (name.clone(), "s", clone.seconds()),
            (name, "CPU-s", clone.cpu_seconds()),
        ]
    });
    ceilings.chain(clones).collect()
}

/// What makes numbers differ by itself.
fn notes(reports: &[(&str, &Report)]) -> Vec<String> {
    let Some(((_, first), others)) = reports.split_first() else {
        return Vec::new();
    };
    let mut notes = Vec::new();
    for (name, other) in others {
        let mut differs = |what: &str, one: String, another: String| {
            if one != another {
                notes.push(format!("{name} has {what} {another}, the first {one}"));
            }
        };
        let size = |report: &Report| format!("{} MiB", report.size_bytes >> 20);
        differs("volumes of", size(first), size(other));
        differs("files", first.files.to_string(), other.files.to_string());
        differs("the seed", first.seed.to_string(), other.seed.to_string());
        let tuning = |report: &Report| format!("{:?}", report.tuning);
        differs("the tuning", tuning(first), tuning(other));
        let limits = |report: &Report| format!("{:?}", report.limits);
        differs("the limits", limits(first), limits(other));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    #[test]
    fn what_only_one_measured_is_shown_and_differences_are_noted() {
        let (one, mut other) = (example(), example());
        other.ceilings.truncate(2);
        other.seed = 2;
        let comparison = Comparison::of(&[("one", &one), ("other", &other)]);
        let hash = comparison
            .rows
            .iter()
            .find(|row| row.name.contains("BLAKE3"))
            .unwrap();
        assert!(hash.values[0].is_some() && hash.values[1].is_none());
        assert_eq!((hash.change(), hash.is_beyond_noise()), (None, false));
        assert_eq!(comparison.notes, ["other has the seed 2, the first 1"]);
    }

    #[test]
    fn overlapping_repeats_are_noise() {
        let summary = |min: f64, max: f64| {
            Some(Summary {
                median: f64::midpoint(min, max),
                min,
                max,
            })
        };
        let row = |one, other| Row {
            name: String::new(),
            unit: "s",
            values: vec![one, other],
        };
        assert!(!row(summary(1.0, 3.0), summary(2.5, 4.0)).is_beyond_noise());
        assert!(row(summary(1.0, 2.0), summary(2.5, 4.0)).is_beyond_noise());
        assert!(row(summary(3.0, 4.0), summary(1.0, 2.0)).is_beyond_noise());
        assert_eq!(
            row(summary(1.0, 1.0), summary(2.0, 2.0)).change(),
            Some(1.0)
        );
    }

    #[test]
    fn nothing_to_compare_is_no_panic() {
        assert_eq!(Comparison::of(&[]).rows, []);
    }
}
