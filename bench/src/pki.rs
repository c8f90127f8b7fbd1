//! Certificates for the peers: a throw-away authority and one leaf for each end, made by the
//! `openssl` program into a temporary directory. volferry mints its own.
//!
//! The names are the ones that GnuTLS programs (nbdkit, libnbd, QEMU) look for in a directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{At as _, Error};
use crate::tools;

/// A directory of credentials for each end.
#[derive(Debug)]
pub(crate) struct Pki {
    /// What the listening end shows and trusts.
    pub server: Credentials,
    /// What the dialing end shows and trusts.
    pub client: Credentials,
}

/// Where one end's files are.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// The directory, for programs that look names up by themselves.
    pub directory: PathBuf,
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The leaf's certificate.
    pub certificate: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}

impl Pki {
    /// Mints everything below `directory`; good for two days.
    pub(crate) fn mint(directory: &Path) -> Result<Self, Error> {
        let authority = directory.join("ca-cert.pem");
        let mut openssl = openssl(directory);
        openssl.args(["req", "-x509", "-days", "2", "-subj", "/CN=volferry bench"]);
        openssl
            .args(NEW_KEY)
            .args(["-keyout", "ca-key.pem", "-out", "ca-cert.pem"]);
        tools::run(openssl.args(["-addext", "keyUsage=keyCertSign"]))?;
        let extensions = directory.join("extensions");
        fs::write(&extensions, EXTENSIONS).at("write", &extensions)?;
        let leaf = |end| leaf(directory, &authority, end);
        Ok(Self {
            server: leaf("server")?,
            client: leaf("client")?,
        })
    }
}

fn leaf(base: &Path, authority: &Path, end: &str) -> Result<Credentials, Error> {
    let directory = base.join(end);
    fs::create_dir(&directory).at("create", &directory)?;
    let credentials = Credentials {
        authority: directory.join("ca-cert.pem"),
        certificate: directory.join(format!("{end}-cert.pem")),
        key: directory.join(format!("{end}-key.pem")),
        directory,
    };
    fs::copy(authority, &credentials.authority).at("copy", authority)?;
    let mut request = openssl(base);
    request
        .args(["req", "-subj", "/CN=localhost"])
        .args(NEW_KEY);
    request
        .args(["-out", "request"])
        .arg("-keyout")
        .arg(&credentials.key);
    tools::run(&mut request)?;
    let mut sign = openssl(base);
    sign.args([
        "x509",
        "-req",
        "-in",
        "request",
        "-days",
        "2",
        "-extfile",
        "extensions",
    ]);
    sign.args([
        "-CA",
        "ca-cert.pem",
        "-CAkey",
        "ca-key.pem",
        "-CAcreateserial",
    ]);
    tools::run(sign.arg("-out").arg(&credentials.certificate))?;
    Ok(credentials)
}

fn openssl(directory: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.current_dir(directory);
    command
}

/// The same curve for all: a handshake is nothing against a volume.
const NEW_KEY: [&str; 6] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-batch",
];

const EXTENSIONS: &str = "subjectAltName=DNS:localhost,IP:127.0.0.1
extendedKeyUsage=serverAuth,clientAuth
keyUsage=digitalSignature
";
