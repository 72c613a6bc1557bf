//! What is shown of a key: its base, which is what is known for certain, with the patches of operations that are not done yet
//! folded onto it.
//!
//! Base and patches are kept apart everywhere and folded where they are read. So patches are taken back independently, in any
//! order, and a base that comes meanwhile, however old, hides none of them. Which patches lie over a key, and in which
//! order, is the hub's decision.

use bytes::Bytes;
use serde_json::Value;

use crate::patch::Patch;

/// A value with its layers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown {
    /// JSON bytes; `None` where there is neither a base nor a layer that makes a value.
    pub value: Option<Bytes>,
    /// Layers that are in it. Others do not fit what is below them, and may fit again.
    pub pending: usize,
}

/// Folds the bytes of patches onto a base, the first one lowest. A patch that does not fit is left out.
pub fn fold<'a>(base: Option<&Bytes>, patches: impl IntoIterator<Item = &'a [u8]>) -> Shown {
    let unfolded = Shown { value: base.cloned(), pending: 0 };
    // A base that is no JSON fits no patch.
    let Some(mut value) = base.map_or(Some(Value::Null), |bytes| serde_json::from_slice(bytes).ok()) else {
        return unfolded;
    };
    let mut pending = 0;
    for patch in patches {
        let folded = Patch::from_bytes(patch).and_then(|patch| patch.apply_to(value.clone()));
        if let Ok(folded) = folded {
            value = folded;
            pending += 1;
        }
    }
    match serde_json::to_vec(&value) {
        Ok(bytes) if pending > 0 => Shown { value: Some(Bytes::from(bytes)), pending },
        _ => unfolded,
    }
}
