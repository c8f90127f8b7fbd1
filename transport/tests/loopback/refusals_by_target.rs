//! The target refuses who dials it. Each story is checked at both ends, and ends with a good peer
//! that gets in.

use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;
use volferry_transport::mint::{CloneCa, Leaf, Usage};
use volferry_transport::rejection::UnusableName;
use volferry_transport::{
    ALPN, CredentialsDir, ListenLimits, PeerName, Refusal, Rejection, Role, Transport,
    TransportError,
};

use crate::support::{
    Clone, HOUR, Target, dialer, foreign_client, foreign_dial, over_both, patiently, refused_by,
    rejection,
};

over_both! {
    a_client_without_a_certificate,
    a_certificate_from_another_authority_of_the_same_clone,
    a_certificate_from_the_authority_of_another_clone,
    a_stranger_who_gives_a_wrong_name_is_a_stranger,
    a_certificate_that_another_end_signed,
    a_certificate_of_another_clone,
    a_target_that_dials,
    an_observer_where_only_the_source_may_come_in,
    an_expired_certificate,
    a_certificate_that_is_not_valid_yet,
    a_certificate_for_another_use_or_none,
    a_certificate_without_one_proper_name,
    a_client_that_speaks_another_protocol,
}

/// Dials a fresh target with these credentials; what each end then knows.
async fn both_ends(clone: &Clone, shown: CredentialsDir) -> (Rejection, Refusal) {
    let mut target = Target::new(clone.good(Role::Target)).await;
    let refusal = refused_by(clone.dialer(target.address(), shown)).await;
    let error = target.refused().await;
    assert!(error.is_identity(), "{error}");
    target.lets_in(clone, Role::Source).await;
    (rejection(error), refusal)
}

async fn a_client_without_a_certificate(over: Transport) {
    let clone = Clone::over(over);
    let mut target = Target::new(clone.good(Role::Target)).await;
    let alert = foreign_dial(
        over,
        target.address(),
        foreign_client(&[&TLS13], None, &[ALPN]),
    )
    .await;
    assert_eq!(
        alert,
        Error::AlertReceived(AlertDescription::CertificateRequired)
    );
    assert_eq!(target.rejection().await, Rejection::NoCertificate);
    target.lets_in(&clone, Role::Source).await;
}

async fn a_certificate_from_another_authority_of_the_same_clone(over: Transport) {
    let clone = Clone::over(over);
    let stranger = CloneCa::new(clone.id, SystemTime::now(), HOUR).unwrap();
    let ends = both_ends(&clone, clone.strange(Role::Source, &stranger)).await;
    assert_eq!(ends, (Rejection::UnknownAuthority, Refusal::UnknownCa));
}

async fn a_certificate_from_the_authority_of_another_clone(over: Transport) {
    let clone = Clone::over(over);
    let stranger = CloneCa::new(Uuid::new_v4(), SystemTime::now(), HOUR).unwrap();
    let ends = both_ends(&clone, clone.strange(Role::Source, &stranger)).await;
    assert_eq!(ends, (Rejection::UnknownAuthority, Refusal::UnknownCa));
}

/// What a certificate says is worth telling only when the authority vouches for it.
async fn a_stranger_who_gives_a_wrong_name_is_a_stranger(over: Transport) {
    let clone = Clone::over(over);
    let stranger = CloneCa::new(clone.id, SystemTime::now(), HOUR).unwrap();
    let mut request = clone.request(Role::Source);
    request.uris = vec!["https://example.com/".to_owned()];
    let leaf = stranger.issue(&request).unwrap();
    let mut target = Target::new(clone.good(Role::Target)).await;
    let config = foreign_client(&[&TLS13], Some(&leaf), &[ALPN]);
    let alert = foreign_dial(over, target.address(), config).await;
    assert_eq!(alert, Error::AlertReceived(AlertDescription::UnknownCA));
    assert_eq!(target.rejection().await, Rejection::UnknownAuthority);
    target.lets_in(&clone, Role::Source).await;
}

/// An end of the clone makes itself an authority and vouches for a second source.
async fn a_certificate_that_another_end_signed(over: Transport) {
    let clone = Clone::over(over);
    let middle = clone.ca.issue(&clone.request(Role::Observer)).unwrap();
    let mut leaf = sign_with(&middle, &clone.request(Role::Source).uris[0]);
    // The chain is shown whole, so that it would be found by whoever looks for one.
    leaf.certificate_pem += &middle.certificate_pem;
    let mut target = Target::new(clone.good(Role::Target)).await;
    let config = foreign_client(&[&TLS13], Some(&leaf), &[ALPN]);
    let alert = foreign_dial(over, target.address(), config).await;
    assert_eq!(alert, Error::AlertReceived(AlertDescription::UnknownCA));
    assert_eq!(target.rejection().await, Rejection::UnknownAuthority);
    target.lets_in(&clone, Role::Source).await;
}

/// A leaf for `uri` signed by the holder of `issuer`, which is no authority.
fn sign_with(issuer: &Leaf, uri: &str) -> Leaf {
    let mut issuer_params = CertificateParams::default();
    issuer_params.distinguished_name = DistinguishedName::new();
    issuer_params
        .distinguished_name
        .push(DnType::CommonName, "volferry");
    let issuer = Issuer::new(issuer_params, KeyPair::from_pem(&issuer.key_pem).unwrap());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer).unwrap();
    Leaf {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    }
}

/// The target knows both names. A dialing end takes its clone from its own certificate, so it finds
/// that the target is of another clone before the target sees anything; the peer here is not ours.
async fn a_certificate_of_another_clone(over: Transport) {
    let clone = Clone::over(over);
    let presented = PeerName {
        clone_id: Uuid::new_v4(),
        role: Role::Source,
    };
    let mut request = clone.request(Role::Source);
    request.uris = vec![presented.to_string()];
    let leaf = clone.ca.issue(&request).unwrap();
    let mut target = Target::new(clone.good(Role::Target)).await;
    let config = foreign_client(&[&TLS13], Some(&leaf), &[ALPN]);
    let alert = foreign_dial(over, target.address(), config).await;
    assert_eq!(alert, Error::AlertReceived(AlertDescription::AccessDenied));
    let Rejection::WrongClone(names) = target.rejection().await else {
        panic!("wrong rejection")
    };
    assert_eq!(names.presented, presented);
    assert!(names.expected.iter().all(|name| name.clone_id == clone.id));
    target.lets_in(&clone, Role::Source).await;
}

async fn a_target_that_dials(over: Transport) {
    let clone = Clone::over(over);
    let (rejection, refusal) = both_ends(&clone, clone.good(Role::Target)).await;
    let Rejection::WrongRole(names) = rejection else {
        panic!("{rejection:?}")
    };
    assert_eq!(names.presented.role, Role::Target);
    assert_eq!(refusal, Refusal::AccessDenied);
}

async fn an_observer_where_only_the_source_may_come_in(over: Transport) {
    let clone = Clone::over(over);
    let limits = ListenLimits {
        roles: vec![Role::Source],
        ..ListenLimits::default()
    };
    let mut target = Target::with_limits(clone.good(Role::Target), limits).await;
    let refusal = refused_by(clone.dialer(target.address(), clone.good(Role::Observer))).await;
    assert_eq!(refusal, Refusal::AccessDenied);
    let Rejection::WrongRole(names) = target.rejection().await else {
        panic!("wrong rejection")
    };
    assert_eq!(names.presented.role, Role::Observer);
    assert_eq!(
        names.expected,
        [PeerName {
            clone_id: clone.id,
            role: Role::Source
        }]
    );
    target.lets_in(&clone, Role::Source).await;
}

async fn an_expired_certificate(over: Transport) {
    let clone = Clone::over(over);
    let shown = clone.bent(Role::Source, |request| {
        request.not_after = SystemTime::now() - Duration::from_secs(60);
    });
    let (rejection, refusal) = both_ends(&clone, shown).await;
    let Rejection::Expired(by) = rejection else {
        panic!("{rejection:?}")
    };
    assert!((60..90).contains(&by.0.as_secs()), "{by}");
    assert_eq!(refusal, Refusal::CertificateExpired);
}

async fn a_certificate_that_is_not_valid_yet(over: Transport) {
    let clone = Clone::over(over);
    let shown = clone.bent(Role::Source, |request| {
        request.not_before = SystemTime::now() + Duration::from_secs(600);
    });
    let (rejection, refusal) = both_ends(&clone, shown).await;
    let Rejection::NotYetValid(by) = rejection else {
        panic!("{rejection:?}")
    };
    assert!((570..=600).contains(&by.0.as_secs()), "{by}");
    assert_eq!(refusal, Refusal::CertificateExpired);
}

async fn a_certificate_for_another_use_or_none(over: Transport) {
    for usages in [vec![Usage::ServerAuth], vec![]] {
        let clone = Clone::over(over);
        let shown = clone.bent(Role::Source, |request| request.usages = usages);
        let ends = both_ends(&clone, shown).await;
        assert_eq!(
            ends,
            (Rejection::WrongUsage, Refusal::UnsupportedCertificate)
        );
    }
}

/// Our own ends refuse to start with such a certificate, so the peer here is not ours.
async fn a_certificate_without_one_proper_name(over: Transport) {
    let clone = Clone::over(over);
    let own = clone.request(Role::Source).uris;
    let foreign = "https://example.com/".to_owned();
    for (uris, found) in [
        (vec![], UnusableName::Count(0)),
        ([own.clone(), own].concat(), UnusableName::Count(2)),
        (vec![foreign.clone()], UnusableName::Foreign(foreign)),
    ] {
        let mut target = Target::new(clone.good(Role::Target)).await;
        let mut request = clone.request(Role::Source);
        request.uris = uris;
        let leaf = clone.ca.issue(&request).unwrap();
        let config = foreign_client(&[&TLS13], Some(&leaf), &[ALPN]);
        let alert = foreign_dial(over, target.address(), config).await;
        assert_eq!(alert, Error::AlertReceived(AlertDescription::AccessDenied));
        assert_eq!(target.rejection().await, Rejection::NoName(found));
        target.lets_in(&clone, Role::Source).await;
    }
}

#[tokio::test]
async fn a_client_that_only_speaks_tls_1_2() {
    let clone = Clone::new();
    let leaf = clone.ca.issue(&clone.request(Role::Source)).unwrap();
    let mut target = Target::new(clone.good(Role::Target)).await;
    let config = foreign_client(&[&TLS12], Some(&leaf), &[ALPN]);
    let alert = foreign_dial(clone.over, target.address(), config).await;
    assert_eq!(
        alert,
        Error::AlertReceived(AlertDescription::ProtocolVersion)
    );
    assert_eq!(target.rejection().await, Rejection::OldTlsVersion);
    target.lets_in(&clone, Role::Source).await;
}

async fn a_client_that_speaks_another_protocol(over: Transport) {
    let clone = Clone::over(over);
    let leaf = clone.ca.issue(&clone.request(Role::Source)).unwrap();
    let mut target = Target::new(clone.good(Role::Target)).await;
    let config = foreign_client(&[&TLS13], Some(&leaf), &[b"volferry/0", b"h2"]);
    let alert = foreign_dial(over, target.address(), config).await;
    assert_eq!(
        alert,
        Error::AlertReceived(AlertDescription::NoApplicationProtocol)
    );
    assert_eq!(target.rejection().await, Rejection::NoCommonProtocol);
    target.lets_in(&clone, Role::Source).await;
}

#[tokio::test]
async fn a_client_that_says_nothing_about_protocols() {
    let clone = Clone::new();
    let leaf = clone.ca.issue(&clone.request(Role::Source)).unwrap();
    let mut target = Target::new(clone.good(Role::Target)).await;
    let tcp = TcpStream::connect(target.address()).await.unwrap();
    let config = foreign_client(&[&TLS13], Some(&leaf), &[]);
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut stream = connector
        .connect(target.address().ip().into(), tcp)
        .await
        .unwrap();
    assert_eq!(target.rejection().await, Rejection::NoCommonProtocol);
    patiently(stream.read_u8()).await.unwrap_err();
    target.lets_in(&clone, Role::Source).await;
}

#[tokio::test]
async fn a_client_that_does_not_speak_tls() {
    let clone = Clone::new();
    for hello in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.9\r\n",
        &[0xff; 64],
        &[0; 5],
    ] {
        let mut target = Target::new(clone.good(Role::Target)).await;
        let mut tcp = TcpStream::connect(target.address()).await.unwrap();
        tcp.write_all(hello).await.unwrap();
        let mut answer = Vec::new();
        // An alert in the clear, then the end: no reset, though the peer may have more to say.
        patiently(tcp.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer[..1], [0x15]);
        assert_eq!(target.rejection().await, Rejection::NotTls);
        target.lets_in(&clone, Role::Source).await;
    }
}

/// Port probes are no scandal: no identity, no protocol, just gone.
#[tokio::test]
async fn a_client_that_goes_away_at_once() {
    let clone = Clone::new();
    let mut target = Target::new(clone.good(Role::Target)).await;
    // Who never says a byte is nobody; the next one is told first.
    drop(TcpStream::connect(target.address()).await.unwrap());
    let mut brief = TcpStream::connect(target.address()).await.unwrap();
    brief.write_all(&[0x16]).await.unwrap();
    drop(brief);
    let error = target.refused().await;
    assert!(matches!(error, TransportError::Closed { .. }), "{error:?}");
    target.lets_in(&clone, Role::Source).await;
}

#[tokio::test]
async fn a_client_that_dawdles_holds_up_nobody_and_is_closed_in_time() {
    let clone = Clone::new();
    let handshake_timeout = Duration::from_secs(5);
    let limits = ListenLimits {
        handshake_timeout,
        ..ListenLimits::default()
    };
    let mut target = Target::with_limits(clone.good(Role::Target), limits).await;
    let began = std::time::Instant::now();
    let mut slow = TcpStream::connect(target.address()).await.unwrap();
    // The start of a ClientHello's record, and no more.
    slow.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    target.lets_in(&clone, Role::Source).await;
    assert!(
        began.elapsed() < handshake_timeout,
        "the good peer had to wait"
    );
    assert_eq!(target.rejection().await, Rejection::HandshakeTimeout);
    patiently(slow.read_u8()).await.unwrap_err();
    target.lets_in(&clone, Role::Source).await;
}

#[tokio::test]
async fn more_handshakes_than_allowed_are_closed_at_once() {
    let clone = Clone::new();
    let limits = ListenLimits {
        handshakes_max: 2,
        ..ListenLimits::default()
    };
    let mut target = Target::with_limits(clone.good(Role::Target), limits).await;
    let mut first = TcpStream::connect(target.address()).await.unwrap();
    let mut second = TcpStream::connect(target.address()).await.unwrap();
    first.write_all(&[0x16]).await.unwrap();
    second.write_all(&[0x16]).await.unwrap();
    let refused = dialer(target.address(), clone.good(Role::Source))
        .dial()
        .await
        .unwrap_err();
    assert!(!refused.is_identity(), "{refused:?}");
    assert_eq!(target.rejection().await, Rejection::TooManyConnections);
    drop((first, second));
    for _ in 0..2 {
        assert!(matches!(
            target.refused().await,
            TransportError::Closed { .. }
        ));
    }
    target.lets_in(&clone, Role::Source).await;
}
