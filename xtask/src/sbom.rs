//! What the programs are made of: a bill of materials in the form of CycloneDX, from Cargo.lock alone.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde_json::{Value, json};

use crate::{Chore, Outcome, root};

/// The packages whose programs are in the image.
const PROGRAMS: &[&str] = &[
    "volferry-cli",
    "volferry-controller",
    "volferry-source-agent",
    "volferry-target-agent",
];

/// Name and version of a package: two of one name may be linked.
type Named = (String, String);

/// Prints it, of programs for `target` or, without one, for this machine.
pub(crate) fn run(target: Option<&str>) -> Chore {
    let target = target.map_or_else(host, |target| Ok(target.to_owned()))?;
    let metadata = ask(
        "cargo",
        &["metadata", "--format-version", "1", "--locked"],
        &["--filter-platform", &target],
    )?;
    let metadata: Value =
        serde_json::from_str(&metadata).map_err(|error| format!("cargo metadata: {error}"))?;
    println!("{:#}", bill(&metadata, &linked(&target)?)?);
    Ok(Outcome::Ran)
}

/// What is linked into the programs for `target`: no tests, no macros, nothing that only builds. The
/// features are those that the programs are built with: the workspace's tests want more.
fn linked(target: &str) -> Result<BTreeSet<Named>, String> {
    let programs: Vec<_> = PROGRAMS.iter().flat_map(|name| ["-p", name]).collect();
    let tree = ask(
        "cargo",
        &[
            "tree",
            "--locked",
            "--edges",
            "normal,no-proc-macro",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--target",
            target,
        ],
        &programs,
    )?;
    // A line is `name v1.2.3`, and for those of the workspace where they are.
    let named = tree.lines().filter_map(|line| {
        let (name, rest) = line.split_once(" v")?;
        let version = rest.split(' ').next()?;
        Some((name.to_owned(), version.to_owned()))
    });
    Ok(named.collect())
}

/// The target that programs are built for unless told otherwise.
fn host() -> Result<String, String> {
    let version = ask("rustc", &["-vV"], &[])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned)
        .ok_or_else(|| "rustc -vV names no host".to_owned())
}

/// What a program says.
fn ask(program: &str, arguments: &[&str], more: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(arguments).args(more).current_dir(root());
    let output = command
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(text(&output.stderr))
    }
}

/// The bill of those of the packages that are linked.
fn bill(metadata: &Value, linked: &BTreeSet<Named>) -> Result<Value, String> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut packages: BTreeMap<_, _> = array(&metadata["packages"])
        .into_iter()
        .map(|package| (text(&package["id"]), package))
        .collect();
    packages
        .retain(|_, package| linked.contains(&(text(&package["name"]), text(&package["version"]))));
    let is_program = |package: &Value| PROGRAMS.contains(&text(&package["name"]).as_str());
    let programs = packages.values().filter(|package| is_program(package));
    if programs.count() != PROGRAMS.len() {
        return Err(format!("not all of {PROGRAMS:?} are in the workspace"));
    }
    let mut dependencies = Vec::new();
    for node in array(&metadata["resolve"]["nodes"]) {
        let Some(package) = packages.get(&text(&node["id"])) else {
            continue;
        };
        let is_linked = |dependency: &&Value| {
            let kinds = array(&dependency["dep_kinds"]);
            kinds.iter().any(|kind| kind["kind"].is_null())
        };
        let all = array(&node["deps"]);
        let needed = all.iter().filter(is_linked);
        let needed = needed.filter_map(|dependency| packages.get(&text(&dependency["pkg"])));
        dependencies.push(json!({
            "ref": purl(package),
            "dependsOn": needed.map(purl).collect::<BTreeSet<_>>(),
        }));
    }
    let components = packages.values().map(|package| {
        let mut component = json!({
            "type": if is_program(package) { "application" } else { "library" },
            "bom-ref": purl(package),
            "purl": purl(package),
            "name": package["name"],
            "version": package["version"],
        });
        if let Some(license) = package["license"].as_str() {
            // An older form of the same.
            let license = license.replace('/', " OR ");
            component["licenses"] = json!([{"expression": license}]);
        }
        component
    });
    dependencies.sort_by_key(|one| text(&one["ref"]));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": {
            "type": "container", "bom-ref": "volferry", "name": "volferry",
            "version": env!("CARGO_PKG_VERSION"),
        }},
        "components": components.collect::<Vec<_>>(),
        "dependencies": dependencies,
    }))
}

/// What a package is called everywhere.
fn purl(package: &Value) -> String {
    let part = |key: &str| package[key].as_str().unwrap_or_default();
    format!("pkg:cargo/{}@{}", part("name"), part("version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_listed_and_nothing_else() {
        let package = |name: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0"});
        let mut packages: Vec<_> = PROGRAMS.iter().map(|name| package(name)).collect();
        packages.extend(["linked", "below", "tests", "builds", "macros"].map(package));
        let need = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let nodes = json!([
            {"id": "volferry-cli", "deps": [need("linked", Value::Null), need("tests", json!("dev")),
                need("builds", json!("build"))]},
            {"id": "linked", "deps": [need("below", Value::Null), need("macros", Value::Null)]},
            {"id": "macros", "deps": []},
        ]);
        let metadata = json!({"packages": packages, "resolve": {"nodes": nodes}});
        let linked = PROGRAMS.iter().chain(&["linked", "below"]);
        let linked = linked.map(|name| ((*name).to_owned(), "1.0.0".to_owned()));
        let bill = bill(&metadata, &linked.collect()).unwrap();
        let names: Vec<_> = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|it| it["name"].as_str().unwrap())
            .collect();
        assert_eq!(names.len(), PROGRAMS.len() + 2);
        assert!(
            names.contains(&"below") && !names.contains(&"tests") && !names.contains(&"builds")
        );
        let linked = bill["components"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["name"] == "linked")
            .unwrap();
        assert_eq!(linked["licenses"][0]["expression"], "MIT OR Apache-2.0");
        let needs = bill["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["ref"] == "pkg:cargo/linked@1.0.0")
            .unwrap();
        assert_eq!(needs["dependsOn"], json!(["pkg:cargo/below@1.0.0"]));
        assert!(super::bill(&json!({}), &BTreeSet::new()).is_err());
    }

    #[test]
    fn nothing_is_listed_that_only_builds_or_is_for_other_systems() {
        let linked = linked(&host().unwrap()).unwrap();
        let has = |name: &str| linked.iter().any(|(linked, _)| linked == name);
        for name in PROGRAMS.iter().chain(&["rustls", "tokio", "kube"]) {
            assert!(has(name), "{name}");
        }
        // A macro's parser, a macro, a build's compiler, another system, and what a test wants of kube.
        for name in ["syn", "serde_derive", "cc", "windows-sys", "kube-cel"] {
            assert!(!has(name), "{name}");
        }
    }
}
