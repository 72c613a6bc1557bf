//! I11: every event reaches every subscriber once and in order, or a Gap is shown that covers what is missing; and no Gap
//! is shown over what the upstream can replay or a survivor saw.

use std::collections::BTreeMap;

use paceline_proto::{
    id::{Channel, Position, SessionId, Stream},
    message::{Gap, HeldEvent},
};

use crate::{
    fact::Fact,
    feed::Feed,
    invariants::{Invariant, View},
};

#[derive(Default)]
struct Subscription {
    /// Number of the last event delivered.
    last: Option<u64>,
    /// Number ranges (after, upto] that gaps shown since then cover, and where each ends.
    gaps: Vec<(u64, u64, Option<Position>)>,
}

#[derive(Default)]
pub(super) struct EveryEventOnceInOrder {
    subscriptions: BTreeMap<(SessionId, Stream), Subscription>,
}

impl Invariant for EveryEventOnceInOrder {
    fn name(&self) -> &'static str {
        "I11"
    }

    fn observe(&mut self, fact: &Fact, view: &View<'_>, broken: &mut Vec<String>) {
        match fact {
            Fact::StreamSubscribed { session, stream } => {
                self.subscriptions.insert((*session, stream.clone()), Subscription::default());
            }
            Fact::StreamUnsubscribed { session, stream } => {
                self.subscriptions.remove(&(*session, stream.clone()));
            }
            Fact::Died { session } => self.subscriptions.retain(|(owner, _), _| owner != session),
            Fact::PowerLost => self.subscriptions.clear(),
            Fact::Delivered { session, event } => broken.extend(self.delivered(*session, event, view).err()),
            Fact::GapShown { session, gap, avoidable } => {
                // Where a session that nothing was delivered to begins, nobody can name: an open gap is honest.
                let placed = gap.after.is_some() || self.has_begun(*session, gap, view);
                self.gap(*session, gap, view);
                if *avoidable && placed {
                    broken.push(format!("{session:?} was shown an avoidable gap: {gap:?}"));
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, view: &View<'_>, broken: &mut Vec<String>) {
        for ((session, stream), subscription) in &self.subscriptions {
            let Some(feed) = view.feeds.iter().find(|feed| feed.stream_index(stream).is_some()) else {
                continue;
            };
            if subscription.last.is_some()
                && let Some(missing) = missing(feed, stream, subscription, feed.log.len() as u64 + 1)
            {
                broken.push(format!("{session:?} never got event {missing} of {stream:?}"));
            }
        }
    }
}

impl EveryEventOnceInOrder {
    fn delivered(&mut self, session: SessionId, event: &HeldEvent, view: &View<'_>) -> Result<(), String> {
        let Some(subscription) = self.subscriptions.get_mut(&(session, event.stream.clone())) else {
            return Ok(());
        };
        let Some(feed) = view.feeds.iter().find(|feed| feed.channel == event.origin.0) else {
            return Err(format!("{session:?} got an event of no feed: {event:?}"));
        };
        let number = Feed::number_of(&event.data).filter(|n| *n >= 1 && *n <= feed.log.len() as u64);
        let Some(number) =
            number.filter(|n| feed.stream_index(&event.stream) == Some(feed.log[*n as usize - 1].stream))
        else {
            return Err(format!("{session:?} got an event that was never published: {event:?}"));
        };
        // Around a gap, events without positions that can be ordered may come again.
        let again = !feed.kind.ordered() && !subscription.gaps.is_empty();
        if let Some(last) = subscription.last {
            if number <= last && !again {
                return Err(format!("{session:?} got event {number} of {:?} after {last}", event.stream));
            }
            if let Some(missing) = missing(feed, &event.stream, subscription, number) {
                return Err(format!(
                    "{session:?} got event {number} of {:?} after {last}; {missing} is missing without a gap",
                    event.stream
                ));
            }
        }
        let last = subscription.last.unwrap_or(0);
        if number > last || !again {
            // Gaps that lie ahead still hold; a repetition leaves all of them.
            subscription.gaps.retain(|(_, upto, end)| match (feed.kind.ordered(), end) {
                (true, _) => *upto > number,
                (false, Some(end)) => end != &event.origin.1 && end.covers(&event.origin.1) == Some(true),
                (false, None) => false,
            });
        }
        subscription.last = Some(number.max(last));
        Ok(())
    }

    /// Something of the channel was delivered to the session.
    fn has_begun(&self, session: SessionId, gap: &Gap, view: &View<'_>) -> bool {
        let Some(feed) = view.feeds.iter().find(|feed| feed.channel == gap.channel) else { return false };
        let mut own = self.subscriptions.iter().filter(|((owner, _), _)| *owner == session);
        own.any(|((_, stream), subscription)| {
            feed.stream_index(stream).is_some() && subscription.last.is_some()
        })
    }

    fn gap(&mut self, session: SessionId, gap: &Gap, view: &View<'_>) {
        let Some(feed) = view.feeds.iter().find(|feed| feed.channel == gap.channel) else { return };
        let (after, upto) = range(feed, gap);
        let own = |channel: &Channel, stream: &Stream| {
            feed.channel == *channel && feed.stream_index(stream).is_some()
        };
        for ((owner, stream), subscription) in &mut self.subscriptions {
            if *owner == session && own(&gap.channel, stream) {
                subscription.gaps.push((after, upto, gap.upto.clone()));
            }
        }
    }
}

/// The numbers a gap covers. Ends that are not known, or cannot be ordered, are open.
fn range(feed: &Feed, gap: &Gap) -> (u64, u64) {
    if !feed.kind.ordered() {
        return (0, u64::MAX);
    }
    let after = gap.after.as_ref().and_then(|position| feed.number_at(position)).unwrap_or(0);
    let upto = gap.upto.as_ref().and_then(|position| feed.number_at(position)).unwrap_or(u64::MAX);
    (after, upto)
}

/// The first event of the stream after the last one delivered and before `number` that no gap covers.
fn missing(feed: &Feed, stream: &Stream, subscription: &Subscription, number: u64) -> Option<u64> {
    let index = feed.stream_index(stream)?;
    let last = subscription.last?;
    let covered = |n: u64| subscription.gaps.iter().any(|(after, upto, _)| *after < n && n <= *upto);
    let between = feed.log.iter().skip(last as usize).take_while(|message| message.number < number);
    between.filter(|message| message.stream == index).map(|message| message.number).find(|n| !covered(*n))
}
