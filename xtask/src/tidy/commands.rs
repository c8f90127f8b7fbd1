//! The commands that a reader is told to type are those that are there, and the one for tests is
//! what the continuous integration runs.

use super::documents::{backticked, fenced};
use super::{Findings, Tree};

const TEST_COMMAND: &str = "scripts/test";
const CI: &str = ".ci/run";
const READERS: [&str; 2] = ["README.md", "CONTRIBUTING.md"];

pub(super) fn check(tree: &Tree) -> Findings {
    let mut findings = Findings::new();
    let is_line = |text: &str| text.lines().any(|line| line.trim() == TEST_COMMAND);
    if !tree.text(CI).is_some_and(is_line) {
        findings.push(format!("{CI}: no line `{TEST_COMMAND}`"));
    }
    if !tree
        .text("README.md")
        .is_some_and(|text| is_line(&fenced(text)))
    {
        findings.push(format!("README.md: no command `{TEST_COMMAND}`"));
    }
    for (path, text) in READERS
        .iter()
        .filter_map(|path| Some((path, tree.text(path)?)))
    {
        let fenced = fenced(text);
        let commands = fenced.lines().chain(backticked(text));
        let missing = commands.filter_map(|command| missing(tree, command.trim()));
        findings.extend(missing.map(|what| format!("{path}: there is no {what}")));
    }
    findings
}

/// The script or chore that `command` names, unless it is there.
fn missing(tree: &Tree, command: &str) -> Option<String> {
    let words: Vec<_> = command.split_ascii_whitespace().collect();
    match words[..] {
        [script, ..] if script.starts_with("scripts/") || script.starts_with("./scripts/") => {
            let path = script.trim_start_matches("./");
            tree.text(path).is_none().then(|| path.to_owned())
        }
        ["cargo", "xtask", chore, ..] => {
            let chores = tree.text("xtask/src/main.rs").unwrap_or_default();
            let is_there = chores.contains(&format!("[\"{chore}\""));
            (!is_there).then(|| format!("`cargo xtask {chore}`"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_type_what_the_ci_runs() {
        let found = |readme: &str, ci: &str| {
            let main = ("xtask/src/main.rs", "match words { [\"ci\"] => ci() }");
            let script = ("scripts/test", "");
            check(&Tree::of(&[main, script, ("README.md", readme), (CI, ci)])).len()
        };
        let readme = "To test:\n```sh\nscripts/test\ncargo xtask ci\n```\n";
        assert_eq!(found(readme, "set -e\nscripts/test\n"), 0);
        assert_eq!(found(readme, "cargo test\n"), 1);
        assert_eq!(
            found("type scripts/test", "scripts/test"),
            1,
            "not as a command"
        );
        assert_eq!(found(&readme.replace("ci", "cry"), "scripts/test"), 1);
        assert_eq!(
            found(&format!("{readme}`scripts/lost --now`"), "scripts/test"),
            1
        );
        assert_eq!(check(&Tree::default()).len(), 2);
    }
}
