//! The order, the attempts and the outcomes of mutations (requirements M2, M4, M5, M6, M8, S6), in virtual time.

use std::{sync::Arc, time::Duration};

use paceline_proto::{
    id::{Epoch, MutationId, SessionId},
    time::Time,
};
use paceline_query::outbox::{
    Answer, Brief, Delivery, Effect, Input, Life, Mark, Now, OnConflict, Outbox, Rules, Status, SyncState,
    SyncStatus, Wish, WishError,
};

const START: u64 = 1_800_000_000_000;
const NONE: [u64; 0] = [];

fn id(seq: u64) -> MutationId {
    MutationId { session: SessionId(7), seq }
}

fn brief(scope: &str) -> Brief {
    Brief { scope: (!scope.is_empty()).then(|| Arc::from(scope)), at: START, ..Brief::default() }
}

fn response(status: u16) -> Answer {
    Answer::Response { status, retry_after: None, version: None, text: String::new() }
}

fn lost() -> Answer {
    Answer::Lost { why: "the connection broke".into() }
}

/// An outbox whose marks are durable at once.
struct Box {
    outbox: Outbox,
    ms: u64,
    sent: Vec<(u64, String)>,
    outcomes: Vec<(u64, Status, bool)>,
    marks: Vec<(u64, Mark)>,
    sync: Vec<SyncStatus>,
    asked: usize,
}

impl Box {
    fn new(rules: Rules) -> Self {
        Self::of(Outbox::new(rules, Epoch(3)))
    }

    fn of(outbox: Outbox) -> Self {
        Self { outbox, ms: 0, sent: vec![], outcomes: vec![], marks: vec![], sync: vec![], asked: 0 }
    }

    fn now(&self) -> Now {
        Now { time: Time(self.ms * 1_000_000), wall: START + self.ms }
    }

    fn tell(&mut self, input: Input) {
        let mut effects = Vec::new();
        self.outbox.handle(self.now(), input, &mut effects);
        self.follow(effects);
    }

    fn follow(&mut self, effects: Vec<Effect>) {
        let mut committed = Vec::new();
        for effect in effects {
            match effect {
                Effect::Commit { id, mark } => {
                    self.marks.push((id.seq, mark));
                    committed.push(id);
                }
                Effect::Send { id, key, .. } => self.sent.push((id.seq, key)),
                Effect::Outcome { id, status, uncertain, .. } => {
                    self.outcomes.push((id.seq, status, uncertain));
                }
                Effect::NeedAuth { .. } => self.asked += 1,
                Effect::Sync(sync) => self.sync.push(sync),
            }
        }
        for id in committed {
            self.tell(Input::Committed { id });
        }
    }

    fn queue(&mut self, seq: u64, brief: Brief) {
        self.tell(Input::Queued { id: id(seq), brief, life: Life::default() });
    }

    fn answer(&mut self, seq: u64, answer: Answer) {
        self.tell(Input::Answered { id: id(seq), answer });
    }

    fn wish(&mut self, seq: u64, wish: Wish) -> Result<(), WishError> {
        let mut effects = Vec::new();
        let done = self.outbox.wish(self.now(), id(seq), wish, &mut effects);
        self.follow(effects);
        done
    }

    /// Lets time pass from deadline to deadline.
    fn pass(&mut self, ms: u64) {
        let end = self.ms + ms;
        while let Some(due) =
            self.outbox.deadline().map(|due| due.0.div_ceil(1_000_000)).filter(|due| *due <= end)
        {
            self.ms = self.ms.max(due);
            self.tell(Input::Tick);
        }
        self.ms = end;
        self.tell(Input::Tick);
    }

    fn take_sent(&mut self) -> Vec<u64> {
        self.sent.drain(..).map(|(seq, _)| seq).collect()
    }

    fn lives(&self, seq: u64) -> Life {
        Life::of(self.marks.iter().filter(|(of, _)| *of == seq).map(|(_, mark)| mark))
    }
}

#[test]
fn five_attempts_at_0_1_3_7_and_15_seconds_then_failed_with_the_error() {
    for answer in [
        response(500),
        response(502),
        response(503),
        response(504),
        lost(),
        Answer::NotSent { why: "refused".into() },
    ] {
        let mut outbox = Box::new(Rules::default());
        outbox.queue(1, brief("a"));
        let mut at = Vec::new();
        while outbox.outcomes.is_empty() {
            assert_eq!(outbox.take_sent(), [1], "{answer:?}");
            at.push(outbox.ms);
            outbox.answer(1, answer.clone());
            while outbox.sent.is_empty() && outbox.outcomes.is_empty() {
                outbox.pass(1);
            }
        }
        assert_eq!(at, [0, 1000, 3000, 7000, 15_000], "{answer:?}");
        let uncertain = answer == lost();
        assert_eq!(outbox.outcomes, [(1, Status::Failed, uncertain)], "{answer:?}");
        let life = outbox.lives(1);
        assert!(life.error.is_some_and(|error| !error.is_empty()));
        assert_eq!(life.failures, 4, "the fifth ended it");
    }
}

#[test]
fn the_delay_is_bounded_and_one_that_waits_holds_no_other_back() {
    let mut outbox = Box::new(Rules { attempts: 10, ..Rules::default() });
    outbox.queue(1, brief("a"));
    let mut gaps = Vec::new();
    for n in 0..9 {
        let at = outbox.ms;
        outbox.answer(1, response(500));
        outbox.queue(100 + n, brief("b"));
        assert_eq!(outbox.sent.pop().map(|(seq, _)| seq), Some(100 + n), "another scope goes on");
        outbox.answer(100 + n, response(200));
        outbox.sent.clear();
        while outbox.sent.is_empty() {
            outbox.pass(500);
        }
        gaps.push(outbox.ms - at);
    }
    assert_eq!(gaps, [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000, 30_000]);
}

#[test]
fn what_a_client_did_wrong_fails_at_once_and_what_will_pass_is_waited_for() {
    for (status, expected) in [
        (200, Some(Status::Done)),
        (204, Some(Status::Done)),
        (302, Some(Status::Rejected)),
        (400, Some(Status::Rejected)),
        (403, Some(Status::Rejected)),
        (404, Some(Status::Rejected)),
        (409, Some(Status::Rejected)),
        (412, Some(Status::Rejected)),
        (422, Some(Status::Rejected)),
        (401, None),
        (408, None),
        (425, None),
        (429, None),
        (500, None),
    ] {
        let mut outbox = Box::new(Rules::default());
        outbox.queue(1, brief(""));
        outbox.answer(1, response(status));
        let outcome = outbox.outcomes.first().map(|(_, status, _)| *status);
        assert_eq!(outcome, expected, "HTTP {status}");
    }
}

#[test]
fn who_asks_for_patience_gets_it_and_it_is_none_of_the_attempts() {
    let mut outbox = Box::new(Rules::default());
    outbox.queue(1, brief(""));
    for _ in 0..20 {
        assert_eq!(outbox.take_sent(), [1]);
        let retry_after = Some(Duration::from_secs(90));
        outbox.answer(1, Answer::Response { status: 429, retry_after, version: None, text: String::new() });
        outbox.pass(89_999);
        assert_eq!(outbox.take_sent(), NONE);
        outbox.pass(1);
    }
    assert_eq!(outbox.lives(1).failures, 0);
    outbox.answer(1, response(201));
    assert_eq!(outbox.outcomes, [(1, Status::Done, false)]);
}

#[test]
fn missing_credentials_hold_the_scope_until_there_are_others() {
    let mut outbox = Box::new(Rules::default());
    outbox.queue(1, brief("a"));
    outbox.queue(2, brief("a"));
    outbox.queue(3, brief("b"));
    assert_eq!(outbox.take_sent(), [1, 3]);
    outbox.answer(1, response(401));
    outbox.pass(3_600_000);
    assert_eq!((outbox.take_sent(), outbox.asked), (vec![], 1));
    outbox.tell(Input::Authenticated);
    assert_eq!(outbox.take_sent(), [1]);
    assert_eq!(outbox.lives(1).failures, 0);
}

#[test]
fn first_in_first_out_within_a_scope_whatever_the_priorities() {
    let mut outbox = Box::new(Rules::default());
    for (seq, priority) in [(1, 0), (2, 5), (3, -5)] {
        outbox.queue(seq, Brief { priority, ..brief("a") });
    }
    for seq in [1, 2, 3] {
        assert_eq!(outbox.take_sent(), [seq]);
        outbox.queue(seq + 10, Brief { priority: 100, ..brief("a") });
        assert_eq!(outbox.take_sent(), NONE, "adding while draining reorders nothing");
        outbox.answer(seq, response(200));
    }
    assert_eq!(outbox.take_sent(), [11]);
}

#[test]
fn heads_go_by_priority_where_thirty_seconds_count_as_one() {
    let mut outbox = Box::new(Rules { parallel: 1, ..Rules::default() });
    outbox.queue(1, brief("busy"));
    assert_eq!(outbox.take_sent(), [1]);
    for (seq, priority, age) in [(2, 0, 29_999), (3, 1, 0), (4, 0, 30_001), (5, 2, 0), (6, -1, 90_001)] {
        outbox.queue(seq, Brief { priority, at: START - age, ..brief("") });
    }
    let mut order = Vec::new();
    for seq in [1, 6, 5, 4, 3, 2] {
        outbox.pass(100_000);
        outbox.answer(seq, response(200));
        order.extend(outbox.take_sent());
    }
    assert_eq!(order, [6, 5, 4, 3, 2], "and however long all of them wait");
}

#[test]
fn a_clock_ahead_gains_nothing_and_loses_nothing() {
    let mut outbox = Box::new(Rules { parallel: 1, ..Rules::default() });
    outbox.queue(1, brief("busy"));
    outbox.queue(2, Brief { at: START + 1_000_000_000, ..brief("") });
    outbox.queue(3, brief(""));
    outbox.answer(1, response(200));
    outbox.answer(2, response(200));
    assert_eq!(outbox.take_sent(), [1, 2, 3]);
}

#[test]
fn so_many_scopes_at_a_time_and_not_one_more() {
    let mut outbox = Box::new(Rules::default());
    for seq in 1..=6 {
        outbox.queue(seq, brief(&format!("scope {seq}")));
    }
    assert_eq!(outbox.take_sent(), [1, 2, 3, 4]);
    outbox.answer(3, response(200));
    assert_eq!(outbox.take_sent(), [5]);
}

#[test]
fn nothing_begins_without_a_network_and_no_attempt_is_used_up() {
    let mut outbox = Box::new(Rules::default());
    outbox.queue(1, brief(""));
    outbox.tell(Input::Online(false));
    for _ in 0..10 {
        outbox.answer(1, Answer::NotSent { why: "no network".into() });
        outbox.pass(60_000);
    }
    outbox.queue(2, brief(""));
    outbox.sent.clear();
    outbox.pass(60_000);
    assert_eq!(outbox.take_sent(), NONE);
    assert_eq!(outbox.outbox.deadline(), None, "an idle outbox wakes nobody");
    outbox.tell(Input::Online(true));
    assert_eq!(outbox.take_sent(), [1, 2]);
    assert_eq!(outbox.lives(1).failures, 0);
}

#[test]
fn what_is_held_waits_and_the_rest_goes_on() {
    let mut outbox = Box::new(Rules::default());
    outbox.tell(Input::Pause { scope: Some("a".into()), paused: true });
    outbox.queue(1, brief("a"));
    outbox.queue(2, brief("b"));
    assert_eq!(outbox.take_sent(), [2]);
    outbox.tell(Input::Pause { scope: None, paused: true });
    outbox.tell(Input::Pause { scope: Some("a".into()), paused: false });
    outbox.queue(3, brief("c"));
    assert_eq!(outbox.take_sent(), NONE);
    outbox.tell(Input::Pause { scope: None, paused: false });
    assert_eq!(outbox.take_sent(), [1, 3]);
}

#[test]
fn the_key_is_one_through_retries_and_owners_and_another_after_a_refusal() {
    let mut outbox = Box::new(Rules::default());
    outbox.queue(1, Brief { on_conflict: OnConflict::ClientWins, ..brief("") });
    outbox.answer(1, lost());
    let life = outbox.lives(1);
    let mut next = Box::of(Outbox::new(Rules::default(), Epoch(4)));
    next.ms = 1000;
    next.tell(Input::Queued {
        id: id(1),
        brief: Brief { on_conflict: OnConflict::ClientWins, ..brief("") },
        life,
    });
    assert_eq!(outbox.sent[0], next.sent[0], "the bytes are sent under the key that they had");
    next.answer(1, response(409));
    assert_eq!(next.sent.len(), 1, "the former owner may still send it");
    assert!(next.outbox.may_still_be_sent(id(1)));
    next.tell(Input::Released { epoch: Epoch(3) });
    assert_eq!(next.sent[1].1, next.sent[0].1, "it may have got through meanwhile");
    next.answer(1, response(409));
    assert_eq!(next.sent[2].1, format!("{}.1", next.sent[0].1));
    next.answer(1, response(200));
    assert_eq!(next.outcomes, [(1, Status::Done, false)]);
}

#[test]
fn a_conflict_is_followed_as_its_policy_says() {
    for (on_conflict, expected) in [
        (OnConflict::ServerWins, Some(Status::Rejected)),
        (OnConflict::Manual, Some(Status::Conflict)),
        (OnConflict::ClientWins, None),
    ] {
        let mut outbox = Box::new(Rules::default());
        outbox.queue(1, Brief { on_conflict, ..brief("a") });
        outbox.queue(2, brief("a"));
        outbox.answer(1, response(412));
        assert_eq!(outbox.outcomes.first().map(|(_, status, _)| *status), expected, "{on_conflict:?}");
        let next = if expected.is_some() { 2 } else { 1 };
        assert_eq!(outbox.take_sent(), [1, next], "{on_conflict:?}");
    }
}

#[test]
fn one_kept_aside_goes_out_again_under_another_key_when_somebody_says_so() {
    let mut outbox = Box::new(Rules::default());
    outbox.queue(1, Brief { on_conflict: OnConflict::Manual, ..brief("a") });
    outbox.answer(1, response(412));
    assert_eq!(outbox.wish(1, Wish::Retry), Ok(()));
    assert_eq!(outbox.sent[1].1, Outbox::key(id(1), 1));
    outbox.answer(1, response(200));
    assert_eq!(outbox.wish(1, Wish::Retry), Err(WishError::Unknown));
}

#[test]
fn what_may_have_arrived_at_a_server_without_keys_is_parked_and_holds_its_scope() {
    for (answer, expected) in [
        (lost(), Some(Status::Parked)),
        (response(500), Some(Status::Parked)),
        (response(504), Some(Status::Parked)),
        (response(503), None),
        (response(429), None),
        (Answer::NotSent { why: "refused".into() }, None),
    ] {
        let mut outbox = Box::new(Rules::default());
        outbox.queue(1, Brief { delivery: Delivery::AtMostOnce, ..brief("a") });
        outbox.queue(2, brief("a"));
        outbox.answer(1, answer.clone());
        outbox.pass(3_600_000);
        assert_eq!(outbox.outcomes.first().map(|(_, status, _)| *status), expected, "{answer:?}");
        if expected.is_some() {
            assert_eq!(outbox.take_sent(), [1], "{answer:?}: the next one waits, and it is not sent again");
            assert_eq!(outbox.sync.last(), Some(&SyncStatus { state: SyncState::Error, pending: 2 }));
            assert_eq!(outbox.wish(1, Wish::Discard), Ok(()));
            assert_eq!(outbox.outcomes[1], (1, Status::Discarded, true));
            assert_eq!(outbox.take_sent(), [2]);
        } else {
            assert_eq!(outbox.take_sent(), [1, 1], "{answer:?}: it cannot have been applied");
        }
    }
}

#[test]
fn an_attempt_of_a_dead_owner_at_a_server_without_keys_is_parked_when_it_is_known_to_be_dead() {
    let life = Life::of([&Mark::Sending { epoch: Epoch(2), at: START }]);
    let mut outbox = Box::new(Rules::default());
    let brief = Brief { delivery: Delivery::AtMostOnce, ..brief("a") };
    outbox.tell(Input::Queued { id: id(1), brief, life });
    outbox.pass(60_000);
    assert_eq!((outbox.take_sent(), outbox.outcomes.len()), (vec![], 0));
    assert_eq!(outbox.wish(1, Wish::Discard), Err(WishError::MayBeSent));
    outbox.tell(Input::Released { epoch: Epoch(2) });
    assert_eq!(outbox.outcomes, [(1, Status::Parked, true)]);
    assert_eq!(outbox.take_sent(), NONE);
    assert_eq!(outbox.wish(1, Wish::Retry), Ok(()), "somebody who knows better may");
    assert_eq!(outbox.sent, [(1, Outbox::key(id(1), 1))]);
}

#[test]
fn a_key_that_the_server_forgot_is_not_sent_again() {
    let window = Rules::default().window;
    let day = u64::try_from(window.as_millis()).unwrap();
    for (age, expected) in [(day - 1, None), (day, Some(Status::Parked))] {
        let life = Life::of([&Mark::Sending { epoch: Epoch(2), at: START - age }]);
        let mut outbox = Box::new(Rules::default());
        outbox.tell(Input::Released { epoch: Epoch(2) });
        outbox.tell(Input::Queued { id: id(1), brief: brief("a"), life });
        assert_eq!(outbox.outcomes.first().map(|(_, status, _)| *status), expected, "{age} ms");
        assert_eq!(outbox.take_sent().len(), usize::from(expected.is_none()), "{age} ms");
    }
}

#[test]
fn a_refusal_waits_until_nobody_can_send_what_was_refused() {
    let life = Life::of([&Mark::Sending { epoch: Epoch(2), at: START }]);
    let mut outbox = Box::new(Rules::default());
    outbox.tell(Input::Queued { id: id(1), brief: brief("a"), life });
    outbox.queue(2, brief("a"));
    outbox.answer(1, response(422));
    outbox.pass(60_000);
    assert_eq!(outbox.outcomes, []);
    assert_eq!(outbox.take_sent(), [1], "the later one of the scope waits too");
    outbox.tell(Input::Released { epoch: Epoch(2) });
    assert_eq!(outbox.take_sent(), [1], "the former owner's attempt may have got another answer");
    outbox.answer(1, response(422));
    assert_eq!(outbox.outcomes, [(1, Status::Rejected, false)]);
    assert_eq!(outbox.take_sent(), [2]);
}

#[test]
fn wishes_that_cannot_be_met_say_why() {
    let mut outbox = Box::new(Rules::default());
    outbox.queue(1, brief("a"));
    outbox.queue(2, brief("a"));
    assert_eq!(outbox.wish(9, Wish::Retry), Err(WishError::Unknown));
    assert_eq!(outbox.wish(1, Wish::Discard), Err(WishError::Sending));
    assert_eq!(outbox.wish(2, Wish::Retry), Err(WishError::NotEnded));
    assert_eq!(outbox.wish(2, Wish::Discard), Ok(()));
    assert_eq!(outbox.outcomes, [(2, Status::Discarded, false)]);
    outbox.answer(1, lost());
    assert_eq!(outbox.wish(1, Wish::Discard), Err(WishError::Sending), "its attempt may have been applied");
}

#[test]
fn one_that_is_tried_again_goes_before_the_later_ones_of_its_scope_but_beside_none() {
    let mut outbox = Box::new(Rules { attempts: 1, ..Rules::default() });
    for seq in 1..=3 {
        outbox.queue(seq, brief("a"));
    }
    outbox.answer(1, response(500));
    assert_eq!(outbox.take_sent(), [1, 2]);
    assert_eq!(outbox.wish(1, Wish::Retry), Ok(()));
    assert_eq!(outbox.take_sent(), NONE, "2 is on its way");
    outbox.answer(2, response(200));
    assert_eq!(outbox.take_sent(), [1]);
    outbox.answer(1, response(200));
    assert_eq!(outbox.take_sent(), [3]);
}

#[test]
fn an_answer_that_nobody_waits_for_changes_nothing() {
    let mut outbox = Box::new(Rules::default());
    outbox.queue(1, brief("a"));
    outbox.answer(1, response(500));
    let marks = outbox.marks.clone();
    outbox.answer(1, response(200));
    outbox.answer(5, response(200));
    outbox.tell(Input::Committed { id: id(1) });
    assert_eq!((outbox.marks, outbox.outcomes), (marks, vec![]));
}

#[test]
fn the_state_of_the_whole_is_told_when_it_changes() {
    let mut outbox = Box::new(Rules::default());
    let told = |state, pending| SyncStatus { state, pending };
    outbox.queue(1, brief("a"));
    outbox.queue(2, brief("a"));
    outbox.answer(1, response(500));
    outbox.pass(1000);
    outbox.answer(1, response(200));
    outbox.answer(2, response(200));
    let told: Vec<_> = [
        told(SyncState::Syncing, 1),
        told(SyncState::Syncing, 2),
        told(SyncState::Error, 2),
        told(SyncState::Syncing, 2),
        told(SyncState::Syncing, 1),
        told(SyncState::Idle, 0),
    ]
    .into();
    assert_eq!(outbox.sync, told);
}
