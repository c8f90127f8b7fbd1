//! The manifest of a tree: a line for each regular file, as `b3sum` writes it and `b3sum --check`
//! reads it.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use volferry_agent::output_files::unwritable;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::Failure;

/// A manifest that is being written. The lines come in the order in which files were read.
#[derive(Debug)]
pub(crate) struct TreeManifest {
    path: PathBuf,
    file: BufWriter<File>,
    failed: Option<io::Error>,
    /// Files that `b3sum` could not open.
    left_out: u64,
}

impl TreeManifest {
    /// Creates the file, or empties it.
    pub(crate) fn create(path: &Path) -> Result<Self, Failure> {
        let file = File::create(path).map_err(|error| unwritable("manifest", path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::new(file),
            failed: None,
            left_out: 0,
        })
    }

    /// Adds a file. An error shows at the end.
    pub(crate) fn record(&mut self, path: &[u8], digest: Digest) {
        let Some(line) = line(path, digest) else {
            self.left_out += 1;
            return;
        };
        if self.failed.is_none() {
            self.failed = self.file.write_all(line.as_bytes()).err();
        }
    }

    /// Makes the file complete and durable.
    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        if self.left_out > 0 {
            tracing::warn!(
                files = self.left_out,
                "the manifest leaves out files that b3sum can't open: names that are not UTF-8, paths \
                 beyond 4095 bytes"
            );
        }
        let written = self.failed.take().map_or(Ok(()), Err);
        let finished = written
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.get_ref().sync_all());
        finished.map_err(|error| unwritable("manifest", &self.path, &error))
    }
}

/// The line of a file, or `None` when no line that `b3sum` reads can name it. A backslash before
/// the line says that there are escapes in the name.
fn line(path: &[u8], digest: Digest) -> Option<String> {
    /// What the kernel opens at once.
    const OPENED_MAX: usize = 4095;
    let path = str::from_utf8(path).ok()?;
    if path.len() > OPENED_MAX {
        return None;
    }
    if path.contains('\u{fffd}') {
        return None; // it stands for a name that could not be read
    }
    if !path.contains(['\\', '\n', '\r']) {
        return Some(format!("{digest}  {path}\n"));
    }
    let escaped = path
        .replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r");
    Some(format!("\\{digest}  {escaped}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_b3sum_writes_them() {
        let digest = Digest([0xab; 32]);
        let hex = "ab".repeat(32);
        let check =
            |path: &[u8], expected: Option<String>| assert_eq!(line(path, digest), expected);
        check(b"a/b c", Some(format!("{hex}  a/b c\n")));
        check(b"-rf", Some(format!("{hex}  -rf\n")));
        check(b"a\nb\\c\r", Some(format!("\\{hex}  a\\nb\\\\c\\r\n")));
        check(b"\xff", None);
        check(&[b'x'; 4096], None);
        check("\u{fffd}".as_bytes(), None);
    }
}
