//! What mutations that are not done yet would make of values: layers of patches over the base, which is what is known for
//! certain.
//!
//! The shown value is the base with all its layers folded onto it, in the order in which the mutations were made. A mutation
//! that succeeds replaces the base, by what the server answered or else by its patch, and its layer is dropped; one that fails
//! drops its layer and nothing else. So concurrent mutations are taken back independently, in any order, and a base that comes
//! meanwhile, however old, hides none of them.
//!
//! The bases live where all values live and are handed in: a key without layers costs nothing here.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use paceline_proto::id::{Key, MutationId};
use serde_json::Value;

use crate::{
    limits::{LAYERS_BYTES, LAYERS_MAX},
    patch::Patch,
};

/// The layers over all keys.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// In the order of the mutations.
    by_key: BTreeMap<Key, Vec<Layer>>,
    by_mutation: BTreeMap<MutationId, BTreeSet<Key>>,
    bytes: usize,
}

#[derive(Debug, Clone)]
struct Layer {
    mutation: MutationId,
    patch: Patch,
    bytes: usize,
}

/// A layer has no room. The layers stay as they were; the mutation is none the worse, and shows when it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayersError {
    /// Too many over one key.
    #[error("show the mutation before it is done: {LAYERS_MAX} others are pending on the key")]
    Count,
    /// Too many bytes over all keys.
    #[error("show the mutation before it is done: the patches of pending ones take {LAYERS_BYTES} bytes")]
    Bytes,
}

/// A value with its layers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shown {
    /// JSON bytes; `None` where there is neither a base nor a layer that makes a value.
    pub value: Option<Bytes>,
    /// Layers that are in it.
    pub pending: usize,
    /// Mutations whose patch does not fit what is below it; they are not in it, and may fit again.
    pub unfit: Vec<MutationId>,
}

impl Layers {
    /// A mutation was made: its patch comes on top. A mutation that is made known again has its layers already; those on
    /// one key are made known together.
    ///
    /// # Errors
    /// See [`LayersError`]. Then none of the patches has a layer.
    pub fn add(&mut self, mutation: MutationId, key: &Key, patches: Vec<Patch>) -> Result<bool, LayersError> {
        if patches.is_empty() || self.by_mutation.get(&mutation).is_some_and(|keys| keys.contains(key)) {
            return Ok(false);
        }
        let new: Vec<Layer> = patches
            .into_iter()
            .map(|patch| Layer { mutation, bytes: patch.to_bytes().len(), patch })
            .collect();
        let bytes: usize = new.iter().map(|layer| layer.bytes).sum();
        if self.by_key.get(key).map_or(0, Vec::len) + new.len() > LAYERS_MAX {
            return Err(LayersError::Count);
        }
        if self.bytes + bytes > LAYERS_BYTES {
            return Err(LayersError::Bytes);
        }
        self.bytes += bytes;
        self.by_key.entry(key.clone()).or_default().extend(new);
        self.by_mutation.entry(mutation).or_default().insert(key.clone());
        Ok(true)
    }

    /// A mutation succeeded: its layers are dropped, and these are the bases from here on. What the server said of a key is its
    /// base; else the patches are folded onto the base there is, as far as they fit. `None` = the base stays.
    pub fn succeed(
        &mut self,
        mutation: MutationId,
        answered: &BTreeMap<Key, Bytes>,
        base: impl Fn(&Key) -> Option<Bytes>,
    ) -> BTreeMap<Key, Option<Bytes>> {
        let dropped = self.take(mutation);
        let folded = dropped.into_iter().map(|(key, layers)| {
            let value = answered.get(&key).cloned().or_else(|| {
                let folded = fold(base(&key).as_deref(), &layers);
                folded.value.filter(|_| folded.pending > 0)
            });
            (key, value)
        });
        let mut bases: BTreeMap<Key, Option<Bytes>> = folded.collect();
        bases.extend(answered.iter().map(|(key, value)| (key.clone(), Some(value.clone()))));
        bases
    }

    /// A mutation failed, or was given up: its layers are dropped. The keys that show something else now.
    pub fn fail(&mut self, mutation: MutationId) -> BTreeSet<Key> {
        self.take(mutation).into_keys().collect()
    }

    /// What is shown of a key with this base.
    pub fn shown(&self, key: &Key, base: Option<&Bytes>) -> Shown {
        match self.by_key.get(key) {
            None => Shown { value: base.cloned(), ..Shown::default() },
            Some(layers) => {
                let folded = fold(base.map(|bytes| &**bytes), layers);
                let value = if folded.pending == 0 { base.cloned() } else { folded.value };
                Shown { value, ..folded }
            }
        }
    }

    /// The mutations that are pending on a key, each once, in order.
    pub fn pending(&self, key: &Key) -> impl Iterator<Item = MutationId> {
        let layers = self.by_key.get(key).map_or(&[][..], Vec::as_slice);
        let is_first = |at: usize| at == 0 || layers[at - 1].mutation != layers[at].mutation;
        (0..layers.len()).filter(move |at| is_first(*at)).map(|at| layers[at].mutation)
    }

    /// The keys with layers, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.by_key.keys()
    }

    fn take(&mut self, mutation: MutationId) -> BTreeMap<Key, Vec<Layer>> {
        let mut taken = BTreeMap::new();
        for key in self.by_mutation.remove(&mutation).unwrap_or_default() {
            let layers = self.by_key.remove(&key).unwrap_or_default();
            let (ours, others): (Vec<Layer>, Vec<Layer>) =
                layers.into_iter().partition(|layer| layer.mutation == mutation);
            self.bytes -= ours.iter().map(|layer| layer.bytes).sum::<usize>();
            if !others.is_empty() {
                self.by_key.insert(key.clone(), others);
            }
            taken.insert(key, ours);
        }
        taken
    }
}

fn fold(base: Option<&[u8]>, layers: &[Layer]) -> Shown {
    // A base that is no JSON fits no patch.
    let read = base.map_or(Some(Value::Null), |bytes| serde_json::from_slice(bytes).ok());
    let Some(mut value) = read else {
        let unfit = layers.iter().map(|layer| layer.mutation).collect();
        return Shown { value: None, pending: 0, unfit };
    };
    let (mut pending, mut unfit) = (0, Vec::new());
    for layer in layers {
        match layer.patch.apply_to(value.clone()) {
            Ok(next) => {
                value = next;
                pending += 1;
            }
            Err(_) => unfit.push(layer.mutation),
        }
    }
    Shown { value: serde_json::to_vec(&value).ok().map(Bytes::from), pending, unfit }
}
