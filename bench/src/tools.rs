//! Programs of the system: where they are, which version they have, and running one to its end.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::error::{At as _, Error};

/// Where programs are looked for.
#[derive(Debug)]
pub(crate) struct Tools {
    /// The directory of volferry's own binaries.
    product: PathBuf,
    path: Vec<PathBuf>,
}

impl Tools {
    /// Looks beside `volferry` if it is given, else beside this binary, then in `PATH`.
    pub(crate) fn new(volferry: Option<&Path>) -> Self {
        let here = std::env::current_exe().unwrap_or_default();
        let product = volferry
            .unwrap_or(&here)
            .parent()
            .unwrap_or_else(|| Path::new(""))
            .to_owned();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        path.extend(here.parent().map(Path::to_owned));
        // Some users' PATH lacks the directories of losetup and mkfs.
        path.extend(["/usr/sbin", "/sbin"].map(PathBuf::from));
        Self { product, path }
    }

    /// The program's file.
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        let places = std::iter::once(&self.product).chain(&self.path);
        places
            .map(|place| place.join(program))
            .find(|file| file.is_file())
    }

    /// Which of `programs` are missing, as a reason to skip; `None` when all are there.
    pub(crate) fn missing(&self, programs: &[&str]) -> Option<String> {
        let missing = programs
            .iter()
            .filter(|program| self.find(program).is_none());
        let missing: Vec<_> = missing.copied().collect();
        (!missing.is_empty()).then(|| format!("needs {}", missing.join(" and ")))
    }

    /// A command that runs `program`; its bare name is kept when it wasn't found.
    pub(crate) fn command(&self, program: &str) -> Command {
        Command::new(self.find(program).unwrap_or_else(|| program.into()))
    }

    /// The first line of `program --version`.
    pub(crate) fn version(&self, program: &str, flag: &str) -> String {
        let output = self.command(program).arg(flag).output();
        let Ok(Output { stdout, stderr, .. }) = output else {
            return String::new();
        };
        // stunnel prints its version on standard error; socat's is on the second line.
        let text = String::from_utf8_lossy(&stdout) + String::from_utf8_lossy(&stderr);
        let line = text
            .lines()
            .find(|line| line.contains(|c: char| c.is_ascii_digit()));
        line.unwrap_or_default().trim().to_owned()
    }
}

/// Runs `command` to its end; its standard output.
pub(crate) fn run(command: &mut Command) -> Result<String, Error> {
    let program = command.get_program().to_owned();
    let output = command.output().at("start", Path::new(&program))?;
    if !output.status.success() {
        return Err(Error::Failed {
            program: name_of(&program),
            status: output.status,
            log: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn name_of(program: &OsStr) -> String {
    let name = Path::new(program).file_name().unwrap_or(program);
    name.to_string_lossy().into_owned()
}
