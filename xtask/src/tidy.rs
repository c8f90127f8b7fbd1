//! What no compiler checks: which crate may know which, where `unsafe` may be, and that documents
//! and code say the same, in both directions.

mod arrows;
mod commands;
mod deploy;
mod documents;
mod sources;

use std::fs;
use std::path::Path;

use crate::{Chore, Outcome, root};

/// What is wrong, in a line each.
type Findings = Vec<String>;

/// Runs every check and shows what is wrong.
pub(crate) fn run() -> Chore {
    let tree = Tree::read(&root())?;
    let findings = [
        arrows::check()?,
        sources::check(&tree),
        documents::check(&tree),
        commands::check(&tree),
        deploy::check(&tree),
    ]
    .concat();
    for finding in &findings {
        println!("{finding}");
    }
    match findings.len() {
        0 => Ok(Outcome::Ran),
        count => Err(format!("{count} things are untidy")),
    }
}

/// The project's texts, by path from the root, in order.
#[derive(Default)]
struct Tree {
    files: Vec<(String, String)>,
}

impl Tree {
    /// Reads every text below `root` but what is built, found or hidden.
    fn read(root: &Path) -> Result<Self, String> {
        let mut tree = Self::default();
        tree.read_folder(root, "")?;
        tree.files.sort();
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, prefix: &str) -> Result<(), String> {
        let failed = |error| format!("{}: {error}", folder.display());
        for entry in fs::read_dir(folder).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = format!("{prefix}{name}");
            let is_ours = !name.starts_with('.') || name == ".ci";
            let is_made = ["target", "corpus", "found", "artifacts", "out"].contains(&&*name);
            if !is_ours || is_made {
                continue;
            }
            let kind = entry.file_type().map_err(failed)?;
            if kind.is_dir() {
                self.read_folder(&entry.path(), &format!("{path}/"))?;
            } else if let Ok(text) = fs::read_to_string(entry.path()) {
                self.files.push((path, text));
            }
        }
        Ok(())
    }

    /// The text at `path`.
    fn text(&self, path: &str) -> Option<&str> {
        let found = self.files.iter().find(|(at, _)| at == path);
        found.map(|(_, text)| text.as_str())
    }

    /// Every Rust source, with its path.
    fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.files.iter().map(|(path, text)| (&**path, &**text));
        all.filter(|(path, _)| path.ends_with(".rs"))
    }

    #[cfg(test)]
    fn of(files: &[(&str, &str)]) -> Self {
        let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
        Self {
            files: files.iter().map(owned).collect(),
        }
    }
}
