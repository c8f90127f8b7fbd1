//! What a claim and its volume say: mode, size, access, node.

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use crate::api::GROUP;

/// The mode of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeMode {
    /// A raw device.
    Block,
    /// A mounted filesystem.
    Filesystem,
}

impl VolumeMode {
    /// The mode that a claim asks for.
    #[must_use]
    pub fn of(spec: &PersistentVolumeClaimSpec) -> Self {
        Self::named(spec.volume_mode.as_deref())
    }

    fn named(name: Option<&str>) -> Self {
        match name {
            Some("Block") => Self::Block,
            // Kubernetes' default.
            _ => Self::Filesystem,
        }
    }

    /// As Kubernetes writes it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Block => "Block",
            Self::Filesystem => "Filesystem",
        }
    }
}

/// Whether the claim has its volume.
#[must_use]
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    phase(claim) == "Bound"
}

/// The claim's phase; empty while it has none.
#[must_use]
pub fn phase(claim: &PersistentVolumeClaim) -> &str {
    let status = claim.status.as_ref();
    status
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// Whether the claim can be used in this mode.
#[must_use]
pub fn has_access(claim: &PersistentVolumeClaim, mode: &str) -> bool {
    let modes = claim.spec.iter().flat_map(|spec| &spec.access_modes);
    modes.flatten().any(|found| found == mode)
}

/// Whether pods of only one node can use the claim at a time.
#[must_use]
pub fn is_for_one_node(claim: &PersistentVolumeClaim) -> bool {
    !has_access(claim, "ReadWriteMany") && !has_access(claim, "ReadOnlyMany")
}

/// The `VolumeClone` that the claim is to be filled by.
#[must_use]
pub fn filled_by(claim: &PersistentVolumeClaim) -> Option<&str> {
    let reference = claim.spec.as_ref()?.data_source_ref.as_ref()?;
    let is_clone = reference.api_group.as_deref() == Some(GROUP) && reference.kind == "VolumeClone";
    // One of another namespace would need a consent that nobody asks for.
    let namespace = claim.metadata.namespace.as_deref();
    let is_near = reference
        .namespace
        .as_deref()
        .is_none_or(|it| it.is_empty() || Some(it) == namespace);
    (is_clone && is_near).then_some(reference.name.as_str())
}

/// The `VolumeClone` that the claim waits to be filled by. One that has lost its volume gets no other.
#[must_use]
pub fn waits_for_clone(claim: &PersistentVolumeClaim) -> Option<&str> {
    let is_going = claim.metadata.deletion_timestamp.is_some();
    filled_by(claim).filter(|_| !matches!(phase(claim), "Bound" | "Lost") && !is_going)
}

/// The field because of which Kubernetes does not bind the volume to the claim, though it was given to it, and
/// both its values; absent where they fit.
#[must_use]
pub fn misfit(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let (given, asked) = (volume.spec.as_ref()?, claim.spec.as_ref()?);
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    let told = |field: &str, asked: &str, given: &str| {
        Some(format!(
            "its spec.{field} is {asked}, and the volume's {given}"
        ))
    };
    if let Some(other) = asked.volume_name.as_deref().filter(|it| *it != name) {
        return Some(format!("its spec.volumeName is {other}"));
    }
    let classes = (&asked.storage_class_name, &given.storage_class_name);
    if let (Some(asked), Some(given)) = classes
        && asked != given
    {
        return told("storageClassName", asked, given);
    }
    let asked_mode = VolumeMode::of(asked);
    let given_mode = given.volume_mode.as_deref();
    let given_mode = given_mode.map_or(asked_mode, |mode| VolumeMode::named(Some(mode)));
    if asked_mode != given_mode {
        return told("volumeMode", asked_mode.label(), given_mode.label());
    }
    let list = |modes: &[String]| modes.join(", ");
    if let (Some(asked), Some(given)) = (&asked.access_modes, &given.access_modes)
        && asked.iter().any(|mode| !given.contains(mode))
    {
        return told("accessModes", &list(asked), &list(given));
    }
    let capacity = given.capacity.as_ref()?.get("storage")?;
    let wanted = requested_bytes(asked).filter(|wanted| Some(*wanted) > bytes(capacity))?;
    told(
        "resources.requests.storage",
        &wanted.to_string(),
        &capacity.0,
    )
}

/// Bytes of the claim's volume, or while it has none, bytes that it asks for.
#[must_use]
pub fn size_bytes(claim: &PersistentVolumeClaim) -> Option<u64> {
    let status = claim.status.as_ref();
    let capacity = status.and_then(|status| status.capacity.as_ref()?.get("storage"));
    capacity
        .and_then(bytes)
        .or_else(|| claim.spec.as_ref().and_then(requested_bytes))
}

/// Bytes that a claim asks for.
#[must_use]
pub fn requested_bytes(spec: &PersistentVolumeClaimSpec) -> Option<u64> {
    let requests = spec.resources.as_ref()?.requests.as_ref()?;
    requests.get("storage").and_then(bytes)
}

/// A request for so many bytes.
#[must_use]
pub fn request(bytes: u64) -> VolumeResourceRequirements {
    let quantity = Quantity(bytes.to_string());
    VolumeResourceRequirements {
        requests: Some([("storage".to_owned(), quantity)].into()),
        limits: None,
    }
}

/// The bytes of a quantity, rounded up; absent where it is none or too large.
#[must_use]
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.trim();
    let is_number = |char: char| char.is_ascii_digit() || char == '.';
    let end = text.find(|char| !is_number(char)).unwrap_or(text.len());
    let (digits, unit) = text.split_at(end);
    let (numerator, denominator): (u128, u128) = match unit {
        "" => (1, 1),
        "m" => (1, 1000),
        "k" => (1000, 1),
        "M" => (1000u128.pow(2), 1),
        "G" => (1000u128.pow(3), 1),
        "T" => (1000u128.pow(4), 1),
        "P" => (1000u128.pow(5), 1),
        "E" => (1000u128.pow(6), 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let power = exponent.strip_prefix(['e', 'E'])?.parse::<u32>().ok()?;
            (10u128.checked_pow(power)?, 1)
        }
    };
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    // More digits than that are below a byte whatever the unit.
    let part = part.get(..part.len().min(18))?;
    let scale = 10u128.pow(u32::try_from(part.len()).ok()?);
    let parse = |digits: &str| match digits {
        "" => Some(0),
        digits => digits.parse::<u128>().ok(),
    };
    if whole.is_empty() && part.is_empty() {
        return None;
    }
    let scaled = parse(whole)?
        .checked_mul(scale)?
        .checked_add(parse(part)?)?;
    let bytes = scaled
        .checked_mul(numerator)?
        .div_ceil(scale.checked_mul(denominator)?);
    u64::try_from(bytes).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_waits_for_its_clone_until_it_has_or_had_a_volume() {
        let check = |phase: Option<&str>, deleted: Option<&str>, waits: bool| {
            let claim = serde_json::from_value(json!({
                "metadata": {"namespace": "home", "deletionTimestamp": deleted},
                "spec": {"dataSourceRef": {
                    "apiGroup": GROUP, "kind": "VolumeClone", "name": "clone"}},
                "status": {"phase": phase},
            }));
            let waits = waits.then_some("clone");
            assert_eq!(waits_for_clone(&claim.unwrap()), waits, "{phase:?}");
        };
        check(None, None, true);
        check(Some("Pending"), None, true);
        check(Some("Pending"), Some("2026-01-01T00:00:00Z"), false);
        check(Some("Bound"), None, false);
        check(Some("Lost"), None, false);
    }

    #[test]
    fn quantities_are_read_as_kubernetes_writes_them() {
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(bytes(&Quantity(text.to_owned())), expected, "{text}");
        };
        check("0", Some(0));
        check("4096", Some(4096));
        check("10Gi", Some(10 << 30));
        check("1.5Gi", Some(3 << 29));
        check("2G", Some(2_000_000_000));
        check("128974848000m", Some(128_974_848));
        check("1500m", Some(2));
        check("1e3", Some(1000));
        check("12E6", Some(12_000_000));
        check("1E", Some(1_000_000_000_000_000_000));
        check(".5Ki", Some(512));
        check("8Ei", Some(8 << 60));
        check("16Ei", None);
        check("99999999999999999999999999999999999999999", None);
        check("-1", None);
        check("", None);
        check("Gi", None);
        check("10 Gi", None);
    }
}
