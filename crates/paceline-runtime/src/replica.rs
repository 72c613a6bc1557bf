//! A session's own copy of what it subscribes to: read by any thread without a mailbox and without waiting.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::SystemTime,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use paceline_ipc::clock;
use paceline_proto::{
    connection::Connection,
    election::Role,
    fetch::QueryState,
    id::{Channel, Key, Place, Position, Stream},
    message::{Gap, GapCause, Heir, Held, HeldEvent, Layer, Member},
};
use paceline_query::{
    layers::{Shown, fold},
    rules::Options,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};

use crate::death::{Death, End};

/// Events waiting for one slow reader before they are dropped and a gap is shown.
pub const EVENT_QUEUE: usize = 64 << 10;
/// Bytes of those events.
pub const EVENT_QUEUE_BYTES: usize = 32 << 20;

/// One atomic state of a key.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// JSON bytes, with its layers; `None` before the first value.
    pub value: Option<Bytes>,
    /// The value without layers: what is known for certain.
    pub base: Option<Bytes>,
    /// Layers that are in the value.
    pub pending: usize,
    /// Where the base stands.
    pub place: Option<Place>,
    /// Marked stale by an invalidation after the value was installed.
    pub invalidated: bool,
    /// When the base was found to be right: pushed, set or fetched.
    pub updated_at: Option<SystemTime>,
    /// What the owner says of the query besides its value.
    pub state: QueryState,
    /// Counts the states of the key in this session.
    pub generation: u64,
}

/// The place of one key in the replica.
#[derive(Debug)]
pub struct Cell {
    view: ArcSwap<Snapshot>,
    changed: watch::Sender<u64>,
}

impl Default for Cell {
    fn default() -> Self {
        Self { view: ArcSwap::default(), changed: watch::Sender::new(0) }
    }
}

impl Cell {
    /// The current state. Never blocks.
    pub fn load(&self) -> Arc<Snapshot> {
        self.view.load_full()
    }

    /// Told whenever the state changes.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn store(&self, held: Option<&Held>) {
        let base = held.map(|held| held.value.clone());
        self.put(held, Shown { value: base, pending: 0 });
    }

    /// Base and layers change together. Who shows the same as before is not told.
    fn store_layered(&self, held: Option<&Held>, layers: &[Layer]) {
        let base = held.map(|held| &held.value);
        let shown = fold(base, layers.iter().map(|layer| &*layer.patch));
        let old = self.view.load();
        let same = old.value == shown.value
            && old.pending == shown.pending
            && old.base.is_some() == base.is_some()
            && old.invalidated == held.is_some_and(|held| held.invalidated);
        match held {
            Some(held) if same => self.touch(held),
            None if same => {}
            _ => self.put(held, shown),
        }
    }

    fn put(&self, held: Option<&Held>, Shown { value, pending }: Shown) {
        let old = self.view.load();
        let (state, generation) = (old.state.clone(), old.generation + 1);
        self.view.store(Arc::new(Snapshot {
            value,
            base: held.map(|held| held.value.clone()),
            pending,
            place: held.map(|held| held.place.clone()),
            invalidated: held.is_some_and(|held| held.invalidated),
            updated_at: held.map(|held| clock::wall_of(held.updated_at)),
            state,
            generation,
        }));
        self.changed.send_replace(generation);
    }

    /// What is shown stays, the time of the base moves; nobody is told.
    fn touch(&self, held: &Held) {
        let old = self.view.load();
        let (place, updated_at) = (Some(held.place.clone()), Some(clock::wall_of(held.updated_at)));
        let base = Some(held.value.clone());
        self.view.store(Arc::new(Snapshot { base, place, updated_at, ..Snapshot::clone(&old) }));
    }

    fn store_state(&self, state: QueryState) {
        let old = self.view.load();
        let generation = old.generation + 1;
        self.view.store(Arc::new(Snapshot { state, generation, ..Snapshot::clone(&old) }));
        self.changed.send_replace(generation);
    }
}

/// What an event subscriber receives.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// The next event.
    Event(HeldEvent),
    /// Events may be missing here.
    Gap(Gap),
}

/// The ordered, bounded queue of one event subscriber.
#[derive(Debug, Default)]
pub struct EventQueue {
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    items: VecDeque<Delivery>,
    bytes: usize,
    channels: BTreeSet<Channel>,
    taken: Option<Position>,
}

impl EventQueue {
    /// Takes the next delivery, if one waits.
    pub fn pop(&self) -> Option<Delivery> {
        let mut waiting = self.waiting.lock();
        let item = waiting.items.pop_front()?;
        if let Delivery::Event(event) = &item {
            waiting.bytes -= event.data.len();
            waiting.taken = Some(event.origin.1.clone());
        }
        Some(item)
    }

    /// Waits until something may have arrived. Cancel-safe.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Whether the events that waited were dropped to make room.
    fn push_event(&self, event: HeldEvent) -> bool {
        let mut waiting = self.waiting.lock();
        let full = waiting.items.len() >= EVENT_QUEUE || waiting.bytes + event.data.len() > EVENT_QUEUE_BYTES;
        if full {
            let lost = Gap {
                channel: event.origin.0.clone(),
                after: waiting.taken.clone(),
                upto: Some(event.origin.1.clone()),
                why: GapCause::SlowReader,
            };
            waiting.items.clear();
            waiting.bytes = 0;
            waiting.items.push_back(Delivery::Gap(lost));
        } else {
            waiting.bytes += event.data.len();
            waiting.channels.insert(event.origin.0.clone());
            waiting.items.push_back(Delivery::Event(event));
        }
        drop(waiting);
        self.arrived.notify_one();
        full
    }

    fn push_gap(&self, gap: &Gap) {
        let mut waiting = self.waiting.lock();
        if !waiting.channels.is_empty() && !waiting.channels.contains(&gap.channel) {
            return;
        }
        waiting.items.push_back(Delivery::Gap(gap.clone()));
        drop(waiting);
        self.arrived.notify_one();
    }
}

/// What follows from who subscribes to a key here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interest {
    /// Somebody does.
    Begins,
    /// This is what they ask for.
    Asks(Vec<Options>),
    /// Nobody does any more.
    Ends,
}

/// Each wish once, in an order that does not depend on who came first.
fn distinct(wishes: &[Options]) -> Vec<Options> {
    let mut each: Vec<Options> = Vec::new();
    for wish in wishes {
        if !each.contains(wish) {
            each.push(*wish);
        }
    }
    each.sort_by_cached_key(Options::to_bytes);
    each
}

/// What `group().watch()` shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupView {
    /// The role of this session.
    pub role: Role,
    /// The members as last told by the owner.
    pub members: Vec<Member>,
    /// The heirs as last told by the owner, in the order in which they lead; one that is current and has a kit can be
    /// handed to.
    pub heirs: Vec<Heir>,
    /// The group's upstream connections, by name.
    pub connections: Vec<Connection>,
}

/// A key's place, and what each of its subscribers asks for.
type Watched = (Arc<Cell>, Vec<Options>);

/// The replica of one session.
#[derive(Debug)]
pub struct Replica {
    cells: RwLock<HashMap<Key, Watched>>,
    streams: RwLock<HashMap<Stream, Vec<Arc<EventQueue>>>>,
    group: watch::Sender<Arc<GroupView>>,
}

impl Default for Replica {
    fn default() -> Self {
        let group = GroupView {
            role: Role::Joining,
            members: Vec::new(),
            heirs: Vec::new(),
            connections: Vec::new(),
        };
        Self {
            cells: RwLock::default(),
            streams: RwLock::default(),
            group: watch::Sender::new(Arc::new(group)),
        }
    }
}

impl Replica {
    /// Adds a subscriber of `key`. `tell` is called, in order with all other calls, with what follows for the owner.
    pub fn subscribe(&self, key: &Key, options: Options, mut tell: impl FnMut(Interest)) -> Arc<Cell> {
        let mut cells = self.cells.write();
        let (cell, wishes) = cells.entry(key.clone()).or_default();
        let (first, before) = (wishes.is_empty(), distinct(wishes));
        wishes.push(options);
        let after = distinct(wishes);
        // Before it is subscribed to, so that it is with them.
        if after != before && !(first && after == [Options::default()]) {
            tell(Interest::Asks(after));
        }
        if first {
            tell(Interest::Begins);
        }
        cell.clone()
    }

    /// A subscriber asks for something else.
    pub fn ask(&self, key: &Key, old: &Options, new: Options, tell: impl FnOnce(Interest)) {
        let mut cells = self.cells.write();
        let Some((_, wishes)) = cells.get_mut(key) else { return };
        let before = distinct(wishes);
        if let Some(at) = wishes.iter().position(|wish| wish == old) {
            wishes[at] = new;
        }
        let after = distinct(wishes);
        if after != before {
            tell(Interest::Asks(after));
        }
    }

    /// Takes a subscriber away; what the others ask for stays.
    pub fn unsubscribe(&self, key: &Key, options: &Options, tell: impl FnOnce(Interest)) {
        let mut cells = self.cells.write();
        let Some((_, wishes)) = cells.get_mut(key) else { return };
        let before = distinct(wishes);
        if let Some(at) = wishes.iter().position(|wish| wish == options) {
            wishes.remove(at);
        }
        let after = distinct(wishes);
        if after.is_empty() {
            cells.remove(key);
            tell(Interest::Ends);
        } else if after != before {
            tell(Interest::Asks(after));
        }
    }

    /// Adds an event subscriber; `first` as in [`Replica::subscribe`].
    pub fn subscribe_stream(&self, stream: &Stream, first: impl FnOnce()) -> Arc<EventQueue> {
        let queue = Arc::new(EventQueue::default());
        let mut streams = self.streams.write();
        let queues = streams.entry(stream.clone()).or_default();
        queues.push(queue.clone());
        if queues.len() == 1 {
            first();
        }
        queue
    }

    /// Takes an event subscriber away; `last` as in [`Replica::unsubscribe`].
    pub fn unsubscribe_stream(&self, stream: &Stream, queue: &Arc<EventQueue>, last: impl FnOnce()) {
        let mut streams = self.streams.write();
        let Some(queues) = streams.get_mut(stream) else { return };
        queues.retain(|q| !Arc::ptr_eq(q, queue));
        if queues.is_empty() {
            streams.remove(stream);
            last();
        }
    }

    /// The group as last known, and its changes.
    pub fn group(&self) -> watch::Receiver<Arc<GroupView>> {
        self.group.subscribe()
    }

    pub(crate) fn show(&self, held: &Held) {
        if let Some((cell, _)) = self.cells.read().get(&held.key) {
            cell.store(Some(held));
        }
    }

    pub(crate) fn show_layered(&self, key: &Key, held: Option<&Held>, layers: &[Layer]) {
        if let Some((cell, _)) = self.cells.read().get(key) {
            cell.store_layered(held, layers);
        }
    }

    pub(crate) fn touch(&self, held: &Held) {
        if let Some((cell, _)) = self.cells.read().get(&held.key) {
            cell.touch(held);
        }
    }

    pub(crate) fn show_state(&self, key: &Key, state: QueryState) {
        if let Some((cell, _)) = self.cells.read().get(key) {
            cell.store_state(state);
        }
    }

    pub(crate) fn clear(&self, key: &Key) {
        if let Some((cell, _)) = self.cells.read().get(key) {
            cell.store(None);
        }
    }

    /// Whether a subscriber was so slow that its waiting events were dropped.
    pub(crate) fn deliver(&self, event: HeldEvent) -> bool {
        let streams = self.streams.read();
        let Some((last, others)) = streams.get(&event.stream).and_then(|queues| queues.split_last()) else {
            return false;
        };
        let mut dropped = false;
        for queue in others {
            dropped |= queue.push_event(event.clone());
        }
        last.push_event(event) || dropped
    }

    pub(crate) fn show_gap(&self, gap: &Gap) {
        for queue in self.streams.read().values().flatten() {
            queue.push_gap(gap);
        }
    }

    pub(crate) fn change_group(&self, change: impl FnOnce(&mut GroupView)) {
        self.group.send_if_modified(|view| {
            let mut next = GroupView::clone(view);
            change(&mut next);
            let changed = next != **view;
            if changed {
                *view = Arc::new(next);
            }
            changed
        });
    }
}

/// Told when a key changes.
pub type Watch = watch::Receiver<u64>;
/// Told when the group changes.
pub type GroupReceiver = watch::Receiver<Arc<GroupView>>;

/// Waits for a change, or for the end of the runtime. Cancel-safe.
pub async fn changed_or_dead<T>(watch: &mut watch::Receiver<T>, death: &Death) -> Result<(), End> {
    tokio::select! {
        biased;
        changed = watch.changed() => match changed {
            Ok(()) => Ok(()),
            Err(_) => Err(death.wait().await),
        },
        end = death.wait() => Err(end),
    }
}

impl EventQueue {
    /// Waits until something may have arrived, or for the end of the runtime. Cancel-safe.
    pub async fn arrived_or_dead(&self, death: &Death) -> Result<(), End> {
        tokio::select! {
            biased;
            () = self.arrived() => Ok(()),
            end = death.wait() => Err(end),
        }
    }
}

#[cfg(test)]
mod tests {
    use paceline_proto::id::{Epoch, Mark, Offset};

    use super::*;

    fn event(n: u64, bytes: usize) -> HeldEvent {
        HeldEvent {
            mark: Mark { epoch: Epoch(1), offset: Offset(n) },
            stream: "s".into(),
            origin: (Channel("c".into()), Position::Seq { epoch: "".into(), offset: n }),
            data: Bytes::from(vec![0; bytes]),
        }
    }

    fn all(queue: &EventQueue) -> (usize, usize) {
        let (mut events, mut gaps) = (0, 0);
        while let Some(delivery) = queue.pop() {
            match delivery {
                Delivery::Event(_) => events += 1,
                Delivery::Gap(gap) => {
                    assert_eq!(gap.why, GapCause::SlowReader);
                    gaps += 1;
                }
            }
        }
        (events, gaps)
    }

    #[test]
    fn events_up_to_the_bound_wait_and_one_more_drops_them_for_a_gap() {
        let replica = Replica::default();
        let queue = replica.subscribe_stream(&"s".into(), || {});
        for n in 1..=EVENT_QUEUE as u64 {
            assert!(!replica.deliver(event(n, 1)), "event {n}");
        }
        assert!(replica.deliver(event(EVENT_QUEUE as u64 + 1, 1)));
        assert_eq!(all(&queue), (0, 1));
        assert!(!replica.deliver(event(EVENT_QUEUE as u64 + 2, 1)), "it goes on");
        assert_eq!(all(&queue), (1, 0));
    }

    #[test]
    fn bytes_up_to_the_bound_wait_and_one_more_drops_them_for_a_gap() {
        let replica = Replica::default();
        let queue = replica.subscribe_stream(&"s".into(), || {});
        let half = EVENT_QUEUE_BYTES / 2;
        assert!(!replica.deliver(event(1, half)));
        assert!(!replica.deliver(event(2, half)));
        assert_eq!(all(&queue), (2, 0), "what was taken makes room");
        assert!(!replica.deliver(event(3, half)));
        assert!(!replica.deliver(event(4, half)));
        assert!(replica.deliver(event(5, 1)));
        assert_eq!(all(&queue), (0, 1));
    }
}
