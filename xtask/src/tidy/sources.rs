//! Where `unsafe` may be, what an open end looks like, and that every file belongs to a crate.

use std::collections::BTreeSet;

use super::{Findings, Tree};

/// The only file with `unsafe` in it.
const UNSAFE_FILE: &str = "storage/src/sys.rs";

// Spelled in halves, so that this file doesn't find itself.
const UNSAFE: &str = concat!("un", "safe");
const OPEN_END: &str = concat!("TO", "DO");
const OTHER_OPEN_ENDS: [&str; 2] = [concat!("FIX", "ME"), concat!("XX", "X")];

pub(super) fn check(tree: &Tree) -> Findings {
    let mut findings = Findings::new();
    for (path, text) in tree.rust() {
        for (number, line) in (1..).zip(text.lines()) {
            if path != UNSAFE_FILE && is_unsafe(line) {
                findings.push(format!("{path}:{number}: {UNSAFE} outside {UNSAFE_FILE}"));
            }
        }
    }
    for (path, text) in &tree.files {
        for (number, line) in (1..).zip(text.lines()) {
            if !path.ends_with(".lock") && !is_open_end_tracked(line) {
                findings.push(format!(
                    "{path}:{number}: an open end is {OPEN_END}(#issue)"
                ));
            }
        }
    }
    findings.extend(orphans(tree));
    findings
}

fn is_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    words(code).any(|word| word == UNSAFE)
}

fn is_open_end_tracked(line: &str) -> bool {
    let mut rest = line;
    while let Some(at) = rest.find(OPEN_END) {
        rest = rest.split_at(at + OPEN_END.len()).1;
        let issue = rest
            .strip_prefix("(#")
            .and_then(|rest| rest.split_once(')'));
        let is_number =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let is_example = rest.starts_with("(#issue)");
        if !is_example && !issue.is_some_and(|(number, _)| is_number(number)) {
            return false;
        }
    }
    !words(line).any(|word| OTHER_OPEN_ENDS.contains(&word))
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| !char.is_alphanumeric() && char != '_')
}

/// Sources that no module names: the compiler never sees them.
fn orphans(tree: &Tree) -> Findings {
    let mut named = BTreeSet::new();
    for (path, text) in tree.rust() {
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        let is_root = file == "lib.rs" || file == "main.rs";
        let stem = file.trim_end_matches(".rs");
        let home = if is_root {
            folder.to_owned()
        } else {
            format!("{folder}/{stem}")
        };
        for module in text.lines().filter_map(module_of) {
            named.insert(format!("{home}/{module}.rs"));
        }
    }
    let is_root = |path: &str| path.ends_with("/src/lib.rs") || path.ends_with("/src/main.rs");
    tree.rust()
        .map(|(path, _)| path)
        .filter(|path| path.contains("/src/") && !path.contains("/src/bin/"))
        .filter(|path| !is_root(path) && !named.contains(*path))
        .map(|path| format!("{path}: no module names this file"))
        .collect()
}

/// The module that a line such as `pub(crate) mod name;` names.
fn module_of(line: &str) -> Option<&str> {
    let (before, name) = line.trim().strip_suffix(';')?.split_once("mod ")?;
    let is_item = before.is_empty() || before.starts_with("pub");
    is_item.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_told_from_comments_and_other_words() {
        for bad in [
            "@ {",
            "    @ fn f()",
            "let x = @ { f() };",
            "@ impl Send for X {}",
        ] {
            assert!(is_unsafe(&bad.replace('@', UNSAFE)), "{bad}");
        }
        for good in ["#![forbid(@_code)]", "// @ is banned", "let @ly = 1;"] {
            assert!(!is_unsafe(&good.replace('@', UNSAFE)), "{good}");
        }
        let text = "@ {}".replace('@', UNSAFE);
        let found = |path| check(&Tree::of(&[(path, &text)])).len();
        assert_eq!(
            (found("storage/src/sys.rs"), found("agent/tests/x.rs")),
            (1, 1)
        );
    }

    #[test]
    fn open_ends_have_an_issue() {
        for good in ["nothing", "@(#12): later", "@(#1) and @(#2)"] {
            assert!(is_open_end_tracked(&good.replace('@', OPEN_END)), "{good}");
        }
        for bad in ["@", "@: later", "@(me)", "@(#)", "@(#1) and @"] {
            assert!(!is_open_end_tracked(&bad.replace('@', OPEN_END)), "{bad}");
        }
        assert!(
            OTHER_OPEN_ENDS
                .iter()
                .all(|word| !is_open_end_tracked(word))
        );
    }

    #[test]
    fn a_file_that_no_module_names_is_found() {
        let tree = Tree::of(&[
            (
                "a/src/lib.rs",
                "pub mod one;\npub(crate) mod two;\nmod tests {}",
            ),
            ("a/src/one.rs", "#[cfg(test)]\nmod tests;"),
            ("a/src/one/tests.rs", ""),
            ("a/src/two.rs", ""),
            ("a/src/three.rs", ""),
            ("a/tests/story.rs", ""),
        ]);
        assert_eq!(
            orphans(&tree),
            ["a/src/three.rs: no module names this file"]
        );
    }
}
