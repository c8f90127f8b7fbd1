//! Which crate may depend on which: `cli`, `controller` → agents → `storage`, `transport` →
//! `protocol`.

use std::process::Command;

use serde_json::Value;

use super::Findings;
use crate::root;

/// Crates of ours that a crate may depend on, also in its tests.
const ARROWS: &[(&str, &[&str])] = &[
    ("volferry-protocol", &[]),
    ("volferry-storage", &["volferry-protocol"]),
    ("volferry-transport", &["volferry-protocol"]),
    ("volferry-agent", AGENT),
    ("volferry-source-agent", BELOW_AGENTS),
    ("volferry-target-agent", BELOW_AGENTS),
    (
        "volferry-controller",
        &["volferry-protocol", "volferry-transport"],
    ),
    ("volferry-benchmark", ABOVE_AGENTS),
    ("volferry-cli", ANY),
    ("volferry-bench", ANY),
    ("volferry-tests", ANY),
    ("xtask", &[]),
];

const AGENT: &[&str] = &[
    "volferry-protocol",
    "volferry-storage",
    "volferry-transport",
];
const BELOW_AGENTS: &[&str] = &[
    "volferry-agent",
    "volferry-protocol",
    "volferry-storage",
    "volferry-transport",
];
const ABOVE_AGENTS: &[&str] = &[
    "volferry-agent",
    "volferry-protocol",
    "volferry-source-agent",
    "volferry-storage",
    "volferry-target-agent",
    "volferry-transport",
];
const ANY: &[&str] = &["*"];

/// Crates of others that only these of ours may name.
const RESERVED: &[(&str, &[&str])] = &[
    ("rustls", TLS),
    ("tokio-rustls", TLS),
    ("quinn", &["volferry-transport"]),
    ("kube", &["volferry-controller", "volferry-cli"]),
    ("k8s-openapi", &["volferry-controller", "volferry-cli"]),
];

/// The tests play peers that misbehave below what `transport` allows.
const TLS: &[&str] = &["volferry-transport", "volferry-tests"];

struct Package {
    name: String,
    dependencies: Vec<String>,
}

pub(super) fn check() -> Result<Findings, String> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|error| {
        let words = String::from_utf8_lossy(&output.stderr);
        format!("cargo metadata: {error}; {words}")
    })?;
    Ok(findings(&packages(&metadata)))
}

fn packages(metadata: &Value) -> Vec<Package> {
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let all = metadata["packages"].as_array().into_iter().flatten();
    all.map(|package| Package {
        name: name(package),
        dependencies: package["dependencies"]
            .as_array()
            .into_iter()
            .flatten()
            .map(name)
            .collect(),
    })
    .collect()
}

fn findings(packages: &[Package]) -> Findings {
    let mut findings = Findings::new();
    for Package { name, dependencies } in packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| from == name) else {
            findings.push(format!("{name} has no line in xtask's table of arrows"));
            continue;
        };
        for to in dependencies {
            let is_ours = packages.iter().any(|package| package.name == *to);
            if is_ours && *allowed != ANY && !allowed.contains(&&**to) {
                findings.push(format!("{name} must not depend on {to}"));
            }
            let reserved = RESERVED.iter().find(|(crate_name, _)| crate_name == to);
            if let Some((_, owners)) = reserved.filter(|(_, owners)| !owners.contains(&&**name)) {
                findings.push(format!(
                    "{name} must not depend on {to}: only {owners:?} may"
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, dependency: &str, good: bool) {
        let package = |name: &str, dependencies: &[&str]| Package {
            name: name.to_owned(),
            dependencies: dependencies.iter().map(ToString::to_string).collect(),
        };
        let world = ARROWS
            .iter()
            .map(|(other, _)| *other)
            .filter(|other| *other != name);
        let mut packages: Vec<_> = world.map(|other| package(other, &[])).collect();
        packages.push(package(name, &[dependency]));
        let findings = findings(&packages);
        assert_eq!(
            findings.is_empty(),
            good,
            "{name} -> {dependency}: {findings:?}"
        );
    }

    #[test]
    fn arrows_point_one_way() {
        check("volferry-storage", "volferry-protocol", true);
        check("volferry-target-agent", "volferry-storage", true);
        check("volferry-cli", "volferry-target-agent", true);
        check("volferry-protocol", "volferry-storage", false);
        check("volferry-storage", "volferry-transport", false);
        check("volferry-transport", "volferry-storage", false);
        check("volferry-source-agent", "volferry-target-agent", false);
        check("volferry-agent", "volferry-source-agent", false);
        check("xtask", "volferry-protocol", false);
    }

    #[test]
    fn some_crates_have_an_owner() {
        check("volferry-transport", "rustls", true);
        check("volferry-cli", "kube", true);
        check("volferry-tests", "rustls", true);
        check("volferry-agent", "rustls", false);
        check("volferry-target-agent", "kube", false);
        check("volferry-tests", "quinn", false);
    }

    #[test]
    fn a_crate_that_nobody_thought_of_is_found() {
        check("volferry-surprise", "serde", false);
    }
}
