//! The session's side of optimistic layers: those it laid itself, told anew on every link, and those that the owner tells
//! of keys it follows.
//!
//! An own layer shows at once, above all others, and takes the place that the owner gives it when that is heard of. The
//! same operation never shows twice: as soon as its effect is in what the owner says, its layer is not shown any more.
//!
//! **Invariant:** value and layers of a key are shown together, at the end of a batch or of a snapshot.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Effect, Follower, does_not_fit, offer::chunks};
use crate::{
    id::{Key, Mark, OpId, SessionId, Trace},
    limits::{KEY_MAX, LAYERS_KEY_BYTES},
    message::{Ask, Layer, Layered, OpOutcome, Operation, ToHub},
    program::Features,
};

#[derive(Debug, Default)]
pub(super) struct Layers {
    /// As the owner tells them.
    told: BTreeMap<Key, Vec<Layer>>,
    /// By the number of their operation.
    own: BTreeMap<u64, Own>,
    own_keys: BTreeMap<Key, BTreeSet<u64>>,
    /// Of a snapshot that is not complete.
    staged: Vec<Layered>,
    /// Keys to show when the batch is whole.
    changed: BTreeSet<Key>,
}

#[derive(Debug)]
struct Own {
    key: Key,
    patch: Bytes,
    /// The owner has no room for it.
    hidden: bool,
}

impl Layers {
    /// Whether the key is shown with its layers, or was until this batch.
    pub(super) fn covers(&self, key: &Key) -> bool {
        self.told.contains_key(key) || self.own_keys.contains_key(key) || self.changed.contains(key)
    }

    pub(super) fn change(&mut self, key: Key) {
        self.changed.insert(key);
    }

    /// What an unfinished snapshot brought is void.
    pub(super) fn drop_staged(&mut self) {
        self.staged.clear();
    }

    fn tell(&mut self, Layered { key, layers }: Layered) {
        self.changed.insert(key.clone());
        if layers.is_empty() {
            self.told.remove(&key);
        } else {
            self.told.insert(key, layers);
        }
    }

    fn end(&mut self, seq: u64) -> Option<Own> {
        let own = self.own.remove(&seq)?;
        if let Some(of_key) = self.own_keys.get_mut(&own.key) {
            of_key.remove(&seq);
            if of_key.is_empty() {
                self.own_keys.remove(&own.key);
            }
        }
        self.changed.insert(own.key.clone());
        Some(own)
    }
}

impl Follower {
    /// Whether the owner and this session both know layers.
    fn shares_layers(&self) -> bool {
        self.is_linked() && self.features.has(Features::LAYERS)
    }

    pub(super) fn lay(&mut self, token: u64, key: Key, patch: Bytes, out: &mut Vec<Effect>) {
        if key.0.len() > KEY_MAX || patch.len() > LAYERS_KEY_BYTES {
            let outcome =
                OpOutcome::Rejected("the layer is longer than a frame may be; nothing changed".to_owned());
            out.push(Effect::OpDone { token, outcome });
            return;
        }
        let Some(seq) = self.pending.open_layer(patch.len()) else {
            out.push(Effect::Overloaded { token });
            return;
        };
        if self.shares_layers() {
            let layer = Layer { id: self.own_id(seq), at: Mark::ZERO, patch: patch.clone() };
            out.push(Effect::Send(ToHub::Layers(vec![Layered { key: key.clone(), layers: vec![layer] }])));
        }
        self.layers.own_keys.entry(key.clone()).or_default().insert(seq);
        self.layers.changed.insert(key.clone());
        self.layers.own.insert(seq, Own { key, patch, hidden: false });
        // Shown before it is answered.
        self.show_layered(out);
        out.push(Effect::Laid { token, layer: seq });
    }

    /// The operation of a layer: what it changes is there from now on, in the place of the layer.
    pub(super) fn commit(
        &mut self,
        token: u64,
        layer: u64,
        operation: Operation,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        let open = self.layers.own.contains_key(&layer) && !self.pending.has_op(layer);
        let ended = || Some("the layer has ended; nothing changed".to_owned());
        let refused = if open { does_not_fit(&operation) } else { ended() };
        if let Some(why) = refused {
            let outcome = OpOutcome::Rejected(why);
            if open {
                self.layer_done(self.own_id(layer), &outcome, out);
            }
            out.push(Effect::OpDone { token, outcome });
            return;
        }
        self.pending.commit(layer, token, operation, trace, self.is_linked(), out);
    }

    pub(super) fn take_back(&mut self, layer: u64, out: &mut Vec<Effect>) {
        // One that is being committed ends with its operation.
        if !self.pending.has_op(layer) && self.end_layer(layer) {
            if self.shares_layers() {
                out.push(Effect::Send(ToHub::TakeBack(vec![layer])));
            }
            self.show_layered(out);
        }
    }

    /// The operation of a layer is over, if it is one.
    pub(super) fn layer_done(&mut self, id: OpId, outcome: &OpOutcome, out: &mut Vec<Effect>) {
        if id.session != self.session || !self.end_layer(id.seq) {
            return;
        }
        let changed_nothing = match outcome {
            OpOutcome::Applied { .. } => false,
            OpOutcome::Conflict | OpOutcome::Rejected(_) => true,
        };
        if changed_nothing && self.shares_layers() {
            out.push(Effect::Send(ToHub::TakeBack(vec![id.seq])));
        }
        self.show_layered(out);
    }

    fn end_layer(&mut self, seq: u64) -> bool {
        let ended = self.layers.end(seq);
        if let Some(own) = &ended {
            self.pending.close_layer(own.patch.len());
        }
        ended.is_some()
    }

    pub(super) fn no_room(&mut self, layers: Vec<u64>, out: &mut Vec<Effect>) {
        for seq in layers {
            if let Some(own) = self.layers.own.get_mut(&seq) {
                own.hidden = true;
                self.layers.changed.insert(own.key.clone());
            }
        }
        self.show_layered(out);
    }

    /// Layers in a frame.
    pub(super) fn layers_told(&mut self, layered: Layered) {
        if self.keys.contains_key(&layered.key) || self.heir {
            self.layers.tell(layered);
        }
    }

    pub(super) fn layers_staged(&mut self, layered: Vec<Layered>) {
        self.layers.staged.extend(layered);
    }

    /// A snapshot is complete. What the first one of a link does not name has no layers, unless it `continues` where the
    /// session stood.
    pub(super) fn apply_layers(&mut self, first: bool, continues: bool) {
        if first && !(continues && self.shares_layers()) {
            let gone = std::mem::take(&mut self.layers.told);
            self.layers.changed.extend(gone.into_keys());
        }
        for layered in std::mem::take(&mut self.layers.staged) {
            self.layers_told(layered);
        }
        // It may have said that operations of them took effect.
        self.layers.changed.extend(self.layers.own_keys.keys().cloned());
    }

    /// From here on only the own interest is heard of.
    pub(super) fn retire_layers(&mut self) {
        let keys = &self.keys;
        self.layers.told.retain(|key, _| keys.contains_key(key));
    }

    pub(super) fn forget_layers(&mut self, key: &Key) {
        if !self.heir {
            self.layers.told.remove(key);
        }
    }

    /// Shows what changed.
    pub(super) fn show_layered(&mut self, out: &mut Vec<Effect>) {
        for key in std::mem::take(&mut self.layers.changed) {
            if self.keys.contains_key(&key) {
                let (held, layers) = (self.get(&key).cloned(), self.layers_over(&key));
                out.push(Effect::ShowLayered { key, held, layers });
            }
        }
    }

    /// The layers over a key as this session shows them, the lowest first.
    pub fn layers_over(&self, key: &Key) -> Vec<Layer> {
        let open = |id: &OpId| self.layers.own.get(&id.seq).is_some_and(|own| !own.hidden);
        // Whatever a new owner says that does not know it yet.
        let shows = |id: &OpId| !self.ops.knows(*id) && (id.session != self.session || open(id));
        let told = self.layers.told.get(key).map_or(&[][..], Vec::as_slice);
        let mut over: Vec<Layer> = told.iter().filter(|layer| shows(&layer.id)).cloned().collect();
        for &seq in self.layers.own_keys.get(key).into_iter().flatten() {
            let id = self.own_id(seq);
            if let Some(own) = self.layers.own.get(&seq)
                && shows(&id)
                && !told.iter().any(|layer| layer.id == id)
            {
                over.push(Layer { id, at: Mark::ZERO, patch: own.patch.clone() });
            }
        }
        over
    }

    /// What the owner told of layers, for the own reign; open layers of this session are told to it as to any owner.
    pub(super) fn carry_layers(&self) -> Vec<Layered> {
        let over = |key: &Key| {
            let placed = self.layers_over(key).into_iter().filter(|layer| layer.at != Mark::ZERO);
            Layered { key: key.clone(), layers: placed.collect() }
        };
        self.layers.told.keys().map(over).collect()
    }

    /// Offers all own layers, and those of others that are shown: their sessions may come later than this one.
    pub(super) fn offer_layers(&self, out: &mut Vec<Effect>) {
        if !self.shares_layers() {
            return;
        }
        let keys: BTreeSet<&Key> = self.layers.told.keys().chain(self.layers.own_keys.keys()).collect();
        let single = |key: &Key, layer: Layer| Layered { key: key.clone(), layers: vec![layer] };
        let each = |key| self.layers_over(key).into_iter().map(move |layer| single(key, layer));
        for chunk in chunks(keys.into_iter().flat_map(each).collect(), Layered::size) {
            out.push(Effect::Send(ToHub::Layers(chunk)));
        }
    }

    pub(super) fn ask_owner(&mut self, token: u64, ask: Ask, trace: Trace, out: &mut Vec<Effect>) {
        let foreign = self.is_linked() && !self.shares_layers() && matches!(ask, Ask::Layers { .. });
        self.pending.ask(token, ask, trace, self.is_linked() && !foreign, out);
        if foreign {
            self.pending.refuse_layers(out);
        }
    }

    fn own_id(&self, seq: u64) -> OpId {
        OpId { session: self.session, seq }
    }
}

impl Layers {
    /// Layers this session laid that have not ended.
    pub(super) fn open(&self, session: SessionId) -> impl Iterator<Item = (OpId, &Key)> {
        self.own.iter().map(move |(seq, own)| (OpId { session, seq: *seq }, &own.key))
    }
}
