//! Makes the identities of a clone: one authority of its own, and one certificate for each role.
//!
//! The authority signs once and is forgotten: its private key lives in [`CloneCa`] and is never
//! written, so nobody can later add an end to a clone. To replace credentials, mint again.
//!
//! ```text
//! authority   CA:TRUE, pathlen 0, keyCertSign             RFC 5280, sections 4.2.1.9 and 4.2.1.3
//! └─ leaf     one URI name, digitalSignature, and
//!             serverAuth (target) or clientAuth (others)   RFC 5280, sections 4.2.1.6 and 4.2.1.12
//! ```
//!
//! Keys are ECDSA on P-256: small, quick at both ends, and allowed wherever TLS 1.3 is.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use std::{array, fmt};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::identity::{CA_FILE, CERTIFICATE_FILE, KEY_FILE};
use crate::name::{PeerName, Role};

/// How far before its making a certificate begins to be valid, since two nodes' clocks differ.
pub const CLOCK_SKEW_SLACK: Duration = Duration::from_secs(5 * 60);

/// Makes an authority for the clone and one leaf for each role, valid from now, less
/// [`CLOCK_SKEW_SLACK`], until `validity` from now. The authority's key is dropped.
///
/// # Errors
/// When the cryptographic library fails or `validity` ends beyond what a certificate can say.
pub fn mint(clone_id: Uuid, validity: Duration) -> Result<MintedIdentity, MintError> {
    let now = SystemTime::now();
    let ca = CloneCa::new(clone_id, now, validity)?;
    let issue = |role| {
        ca.issue(&LeafRequest::new(
            PeerName { clone_id, role },
            now,
            validity,
        )?)
    };
    let [source, target, observer] = Role::ALL.map(issue);
    Ok(MintedIdentity {
        ca_pem: ca.certificate_pem(),
        leaves: [source?, target?, observer?],
    })
}

/// A clone's certificates and keys, ready to be stored.
#[derive(Debug)]
pub struct MintedIdentity {
    ca_pem: String,
    leaves: [Leaf; Role::ALL.len()],
}

impl MintedIdentity {
    /// The authority's certificate, PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// What the end that plays `role` shows and signs with.
    #[must_use]
    pub const fn leaf(&self, role: Role) -> &Leaf {
        let [source, target, observer] = &self.leaves;
        match role {
            Role::Source => source,
            Role::Target => target,
            Role::Observer => observer,
        }
    }

    /// Writes `dir/<role>/{tls.crt,tls.key,ca.crt}` for each role. Directories are 0700, keys 0600.
    ///
    /// # Errors
    /// When `dir` exists and holds anything, or on any I/O error. Nothing is ever overwritten. What
    /// was written before an error stays there.
    pub fn write_to(&self, dir: &Path) -> Result<(), MintError> {
        let failed = |path: &Path, source| MintError::Write {
            path: path.to_owned(),
            source,
        };
        let mut private = fs::DirBuilder::new();
        private.mode(0o700);
        match private.create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let mut entries = fs::read_dir(dir).map_err(|source| failed(dir, source))?;
                if entries.next().is_some() {
                    return Err(MintError::NotEmpty {
                        path: dir.to_owned(),
                    });
                }
            }
            created => created.map_err(|source| failed(dir, source))?,
        }
        for role in Role::ALL {
            let leaf = self.leaf(role);
            let dir = dir.join(role.as_str());
            private
                .create(&dir)
                .map_err(|source| failed(&dir, source))?;
            for (name, mode, content) in [
                (CERTIFICATE_FILE, 0o644, &leaf.certificate_pem),
                (KEY_FILE, 0o600, &leaf.key_pem),
                (CA_FILE, 0o644, &self.ca_pem),
            ] {
                let path = dir.join(name);
                write_new(&path, mode, content).map_err(|source| failed(&path, source))?;
            }
        }
        Ok(())
    }
}

/// A certificate and its private key, both PEM.
pub struct Leaf {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key, PKCS #8 (RFC 5958).
    pub key_pem: String,
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf")
            .field("certificate_pem", &self.certificate_pem)
            .finish_non_exhaustive()
    }
}

/// A clone's authority while it still can sign.
#[derive(Debug)]
pub struct CloneCa(CertifiedIssuer<'static, KeyPair>);

impl CloneCa {
    /// An authority with a fresh key, valid from `now`, less [`CLOCK_SKEW_SLACK`], for `validity`.
    ///
    /// # Errors
    /// When the cryptographic library fails or a date can't be said in a certificate.
    pub fn new(clone_id: Uuid, now: SystemTime, validity: Duration) -> Result<Self, MintError> {
        let mut params = params(&format!("volferry clone {clone_id}"));
        params.not_before = date(now.checked_sub(CLOCK_SKEW_SLACK))?;
        params.not_after = date(now.checked_add(validity))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self(CertifiedIssuer::self_signed(
            params,
            KeyPair::generate()?,
        )?))
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        self.0.pem()
    }

    /// Signs a leaf with a fresh key, as asked: a request that is wrong gives a leaf that is wrong.
    ///
    /// # Errors
    /// When the cryptographic library fails, or a name or date can't be said in a certificate.
    pub fn issue(&self, request: &LeafRequest) -> Result<Leaf, MintError> {
        let key = KeyPair::generate()?;
        let mut params = params("volferry");
        params.not_before = date(Some(request.not_before))?;
        params.not_after = date(Some(request.not_after))?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = request.usages.iter().map(|usage| usage.purpose()).collect();
        for uri in &request.uris {
            params
                .subject_alt_names
                .push(SanType::URI(Ia5String::try_from(uri.as_str())?));
        }
        let certificate = params.signed_by(&key, &self.0)?;
        Ok(Leaf {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// What a leaf should say. [`LeafRequest::new`] asks for the right one. Every field can then be set
/// wrong, and that is how tests come by certificates which must be refused.
#[derive(Clone, Debug)]
pub struct LeafRequest {
    /// The URIs in the subject alternative name. Only a certificate with exactly one is accepted.
    pub uris: Vec<String>,
    /// What the key may be used for in TLS.
    pub usages: Vec<Usage>,
    /// The first moment of validity, cut to seconds.
    pub not_before: SystemTime,
    /// The last moment of validity, cut to seconds.
    pub not_after: SystemTime,
}

impl LeafRequest {
    /// A leaf for `name`, valid from `now`, less [`CLOCK_SKEW_SLACK`], until `validity` after
    /// `now`.
    ///
    /// # Errors
    /// When the time ends before that.
    pub fn new(name: PeerName, now: SystemTime, validity: Duration) -> Result<Self, MintError> {
        Ok(Self {
            uris: vec![name.to_string()],
            usages: vec![Usage::of(name.role)],
            not_before: now.checked_sub(CLOCK_SKEW_SLACK).ok_or(MintError::Date)?,
            not_after: now.checked_add(validity).ok_or(MintError::Date)?,
        })
    }
}

/// What a leaf's key may be used for (RFC 5280, section 4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// `id-kp-serverAuth`: to be dialed.
    ServerAuth,
    /// `id-kp-clientAuth`: to dial.
    ClientAuth,
}

impl Usage {
    /// What an end with this role does: the target is dialed, the others dial.
    #[must_use]
    pub const fn of(role: Role) -> Self {
        match role {
            Role::Target => Self::ServerAuth,
            Role::Source | Role::Observer => Self::ClientAuth,
        }
    }

    const fn purpose(self) -> ExtendedKeyUsagePurpose {
        match self {
            Self::ServerAuth => ExtendedKeyUsagePurpose::ServerAuth,
            Self::ClientAuth => ExtendedKeyUsagePurpose::ClientAuth,
        }
    }
}

/// Why identities could not be made or stored.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// A key could not be made, or a certificate not signed.
    #[error("cannot make a key or a certificate")]
    Crypto(#[from] rcgen::Error),
    /// The validity does not fit the dates a certificate can bear.
    #[error("the validity ends beyond the dates that a certificate can bear; ask for less")]
    Date,
    /// The directory already holds something.
    #[error(
        "{} is not empty; name a directory that does not exist, or an empty one",
        path.display()
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// A file or a directory could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file or the directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn params(common_name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    params.serial_number = Some(random_serial());
    params
}

/// A positive number of 126 random bits; RFC 5280, section 4.1.2.2, wants at most 20 octets.
fn random_serial() -> SerialNumber {
    let random: [u8; 16] = *Uuid::new_v4().as_bytes();
    let positive: [u8; 16] = array::from_fn(|at| {
        if at == 0 {
            random[at] & 0x7f | 0x40
        } else {
            random[at]
        }
    });
    SerialNumber::from_slice(&positive)
}

/// RFC 5280, section 4.1.2.5: a certificate's years have four digits.
fn date(at: Option<SystemTime>) -> Result<OffsetDateTime, MintError> {
    const YEAR_MAX: i32 = 9999;
    let since_epoch = at
        .and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok())
        .ok_or(MintError::Date)?;
    let seconds = i64::try_from(since_epoch.as_secs()).map_err(|_| MintError::Date)?;
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .filter(|date| date.year() <= YEAR_MAX)
        .ok_or(MintError::Date)
}

fn write_new(path: &Path, mode: u32, content: &str) -> io::Result<()> {
    // `create_new` is O_EXCL: it neither follows a symlink that waits there, nor opens a file
    // whose mode somebody else chose.
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(content.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn files_are_private_and_complete() {
        let dir = tempfile::tempdir().unwrap();
        mint(Uuid::new_v4(), HOUR)
            .unwrap()
            .write_to(dir.path())
            .unwrap();
        for role in ["source", "target", "observer"] {
            let dir = dir.path().join(role);
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&dir), 0o700);
            assert_eq!(mode(&dir.join("tls.key")), 0o600);
            let text = |name| fs::read_to_string(dir.join(name)).unwrap();
            assert!(text("tls.key").starts_with("-----BEGIN PRIVATE KEY-----"));
            assert!(text("tls.crt").starts_with("-----BEGIN CERTIFICATE-----"));
            assert!(!text("ca.crt").contains("PRIVATE KEY"));
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let minted = mint(Uuid::new_v4(), HOUR).unwrap();
        minted.write_to(dir.path()).unwrap();
        let before = fs::read(dir.path().join("source/tls.key")).unwrap();
        let again = mint(Uuid::new_v4(), HOUR).unwrap().write_to(dir.path());
        assert!(matches!(again, Err(MintError::NotEmpty { .. })));
        assert_eq!(fs::read(dir.path().join("source/tls.key")).unwrap(), before);
    }

    #[test]
    fn a_key_does_not_show_in_debug_text() {
        let minted = mint(Uuid::new_v4(), HOUR).unwrap();
        assert!(!format!("{minted:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn a_validity_beyond_the_calendar_is_refused() {
        for years in [9_000, 300_000_000_000] {
            let validity = Duration::from_secs(years * 365 * 24 * 3600);
            assert!(
                matches!(mint(Uuid::new_v4(), validity), Err(MintError::Date)),
                "{years}"
            );
        }
    }
}
