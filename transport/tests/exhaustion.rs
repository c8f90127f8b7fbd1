//! A target that is out of file descriptors waits for better times, quietly, and then goes on.
//!
//! Alone in its process, whose limit it lowers.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::fs::File;
use std::iter;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::net::TcpSocket;
use tokio::time::sleep;
use uuid::Uuid;
use volferry_transport::{CredentialsDir, Dialer, ListenLimits, Listener, Role, mint};

fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap()
}

#[tokio::test]
async fn running_out_of_file_descriptors_is_survived_without_spinning() {
    let dir = tempfile::tempdir().unwrap();
    mint(Uuid::new_v4(), Duration::from_secs(3600))
        .unwrap()
        .write_to(dir.path())
        .unwrap();
    let credentials = |role: Role| CredentialsDir::new(dir.path().join(role.as_str()), role);
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let limits = ListenLimits::default();
    let bound = Listener::bind(any, credentials(Role::Target), limits, |_, _| {}).await;
    let mut listener = bound.unwrap();

    let client = TcpSocket::new_v4().unwrap();
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(64),
            ..getrlimit(Resource::Nofile)
        },
    )
    .unwrap();
    let hoard: Vec<File> = iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!hoard.is_empty());
    // The kernel completes the connection, and nobody can accept it.
    let client = client
        .connect(listener.local_address().network().unwrap())
        .await
        .unwrap();
    let before = cpu_time();
    sleep(Duration::from_millis(500)).await;
    let spent = cpu_time() - before;
    assert!(
        spent < Duration::from_millis(100),
        "{spent:?} of CPU time in half a second"
    );

    drop((hoard, client));
    let dialer = Dialer::new(
        listener.local_address().to_string(),
        credentials(Role::Source),
    );
    let (dialed, accepted) = tokio::join!(dialer.dial(), listener.accept());
    dialed.unwrap();
    assert_eq!(accepted.unwrap().peer_name.role, Role::Source);
}
