//! Why a connection is refused: two closed tables, one for each side of the refusal.
//!
//! A [`Rejection`] is what the side that refuses knows, names and dates included; it goes to its
//! log and, by its label, to its metrics. The peer learns less, a TLS alert (RFC 8446, section
//! 6.2), which [`Refusal`] turns into a sentence at that end. A table line holds the class, the
//! metric label, the sentence and the remedy, so that they can't drift apart.

use std::fmt;
use std::time::Duration;

use crate::name::PeerName;
use crate::tls::TlsFailure;

/// What kind of thing went wrong, and so who can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Somebody is not who they should be, or can't prove it. Trying again changes nothing until
    /// credentials are changed.
    Identity,
    /// The two ends don't speak the same language: another program, or another version.
    Protocol,
    /// The way between the ends, or a moment's load. Trying again may help.
    Network,
}

macro_rules! rejections {
    ($($(#[doc = $doc:literal])+ $name:ident $(($detail:ty))? = $class:ident, $label:literal,
        $sentence:literal, $remedy:literal;)+) => {
        /// Why this side refused a peer.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Rejection {
            $($(#[doc = $doc])+ $name $(($detail))?,)+
        }

        impl Rejection {
            /// Every label, in the order of the table.
            pub const LABELS: &[&str] = &[$($label),+];

            /// What kind of thing went wrong.
            #[must_use]
            pub const fn class(&self) -> Class {
                match self { $(Self::$name { .. } => Class::$class,)+ }
            }

            /// A short fixed word for metrics.
            #[must_use]
            pub const fn label(&self) -> &'static str {
                match self { $(Self::$name { .. } => $label,)+ }
            }

            /// What an operator does about it.
            #[must_use]
            pub const fn remedy(&self) -> &'static str {
                match self { $(Self::$name { .. } => $remedy,)+ }
            }

            const fn sentence(&self) -> &'static str {
                match self { $(Self::$name { .. } => $sentence,)+ }
            }

            fn detail(&self) -> Option<&dyn fmt::Display> {
                match self {
                    $($(Self::$name(detail) => { let detail: &$detail = detail; Some(detail) })?)+
                    _ => None,
                }
            }
        }
    };
}

rejections! {
    /// The client showed no certificate.
    NoCertificate = Identity, "no_certificate",
        "the peer presented no certificate",
        "give the peer the clone's credentials";
    /// The certificate does not lead to the clone's authority.
    UnknownAuthority = Identity, "unknown_authority",
        "the peer's certificate was not signed by this clone's authority",
        "mint the credentials of both ends together";
    /// The certificate is that of an end of another clone.
    WrongClone(NameMismatch) = Identity, "wrong_clone",
        "the peer belongs to another clone",
        "see that the address and the credentials are those of the same clone";
    /// The certificate is that of an end of this clone which has no business here.
    WrongRole(NameMismatch) = Identity, "wrong_role",
        "the peer plays another role in this clone",
        "mount each end's own credentials";
    /// The certificate's name is none that an end of a clone bears.
    NoName(UnusableName) = Identity, "no_name",
        "the peer's certificate does not name an end of a clone",
        "mint the credentials with `volferry identity`";
    /// The certificate's time is over.
    Expired(OutsideBy) = Identity, "expired",
        "the peer's certificate has expired",
        "mint new credentials for both ends, or set this machine's clock";
    /// The certificate's time has not come.
    NotYetValid(OutsideBy) = Identity, "not_yet_valid",
        "the peer's certificate is not valid yet",
        "set the clocks of both machines";
    /// The certificate's extended key usage does not fit what the peer does with it.
    WrongUsage = Identity, "wrong_usage",
        "the peer's certificate is not for this end of a connection",
        "mint the credentials with `volferry identity`";
    /// The certificate can't be read, or says something that it must not.
    BadCertificate(webpki::Error) = Identity, "bad_certificate",
        "the peer's certificate is malformed",
        "mint the credentials with `volferry identity`";
    /// The peer offers no TLS 1.3.
    OldTlsVersion = Protocol, "old_tls_version",
        "the peer does not offer TLS 1.3",
        "see that the peer is a volferry agent and that no proxy ends TLS in between";
    /// The first bytes are not TLS.
    NotTls = Protocol, "not_tls",
        "the peer does not speak TLS",
        "see that the address is that of a volferry agent";
    /// No protocol was agreed on (ALPN, RFC 7301).
    NoCommonProtocol = Protocol, "no_common_protocol",
        "the peer does not speak this version of the protocol",
        "run the same version at both ends";
    /// The peer did not finish its handshake in time.
    HandshakeTimeout = Network, "handshake_timeout",
        "the peer did not finish the TLS handshake in time",
        "see whether the peer is overloaded, or the path between the ends loses packets";
    /// As many handshakes as are allowed at once were under way.
    TooManyConnections = Network, "too_many_connections",
        "too many handshakes are under way",
        "find out who else connects to this port";
    /// Anything else the TLS library refused.
    Other(TlsFailure) = Protocol, "other",
        "the TLS handshake failed",
        "see that the peer is a volferry agent";
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sentence())?;
        self.detail()
            .map_or(Ok(()), |detail| write!(f, ": {detail}"))
    }
}

/// The names that were expected and the one that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameMismatch {
    /// Any of these would have been welcome.
    pub expected: Vec<PeerName>,
    /// This one came.
    pub presented: PeerName,
}

impl fmt::Display for NameMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "presented {}, expected ", self.presented)?;
        for (at, name) in self.expected.iter().enumerate() {
            write!(f, "{}{name}", if at == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

/// What a certificate of the clone's own authority bears in place of one name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableName {
    /// No URI, or several.
    #[error("it bears {0} URI names where there must be one")]
    Count(usize),
    /// One URI, which is no name.
    #[error("it is for {0:?}")]
    Foreign(String),
}

/// How far, by this machine's clock, a certificate is from being valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutsideBy(pub Duration);

impl fmt::Display for OutsideBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "by {} s on this machine's clock", self.0.as_secs())
    }
}

macro_rules! refusals {
    ($($(#[doc = $doc:literal])+ $name:ident = $code:literal, $class:ident, $label:literal,
        $sentence:literal, $remedy:literal;)+) => {
        /// Why the peer refused this side, as far as its alert tells (RFC 8446, section 6).
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Refusal {
            $($(#[doc = $doc])+ $name,)+
            /// An alert that has no line in the table, by its number.
            Alert(u8),
        }

        impl Refusal {
            /// What an alert of this number says.
            #[must_use]
            pub const fn from_alert(code: u8) -> Self {
                match code { $($code => Self::$name,)+ code => Self::Alert(code) }
            }

            /// What kind of thing went wrong.
            #[must_use]
            pub const fn class(&self) -> Class {
                match self { $(Self::$name => Class::$class,)+ Self::Alert(_) => Class::Network }
            }

            /// The alert's name, which is also a fixed word for metrics.
            #[must_use]
            pub const fn label(&self) -> &'static str {
                match self { $(Self::$name => $label,)+ Self::Alert(_) => "other_alert" }
            }

            /// What an operator does about it.
            #[must_use]
            pub const fn remedy(&self) -> &'static str {
                match self {
                    $(Self::$name => $remedy,)+
                    Self::Alert(_) => "see the peer's log",
                }
            }

            const fn sentence(&self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)+
                    Self::Alert(_) => "refused the connection",
                }
            }
        }
    };
}

refusals! {
    /// `unexpected_message`.
    UnexpectedMessage = 10, Protocol, "unexpected_message",
        "could not make sense of what we sent", "see that the address is that of a volferry agent";
    /// `bad_record_mac`.
    BadRecordMac = 20, Network, "bad_record_mac",
        "received bytes that are not the ones we sent", "look for what alters packets on the path";
    /// `handshake_failure`.
    HandshakeFailure = 40, Protocol, "handshake_failure",
        "found no common TLS parameters", "run the same version at both ends";
    /// `bad_certificate`.
    BadCertificate = 42, Identity, "bad_certificate",
        "refused our certificate: it is malformed", "mint new credentials for both ends";
    /// `unsupported_certificate`.
    UnsupportedCertificate = 43, Identity, "unsupported_certificate",
        "refused our certificate: it is not for this end of a connection",
        "mount each end's own credentials";
    /// `certificate_expired`, which RFC 8446 also uses before the first day.
    CertificateExpired = 45, Identity, "certificate_expired",
        "refused our certificate: it has expired, or is not valid yet",
        "mint new credentials for both ends, or set the peer's clock";
    /// `certificate_unknown`.
    CertificateUnknown = 46, Identity, "certificate_unknown",
        "refused our certificate", "see the peer's log";
    /// `unknown_ca`.
    UnknownCa = 48, Identity, "unknown_ca",
        "refused our certificate: it was not signed by the peer's authority",
        "mint the credentials of both ends together";
    /// `access_denied`.
    AccessDenied = 49, Identity, "access_denied",
        "refused our certificate: it expects another clone or role",
        "compare the names in the peer's log";
    /// `decode_error`.
    DecodeError = 50, Protocol, "decode_error",
        "could not make sense of what we sent", "see that the address is that of a volferry agent";
    /// `decrypt_error`.
    DecryptError = 51, Identity, "decrypt_error",
        "could not verify our signature", "mint new credentials for both ends";
    /// `protocol_version`.
    ProtocolVersion = 70, Protocol, "protocol_version",
        "does not offer TLS 1.3", "see that the address is that of a volferry agent";
    /// `internal_error`.
    InternalError = 80, Network, "internal_error",
        "failed for a reason of its own", "see the peer's log";
    /// `certificate_required`.
    CertificateRequired = 116, Identity, "certificate_required",
        "refused us: we presented no certificate", "mount the clone's credentials";
    /// `no_application_protocol`.
    NoApplicationProtocol = 120, Protocol, "no_application_protocol",
        "does not speak this version of the protocol", "run the same version at both ends";
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alert(code) => write!(f, "{} (alert {code})", self.sentence()),
            known => write!(f, "{} ({})", known.sentence(), known.label()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use uuid::Uuid;

    use super::*;
    use crate::name::Role;

    #[test]
    fn labels_are_distinct_fixed_words() {
        let distinct: HashSet<_> = Rejection::LABELS.iter().collect();
        assert_eq!(distinct.len(), Rejection::LABELS.len());
        let word = |label: &str| {
            label
                .bytes()
                .all(|byte| byte == b'_' || byte.is_ascii_lowercase())
        };
        assert!(Rejection::LABELS.iter().all(|label| word(label)));
    }

    #[test]
    fn a_wrong_name_is_shown_with_the_one_expected() {
        let presented = PeerName {
            clone_id: Uuid::nil(),
            role: Role::Observer,
        };
        let expected = vec![
            presented.sibling(Role::Source),
            presented.sibling(Role::Target),
        ];
        let rejection = Rejection::WrongRole(NameMismatch {
            expected,
            presented,
        });
        let id = "spiffe://volferry.io/clone/00000000-0000-0000-0000-000000000000";
        assert_eq!(
            rejection.to_string(),
            format!(
                "the peer plays another role in this clone: \
                 presented {id}/observer, expected {id}/source or {id}/target"
            ),
        );
    }

    #[test]
    fn an_alert_becomes_a_sentence() {
        assert_eq!(
            Refusal::from_alert(45).to_string(),
            "refused our certificate: it has expired, or is not valid yet (certificate_expired)",
        );
        assert_eq!(
            Refusal::from_alert(112).to_string(),
            "refused the connection (alert 112)"
        );
    }
}
