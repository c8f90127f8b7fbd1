//! The source refuses whom it dialed. Each story is checked at both ends where the other end is
//! ours.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use uuid::Uuid;
use volferry_transport::mint::{CloneCa, Usage};
use volferry_transport::{
    ALPN, CredentialsDir, DialLimits, PeerName, Refusal, Rejection, Role, Transport, TransportError,
};

use crate::support::{Clone, HOUR, Target, dialer, foreign_server, over_both, refusal, rejection};

over_both! {
    a_certificate_from_another_authority,
    a_certificate_of_another_clone,
    a_source_or_an_observer_that_listens,
    an_expired_certificate,
    a_certificate_that_is_not_valid_yet,
    a_certificate_for_another_use_or_none,
}

/// A good source dials a target that shows these credentials; what each end then knows.
async fn both_ends(clone: &Clone, shown: CredentialsDir) -> (Rejection, Refusal) {
    let mut target = Target::new(shown).await;
    let error = clone
        .dialer(target.address(), clone.good(Role::Source))
        .dial()
        .await
        .unwrap_err();
    assert!(error.is_identity(), "{error}");
    (rejection(error), refusal(target.refused().await))
}

async fn a_certificate_from_another_authority(over: Transport) {
    let clone = Clone::over(over);
    for clone_id in [clone.id, Uuid::new_v4()] {
        let stranger = CloneCa::new(clone_id, SystemTime::now(), HOUR).unwrap();
        let ends = both_ends(&clone, clone.strange(Role::Target, &stranger)).await;
        assert_eq!(ends, (Rejection::UnknownAuthority, Refusal::UnknownCa));
    }
}

async fn a_certificate_of_another_clone(over: Transport) {
    let clone = Clone::over(over);
    let presented = PeerName {
        clone_id: Uuid::new_v4(),
        role: Role::Target,
    };
    let shown = clone.bent(Role::Target, |request| {
        request.uris = vec![presented.to_string()]
    });
    let (rejection, refusal) = both_ends(&clone, shown).await;
    let Rejection::WrongClone(names) = rejection else {
        panic!("{rejection:?}")
    };
    assert_eq!(names.presented, presented);
    assert_eq!(
        names.expected,
        [PeerName {
            clone_id: clone.id,
            role: Role::Target
        }]
    );
    assert_eq!(refusal, Refusal::AccessDenied);
}

async fn a_source_or_an_observer_that_listens(over: Transport) {
    let clone = Clone::over(over);
    for role in [Role::Source, Role::Observer] {
        let (rejection, refusal) = both_ends(&clone, clone.good(role)).await;
        let Rejection::WrongRole(names) = rejection else {
            panic!("{rejection:?}")
        };
        assert_eq!(
            names.presented,
            PeerName {
                clone_id: clone.id,
                role
            }
        );
        assert_eq!(refusal, Refusal::AccessDenied);
    }
}

async fn an_expired_certificate(over: Transport) {
    let clone = Clone::over(over);
    let shown = clone.bent(Role::Target, |request| {
        request.not_after = SystemTime::now() - Duration::from_secs(60);
    });
    let (rejection, refusal) = both_ends(&clone, shown).await;
    assert!(matches!(rejection, Rejection::Expired(_)), "{rejection:?}");
    assert_eq!(refusal, Refusal::CertificateExpired);
}

async fn a_certificate_that_is_not_valid_yet(over: Transport) {
    let clone = Clone::over(over);
    let shown = clone.bent(Role::Target, |request| {
        request.not_before = SystemTime::now() + Duration::from_secs(600);
    });
    let (rejection, refusal) = both_ends(&clone, shown).await;
    assert!(
        matches!(rejection, Rejection::NotYetValid(_)),
        "{rejection:?}"
    );
    assert_eq!(refusal, Refusal::CertificateExpired);
}

async fn a_certificate_for_another_use_or_none(over: Transport) {
    for usages in [vec![Usage::ClientAuth], vec![]] {
        let clone = Clone::over(over);
        let shown = clone.bent(Role::Target, |request| request.usages = usages);
        let ends = both_ends(&clone, shown).await;
        assert_eq!(
            ends,
            (Rejection::WrongUsage, Refusal::UnsupportedCertificate)
        );
    }
}

/// A good source dials a TLS server that is not ours.
async fn dial_foreign(clone: &Clone, config: ServerConfig) -> TransportError {
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = port.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (tcp, _) = port.accept().await.unwrap();
        let stream = tokio_rustls::TlsAcceptor::from(Arc::new(config))
            .accept(tcp)
            .await;
        if let Ok(mut stream) = stream {
            stream.read_u8().await.ok();
        }
    });
    let error = dialer(address, clone.good(Role::Source))
        .dial()
        .await
        .unwrap_err();
    server.await.unwrap();
    error
}

#[tokio::test]
async fn a_server_that_only_speaks_tls_1_2() {
    let clone = Clone::new();
    let leaf = clone.ca.issue(&clone.request(Role::Target)).unwrap();
    let error = dial_foreign(&clone, foreign_server(&[&TLS12], &leaf, &[ALPN])).await;
    // Such a server refuses us first, as our hello does not offer what it speaks.
    assert_eq!(refusal(error), Refusal::ProtocolVersion);
}

#[tokio::test]
async fn a_server_that_speaks_another_protocol() {
    let clone = Clone::new();
    let leaf = clone.ca.issue(&clone.request(Role::Target)).unwrap();
    let error = dial_foreign(&clone, foreign_server(&[&TLS13], &leaf, &[b"h2"])).await;
    assert_eq!(refusal(error), Refusal::NoApplicationProtocol);
    let error = dial_foreign(&clone, foreign_server(&[&TLS13], &leaf, &[])).await;
    assert_eq!(rejection(error), Rejection::NoCommonProtocol);
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls() {
    let clone = Clone::new();
    for answer in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.9\r\n",
    ] {
        let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialer = dialer(port.local_addr().unwrap(), clone.good(Role::Source));
        let serve = async {
            let (mut tcp, _) = port.accept().await.unwrap();
            tcp.write_all(answer).await.unwrap();
            tcp
        };
        let (error, _tcp) = tokio::join!(dialer.dial(), serve);
        assert_eq!(rejection(error.unwrap_err()), Rejection::NotTls);
    }
}

#[tokio::test]
async fn a_server_that_says_nothing() {
    let clone = Clone::new();
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let handshake_timeout = Duration::from_millis(200);
    let dialer =
        dialer(port.local_addr().unwrap(), clone.good(Role::Source)).with_limits(DialLimits {
            handshake_timeout,
            ..DialLimits::default()
        });
    let error = dialer.dial().await.unwrap_err();
    assert!(matches!(error, TransportError::Timeout { after, .. } if after == handshake_timeout));
    assert!(!error.is_identity());
}

#[tokio::test]
async fn nobody_who_listens() {
    let clone = Clone::new();
    // At an address of its own: no other test is given the port meanwhile.
    let port = TcpListener::bind("127.0.0.77:0").await.unwrap();
    let address = port.local_addr().unwrap();
    drop(port);
    let error = dialer(address, clone.good(Role::Source))
        .dial()
        .await
        .unwrap_err();
    assert!(matches!(error, TransportError::Connect { address: at, .. } if at == address.into()));
}
