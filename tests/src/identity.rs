//! A clone's authority that still can sign, and credentials from it: good ones, and every kind that
//! must be refused.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use uuid::Uuid;
use volferry_transport::mint::{CloneCa, Leaf, LeafRequest};
use volferry_transport::{PeerName, Role};

use crate::temporary_directory;

/// How long good credentials are valid.
pub const HOUR: Duration = Duration::from_secs(3600);

/// A clone and its authority.
#[derive(Debug)]
pub struct Identity {
    /// The clone's id.
    pub clone_id: Uuid,
    authority: CloneCa,
    directory: TempDir,
}

impl Default for Identity {
    fn default() -> Self {
        Self::new(Uuid::new_v4())
    }
}

impl Identity {
    /// An authority of its own for the clone `clone_id`.
    #[must_use]
    pub fn new(clone_id: Uuid) -> Self {
        Self {
            clone_id,
            authority: CloneCa::new(clone_id, SystemTime::now(), HOUR).unwrap(),
            directory: temporary_directory(),
        }
    }

    /// Credentials that must be accepted.
    #[must_use]
    pub fn good(&self, role: Role) -> PathBuf {
        self.bent(role, |_as_it_is| {})
    }

    /// Credentials that the clone's authority signed, but which say something wrong.
    #[must_use]
    pub fn bent(&self, role: Role, bend: impl FnOnce(&mut LeafRequest)) -> PathBuf {
        let mut request = self.request(role);
        bend(&mut request);
        self.store(&self.issue(&request), &self.authority.certificate_pem())
    }

    /// Credentials with the right name from another authority. Their holder believes both
    /// authorities, so that it is the peer who has to refuse.
    #[must_use]
    pub fn strange(&self, role: Role) -> PathBuf {
        let stranger = Self::new(self.clone_id);
        let leaf = stranger.issue(&self.request(role));
        let both = self.authority.certificate_pem() + &stranger.authority.certificate_pem();
        self.store(&leaf, &both)
    }

    /// Credentials of the same role in another clone, vouched for by this clone's authority.
    #[must_use]
    pub fn of_another_clone(&self, role: Role) -> PathBuf {
        let name = PeerName {
            clone_id: Uuid::new_v4(),
            role,
        };
        self.bent(role, |request| request.uris = vec![name.to_string()])
    }

    /// Credentials whose time is over.
    #[must_use]
    pub fn expired(&self, role: Role) -> PathBuf {
        self.bent(role, |request| {
            request.not_before = SystemTime::now() - 2 * HOUR;
            request.not_after = SystemTime::now() - HOUR;
        })
    }

    /// Credentials whose time has not come.
    #[must_use]
    pub fn not_yet_valid(&self, role: Role) -> PathBuf {
        self.bent(role, |request| {
            request.not_before = SystemTime::now() + HOUR / 2;
        })
    }

    /// Good credentials in a directory that can be [renewed](Self::renew), as an orchestrator mounts
    /// them: its files lead through one link, so that all of them are replaced at once. They are
    /// valid for `validity` from now.
    #[must_use]
    pub fn renewable(&self, role: Role, validity: Duration) -> PathBuf {
        let directory = self.directory.path().join(Uuid::new_v4().to_string());
        fs::create_dir(&directory).unwrap();
        self.renew(&directory, role, validity);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(Path::new("..data").join(name), directory.join(name)).unwrap();
        }
        directory
    }

    /// Replaces renewable credentials by others of this clone and its authority, valid for
    /// `validity` from now.
    pub fn renew(&self, directory: &Path, role: Role, validity: Duration) {
        let fresh = self.bent(role, |request| {
            request.not_after = SystemTime::now() + validity;
        });
        let next = directory.join("..next");
        symlink(fresh, &next).unwrap();
        fs::rename(next, directory.join("..data")).unwrap();
    }

    fn request(&self, role: Role) -> LeafRequest {
        let name = PeerName {
            clone_id: self.clone_id,
            role,
        };
        LeafRequest::new(name, SystemTime::now(), HOUR).unwrap()
    }

    fn issue(&self, request: &LeafRequest) -> Leaf {
        self.authority.issue(request).unwrap()
    }

    fn store(&self, leaf: &Leaf, ca_pem: &str) -> PathBuf {
        let directory = self.directory.path().join(Uuid::new_v4().to_string());
        fs::create_dir(&directory).unwrap();
        write(&directory.join("tls.crt"), &leaf.certificate_pem);
        write(&directory.join("tls.key"), &leaf.key_pem);
        write(&directory.join("ca.crt"), ca_pem);
        directory
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}
