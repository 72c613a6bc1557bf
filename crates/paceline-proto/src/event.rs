//! Observable events: each is declared here once and feeds tracing, the trace ring, stats and tests.

use std::fmt;

use crate::{
    id::{Channel, Epoch, LinkId, Mark, Offset, Position, SessionId},
    message::ItemConflict,
    presence::Presence,
    program::Misfit,
};

/// Something an operator or a test may want to know. Past tense; one line of text by `Display`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This session claimed `epoch`.
    PrimaryElected {
        /// The new reign.
        epoch: Epoch,
        /// Why the predecessor was replaced.
        over: Cause,
    },
    /// The predecessor's store was adopted; submits are acknowledged from here on.
    Adopted {
        /// The reign.
        epoch: Epoch,
        /// Mutations reachable at adoption.
        rows: u64,
    },
    /// The claim was won but the store could not be adopted: broadcast and reads go on, nothing is acknowledged.
    AdoptionFailed {
        /// The reign.
        epoch: Epoch,
        /// What failed and what to do.
        why: String,
    },
    /// This session owned `epoch` and found itself replaced.
    Fenced {
        /// The lost reign.
        epoch: Epoch,
        /// Which part of the fence spoke.
        why: String,
    },
    /// This session owned `epoch`, was replaced, and did not acknowledge mutations it had taken; their callers ask the
    /// next owner.
    SubmitsMoved {
        /// The lost reign.
        epoch: Epoch,
        /// How many.
        submits: u64,
    },
    /// This session stopped owning `epoch` on purpose.
    SteppedDown {
        /// The ended reign.
        epoch: Epoch,
    },
    /// No frame came from the owner for the suspicion time.
    Suspected {
        /// The owner's reign.
        epoch: Epoch,
    },
    /// The owner was heard again before a claim.
    SuspicionCleared {
        /// The owner's reign.
        epoch: Epoch,
    },
    /// Another candidate linked the claim first.
    ClaimLost {
        /// The epoch both wanted.
        epoch: Epoch,
    },
    /// This session follows a new owner.
    Following {
        /// The owner's reign.
        epoch: Epoch,
        /// The owner.
        owner: SessionId,
    },
    /// The owner's lock is held but its socket is gone or closed to us: never taken for dead.
    OwnerUnreachable {
        /// The owner's reign.
        epoch: Epoch,
        /// What the connection attempt said.
        why: String,
    },
    /// The owner turned this session away.
    JoinRefused {
        /// The owner's reign.
        epoch: Epoch,
        /// Why.
        why: String,
    },
    /// The owner turned this session away: they have no protocol version in common.
    VersionRefused {
        /// The owner's reign.
        epoch: Epoch,
        /// Who speaks what.
        misfit: Box<Misfit>,
    },
    /// The store needs a newer reader than this build; this session will not claim over it.
    StoreTooNew {
        /// The schema found.
        schema: u32,
        /// The reader it needs.
        min_reader: u32,
    },
    /// A claim or kit could not be made.
    ClaimFailed {
        /// The epoch wanted.
        epoch: Epoch,
        /// What the file system said.
        why: String,
    },
    /// The clock jumped: the machine was suspended.
    Suspended {
        /// For how many milliseconds.
        ms: u64,
    },
    /// A session joined.
    Joined {
        /// Its connection.
        link: LinkId,
        /// The session.
        session: SessionId,
    },
    /// A session's connection ended.
    Unlinked {
        /// Its connection.
        link: LinkId,
        /// The session.
        session: SessionId,
        /// Why.
        why: String,
    },
    /// A peer broke the protocol or a bound and was disconnected.
    PeerRefused {
        /// What it did.
        why: String,
    },
    /// A session told what it shows to its user, or went away.
    PresenceChanged {
        /// The session.
        session: SessionId,
        /// What it shows; `None` when it went away.
        presence: Option<Presence>,
    },
    /// A session became heir.
    HeirAppointed {
        /// The session.
        session: SessionId,
    },
    /// An heir acknowledged all shared state.
    HeirCurrent {
        /// The session.
        session: SessionId,
    },
    /// An heir is one no longer.
    HeirDismissed {
        /// The session.
        session: SessionId,
    },
    /// A follower's queue passed its bound; it now gets the latest value per key.
    FollowerConflated {
        /// The session.
        session: SessionId,
        /// Frames left out so far.
        dropped: u64,
    },
    /// A conflated follower is up to date again.
    FollowerCaughtUp {
        /// The session.
        session: SessionId,
    },
    /// A follower saw a hole in its batches and asked for a snapshot.
    Resynced {
        /// Where it stood.
        at: Offset,
    },
    /// A missing tail of a channel was taken from a survivor.
    TailPulled {
        /// The channel.
        channel: Channel,
        /// The survivor.
        from: SessionId,
        /// How many events were new.
        events: u64,
    },
    /// A survivor held a newer value than the new owner; it was republished.
    WinnerRepublished {
        /// The survivor.
        from: SessionId,
    },
    /// An operation offered by a survivor was applied by the new owner.
    OperationAdopted {
        /// The survivor.
        from: SessionId,
    },
    /// The upstream was reopened behind its position because a session is behind every ring.
    ChannelRewound {
        /// The channel.
        channel: Channel,
        /// Where it resumes.
        at: Position,
    },
    /// Events of a channel may be missing.
    GapShown {
        /// The channel.
        channel: Channel,
    },
    /// Two values of one version differ.
    VersionClash {
        /// Where the owner's value stands.
        mark: Mark,
    },
    /// A polite handover began.
    HandoverStarted {
        /// The heir.
        to: SessionId,
    },
    /// The heir did not claim in time; the owner resumed.
    HandoverAborted {
        /// Why.
        why: String,
    },
    /// An upstream connection changed its state.
    UpstreamChanged {
        /// The upstream.
        upstream: String,
        /// The new state in words.
        state: String,
    },
    /// An upstream message could not be used.
    UpstreamMessageRefused {
        /// The upstream.
        upstream: String,
        /// Why.
        why: String,
    },
    /// A session declared or asked for what this build cannot read; its other words count.
    DeclarationRefused {
        /// Who.
        session: SessionId,
        /// Why.
        why: String,
    },
    /// A session is gone that had not said how its layers end: they are taken back.
    LayersTakenBack {
        /// Whose.
        session: SessionId,
        /// How many.
        layers: usize,
    },
    /// Two sessions declare different things under one name.
    ConfigConflict(Box<ItemConflict>),
    /// A fetch brought a value.
    Fetched {
        /// The key, for people.
        key: String,
        /// Nobody waited.
        background: bool,
        /// Milliseconds from the first attempt to the end.
        took_ms: u64,
        /// Attempts.
        attempts: u32,
    },
    /// A fetch brought no value.
    FetchFailed {
        /// The key, for people.
        key: String,
        /// Nobody waited.
        background: bool,
        /// Milliseconds from the first attempt to the end.
        took_ms: u64,
        /// Attempts.
        attempts: u32,
        /// Why.
        why: String,
    },
    /// A value turned stale by time.
    TurnedStale {
        /// The key, for people.
        key: String,
        /// Its age in milliseconds.
        age_ms: u64,
        /// The limit.
        limit_ms: u64,
    },
    /// The refresh service looked at what is due.
    RefreshLooked {
        /// Values looked at.
        checked: u32,
        /// Of them stale.
        stale: u32,
        /// Refreshes begun.
        begun: u32,
    },
    /// The group went over to the active strategy, or to the background one.
    StrategyChanged {
        /// Some session is visible.
        active: bool,
    },
    /// Upstreams can, or cannot, be reached.
    OnlineChanged {
        /// They can.
        online: bool,
    },
    /// A server asked everybody to wait.
    ServerAskedToWait {
        /// The server, or the resource.
        server: String,
        /// Milliseconds.
        for_ms: u64,
    },
    /// A bound was reached.
    LimitReached {
        /// Its name in `limits`.
        limit: &'static str,
    },
}

/// Why an owner was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// There was none.
    First,
    /// Its lock was free: it is dead.
    Dead,
    /// It was silent through the suspicion time and the probe.
    Silent,
    /// It handed over.
    HandedOver,
    /// It was this session's own reign, given up for a new store.
    Own,
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PrimaryElected { epoch, over } => write!(f, "leads epoch {epoch}: {over}"),
            Self::Adopted { epoch, rows } => write!(f, "epoch {epoch} has its store, with {rows} mutations"),
            Self::AdoptionFailed { epoch, why } => {
                write!(f, "epoch {epoch} has no store and acknowledges nothing: {why}")
            }
            Self::Fenced { epoch, why } => write!(f, "was replaced as the primary of epoch {epoch}: {why}"),
            Self::SubmitsMoved { epoch, submits } => {
                write!(
                    f,
                    "did not acknowledge {submits} mutations of epoch {epoch}, which ended; its successor is asked"
                )
            }
            Self::SteppedDown { epoch } => write!(f, "gave up epoch {epoch}"),
            Self::Suspected { epoch } => write!(f, "hears nothing from the primary of epoch {epoch}"),
            Self::SuspicionCleared { epoch } => write!(f, "hears the primary of epoch {epoch} again"),
            Self::ClaimLost { epoch } => write!(f, "another session claimed epoch {epoch} first"),
            Self::Following { epoch, owner } => write!(f, "follows {} in epoch {epoch}", owner.short()),
            Self::OwnerUnreachable { epoch, why } => {
                write!(f, "the primary of epoch {epoch} lives but cannot be reached: {why}")
            }
            Self::JoinRefused { epoch, why } => {
                write!(f, "was turned away by the primary of epoch {epoch}: {why}")
            }
            Self::VersionRefused { epoch, misfit } => {
                write!(f, "was turned away by the primary of epoch {epoch}: {misfit}")
            }
            Self::StoreTooNew { schema, min_reader } => {
                write!(f, "cannot lead: the store has schema {schema} and needs a reader of {min_reader}")
            }
            Self::ClaimFailed { epoch, why } => write!(f, "could not claim epoch {epoch}: {why}"),
            Self::Suspended { ms } => write!(f, "the machine slept for {ms} ms"),
            Self::Joined { session, .. } => write!(f, "session {} joined", session.short()),
            Self::Unlinked { session, why, .. } => {
                write!(f, "the connection of session {} ended: {why}", session.short())
            }
            Self::PeerRefused { why } => write!(f, "a peer was turned away: {why}"),
            Self::PresenceChanged { session, presence: None } => {
                write!(f, "{} shows nothing any more", session.short())
            }
            Self::PresenceChanged {
                session,
                presence: Some(Presence { visible, focused, active, battery }),
            } => {
                write!(f, "{} is", session.short())?;
                for (is, word) in [(visible, "visible"), (focused, "focused"), (active, "active")] {
                    write!(f, " {}{word}", if *is { "" } else { "not " })?;
                }
                battery.map_or(Ok(()), |percent| write!(f, " on battery, {percent} %"))
            }
            Self::HeirAppointed { session } => write!(f, "session {} becomes heir", session.short()),
            Self::HeirCurrent { session } => write!(f, "heir {} holds everything", session.short()),
            Self::HeirDismissed { session } => write!(f, "session {} is heir no longer", session.short()),
            Self::FollowerConflated { session, dropped } => {
                write!(f, "session {} is slow: {dropped} frames left out so far", session.short())
            }
            Self::FollowerCaughtUp { session } => write!(f, "session {} caught up", session.short()),
            Self::Resynced { at } => write!(f, "asked for everything anew at offset {}", at.0),
            Self::TailPulled { channel, from, events } => {
                write!(f, "took {events} events of {} from {}", channel.0, from.short())
            }
            Self::WinnerRepublished { from } => write!(f, "took a newer value from {}", from.short()),
            Self::OperationAdopted { from } => write!(f, "took an operation from {}", from.short()),
            Self::ChannelRewound { channel, at } => write!(f, "reopened {} at {at:?}", channel.0),
            Self::GapShown { channel } => write!(f, "events of {} may be missing", channel.0),
            Self::VersionClash { mark } => {
                write!(f, "two values of one version differ, at {}.{}", mark.epoch, mark.offset.0)
            }
            Self::HandoverStarted { to } => write!(f, "hands over to {}", to.short()),
            Self::HandoverAborted { why } => write!(f, "the handover did not happen: {why}"),
            Self::UpstreamChanged { upstream, state } => write!(f, "upstream {upstream}: {state}"),
            Self::UpstreamMessageRefused { upstream, why } => {
                write!(f, "a message of {upstream} cannot be used: {why}")
            }
            Self::DeclarationRefused { session, why } => {
                write!(f, "a declaration of {} cannot be used: {why}", session.short())
            }
            Self::LayersTakenBack { session, layers } => {
                write!(f, "took {layers} layers of {} back, who is gone", session.short())
            }
            Self::ConfigConflict(conflict) => write!(f, "{conflict}"),
            Self::Fetched { key, background, took_ms, attempts } => {
                write!(f, "fetched {key}{} in {took_ms} ms, {attempts} attempts", behind(*background))
            }
            Self::FetchFailed { key, background, took_ms, attempts, why } => {
                let behind = behind(*background);
                write!(f, "could not fetch {key}{behind} in {took_ms} ms, {attempts} attempts: {why}")
            }
            Self::TurnedStale { key, age_ms, limit_ms } => {
                write!(f, "{key} is stale: {age_ms} ms old, {limit_ms} ms are its limit")
            }
            Self::RefreshLooked { checked, stale, begun } => {
                write!(f, "looked at {checked} queries: {stale} are stale, {begun} are refreshed")
            }
            Self::StrategyChanged { active: true } => write!(f, "somebody looks: the active strategy"),
            Self::StrategyChanged { active: false } => write!(f, "nobody looks: the background strategy"),
            Self::OnlineChanged { online: true } => write!(f, "back online"),
            Self::OnlineChanged { online: false } => {
                write!(f, "offline: nothing is fetched, what is held is shown")
            }
            Self::ServerAskedToWait { server, for_ms } => {
                write!(f, "{server} asks everybody to wait for {for_ms} ms")
            }
            Self::LimitReached { limit } => write!(f, "the limit {limit} was reached"),
        }
    }
}

fn behind(background: bool) -> &'static str {
    if background { " in the background" } else { "" }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "there was no primary",
            Self::Dead => "the primary before it is dead",
            Self::Silent => "the primary before it was silent",
            Self::HandedOver => "it was handed over",
            Self::Own => "it needed a new store",
        })
    }
}

impl Event {
    /// Stable name of the kind, for filters and counters.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::PrimaryElected { .. } => "primary_elected",
            Self::Adopted { .. } => "adopted",
            Self::AdoptionFailed { .. } => "adoption_failed",
            Self::Fenced { .. } => "fenced",
            Self::SubmitsMoved { .. } => "submits_moved",
            Self::SteppedDown { .. } => "stepped_down",
            Self::Suspected { .. } => "suspected",
            Self::SuspicionCleared { .. } => "suspicion_cleared",
            Self::ClaimLost { .. } => "claim_lost",
            Self::Following { .. } => "following",
            Self::OwnerUnreachable { .. } => "owner_unreachable",
            Self::JoinRefused { .. } => "join_refused",
            Self::VersionRefused { .. } => "version_refused",
            Self::StoreTooNew { .. } => "store_too_new",
            Self::ClaimFailed { .. } => "claim_failed",
            Self::Suspended { .. } => "suspended",
            Self::Joined { .. } => "joined",
            Self::Unlinked { .. } => "unlinked",
            Self::PeerRefused { .. } => "peer_refused",
            Self::PresenceChanged { .. } => "presence_changed",
            Self::HeirAppointed { .. } => "heir_appointed",
            Self::HeirCurrent { .. } => "heir_current",
            Self::HeirDismissed { .. } => "heir_dismissed",
            Self::FollowerConflated { .. } => "follower_conflated",
            Self::FollowerCaughtUp { .. } => "follower_caught_up",
            Self::Resynced { .. } => "resynced",
            Self::TailPulled { .. } => "tail_pulled",
            Self::WinnerRepublished { .. } => "winner_republished",
            Self::OperationAdopted { .. } => "operation_adopted",
            Self::ChannelRewound { .. } => "channel_rewound",
            Self::GapShown { .. } => "gap_shown",
            Self::VersionClash { .. } => "version_clash",
            Self::HandoverStarted { .. } => "handover_started",
            Self::HandoverAborted { .. } => "handover_aborted",
            Self::UpstreamChanged { .. } => "upstream_changed",
            Self::UpstreamMessageRefused { .. } => "upstream_message_refused",
            Self::DeclarationRefused { .. } => "declaration_refused",
            Self::LayersTakenBack { .. } => "layers_taken_back",
            Self::ConfigConflict(_) => "config_conflict",
            Self::Fetched { .. } => "fetched",
            Self::FetchFailed { .. } => "fetch_failed",
            Self::TurnedStale { .. } => "turned_stale",
            Self::RefreshLooked { .. } => "refresh_looked",
            Self::StrategyChanged { .. } => "strategy_changed",
            Self::OnlineChanged { .. } => "online_changed",
            Self::ServerAskedToWait { .. } => "server_asked_to_wait",
            Self::LimitReached { .. } => "limit_reached",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_told_in_words() {
        let elected = Event::PrimaryElected { epoch: Epoch(4), over: Cause::Dead };
        assert_eq!(elected.to_string(), "leads epoch 4: the primary before it is dead");
        let following = Event::Following { epoch: Epoch(4), owner: SessionId(0xdead_beef) };
        assert_eq!(following.to_string(), "follows deadbeef in epoch 4");
    }
}
