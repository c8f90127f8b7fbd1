//! Over a Unix socket: the same identities and refusals, and a file that is looked after.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use volferry_transport::{
    Address, Connector, ListenLimits, Listener, PeerAddress, Refusal, Rejection, Role, Transport,
    TransportError,
};

use crate::support::{Clone, Target, dialer, patiently, refusal, refused_by};

fn socket_in(dir: &tempfile::TempDir) -> PathBuf {
    dir.path().join("target.sock")
}

async fn target_at(clone: &Clone, path: &Path) -> Target {
    let address = Address::Unix(path.to_owned());
    Target::at(address, clone.good(Role::Target), ListenLimits::default()).await
}

/// Why nobody can listen at `path`.
async fn not_bound(clone: &Clone, path: &Path) -> String {
    let address = Address::Unix(path.to_owned());
    let limits = ListenLimits::default();
    let bound = Listener::bind(address, clone.good(Role::Target), limits, |_, _| {}).await;
    match bound.unwrap_err() {
        TransportError::Listen { address, source } => format!("{address}: {source}"),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn streams_run_over_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let clone = Clone::over(Transport::Unix);
    let mut target = target_at(&clone, &socket_in(&dir)).await;
    target.lets_in(&clone, Role::Observer).await;
    target.lets_in(&clone, Role::Source).await;
    let dialer = clone.dialer(target.listener.local_address(), clone.good(Role::Source));
    let (dialed, accepted) = tokio::join!(dialer.connect(), patiently(target.listener.accept()));
    let (first, accepted) = (dialed.unwrap(), accepted.unwrap());
    assert_eq!(accepted.peer_address, PeerAddress::Unix);
    let choice = dialer.choice().unwrap();
    assert_eq!(choice.transport, Transport::Unix);
    let (more, accepted) = tokio::join!(dialer.open(), patiently(target.listener.accept()));
    let (mut more, mut accepted) = (more.unwrap(), accepted.unwrap());
    // More than the socket holds.
    let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let sending = async {
        more.write_all(&sent).await.unwrap();
        more.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let receiving = accepted.stream.read_to_end(&mut received);
    let ((), read) = tokio::join!(sending, receiving);
    assert_eq!(read.unwrap(), sent.len());
    assert!(received == sent);
    drop(first);
}

#[tokio::test]
async fn a_stranger_is_refused_at_a_unix_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (clone, other) = (Clone::over(Transport::Unix), Clone::over(Transport::Unix));
    let mut target = target_at(&clone, &socket_in(&dir)).await;
    let address = target.listener.local_address().clone();
    let stranger = clone.strange(Role::Source, &other.ca);
    let told = refused_by(clone.dialer(&address, stranger)).await;
    assert_eq!(told, Refusal::UnknownCa);
    let error = target.refused().await;
    assert!(
        error.to_string().contains("refused the Unix socket"),
        "{error}"
    );
    assert!(matches!(
        error,
        TransportError::Rejected {
            address: PeerAddress::Unix,
            rejection: Rejection::UnknownAuthority
        }
    ));
    // And a source refuses a target that it does not know.
    let refused = dialer(&address, other.good(Role::Source)).dial().await;
    assert!(
        matches!(refused, Err(TransportError::Rejected { .. })),
        "{refused:?}"
    );
    let _told = refusal(target.refused().await);
    target.lets_in(&clone, Role::Source).await;
}

#[tokio::test]
async fn the_file_is_for_its_owner_and_goes_with_the_listener() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket_in(&dir);
    let clone = Clone::over(Transport::Unix);
    let target = target_at(&clone, &path).await;
    let file = fs::symlink_metadata(&path).unwrap();
    assert!(file.file_type().is_socket());
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    target.listener.close().await;
    assert!(!path.exists());
    // What another has put there is not touched.
    let target = target_at(&clone, &path).await;
    fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    target.listener.close().await;
    assert!(path.exists());
}

#[tokio::test]
async fn only_a_socket_that_nobody_uses_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = socket_in(&dir);
    let clone = Clone::over(Transport::Unix);
    // Its owner was killed.
    drop(UnixListener::bind(&path).unwrap());
    let mut target = target_at(&clone, &path).await;
    target.lets_in(&clone, Role::Source).await;
    let why = not_bound(&clone, &path).await;
    assert!(why.contains("another process listens there"), "{why}");
    target.lets_in(&clone, Role::Source).await;
    target.listener.close().await;
    fs::write(&path, "mine").unwrap();
    let why = not_bound(&clone, &path).await;
    assert!(why.contains("no socket"), "{why}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[tokio::test]
async fn a_path_that_is_no_place_for_a_socket_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let clone = Clone::over(Transport::Unix);
    let long = dir.path().join("x".repeat(120));
    let why = not_bound(&clone, &long).await;
    assert!(why.contains("too long") && why.contains("xxx"), "{why}");
    let nowhere = dir.path().join("nowhere/target.sock");
    let why = not_bound(&clone, &nowhere).await;
    assert!(why.contains("nowhere"), "{why}");
    for path in [long, nowhere, dir.path().to_owned()] {
        let dialer = clone.dialer(Address::Unix(path.clone()), clone.good(Role::Source));
        let error = dialer.dial().await.unwrap_err();
        assert_eq!(error.label(), "connect");
        assert!(
            error.to_string().contains(path.to_str().unwrap()),
            "{error}"
        );
    }
}
