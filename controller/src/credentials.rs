//! Credentials of a clone: made when its first pod is, renewed before they end.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;

use crate::names::{EXPIRY_ANNOTATION, End, MINTING_ANNOTATION, name};
use crate::objects::{IDENTITY_KEYS, OBSERVER_CERTIFICATE, OBSERVER_KEY};
use crate::world::{Belonging, Kind, World};

/// How long credentials are good: short, since they lie in Secrets, and long enough that renewing
/// them is rare.
pub const VALIDITY: Duration = Duration::from_secs(12 * 3600);

/// How long before their end they are renewed. Pods see new ones after a minute or two, and a
/// controller may be away for hours.
const RENEW_BEFORE: Duration = Duration::from_secs(4 * 3600);

/// How long it may take until a pod sees what was written into its Secret: the kubelet looks once a
/// minute, and after what it remembers of it.
const SEEN_WITHIN: Duration = Duration::from_secs(120);

/// How much older than its credentials a pod is at least that had others before: clocks differ.
const OLDER_BY: Duration = Duration::from_secs(30);

/// Whether the credentials end soon, or are not of one minting: then no end trusts the other. Missing ones
/// are not renewed but made.
#[must_use]
pub fn should_renew(world: &World) -> bool {
    let [source, target] = End::ALL.map(|end| secret(world, end));
    let differ = source.zip(target).is_some_and(|(source, target)| {
        let minting = |secret: &Belonging| secret.annotations.get(MINTING_ANNOTATION).cloned();
        minting(source) != minting(target)
    });
    differ
        || End::ALL.into_iter().any(|end| {
            expiry(world, end).is_some_and(|expiry| {
                let left = Duration::try_from(expiry.duration_since(world.now)).unwrap_or_default();
                left < RENEW_BEFORE
            })
        })
}

/// Whether the target's credentials were made when its `pod` was there already, and so lately that it may
/// not have seen them: it would turn away a source that shows such.
#[must_use]
pub fn are_unseen_by(pod: &Pod, world: &World) -> bool {
    let validity = SignedDuration::try_from(VALIDITY).unwrap_or_default();
    let made_at = expiry(world, End::Target).and_then(|expiry| expiry.checked_sub(validity).ok());
    let (Some(made_at), Some(started_at)) = (made_at, pod.creation_timestamp()) else {
        return false;
    };
    let since = |from: Timestamp, to: Timestamp| {
        Duration::try_from(to.duration_since(from)).unwrap_or_default()
    };
    since(started_at.0, made_at) > OLDER_BY && since(made_at, world.now) < SEEN_WITHIN
}

/// When the credentials of `end` end.
fn expiry(world: &World, end: End) -> Option<Timestamp> {
    let secret = secret(world, end)?;
    let seconds = secret.annotations.get(EXPIRY_ANNOTATION)?.parse().ok()?;
    Timestamp::from_second(seconds).ok()
}

/// The Secret of `end`.
fn secret(world: &World, end: End) -> Option<&Belonging> {
    let name = name(&world.clone, end);
    let mut secrets = world.belongings_of(Kind::Secret);
    secrets.find(|secret| secret.name == name && secret.namespace == end.namespace(&world.clone))
}

/// By what the controller asks a target for its progress.
#[derive(Clone, PartialEq, Eq)]
pub struct ObserverCredentials {
    /// The observer's certificate, PEM.
    pub certificate: Vec<u8>,
    /// Its key, PEM.
    pub key: Vec<u8>,
    /// Whom to trust, PEM.
    pub authorities: Vec<u8>,
}

impl std::fmt::Debug for ObserverCredentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObserverCredentials")
            .finish_non_exhaustive()
    }
}

impl ObserverCredentials {
    /// Those in the target's Secret, if it has any.
    #[must_use]
    pub fn of(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let [_, _, authority] = IDENTITY_KEYS;
        let bytes = |key: &str| data.get(key).map(|bytes| bytes.0.clone());
        Some(Self {
            certificate: bytes(OBSERVER_CERTIFICATE)?,
            key: bytes(OBSERVER_KEY)?,
            authorities: bytes(authority)?,
        })
    }
}

/// Of the authorities that are trusted now, newest first, those that stay so beside a new one: pods
/// show credentials of theirs until they have read the new ones.
#[must_use]
pub fn trusted_authorities(present: &str) -> String {
    const TRUSTED_MAX: usize = 2;
    const END: &str = "-----END CERTIFICATE-----";
    let certificates = present
        .split_inclusive(END)
        .filter(|part| part.contains(END));
    let kept = certificates.take(TRUSTED_MAX).map(str::trim);
    kept.map(|certificate| format!("{certificate}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_authorities_stay_trusted() {
        let certificate = |name: &str| {
            format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
        };
        let [a, b, c] = ["a", "b", "c"].map(certificate);
        assert_eq!(trusted_authorities(""), "");
        assert_eq!(trusted_authorities(&a), a);
        assert_eq!(
            trusted_authorities(&format!("{a}{b}{c}")),
            format!("{a}{b}")
        );
    }
}
