//! What deploy/ says of the code: the chart is as it would be made, and alerts and dashboard ask for
//! metrics that exist.

use std::collections::BTreeSet;

use super::documents::metrics;
use super::{Findings, Tree};
use crate::helm;

/// What a histogram has beside its name.
const OF_HISTOGRAMS: [&str; 3] = ["_bucket", "_count", "_sum"];

pub(super) fn check(tree: &Tree) -> Findings {
    let mut findings = asked_for(tree);
    findings.extend(chart(tree));
    findings
}

/// Metrics in monitoring that no code has.
fn asked_for(tree: &Tree) -> Findings {
    let known = metrics(tree);
    let files = tree
        .files
        .iter()
        .filter(|(path, _)| path.starts_with("deploy/monitoring/"));
    let mut findings = Findings::new();
    for (path, text) in files {
        let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
        let words: BTreeSet<_> = text
            .split(|char| !is_name(char))
            .filter(|word| word.starts_with("volferry_"))
            .collect();
        for word in words {
            let bare = OF_HISTOGRAMS.iter().find_map(|end| word.strip_suffix(end));
            if !known.contains(word) && !bare.is_some_and(|bare| known.contains(bare)) {
                findings.push(format!("{path}: no metric is called {word}"));
            }
        }
    }
    findings
}

/// Files of the chart that are not as they would be made.
fn chart(tree: &Tree) -> Findings {
    let read = |path: &str| tree.text(path).map(str::to_owned);
    let made = match helm::chart(&read) {
        Ok(made) => made,
        Err(error) => return vec![error],
    };
    let mut findings = Findings::new();
    for (path, text) in &made {
        if tree.text(path) != Some(text) {
            findings.push(format!("{path} is not current; run cargo xtask helm"));
        }
    }
    let of_chart = tree.files.iter().map(|(path, _)| path);
    for path in of_chart.filter(|path| path.starts_with(&format!("{}/", helm::CHART))) {
        if !made.iter().any(|(made, _)| made == path) {
            findings.push(format!("{path} is not made by cargo xtask helm: remove it"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_metric_that_nobody_has_is_found() {
        let tree = Tree::of(&[
            (
                "controller/src/metrics.rs",
                "\"volferry_seconds\" \"volferry_leads\"",
            ),
            (
                "deploy/monitoring/rules.yaml",
                "expr: volferry_leads + volferry_seconds_count + volferry_leads_count",
            ),
            (
                "deploy/monitoring/dashboard.json",
                "{\"expr\": \"rate(volferry_seconds_bucket{le=\\\"1\\\"}[5m]) + volferry_gone\"}",
            ),
        ]);
        // The ends of histograms are not told from other metrics' by their kind: one too many is let pass.
        assert_eq!(
            asked_for(&tree),
            ["deploy/monitoring/dashboard.json: no metric is called volferry_gone"]
        );
    }

    #[test]
    fn a_chart_that_is_not_current_is_found() {
        let root = crate::root();
        let tree = Tree::read(&root).unwrap();
        assert_eq!(chart(&tree), Findings::new());
        let mut other = tree;
        other
            .files
            .push((format!("{}/templates/zz.yaml", helm::CHART), String::new()));
        for (path, text) in &mut other.files {
            if path == "deploy/base/rbac.yaml" {
                text.push_str("# More.\n");
            }
        }
        assert_eq!(chart(&other).len(), 2);
    }
}
