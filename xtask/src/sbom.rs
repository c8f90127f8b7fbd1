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

/// Prints it.
pub(crate) fn run() -> Chore {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cargo metadata: {error}"))?;
    println!("{:#}", bill(&metadata)?);
    Ok(Outcome::Ran)
}

/// What is linked into the programs: no tests, nothing that only builds.
fn bill(metadata: &Value) -> Result<Value, String> {
    let array = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<_, _> = array(&metadata["packages"])
        .into_iter()
        .map(|package| (text(&package["id"]), package))
        .collect();
    let nodes: BTreeMap<_, _> = array(&metadata["resolve"]["nodes"])
        .into_iter()
        .map(|node| (text(&node["id"]), node))
        .collect();
    let is_program = |package: &Value| PROGRAMS.contains(&text(&package["name"]).as_str());
    let programs = packages.iter().filter(|(_, package)| is_program(package));
    let mut waiting: Vec<_> = programs.map(|(id, _)| id.clone()).collect();
    if waiting.len() != PROGRAMS.len() {
        return Err(format!("not all of {PROGRAMS:?} are in the workspace"));
    }
    let mut linked = BTreeSet::new();
    let mut dependencies = Vec::new();
    while let Some(id) = waiting.pop() {
        if !linked.insert(id.clone()) {
            continue;
        }
        let node = nodes.get(&id).cloned().unwrap_or_default();
        let is_linked = |dependency: &Value| {
            let kinds = array(&dependency["dep_kinds"]);
            kinds.iter().any(|kind| kind["kind"].is_null())
        };
        let all = array(&node["deps"]);
        let needed = all.iter().filter(|dependency| is_linked(dependency));
        let needed: Vec<_> = needed.map(|dependency| text(&dependency["pkg"])).collect();
        let reference = |id: &String| packages.get(id).map(purl);
        dependencies.push(json!({
            "ref": reference(&id),
            "dependsOn": needed.iter().filter_map(reference).collect::<BTreeSet<_>>(),
        }));
        waiting.extend(needed);
    }
    let components = linked
        .iter()
        .filter_map(|id| packages.get(id))
        .map(|package| {
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
        packages.extend(["linked", "below", "tests", "builds"].map(package));
        let need = |name: &str, kind: Value| json!({"pkg": name, "dep_kinds": [{"kind": kind}]});
        let nodes = json!([
            {"id": "volferry-cli", "deps": [need("linked", Value::Null), need("tests", json!("dev")),
                need("builds", json!("build"))]},
            {"id": "linked", "deps": [need("below", Value::Null)]},
        ]);
        let metadata = json!({"packages": packages, "resolve": {"nodes": nodes}});
        let bill = bill(&metadata).unwrap();
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
        assert!(super::bill(&json!({})).is_err());
    }
}
