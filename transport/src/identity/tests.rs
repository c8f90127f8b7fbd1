//! Each way in which credentials can be wrong gives its own error, which names the file.

use std::fs;
use std::time::SystemTime;

use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::mint::{CloneCa, LeafRequest, mint};

const HOUR: Duration = Duration::from_secs(3600);

/// Good credentials of a source, then bent.
fn load_after(bend: impl FnOnce(&Path)) -> Result<Credentials, IdentityError> {
    let dir = TempDir::new().unwrap();
    mint(Uuid::new_v4(), HOUR)
        .unwrap()
        .write_to(dir.path())
        .unwrap();
    let dir = dir.path().join("source");
    bend(&dir);
    Credentials::load(&dir)
}

/// Credentials whose leaf bears these URIs.
fn load_named(uris: &[&str]) -> Result<Credentials, IdentityError> {
    let clone_id = Uuid::new_v4();
    let ca = CloneCa::new(clone_id, SystemTime::now(), HOUR).unwrap();
    let name = PeerName {
        clone_id,
        role: Role::Source,
    };
    let mut request = LeafRequest::new(name, SystemTime::now(), HOUR).unwrap();
    request.uris = uris.iter().map(|&uri| uri.to_owned()).collect();
    let leaf = ca.issue(&request).unwrap();
    load_after(|dir| {
        fs::write(dir.join(CERTIFICATE_FILE), leaf.certificate_pem).unwrap();
        fs::write(dir.join(KEY_FILE), leaf.key_pem).unwrap();
        fs::write(dir.join(CA_FILE), ca.certificate_pem()).unwrap();
    })
}

/// Another minting of the same kind.
fn other(file: &str) -> Vec<u8> {
    let dir = TempDir::new().unwrap();
    mint(Uuid::new_v4(), HOUR)
        .unwrap()
        .write_to(dir.path())
        .unwrap();
    fs::read(dir.path().join("source").join(file)).unwrap()
}

macro_rules! assert_error {
    ($loaded:expr, $error:pat, $mentions:literal) => {{
        let error = $loaded.unwrap_err();
        assert!(matches!(error, $error), "{error:?}");
        assert!(error.to_string().contains($mentions), "{error}");
    }};
}

#[test]
fn good_credentials_tell_who_we_are() {
    assert_eq!(load_after(|_| ()).unwrap().name().role, Role::Source);
}

#[test]
fn a_missing_file() {
    for file in [CERTIFICATE_FILE, KEY_FILE, CA_FILE] {
        let loaded = load_after(|dir| fs::remove_file(dir.join(file)).unwrap());
        let error = loaded.unwrap_err();
        assert!(matches!(error, IdentityError::Read { .. }) && error.to_string().contains(file));
    }
}

#[test]
fn files_without_what_should_be_in_them() {
    let swap = |dir: &Path| {
        fs::rename(dir.join(KEY_FILE), dir.join("x")).unwrap();
        fs::rename(dir.join(CERTIFICATE_FILE), dir.join(KEY_FILE)).unwrap();
        fs::rename(dir.join("x"), dir.join(CERTIFICATE_FILE)).unwrap();
    };
    assert_error!(
        load_after(swap),
        IdentityError::Nothing {
            item: "certificate",
            ..
        },
        "tls.crt"
    );
    let empty = |dir: &Path| fs::write(dir.join(KEY_FILE), "").unwrap();
    assert_error!(
        load_after(empty),
        IdentityError::Nothing {
            item: "private key",
            ..
        },
        "tls.key"
    );
}

#[test]
fn files_that_are_damaged() {
    let cut = |dir: &Path| {
        let path = dir.join(CERTIFICATE_FILE);
        let pem = fs::read(&path).unwrap();
        fs::write(path, &pem[..pem.len() / 2]).unwrap();
    };
    assert_error!(load_after(cut), IdentityError::Pem { .. }, "tls.crt");
    let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let nonsense = |dir: &Path| fs::write(dir.join(CA_FILE), nonsense).unwrap();
    assert_error!(
        load_after(nonsense),
        IdentityError::Certificate { .. },
        "ca.crt"
    );
    let no_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let no_key = |dir: &Path| fs::write(dir.join(KEY_FILE), no_key).unwrap();
    assert_error!(
        load_after(no_key),
        IdentityError::KeyUnusable { .. },
        "tls.key"
    );
}

#[test]
fn files_from_two_mintings() {
    let key = |dir: &Path| fs::write(dir.join(KEY_FILE), other(KEY_FILE)).unwrap();
    assert_error!(
        load_after(key),
        IdentityError::KeyMismatch { .. },
        "tls.key"
    );
    let ca = |dir: &Path| fs::write(dir.join(CA_FILE), other(CA_FILE)).unwrap();
    assert_error!(load_after(ca), IdentityError::NotIssued { .. }, "ca.crt");
}

#[test]
fn certificates_without_one_proper_name() {
    let own = "spiffe://volferry.io/clone/4f1c6a0e-6e0c-4a53-9b0c-6f7f3c1d2e5a/source";
    assert_error!(
        load_named(&[]),
        IdentityError::NameCount { count: 0, .. },
        "0 URI names"
    );
    assert_error!(
        load_named(&[own, own]),
        IdentityError::NameCount { count: 2, .. },
        "2 URI names"
    );
    assert_error!(
        load_named(&["urn:x"]),
        IdentityError::ForeignName { .. },
        "urn:x"
    );
    assert_eq!(load_named(&[own]).unwrap().name().to_string(), own);
}

#[tokio::test]
async fn credentials_of_another_end() {
    let dir = TempDir::new().unwrap();
    mint(Uuid::new_v4(), HOUR)
        .unwrap()
        .write_to(dir.path())
        .unwrap();
    let loaded = CredentialsDir::new(dir.path().join("target"), Role::Source)
        .load()
        .await;
    assert_error!(
        loaded,
        IdentityError::WrongRole {
            found: Role::Target,
            ..
        },
        "target's"
    );
}
