//! Who an end of a clone is: a name that is compared, and nothing else.
//!
//! A name is a SPIFFE ID (SPIFFE-ID, section 2) that stands as the only URI in a certificate's
//! subject alternative name (RFC 5280, section 4.2.1.6):
//!
//! ```text
//! spiffe://volferry.io/clone/<clone id>/<role>
//! spiffe://volferry.io/clone/4f1c6a0e-6e0c-4a53-9b0c-6f7f3c1d2e5a/source
//! ```
//!
//! There is one spelling of each name, so equality of names is equality of strings: the clone id is
//! lower case with hyphens, the role is one of three words, and nothing may precede or follow.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// What an end does in a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Reads the volume that is cloned, and dials the target.
    Source,
    /// Writes the volume that comes to be, and listens.
    Target,
    /// Dials the target and reads its progress.
    Observer,
}

impl Role {
    /// Every role, in the order in which a clone's credentials are laid out.
    pub const ALL: [Self; 3] = [Self::Source, Self::Target, Self::Observer];

    /// The word for the role in names, directories and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
            Self::Observer => "observer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The name of one end of one clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerName {
    /// The clone, the same for all its attempts.
    pub clone_id: Uuid,
    /// What the end does in it.
    pub role: Role,
}

impl PeerName {
    /// The name of the end that plays `role` in the same clone.
    #[must_use]
    pub const fn sibling(self, role: Role) -> Self {
        Self {
            clone_id: self.clone_id,
            role,
        }
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}/{}", self.clone_id.as_hyphenated(), self.role)
    }
}

impl FromStr for PeerName {
    type Err = NotAPeerName;

    fn from_str(uri: &str) -> Result<Self, NotAPeerName> {
        let (clone_id, role) = uri
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('/'))
            .ok_or(NotAPeerName)?;
        let clone_id = Uuid::try_parse(clone_id).map_err(|_| NotAPeerName)?;
        let role = Role::ALL
            .into_iter()
            .find(|known| known.as_str() == role)
            .ok_or(NotAPeerName)?;
        let name = Self { clone_id, role };
        // The UUID parser takes four spellings of an id. Only the one that we print is a name.
        if name.to_string() == uri {
            Ok(name)
        } else {
            Err(NotAPeerName)
        }
    }
}

/// The text is not the name of an end of a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of the form {PREFIX}<clone id>/<role>")]
pub struct NotAPeerName;

/// What every name begins with: the trust domain, and the kind of thing that is named.
const PREFIX: &str = "spiffe://volferry.io/clone/";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "4f1c6a0e-6e0c-4a53-9b0c-6f7f3c1d2e5a";

    #[test]
    fn a_name_is_read_as_it_is_written() {
        let uri = format!("spiffe://volferry.io/clone/{ID}/observer");
        let name: PeerName = uri.parse().unwrap();
        assert_eq!(
            name,
            PeerName {
                clone_id: ID.parse().unwrap(),
                role: Role::Observer
            }
        );
        assert_eq!(name.to_string(), uri);
    }

    #[test]
    fn any_other_spelling_is_refused() {
        let refused = |uri: &str| assert_eq!(uri.parse::<PeerName>(), Err(NotAPeerName), "{uri}");
        refused("");
        refused(&format!("spiffe://volferry.io/clone/{ID}"));
        refused(&format!("spiffe://volferry.io/clone/{ID}/"));
        refused(&format!("spiffe://volferry.io/clone/{ID}/Source"));
        refused(&format!("spiffe://volferry.io/clone/{ID}/source/"));
        refused(&format!("spiffe://volferry.io/clone/{ID}/source?x"));
        refused(&format!(" spiffe://volferry.io/clone/{ID}/source"));
        refused(&format!("spiffe://volferry.io/clone//{ID}/source"));
        refused(&format!("spiffe://volferry.io.example/clone/{ID}/source"));
        refused(&format!("SPIFFE://volferry.io/clone/{ID}/source"));
        refused(&format!(
            "spiffe://volferry.io/clone/{}/source",
            ID.to_uppercase()
        ));
        refused(&format!(
            "spiffe://volferry.io/clone/{}/source",
            ID.replace('-', "")
        ));
        refused(&format!("spiffe://volferry.io/clone/{{{ID}}}/source"));
        refused(&format!("spiffe://volferry.io/clone/urn:uuid:{ID}/source"));
    }

    proptest! {
        #[test]
        fn every_name_survives_the_round_trip(id: u128, role in 0..Role::ALL.len()) {
            let name = PeerName { clone_id: Uuid::from_u128(id), role: Role::ALL[role] };
            prop_assert_eq!(name.to_string().parse(), Ok(name));
        }

        #[test]
        fn what_is_read_is_written_back_to_the_letter(
            id: u128, upper: bool, simple: bool, role in "[sS]ource|target|observer/?",
        ) {
            let id = Uuid::from_u128(id);
            let id = if simple { id.simple().to_string() } else { id.to_string() };
            let id = if upper { id.to_uppercase() } else { id };
            let uri = format!("spiffe://volferry.io/clone/{id}/{role}");
            if let Ok(name) = uri.parse::<PeerName>() {
                prop_assert_eq!(name.to_string(), uri);
            }
        }
    }
}
