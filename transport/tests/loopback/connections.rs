//! Connections that come about: what they keep, and what replacing credentials does to the next
//! one.

use std::fs;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use volferry_transport::mint::CloneCa;
use volferry_transport::{
    CredentialsDir, Dialer, IdentityError, ListenLimits, Listener, PeerAddress, Refusal, Rejection,
    Role, SecureStream, Transport, TransportError,
};

use crate::support::{Clone, HOUR, Target, choice, over_both, patiently, refusal, write};

over_both! {
    the_target_knows_the_source_from_the_observer,
    ipv6_works_and_a_name_is_resolved,
    an_address_that_is_none_is_told_so,
    an_end_loses_nothing_and_a_cut_is_no_end,
    replaced_credentials_are_used_for_the_next_connection,
    a_target_that_lost_its_credentials_says_so,
    a_refusal_reaches_a_peer_that_is_sending,
}

async fn the_target_knows_the_source_from_the_observer(over: Transport) {
    let clone = Clone::over(over);
    let mut target = Target::new(clone.good(Role::Target)).await;
    target.lets_in(&clone, Role::Observer).await;
    target.lets_in(&clone, Role::Source).await;
    target.listener.close().await;
}

async fn ipv6_works_and_a_name_is_resolved(over: Transport) {
    let clone = Clone::over(over);
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let bound = Listener::bind(
        any,
        clone.good(Role::Target),
        ListenLimits::default(),
        |_, _| {},
    );
    let Ok(mut listener) = bound.await else {
        eprintln!("skipped: this machine has no IPv6");
        return;
    };
    let port = listener.local_address().network().unwrap().port();
    for target in [
        format!("localhost:{port}"),
        format!("[::1]:{port}"),
        format!("127.0.0.1:{port}"),
    ] {
        let dialer = Dialer::new(&target, clone.good(Role::Source)).with_transport(choice(over));
        let (dialed, accepted) = tokio::join!(greeted(&dialer), patiently(listener.accept()));
        assert_eq!(dialed.unwrap().peer_name().role, Role::Target, "{target}");
        let accepted_from = accepted.unwrap().peer_address;
        let is_near =
            matches!(accepted_from, PeerAddress::Network(from) if from.ip().is_loopback());
        assert!(is_near, "{accepted_from}");
    }
}

async fn an_address_that_is_none_is_told_so(over: Transport) {
    let clone = Clone::over(over);
    let error = Dialer::new("no port", clone.good(Role::Source))
        .with_transport(choice(over))
        .dial()
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::Resolve { .. }), "{error:?}");
}

/// Nothing that was written before an orderly end is lost, however long the reader takes; and an
/// end that is not orderly never looks like one.
async fn an_end_loses_nothing_and_a_cut_is_no_end(over: Transport) {
    let sent: Vec<u8> = (0..=250).cycle().take(8 << 20).collect();
    let clone = Clone::over(over);
    let mut target = Target::new(clone.good(Role::Target)).await;
    for orderly in [true, false] {
        let is_accepted = Notify::new();
        let dialer = clone.dialer(target.address(), clone.good(Role::Source));
        let write = async {
            let mut stream = dialer.dial().await.unwrap();
            stream.write_all(&sent).await.unwrap();
            stream.flush().await.unwrap();
            if orderly {
                stream.shutdown().await.unwrap();
            } else {
                // Over QUIC a target never hears of a stream that was cut before.
                is_accepted.notified().await;
            }
            // Dropped with the socket's buffers full.
        };
        let read = async {
            let mut stream = target.listener.accept().await.unwrap().stream;
            is_accepted.notify_one();
            sleep(Duration::from_millis(100)).await;
            let mut bytes = Vec::new();
            let ended = stream.read_to_end(&mut bytes).await;
            (
                bytes,
                ended.map_err(|error| TransportError::from_io("reading", error)),
            )
        };
        let ((), (bytes, ended)) = patiently(async { tokio::join!(write, read) }).await;
        // What a cut leaves of what was under way is the kernel's business, over TCP; QUIC drops it.
        let is_all =
            bytes == sent || (!orderly && over == Transport::Quic && sent.starts_with(&bytes));
        assert!(is_all, "{} bytes came, or others", bytes.len());
        match ended {
            Ok(_) => assert!(orderly),
            Err(error) => assert!(!orderly && matches!(error, TransportError::Closed { .. })),
        }
    }
}

#[tokio::test]
async fn closing_the_listener_ends_everything_at_once() {
    let clone = Clone::new();
    let mut target = Target::new(clone.good(Role::Target)).await;
    let address = target.address();
    let mut dawdler = TcpStream::connect(address).await.unwrap();
    // Accepted after the dawdler, whose handshake is thus under way.
    target.lets_in(&clone, Role::Source).await;
    let at_once = Duration::from_secs(5); // half of what a handshake may take
    timeout(at_once, target.listener.close()).await.unwrap();
    timeout(at_once, dawdler.read_u8())
        .await
        .unwrap()
        .unwrap_err();
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn dropping_the_listener_closes_its_port() {
    let clone = Clone::new();
    let target = Target::new(clone.good(Role::Target)).await;
    let address = target.address();
    drop(target);
    patiently(async { while TcpStream::connect(address).await.is_ok() {} }).await;
}

/// As Kubernetes does it: the files are symlinks into `..data`, which is itself moved.
async fn replaced_credentials_are_used_for_the_next_connection(over: Transport) {
    let clone = Clone::over(over);
    let mount = |role| {
        let dir = clone.fresh_dir();
        fs::create_dir(&dir).unwrap();
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            symlink(format!("..data/{name}"), dir.join(name)).unwrap();
        }
        (dir.clone(), CredentialsDir::new(dir, role))
    };
    let put = |dir: &std::path::Path, role, ca: &CloneCa, version: &str| {
        let leaf = ca.issue(&clone.request(role)).unwrap();
        write(&dir.join(version), &leaf, &ca.certificate_pem());
        symlink(version, dir.join("..next")).unwrap();
        fs::rename(dir.join("..next"), dir.join("..data")).unwrap();
    };
    let (target_dir, target_credentials) = mount(Role::Target);
    let (source_dir, source_credentials) = mount(Role::Source);
    put(&target_dir, Role::Target, &clone.ca, "..1");
    put(&source_dir, Role::Source, &clone.ca, "..1");
    let mut target = Target::new(target_credentials).await;
    let dialer = clone.dialer(target.address(), source_credentials.clone());
    let (dialed, accepted) = tokio::join!(greeted(&dialer), patiently(target.listener.accept()));
    let (mut dialed, mut accepted) = (dialed.unwrap(), accepted.unwrap().stream);

    let next_ca = CloneCa::new(clone.id, SystemTime::now(), HOUR).unwrap();
    put(&target_dir, Role::Target, &next_ca, "..2");
    let error = dialer.dial().await.unwrap_err();
    let rejection = Rejection::UnknownAuthority;
    assert!(
        matches!(&error, TransportError::Rejected { rejection: found, .. } if *found == rejection)
    );
    put(&source_dir, Role::Source, &next_ca, "..2");
    let (again, accepted_again) =
        tokio::join!(greeted(&dialer), patiently(target.listener.accept()));
    again.unwrap();
    accepted_again.unwrap();

    // Connections that exist go on.
    dialed.write_all(b"still").await.unwrap();
    dialed.shutdown().await.unwrap();
    let mut text = String::new();
    patiently(accepted.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "?still");
}

/// A certificate whose key comes a moment later is waited for; one whose key never comes is an
/// error.
#[tokio::test]
async fn credentials_that_do_not_fit_yet_are_looked_at_again() {
    let clone = Clone::new();
    let [old, new] = [(); 2].map(|()| clone.ca.issue(&clone.request(Role::Source)).unwrap());
    let dir = write(&clone.fresh_dir(), &old, &clone.ca.certificate_pem());
    fs::write(dir.join("tls.crt"), &new.certificate_pem).unwrap();
    let credentials = CredentialsDir::new(&dir, Role::Source);
    let error = credentials.load().await.unwrap_err();
    assert!(
        matches!(error, IdentityError::KeyMismatch { .. }),
        "{error}"
    );
    let catch_up = async {
        sleep(Duration::from_millis(30)).await;
        fs::write(dir.join("tls.key"), &new.key_pem).unwrap();
    };
    let (loaded, ()) = tokio::join!(credentials.load(), catch_up);
    assert_eq!(loaded.unwrap().name().role, Role::Source);
}

/// When the target's own credentials break, peers are turned away and the target's log says why.
async fn a_target_that_lost_its_credentials_says_so(over: Transport) {
    let clone = Clone::over(over);
    let leaf = clone.ca.issue(&clone.request(Role::Target)).unwrap();
    let dir = write(&clone.fresh_dir(), &leaf, &clone.ca.certificate_pem());
    let mut target = Target::new(CredentialsDir::new(&dir, Role::Target)).await;
    fs::remove_file(dir.join("tls.key")).unwrap();
    let dialer = clone.dialer(target.address(), clone.good(Role::Source));
    let error = dialer.dial().await.unwrap_err();
    assert!(!error.is_identity(), "the source is not to blame: {error}");
    let error = target.refused().await;
    assert!(
        matches!(
            error,
            TransportError::Credentials(IdentityError::Read { .. })
        ),
        "{error}"
    );
    fs::write(dir.join("tls.key"), &leaf.key_pem).unwrap();
    target.lets_in(&clone, Role::Source).await;
}

/// A refused peer that is still sending gets to its alert, and is not cut off before by a TCP reset.
async fn a_refusal_reaches_a_peer_that_is_sending(over: Transport) {
    let clone = Clone::over(over);
    let mut target = Target::new(clone.good(Role::Target)).await;
    let dialer = clone.dialer(target.address(), clone.good(Role::Target));
    let mut stream = dialer.dial().await.unwrap();
    for _ in 0..20 {
        // A stream of QUIC is told with the next write already.
        if stream.write_all(&[7; 4096]).await.is_err() {
            break;
        }
        stream.flush().await.unwrap();
        sleep(Duration::from_millis(10)).await;
    }
    let error = TransportError::from_io("reading", stream.read_u8().await.unwrap_err());
    assert_eq!(refusal(error), Refusal::AccessDenied);
    target.refused().await;
    target.lets_in(&clone, Role::Source).await;
}

/// Dials, and says the first byte, without which a target doesn't hear of a stream over QUIC.
async fn greeted(dialer: &Dialer) -> Result<SecureStream, TransportError> {
    let mut stream = dialer.dial().await?;
    stream.write_all(b"?").await.unwrap();
    stream.flush().await.unwrap();
    Ok(stream)
}
