//! An end's own credentials, read from a directory each time they are needed.
//!
//! ```text
//! tls.crt   our certificate, PEM; its one URI says who we are
//! tls.key   its private key, PEM
//! ca.crt    the clone's authority, PEM; two of them while credentials are being rotated
//! ```
//!
//! The layout is that of a Kubernetes TLS Secret. Kubernetes replaces a mounted Secret by moving
//! one symlink, so a reader can see the old certificate and then the new key.
//! [`CredentialsDir::load`] therefore believes nothing that doesn't fit together, and looks again
//! after a moment.
//!
//! What is *not* checked here: the mode of `tls.key`, as a mounted Secret is readable by a group as
//! a rule, and the dates of our certificate, as it is the peer's clock that judges them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::name::{PeerName, Role};
use crate::tls::pki_types::pem::{self, PemObject};
use crate::tls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};
use crate::tls::{KeyError, OwnKey, verify_issuer};

/// The file that holds our certificate.
pub const CERTIFICATE_FILE: &str = "tls.crt";
/// The file that holds our private key.
pub const KEY_FILE: &str = "tls.key";
/// The file that holds the certificate of the clone's authority.
pub const CA_FILE: &str = "ca.crt";

/// Where an end finds its credentials, and the role that they must be for.
///
/// Loading again at each connection is what lets credentials be rotated under a running agent. The
/// files are few, small, and on tmpfs when mounted, so they are read where we are.
#[derive(Clone, Debug)]
pub struct CredentialsDir {
    dir: PathBuf,
    role: Role,
}

impl CredentialsDir {
    /// Credentials in `dir`, which must name an end that plays `role`.
    pub fn new(dir: impl Into<PathBuf>, role: Role) -> Self {
        Self {
            dir: dir.into(),
            role,
        }
    }

    /// Reads the credentials as they are now.
    ///
    /// # Errors
    /// When they still don't fit together after a few looks, or are for another role.
    pub async fn load(&self) -> Result<Credentials, IdentityError> {
        for _ in 1..LOOKS {
            match self.look() {
                Err(error) if error.may_be_a_rotation() => {
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await
                }
                settled => return settled,
            }
        }
        self.look()
    }

    fn look(&self) -> Result<Credentials, IdentityError> {
        let credentials = Credentials::load(&self.dir)?;
        let found = credentials.name.role;
        if found == self.role {
            return Ok(credentials);
        }
        let path = self.dir.join(CERTIFICATE_FILE);
        Err(IdentityError::WrongRole {
            path,
            expected: self.role,
            found,
        })
    }
}

/// Looks at the files before their state is taken for an error.
const LOOKS: u32 = 6;

/// The pause between two looks: moving a symlink takes microseconds, a careless script that copies
/// file by file a little longer, and all looks together must not make a dial feel slow.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Who we are, how we prove it, and whom we believe.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub(crate) name: PeerName,
    pub(crate) key: OwnKey,
    pub(crate) authorities: Arc<[TrustAnchor<'static>]>,
}

impl Credentials {
    /// Reads `dir/{tls.crt,tls.key,ca.crt}`, once.
    ///
    /// # Errors
    /// When a file is missing or is not what it should be, or the three don't belong together.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let certificate = read(&dir.join(CERTIFICATE_FILE))?;
        let key = read(&dir.join(KEY_FILE))?;
        let authorities = read(&dir.join(CA_FILE))?;
        Self::from_pem(dir, &certificate, &key, &authorities)
    }

    /// Credentials that are in memory already, for instance out of a Secret. Errors name them as files
    /// of `place`.
    ///
    /// # Errors
    /// When one is not what it should be, or the three don't belong together.
    pub fn from_pem(
        place: &Path,
        certificate: &[u8],
        key: &[u8],
        authorities: &[u8],
    ) -> Result<Self, IdentityError> {
        let certificate_path = place.join(CERTIFICATE_FILE);
        let key_path = place.join(KEY_FILE);
        let ca_path = place.join(CA_FILE);

        let chain = parse_certificates(&certificate_path, certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| unreadable(&key_path, "private key", error))?;
        let authorities = parse_certificates(&ca_path, authorities)?
            .iter()
            .map(|certificate| Ok(webpki::anchor_from_trusted_cert(certificate)?.to_owned()))
            .collect::<Result<Arc<[_]>, _>>()
            .map_err(|source| IdentityError::Certificate {
                path: ca_path.clone(),
                source,
            })?;

        let leaf = chain.first().ok_or_else(|| IdentityError::Nothing {
            path: certificate_path.clone(),
            item: "certificate",
        })?;
        let name = certificate_name(&certificate_path, leaf)?;
        verify_issuer(leaf, &authorities, UnixTime::now()).map_err(|_| {
            IdentityError::NotIssued {
                certificate: certificate_path.clone(),
                ca: ca_path,
            }
        })?;
        let key = OwnKey::new(chain, key).map_err(|error| match error {
            KeyError::Unusable => IdentityError::KeyUnusable {
                path: key_path.clone(),
            },
            KeyError::Mismatch => IdentityError::KeyMismatch {
                certificate: certificate_path,
                key: key_path.clone(),
            },
        })?;
        Ok(Self {
            name,
            key,
            authorities,
        })
    }

    /// Who we are.
    #[must_use]
    pub const fn name(&self) -> PeerName {
        self.name
    }
}

/// Why an end has no credentials. Each message names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing or can't be read.
    #[error("cannot read {}; mount the clone's credentials there", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is not PEM (RFC 7468).
    #[error("{} is not well-formed PEM; store it again as it was made", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Where it went wrong.
        source: pem::Error,
    },
    /// A file is PEM, but what we look for is not in it.
    #[error("no {item} in {}; see that the files were not mixed up", path.display())]
    Nothing {
        /// The file.
        path: PathBuf,
        /// What should be in it.
        item: &'static str,
    },
    /// A certificate can't be parsed.
    #[error("the certificate in {} is malformed; store it again as it was made", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: webpki::Error,
    },
    /// The private key is of a kind that we can't sign with.
    #[error(
        "the key in {} can't be used; mint the credentials with `volferry identity`",
        path.display()
    )]
    KeyUnusable {
        /// The key's file.
        path: PathBuf,
    },
    /// The private key is another certificate's.
    #[error(
        "the key in {} is not that of the certificate in {}; store both from the same minting",
        key.display(), certificate.display()
    )]
    KeyMismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// Our certificate was signed by another authority than the one we were given to believe.
    #[error(
        "the certificate in {} was not signed by the authority in {}; \
         store both from the same minting",
        certificate.display(), ca.display()
    )]
    NotIssued {
        /// The certificate's file.
        certificate: PathBuf,
        /// The authority's file.
        ca: PathBuf,
    },
    /// Our certificate bears no URI, or several.
    #[error(
        "the certificate in {} bears {count} URI names where there must be one; \
         mint the credentials with `volferry identity`", path.display()
    )]
    NameCount {
        /// The certificate's file.
        path: PathBuf,
        /// How many URIs it bears.
        count: usize,
    },
    /// Our certificate's URI is no name of an end of a clone.
    #[error(
        "the certificate in {} is for {uri:?}, which is no end of a clone; \
         mint the credentials with `volferry identity`", path.display()
    )]
    ForeignName {
        /// The certificate's file.
        path: PathBuf,
        /// The URI it bears.
        uri: String,
    },
    /// The credentials are those of another end.
    #[error(
        "the certificate in {} is the {found}'s, and this is the {expected}; \
         mount the {expected}'s credentials", path.display()
    )]
    WrongRole {
        /// The certificate's file.
        path: PathBuf,
        /// The role that this program plays.
        expected: Role,
        /// The role that the certificate names.
        found: Role,
    },
}

impl IdentityError {
    /// Whether files that are being replaced can look like this for a moment.
    const fn may_be_a_rotation(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Pem { .. }
            | Self::Nothing { .. }
            | Self::KeyMismatch { .. }
            | Self::NotIssued { .. } => true,
            Self::Certificate { .. }
            | Self::KeyUnusable { .. }
            | Self::NameCount { .. }
            | Self::ForeignName { .. }
            | Self::WrongRole { .. } => false,
        }
    }
}

/// A Secret holds no more than a MiB, and a credential a few KiB.
const FILE_SIZE_MAX: u64 = 1 << 20;

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(FILE_SIZE_MAX).read_to_end(&mut content))
        .map_err(|source| IdentityError::Read {
            path: path.to_owned(),
            source,
        })?;
    Ok(content)
}

fn parse_certificates(
    path: &Path,
    content: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let found = CertificateDer::pem_slice_iter(content)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(path, "certificate", error))?;
    if found.is_empty() {
        return Err(IdentityError::Nothing {
            path: path.to_owned(),
            item: "certificate",
        });
    }
    Ok(found)
}

fn unreadable(path: &Path, item: &'static str, error: pem::Error) -> IdentityError {
    let path = path.to_owned();
    match error {
        pem::Error::NoItemsFound => IdentityError::Nothing { path, item },
        source => IdentityError::Pem { path, source },
    }
}

fn certificate_name(path: &Path, leaf: &CertificateDer<'_>) -> Result<PeerName, IdentityError> {
    let path = || path.to_owned();
    let leaf =
        webpki::EndEntityCert::try_from(leaf).map_err(|source| IdentityError::Certificate {
            path: path(),
            source,
        })?;
    let uris: Vec<&str> = leaf.valid_uri_names().collect();
    let [uri] = uris[..] else {
        return Err(IdentityError::NameCount {
            path: path(),
            count: uris.len(),
        });
    };
    uri.parse().map_err(|_| IdentityError::ForeignName {
        path: path(),
        uri: uri.to_owned(),
    })
}

#[cfg(test)]
mod tests;
