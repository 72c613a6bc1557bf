//! Who counts: joined members, and those still awaited since they left without a word or since the reign began.

use std::collections::BTreeMap;

use crate::{
    id::{Channel, Epoch, LinkId, Mark, Offset, SessionId},
    limits::{MEMBER_SILENCE, SESSIONS_MAX},
    message::{ChannelOffer, Member},
    time::Time,
};

#[derive(Debug)]
pub(super) struct MemberState {
    label: String,
    pid: u32,
    pub(super) link: Option<LinkId>,
    /// Since when nothing is heard of it.
    pub(super) silent_since: Time,
    /// What it acknowledged in this reign.
    acked: Option<Offset>,
    /// All it knows that this owner may lack has arrived.
    pub(super) offered: bool,
    /// A delta from the log brings it up to date: its last link was in step and got nothing of its own.
    pub(super) clean: bool,
    /// Where its last link stood in the channels: it will come back there.
    pub(super) stood: BTreeMap<Channel, ChannelOffer>,
}

impl MemberState {
    pub(super) fn as_member(&self, session: SessionId) -> Member {
        Member { session, label: self.label.clone(), pid: self.pid, joined: self.link.is_some() }
    }
}

#[derive(Debug)]
pub(super) struct Members {
    epoch: Epoch,
    owner: SessionId,
    all: BTreeMap<SessionId, MemberState>,
    /// Until then members may exist that this owner has never heard of.
    unknown_until: Option<Time>,
    stable: Mark,
    /// Counts changes of the list, so that a ping repeats it only where needed.
    pub(super) version: u64,
}

impl Members {
    pub(super) fn new(
        epoch: Epoch,
        owner: SessionId,
        list: Option<Vec<Member>>,
        stable: Mark,
        now: Time,
    ) -> Self {
        // The first owner of all has no predecessor whose members it could not know.
        let unknown_until = (list.is_none() && epoch.0 > 1).then_some(now + MEMBER_SILENCE);
        let mut members = Self { epoch, owner, all: BTreeMap::new(), unknown_until, stable, version: 1 };
        for member in list.unwrap_or_default().into_iter().take(SESSIONS_MAX) {
            if member.session != owner {
                let state = MemberState {
                    label: member.label,
                    pid: member.pid,
                    link: None,
                    silent_since: now,
                    acked: None,
                    offered: false,
                    clean: false,
                    stood: BTreeMap::new(),
                };
                members.all.insert(member.session, state);
            }
        }
        members
    }

    pub(super) fn joined(&mut self, session: SessionId, label: &str, pid: u32, link: LinkId, now: Time) {
        self.version += 1;
        let fresh = || MemberState {
            label: label.to_owned(),
            pid,
            link: None,
            silent_since: now,
            acked: None,
            offered: false,
            clean: false,
            stood: BTreeMap::new(),
        };
        let member = self.all.entry(session).or_insert_with(fresh);
        member.label = label.to_owned();
        member.pid = pid;
        member.link = Some(link);
    }

    /// The link ended without a word: the session stays on the list.
    pub(super) fn lost(&mut self, session: SessionId, link: LinkId, clean: bool, now: Time) {
        if let Some(member) = self.all.get_mut(&session)
            && member.link == Some(link)
        {
            self.version += 1;
            member.link = None;
            member.silent_since = now;
            member.clean = clean;
        }
    }

    pub(super) fn remove(&mut self, session: SessionId) -> bool {
        let gone = self.all.remove(&session).is_some();
        self.version += u64::from(gone);
        gone
    }

    /// Removes those silent for too long; they count no more.
    pub(super) fn expire(&mut self, now: Time) -> Vec<SessionId> {
        if self.unknown_until.is_some_and(|until| until <= now) {
            self.unknown_until = None;
        }
        let silent =
            |member: &MemberState| member.link.is_none() && now.since(member.silent_since) >= MEMBER_SILENCE;
        let gone: Vec<_> = self.all.iter().filter(|(_, m)| silent(m)).map(|(session, _)| *session).collect();
        for session in &gone {
            self.remove(*session);
        }
        gone
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &MemberState)> {
        self.all.iter().map(|(session, member)| (*session, member))
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&MemberState> {
        self.all.get(&session)
    }

    pub(super) fn get_mut(&mut self, session: SessionId) -> Option<&mut MemberState> {
        self.all.get_mut(&session)
    }

    pub(super) fn link_of(&self, session: SessionId) -> Option<LinkId> {
        self.all.get(&session)?.link
    }

    pub(super) fn acked(&mut self, session: SessionId, offset: Offset) {
        if let Some(member) = self.all.get_mut(&session) {
            member.acked = Some(offset);
        }
    }

    /// Where those stood who offered once, left, and have not offered again.
    pub(super) fn stood<'a>(&'a self, channel: &'a Channel) -> impl Iterator<Item = &'a ChannelOffer> {
        self.all.values().filter_map(move |member| member.stood.get(channel))
    }

    pub(super) fn awaited(&self) -> impl Iterator<Item = SessionId> {
        self.all.iter().filter(|(_, member)| member.link.is_none()).map(|(session, _)| *session)
    }

    /// Whether nobody is left who could offer something this owner lacks.
    pub(super) fn all_offered(&self) -> bool {
        self.unknown_until.is_none()
            && self.all.iter().all(|(session, member)| member.offered || *session == self.owner)
    }

    /// Whether the list the reign began with is known.
    pub(super) fn is_known(&self) -> bool {
        self.unknown_until.is_none()
    }

    pub(super) fn stable(&self) -> Mark {
        self.stable
    }

    /// The last offset that every counted member acknowledged in this reign.
    pub(super) fn acknowledged_by_all(&self) -> Option<Offset> {
        if self.unknown_until.is_some() {
            return None;
        }
        self.all.values().map(|member| member.acked).min().flatten()
    }

    /// Moves the stable place, never back.
    pub(super) fn settle(&mut self, offset: Offset) {
        self.stable = self.stable.max(Mark::new(self.epoch, offset));
    }

    pub(super) fn list(&self) -> Vec<Member> {
        self.iter().map(|(session, state)| state.as_member(session)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: SessionId = SessionId(1);
    const OTHER: SessionId = SessionId(2);

    fn listed(session: SessionId) -> Member {
        Member { session, label: String::new(), pid: 1, joined: true }
    }

    fn members(list: Option<Vec<Member>>, epoch: u64) -> Members {
        Members::new(Epoch(epoch), OWNER, list, Mark::ZERO, Time(0))
    }

    #[test]
    fn an_awaited_member_holds_the_stable_place_until_its_silence_ends() {
        let mut members = members(Some(vec![listed(OWNER), listed(OTHER)]), 2);
        members.joined(OWNER, "", 1, LinkId(0), Time(0));
        members.acked(OWNER, Offset(9));
        assert_eq!(members.acknowledged_by_all(), None);
        assert_eq!(members.expire(Time(0) + MEMBER_SILENCE - std::time::Duration::from_nanos(1)), []);
        assert_eq!(members.expire(Time(0) + MEMBER_SILENCE), [OTHER]);
        assert_eq!(members.acknowledged_by_all(), Some(Offset(9)));
    }

    #[test]
    fn a_lost_link_counts_and_a_removed_member_does_not() {
        let mut members = members(Some(vec![]), 2);
        for session in [OWNER, OTHER] {
            members.joined(session, "", 1, LinkId(session.0 as u64), Time(0));
            members.acked(session, Offset(session.0 as u64));
        }
        members.lost(OWNER, LinkId(1), true, Time(0));
        assert_eq!(members.acknowledged_by_all(), Some(Offset(1)));
        members.remove(OWNER);
        assert_eq!(members.acknowledged_by_all(), Some(Offset(2)));
    }

    #[test]
    fn without_a_list_nothing_is_stable_for_the_whole_silence() {
        let mut members = members(None, 2);
        members.joined(OWNER, "", 1, LinkId(0), Time(0));
        members.acked(OWNER, Offset(5));
        assert!(!members.all_offered());
        assert_eq!(members.acknowledged_by_all(), None);
        members.expire(Time(0) + MEMBER_SILENCE);
        assert_eq!(members.acknowledged_by_all(), Some(Offset(5)));
        assert!(members.all_offered());
    }

    #[test]
    fn the_first_owner_waits_for_nobody() {
        assert!(members(None, 1).all_offered());
    }

    #[test]
    fn an_old_link_that_ends_late_does_not_take_the_new_one_with_it() {
        let mut members = members(Some(vec![]), 1);
        members.joined(OTHER, "", 1, LinkId(1), Time(0));
        members.joined(OTHER, "", 1, LinkId(2), Time(0));
        members.lost(OTHER, LinkId(1), true, Time(0));
        assert_eq!(members.link_of(OTHER), Some(LinkId(2)));
    }
}
