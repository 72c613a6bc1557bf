//! Who talks to whom inside a session, and the state the actors of one thread share.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    time::Duration,
};

use paceline_ipc::fence::Fence;
use paceline_proto::{
    id::{Epoch, Trace},
    limits::OWNER_GAP,
    time::Time,
};

use crate::{
    election::ElectionIn, fetcher::FetcherIn, follower::FollowerIn, hub::HubIn, outbox::OutboxIn,
    shell::Mail, socket::SocketIn,
};

/// The mailboxes of a session. Filled once, before the first message is handled.
#[derive(Clone)]
pub(crate) struct Peers(Rc<OnceCell<Mailboxes>>);

pub(crate) struct Mailboxes {
    pub election: Mail<ElectionIn>,
    pub hub: Mail<HubIn>,
    pub follower: Mail<FollowerIn>,
    pub socket: Mail<SocketIn>,
    pub outbox: Mail<OutboxIn>,
    pub fetcher: Mail<FetcherIn>,
}

impl Peers {
    pub(crate) fn empty() -> Self {
        Self(Rc::default())
    }

    pub(crate) fn fill(&self, mailboxes: Mailboxes) {
        let filled = self.0.set(mailboxes).is_ok();
        debug_assert!(filled, "mailboxes are filled once");
    }

    fn get(&self) -> &Mailboxes {
        self.0.get().expect("filled before the arbiter handles the first message")
    }

    pub(crate) fn election(&self, input: ElectionIn, trace: Trace) {
        self.get().election.tell(input, trace);
    }

    pub(crate) fn hub(&self, input: HubIn, trace: Trace) {
        self.get().hub.tell(input, trace);
    }

    pub(crate) fn follower(&self, input: FollowerIn, trace: Trace) {
        self.get().follower.tell(input, trace);
    }

    pub(crate) fn socket(&self, input: SocketIn, trace: Trace) {
        self.get().socket.tell(input, trace);
    }

    pub(crate) fn fetcher(&self, input: FetcherIn, trace: Trace) {
        self.get().fetcher.tell(input, trace);
    }

    pub(crate) fn outbox(&self, input: OutboxIn, trace: Trace) {
        self.get().outbox.tell(input, trace);
    }
}

/// Bounds how long upstream messages are held back after an opening, so that a slow reader never delays others for
/// longer.
const PACING_BUDGET: Duration = Duration::from_millis(500);
/// One look at the links while messages are held back.
const PACING_STEP: Duration = Duration::from_millis(1);

/// Holds an upstream's burst back while links that do take their output are far behind.
#[derive(Clone, Default)]
pub(crate) struct Pace(Rc<PaceState>);

#[derive(Default)]
struct PaceState {
    congested: Cell<bool>,
    spent: Cell<Duration>,
}

impl Pace {
    /// The hub's word, after each write.
    pub(crate) fn congested(&self, congested: bool) {
        self.0.congested.set(congested);
    }

    /// An upstream was opened: a burst may follow.
    pub(crate) fn opened(&self) {
        self.0.spent.set(Duration::ZERO);
    }

    /// Waits while there is congestion and budget.
    pub(crate) async fn wait(&self) {
        while self.0.congested.get() && self.0.spent.get() < PACING_BUDGET {
            self.0.spent.set(self.0.spent.get() + PACING_STEP);
            tokio::time::sleep(PACING_STEP).await;
        }
    }
}

/// The reign of this session, if it has one, and the rule that a long sleep is followed by a look at the fence.
#[derive(Clone, Default)]
pub(crate) struct Reign(Rc<ReignState>);

#[derive(Default)]
struct ReignState {
    last_wake: Cell<Time>,
    heard: Cell<Time>,
    owned: RefCell<Option<(Epoch, Fence)>>,
}

impl Reign {
    /// The reign begins: from here on its fence is looked at.
    pub(crate) fn begin(&self, epoch: Epoch, fence: Fence, now: Time) {
        self.0.last_wake.set(now);
        *self.0.owned.borrow_mut() = Some((epoch, fence));
    }

    /// The reign is over.
    pub(crate) fn end(&self) {
        *self.0.owned.borrow_mut() = None;
    }

    /// The owned epoch.
    pub(crate) fn epoch(&self) -> Option<Epoch> {
        self.0.owned.borrow().as_ref().map(|(epoch, _)| *epoch)
    }

    /// To be called before any input is acted on: after more than `OWNER_GAP` without a call the process may have been
    /// stopped and replaced, so the fence is checked. A fenced reign ends here, before anything else happens.
    pub(crate) fn wake(&self, now: Time) -> Result<(), (Epoch, String)> {
        let gap = now.since(self.0.last_wake.replace(now));
        if gap > OWNER_GAP { self.check() } else { Ok(()) }
    }

    /// Checks the fence. A fenced reign ends here.
    pub(crate) fn check(&self) -> Result<(), (Epoch, String)> {
        let result = match &*self.0.owned.borrow() {
            Some((epoch, fence)) => fence.unfenced().map_err(|fenced| (*epoch, fenced.to_string())),
            None => Ok(()),
        };
        if result.is_err() {
            self.end();
        }
        result
    }

    /// When the last byte came from the owner this session follows.
    pub(crate) fn heard(&self) -> Time {
        self.0.heard.get()
    }

    /// A byte came from the owner.
    pub(crate) fn hear(&self, now: Time) {
        self.0.heard.set(now);
    }
}
