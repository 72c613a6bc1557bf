//! The machine itself: its input and output, and what all states share.

use std::time::Duration;

use crate::{
    election::{
        Config, Effect, Input, Role, Target,
        kit::Kit,
        state::{
            Ahead, Claiming, Following, Found, Link, Owning, Probing, Reader, Search, Stage, State,
            Suspecting, Watch,
        },
        timing::{COLLECT_INTERVAL, RETRY_MAX, RETRY_MIN, Restraint, SplitMix, UPGRADE_INTERVAL, doubled},
    },
    event::{Cause, Event},
    id::Epoch,
    limits::{CLAIM_STAGGER, OWNER_GAP, PROBE_TIMEOUT, SUSPICION_TICK},
    message::{Heir, KitAddress, Member, Ping, Rank},
    time::{Time, earliest},
};

/// The election of one session.
///
/// Feed it facts with [`Election::handle`], carry out what it wishes in order, and call it with [`Input::Deadline`] when
/// [`Election::deadline`] has come.
#[derive(Debug)]
pub struct Election {
    core: Core,
    state: State,
}

impl Election {
    /// A machine that waits for [`Input::Start`]. `seed` spreads its retries and nothing else.
    pub fn new(config: Config, seed: u64) -> Self {
        Self { core: Core::new(config, seed), state: State::Idle }
    }

    /// Tells the machine a fact at `now`, and appends what it wishes to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        let core = &mut self.core;
        let slept = now.since(core.now) > OWNER_GAP;
        core.now = core.now.max(now);
        let now = core.now;
        if slept && let Some(epoch) = self.state.owned() {
            out.push(Effect::CheckFence { epoch });
        }
        if let Input::KitMade(result) = &input {
            core.note_kit(now, result, matches!(self.state, State::Left), out);
        }
        let state = std::mem::replace(&mut self.state, State::Left);
        self.state = match state {
            State::Idle => core.idle(now, input, out),
            State::Probing(probing) => core.probing(now, probing, input, out),
            State::Following(following) => core.following(now, following, input, out),
            State::Suspecting(suspecting) => core.suspecting(now, suspecting, input, out),
            State::Claiming(claiming) => core.claiming(now, claiming, input, out),
            State::Owning(owning) => core.owning(now, owning, input, out),
            State::Draining(draining) => core.draining(now, draining, input, out),
            State::Left => State::Left,
        };
    }

    /// When [`Input::Deadline`] is due; always after the `now` last handed in.
    pub fn deadline(&self) -> Option<Time> {
        let next = self.core.now + Duration::from_nanos(1);
        self.state.deadline().map(|due| due.max(next))
    }

    /// The role as last shown.
    pub fn role(&self) -> &Role {
        &self.core.role
    }

    /// The epoch followed or owned; `Epoch::NONE` while looking for one.
    pub fn epoch(&self) -> Epoch {
        match &self.state {
            State::Following(following) => following.link.found.epoch,
            State::Suspecting(Suspecting { link: Some(link), .. }) => link.found.epoch,
            State::Owning(owning) => owning.epoch,
            State::Draining(draining) => draining.owning.epoch,
            State::Idle | State::Probing(_) | State::Suspecting(_) | State::Claiming(_) | State::Left => {
                Epoch::NONE
            }
        }
    }

    /// The attempt whose connection is the link to the owner, if any.
    pub fn attempt(&self) -> Option<u64> {
        match &self.state {
            State::Following(following) => Some(following.link.attempt),
            State::Suspecting(suspecting) => suspecting.link.as_ref().map(|link| link.attempt),
            State::Claiming(claiming) => {
                claiming.welcomed.as_ref().or(claiming.link.as_ref()).map(|link| link.attempt)
            }
            State::Idle | State::Probing(_) | State::Owning(_) | State::Draining(_) | State::Left => None,
        }
    }
}

impl State {
    fn owned(&self) -> Option<Epoch> {
        match self {
            Self::Owning(owning) => Some(owning.epoch),
            Self::Draining(draining) => Some(draining.owning.epoch),
            Self::Idle
            | Self::Probing(_)
            | Self::Following(_)
            | Self::Suspecting(_)
            | Self::Claiming(_)
            | Self::Left => None,
        }
    }

    fn deadline(&self) -> Option<Time> {
        match self {
            Self::Idle | Self::Claiming(_) | Self::Left => None,
            Self::Probing(probing) => Some(probing.due()),
            Self::Following(following) => Some(following.due()),
            Self::Suspecting(suspecting) => Some(suspecting.due()),
            Self::Owning(owning) => owning.due(),
            Self::Draining(draining) => earliest(Some(draining.due()), draining.owning.parting_due()),
        }
    }
}

/// What outlives a state.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: Config,
    pub(super) random: SplitMix,
    pub(super) now: Time,
    role: Role,
    next_attempt: u64,
    /// The highest claim and `complete` as last listed, raised by the reigns followed and owned since.
    pub(super) highest: Epoch,
    /// As last heard from any owner.
    pub(super) members: Option<Vec<Member>>,
    /// A ping was heard.
    pub(super) pinged: bool,
    /// As last heard from the present owner, or from the one just lost.
    pub(super) heirs: Vec<Heir>,
    pub(super) kit: Kit,
    pub(super) restraint: Restraint,
    /// Retries without success in between.
    pub(super) retries: u32,
    /// The trouble last reported: one that lasts is reported once.
    reported: Option<Event>,
    /// Leave came while the answer to a claim was awaited.
    pub(super) leaving: bool,
    /// When this session last claimed over itself, and how often in a row that failed.
    pub(super) renewed: Option<Time>,
    pub(super) renewals_failed: u32,
}

impl Core {
    fn new(config: Config, seed: u64) -> Self {
        Self {
            config,
            random: SplitMix::new(seed),
            now: Time::ZERO,
            role: Role::Joining,
            next_attempt: 0,
            highest: Epoch::NONE,
            members: None,
            pinged: false,
            heirs: Vec::new(),
            kit: Kit::None,
            restraint: Restraint::default(),
            retries: 0,
            reported: None,
            leaving: false,
            renewed: None,
            renewals_failed: 0,
        }
    }

    fn idle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) -> State {
        match input {
            Input::Start => {
                out.push(Effect::Role(Role::Joining));
                self.list(now, None, out)
            }
            Input::Leave => self.left(out),
            Input::Listed(_)
            | Input::ListFailed { .. }
            | Input::LockTested { .. }
            | Input::Welcomed { .. }
            | Input::Busy { .. }
            | Input::Refused { .. }
            | Input::ConnectFailed { .. }
            | Input::Eof { .. }
            | Input::Ping(_)
            | Input::Heir(_)
            | Input::Deadline { .. }
            | Input::KitMade(_)
            | Input::Claimed { .. }
            | Input::Adopted { .. }
            | Input::Fenced { .. }
            | Input::StoreFailed { .. }
            | Input::Suspended { .. }
            | Input::OwnerStopped(_)
            | Input::Promote { .. }
            | Input::Drained { .. }
            | Input::Go { .. }
            | Input::Took { .. }
            | Input::Moved { .. }
            | Input::OwnerClosed => State::Idle,
        }
    }
}

/// Transitions: each is made here, whatever state it starts from.
impl Core {
    /// To Probing, with a new listing.
    pub(super) fn list(&mut self, now: Time, ahead: Option<Ahead>, out: &mut Vec<Effect>) -> State {
        self.show(Role::Joining, out);
        self.list_again(now, None, ahead, out)
    }

    /// To Probing, after the next wait of the backoff.
    pub(super) fn pause(&mut self, now: Time, ahead: Option<Ahead>) -> State {
        let wait = doubled(RETRY_MIN, RETRY_MAX, self.retries);
        self.retries = self.retries.saturating_add(1);
        let until = now + self.random.between(wait / 2, wait);
        State::Probing(Probing { step: Search::Pausing { until }, ahead })
    }

    /// To Probing, connecting to `found`.
    pub(super) fn connect(
        &mut self,
        now: Time,
        found: Found,
        ahead: Option<Ahead>,
        out: &mut Vec<Effect>,
    ) -> State {
        let attempt = self.attempt(found.address.clone(), Some(found.epoch), out);
        State::Probing(Probing {
            step: Search::Connecting { found, attempt, until: now + PROBE_TIMEOUT },
            ahead,
        })
    }

    /// To Following.
    pub(super) fn follow(&mut self, now: Time, link: Link, out: &mut Vec<Effect>) -> State {
        let epoch = link.found.epoch;
        self.highest = self.highest.max(epoch);
        self.heirs = Vec::new();
        self.reported = None;
        self.show(Role::Follower { epoch, owner: link.owner }, out);
        out.push(Effect::Event(Event::Following { epoch, owner: link.owner }));
        State::Following(Following { link, quiet_since: now })
    }

    /// To Suspecting.
    pub(super) fn suspect(
        &mut self,
        now: Time,
        found: Found,
        link: Option<Link>,
        probe: Option<u64>,
        out: &mut Vec<Effect>,
    ) -> State {
        out.push(Effect::Event(Event::Suspected { epoch: found.epoch }));
        State::Suspecting(Suspecting {
            found,
            link,
            quiet_since: now,
            ticks: 0,
            probe,
            ahead: None,
            stopped: false,
            step: Watch::Ticking { next: now + SUSPICION_TICK },
        })
    }

    /// To Claiming. The caller made sure that nothing forbids it.
    pub(super) fn claim(
        &mut self,
        now: Time,
        cause: Cause,
        link: Option<Link>,
        ahead: Option<Ahead>,
        usurps: bool,
        out: &mut Vec<Effect>,
    ) -> State {
        let epoch = self.highest.next();
        if usurps {
            self.restraint.note_claim(now);
        }
        self.show(Role::Candidate { epoch }, out);
        out.push(Effect::Claim { epoch });
        State::Claiming(Claiming { epoch, cause, link, ahead, welcomed: None, usurps })
    }

    /// To Owning: serve at once, adopt, say so.
    pub(super) fn own(
        &mut self,
        now: Time,
        epoch: Epoch,
        cause: Cause,
        parting: Option<(u64, Time)>,
        out: &mut Vec<Effect>,
    ) -> Owning {
        self.highest = self.highest.max(epoch);
        self.heirs = Vec::new();
        self.retries = 0;
        self.reported = None;
        self.kit = Kit::None;
        out.push(Effect::Begin { epoch, members: self.members.clone(), cause });
        if cause == Cause::HandedOver {
            out.push(Effect::SendTook { epoch });
        }
        out.push(Effect::Adopt { epoch });
        out.push(Effect::Event(Event::PrimaryElected { epoch, over: cause }));
        self.show(Role::Primary { epoch, adopted: false }, out);
        Owning {
            epoch,
            stage: Stage::Adopting,
            parting,
            collect_at: now + COLLECT_INTERVAL,
            preferred_at: now,
            upgrade_at: if cause == Cause::HandedOver { now + UPGRADE_INTERVAL } else { now },
        }
    }

    /// To Left, with nothing kept.
    pub(super) fn left(&mut self, out: &mut Vec<Effect>) -> State {
        if !matches!(self.kit, Kit::None) {
            self.kit = Kit::None;
            out.push(Effect::DropKit);
        }
        self.show(Role::Left, out);
        out.push(Effect::Left);
        State::Left
    }
}

/// What several states ask and say.
impl Core {
    /// Whether this session may claim over an owner with such a store.
    pub(super) fn may_claim(&self, reader: Reader) -> bool {
        self.config.rank != Rank::Observer && reader == Reader::Able
    }

    /// Starts an attempt and returns its token.
    pub(super) fn attempt(
        &mut self,
        address: KitAddress,
        epoch: Option<Epoch>,
        out: &mut Vec<Effect>,
    ) -> u64 {
        self.next_attempt += 1;
        out.push(Effect::Connect { attempt: self.next_attempt, target: Target { address, epoch } });
        self.next_attempt
    }

    /// Shows a role, if it is another one.
    pub(super) fn show(&mut self, role: Role, out: &mut Vec<Effect>) {
        if self.role != role {
            self.role = role.clone();
            out.push(Effect::Role(role));
        }
    }

    /// Reports a trouble, unless it was the last one reported.
    pub(super) fn report(&mut self, event: Event, out: &mut Vec<Effect>) {
        if self.reported.as_ref() != Some(&event) {
            self.reported = Some(event.clone());
            out.push(Effect::Event(event));
        }
    }

    /// Notes the heirs and members of a ping.
    pub(super) fn note_ping(&mut self, ping: Ping) {
        // From a list that may not be whole nobody can tell whom to wait for.
        self.members = (!ping.unlisted).then_some(ping.members);
        self.pinged = true;
        self.heirs = ping.heirs;
    }

    /// The place of this session among the heirs.
    pub(super) fn place(&self) -> Option<usize> {
        if self.config.rank == Rank::Observer {
            return None;
        }
        self.heirs_in_order().position(|heir| heir.session == self.config.session)
    }

    /// Heirs that hold all shared state go before those that do not: what was acknowledged through one of them is safe
    /// only with it.
    pub(super) fn heirs_in_order(&self) -> impl Iterator<Item = &Heir> {
        let current = |wanted: bool| self.heirs.iter().filter(move |heir| heir.current == wanted);
        current(true).chain(current(false))
    }

    /// How long this session lets better placed ones claim first: at most two staggers. One that never heard of a group
    /// has nobody to wait for.
    pub(super) fn stagger(&mut self) -> Duration {
        match self.place() {
            _ if !self.pinged => Duration::ZERO,
            Some(0) => Duration::ZERO,
            Some(1) => CLAIM_STAGGER,
            Some(_) | None => self.random.between(CLAIM_STAGGER, 2 * CLAIM_STAGGER),
        }
    }

    /// Connects to the kit of the heir that will claim first, unless that is this session.
    pub(super) fn look_ahead(&mut self, over: Epoch, out: &mut Vec<Effect>) -> Option<Ahead> {
        let own = self.config.session;
        let better = self.heirs_in_order().take_while(|heir| heir.session != own);
        let address = better.filter_map(|heir| heir.kit.clone()).next()?;
        Some(Ahead { attempt: self.attempt(address.clone(), None, out), address, over })
    }
}

/// Drops an attempt, if there is one.
pub(super) fn drop_attempt(attempt: Option<u64>, out: &mut Vec<Effect>) {
    if let Some(attempt) = attempt {
        out.push(Effect::Disconnect { attempt });
    }
}
