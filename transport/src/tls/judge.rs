//! Decides whether a peer is who it should be, and remembers the decision.
//!
//! A certificate is asked four things, in this order, so that the answer which is logged is the
//! most telling one that the authority vouches for:
//!
//! 1. Who signed it? The clone's authority, directly: intermediates are not looked at.
//! 2. When? The dates hold now, by this machine's clock.
//! 3. For whom? Exactly one URI, equal to a name we expect.
//! 4. For what? Its extended key usage allows this end of a connection, and is not left out.
//!
//! The library turns our answer into an alert (RFC 8446, section 6.2), which tells the peer what it
//! may know: `unknown_ca`, `certificate_expired`, `access_denied`, `unsupported_certificate`. The
//! answer itself, with names and dates, stays here for [`Judge::verdict`].

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme,
};
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter, KeyUsage};

use super::PROVIDER;
use crate::identity::Credentials;
use crate::name::{PeerName, Role};
use crate::rejection::{NameMismatch, OutsideBy, Rejection, UnusableName};

/// Which end of the connection the peer is.
#[derive(Clone, Copy, Debug)]
pub(super) enum PeerSide {
    Client,
    Server,
}

/// The verifier of one connection.
#[derive(Debug)]
pub(super) struct Judge {
    authorities: Arc<[TrustAnchor<'static>]>,
    expected: Vec<PeerName>,
    usage: KeyUsage,
    verdict: OnceLock<Result<PeerName, Rejection>>,
}

impl Judge {
    /// Expects an end of our own clone that plays one of `roles`.
    pub(super) fn new(credentials: &Credentials, roles: &[Role], side: PeerSide) -> Self {
        Self {
            authorities: Arc::clone(&credentials.authorities),
            expected: roles
                .iter()
                .map(|&role| credentials.name.sibling(role))
                .collect(),
            usage: match side {
                PeerSide::Client => KeyUsage::required(ID_KP_CLIENT_AUTH),
                PeerSide::Server => KeyUsage::required(ID_KP_SERVER_AUTH),
            },
            verdict: OnceLock::new(),
        }
    }

    /// Who the peer says it is, or why it is refused; nothing before it showed a certificate.
    ///
    /// It has proven to be the certificate's owner only when the handshake is over.
    pub(super) fn verdict(&self) -> Option<&Result<PeerName, Rejection>> {
        self.verdict.get()
    }

    fn judge(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        let verdict = self.verdict.get_or_init(|| self.examine(leaf, now));
        verdict
            .as_ref()
            .map(|_| ())
            .map_err(|rejection| told_to_the_peer(rejection).into())
    }

    fn examine(&self, leaf: &CertificateDer<'_>, now: UnixTime) -> Result<PeerName, Rejection> {
        let leaf = EndEntityCert::try_from(leaf).map_err(Rejection::BadCertificate)?;
        verify(&leaf, &self.authorities, now, AnyUsage).map_err(not_vouched_for)?;
        let name = self.examine_name(&leaf)?;
        // The signature is verified once more. It takes less time than explaining how not to.
        verify(&leaf, &self.authorities, now, self.usage).map_err(not_vouched_for)?;
        Ok(name)
    }

    fn examine_name(&self, leaf: &EndEntityCert<'_>) -> Result<PeerName, Rejection> {
        let uris: Vec<&str> = leaf.valid_uri_names().collect();
        let [uri] = uris[..] else {
            return Err(Rejection::NoName(UnusableName::Count(uris.len())));
        };
        let presented: PeerName = uri
            .parse()
            .map_err(|_| Rejection::NoName(UnusableName::Foreign(uri.to_owned())))?;
        if self.expected.contains(&presented) {
            return Ok(presented);
        }
        let same_clone = self
            .expected
            .iter()
            .any(|name| name.clone_id == presented.clone_id);
        let mismatch = NameMismatch {
            expected: self.expected.clone(),
            presented,
        };
        Err(if same_clone {
            Rejection::WrongRole(mismatch)
        } else {
            Rejection::WrongClone(mismatch)
        })
    }
}

/// Whether one of `authorities` signed `leaf`. Dates that don't hold are not its question.
pub(crate) fn verify_issuer(
    leaf: &CertificateDer<'_>,
    authorities: &[TrustAnchor<'static>],
    now: UnixTime,
) -> Result<(), webpki::Error> {
    match verify(&EndEntityCert::try_from(leaf)?, authorities, now, AnyUsage) {
        Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. }) => Ok(()),
        answer => answer,
    }
}

fn verify(
    leaf: &EndEntityCert<'_>,
    authorities: &[TrustAnchor<'static>],
    now: UnixTime,
    usage: impl ExtendedKeyUsageValidator,
) -> Result<(), webpki::Error> {
    let path = leaf.verify_for_usage(algorithms().all, authorities, &[], now, usage, None, None);
    path.map(|_| ())
}

fn not_vouched_for(error: webpki::Error) -> Rejection {
    use webpki::Error;
    let seconds = |later: UnixTime, earlier: UnixTime| {
        OutsideBy(Duration::from_secs(
            later.as_secs().saturating_sub(earlier.as_secs()),
        ))
    };
    match error {
        // Two authorities of one clone share their subject, so a stranger shows by its signature.
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Rejection::UnknownAuthority,
        Error::CertExpired { time, not_after } => Rejection::Expired(seconds(time, not_after)),
        Error::CertNotValidYet { time, not_before } => {
            Rejection::NotYetValid(seconds(not_before, time))
        }
        Error::RequiredEkuNotFoundContext(_) => Rejection::WrongUsage,
        other => Rejection::BadCertificate(other),
    }
}

/// The library makes the alert from this. RFC 8446 has one alert for both kinds of wrong dates.
const fn told_to_the_peer(rejection: &Rejection) -> CertificateError {
    match rejection {
        Rejection::UnknownAuthority => CertificateError::UnknownIssuer,
        Rejection::Expired(_) => CertificateError::Expired,
        Rejection::NotYetValid(_) => CertificateError::NotValidYet,
        Rejection::WrongUsage => CertificateError::InvalidPurpose,
        Rejection::WrongClone(_) | Rejection::WrongRole(_) | Rejection::NoName(_) => {
            CertificateError::ApplicationVerificationFailure
        }
        _ => CertificateError::BadEncoding,
    }
}

/// Leaves the question what a certificate is for to a later look.
#[derive(Clone, Copy)]
struct AnyUsage;

impl ExtendedKeyUsageValidator for AnyUsage {
    fn validate(&self, _: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// 1.3.6.1.5.5.7.3.1, DER (RFC 5280, section 4.2.1.12).
const ID_KP_SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
/// 1.3.6.1.5.5.7.3.2, DER (RFC 5280, section 4.2.1.12).
const ID_KP_CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

fn algorithms() -> &'static WebPkiSupportedAlgorithms {
    &PROVIDER.signature_verification_algorithms
}

// What follows is the same for both traits: the judgement above, and signatures left to the
// library.

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(leaf, now)
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

impl ClientCertVerifier for Judge {
    /// No hints: a client has one certificate, and names of authorities are nobody's business.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(leaf, now)
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _leaf: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::SupportedVersionsExtensionRequired.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, leaf, signature, algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}
