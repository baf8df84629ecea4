//! JSON's `null` where a value is expected, as Go reads it: as if nothing stood there.
//!
//! Registries and build tools are mostly written in Go, whose encoder writes `null` for an empty list or map and whose
//! decoder takes it for any field. For `#[serde(default, deserialize_with = "oci::null::as_empty")]`, on documents that
//! come from them.

use serde::{Deserialize, Deserializer};

/// The value, or the type's empty one for `null`.
///
/// # Errors
/// What stands there is neither.
pub fn as_empty<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(from)?.unwrap_or_default())
}
