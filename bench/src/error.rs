//! What can go wrong around a measurement. A peer that fails is a line in the report, not an end of
//! the run; only what makes the whole report meaningless ends it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use volferry_protocol::failure::Failure;

/// An operation of the harness, or a program that it started, failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{program} ended with {status}: {log}")]
    Failed {
        program: String,
        status: std::process::ExitStatus,
        log: String,
    },
    #[error("{program} was not done after {} s", after.as_secs())]
    Late { program: String, after: Duration },
    #[error("cannot read the output of {program}: {what} is missing")]
    Output {
        program: &'static str,
        what: &'static str,
    },
    #[error(transparent)]
    Ceiling(#[from] Failure),
    #[error("interrupted")]
    Interrupted,
}

/// Names the operation and the place of an I/O error.
pub(crate) trait At<T> {
    /// Wraps the error as "cannot `operation` `path`".
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, Error>;
}

impl<T> At<T> for io::Result<T> {
    fn at(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, Error> {
        self.map_err(|source| Error::Io {
            operation,
            path: path.as_ref().to_owned(),
            source,
        })
    }
}

/// The error and all of its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
