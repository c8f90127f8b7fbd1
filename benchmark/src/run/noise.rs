//! What disturbed the measurements.

use crate::ceiling::Kind;
use crate::report::{Noise, Report};
use crate::roofline::granted_share;
use crate::stats::Summary;

/// A spread, and shares of the processors, beyond which the machine counts as noisy.
const SPREAD_MAX_PERCENT: f64 = 20.0;
const OTHERS_MAX: f64 = 0.1;
const STOLEN_MAX: f64 = 0.02;

/// What went on beside the measurements that are processor time only: there is no kernel thread of
/// ours in it.
pub(crate) fn noise(report: &Report) -> Noise {
    let quiet = [Kind::ZeroScan, Kind::DataScan, Kind::Hash, Kind::TlsSeal];
    let costs = || {
        let ceilings = report
            .ceilings
            .iter()
            .filter(|one| quiet.contains(&one.kind));
        ceilings
            .flat_map(|one| &one.repeats)
            .map(|repeat| repeat.cost)
    };
    let seconds: f64 = costs().map(|cost| cost.seconds).sum();
    let all = seconds * report.machine.cpus.max(1) as f64;
    if all <= 0.0 {
        return Noise::default();
    }
    let hash = report.ceiling(Kind::Hash);
    Noise {
        others_share: costs().map(|cost| cost.of_others()).sum::<f64>() / all,
        stolen_share: costs().map(|cost| cost.machine_stolen_seconds).sum::<f64>() / all,
        granted_share: hash.and_then(granted_share).unwrap_or(1.0),
    }
}

pub(crate) fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let noise = report.noise;
    if noise.others_share > OTHERS_MAX {
        warnings.push(format!(
            "others used {} of the processors: compare processor time, or wait until the machine is quiet",
            percent(noise.others_share)
        ));
    }
    if noise.stolen_share > STOLEN_MAX {
        warnings.push(format!(
            "the hypervisor took {} of the processors away",
            percent(noise.stolen_share)
        ));
    }
    for clone in &report.clones {
        let spread = clone.seconds().map_or(0.0, Summary::spread_percent);
        if spread > SPREAD_MAX_PERCENT {
            warnings.push(format!(
                "the clones of {} lie {spread:.0} % apart: the machine was not quiet",
                clone.name
            ));
        }
        if clone.repeats.len() == 1 {
            warnings.push(format!(
                "{} was cloned once only: nothing tells how far that is off",
                clone.name
            ));
        }
        let mut digests = clone.repeats.iter().map(|run| run.digest);
        if let Some(first) = digests.next()
            && digests.any(|other| other != first)
        {
            warnings.push(format!("{} changed between its clones", clone.name));
        }
    }
    warnings
}
