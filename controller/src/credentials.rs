//! Credentials of a clone: made when its first pod is, renewed before they end.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

use crate::names::{EXPIRY_ANNOTATION, End, name};
use crate::world::{Kind, World};

/// How long credentials are good: short, since they lie in Secrets, and long enough that renewing
/// them is rare.
pub const VALIDITY: Duration = Duration::from_secs(12 * 3600);

/// How long before their end they are renewed. Pods see new ones after a minute or two, and a
/// controller may be away for hours.
const RENEW_BEFORE: Duration = Duration::from_secs(4 * 3600);

/// Whether the credentials end soon. Missing ones are not renewed but made.
#[must_use]
pub fn should_renew(world: &World) -> bool {
    End::ALL.into_iter().any(|end| {
        let name = name(&world.clone, end);
        let mut secrets = world.belongings_of(Kind::Secret);
        let secret = secrets
            .find(|secret| secret.name == name && secret.namespace == end.namespace(&world.clone));
        let expiry = secret.and_then(|secret| secret.annotations.get(EXPIRY_ANNOTATION));
        let expiry = expiry.and_then(|seconds| Timestamp::from_second(seconds.parse().ok()?).ok());
        expiry.is_some_and(|expiry| {
            let left = Duration::try_from(expiry.duration_since(world.now)).unwrap_or_default();
            left < RENEW_BEFORE
        })
    })
}
