//! A token that rotates: what is on record of it, and what may be done with it.
//!
//! A refresh token can be used once. Whether a use counted whose answer nobody saw, nobody can know. So a use is on record
//! before it begins, and the record alone decides what follows, whoever reads it.
//!
//! **Invariant:** a refresh token is used again only where the server's answer shows that the use before did not count, or
//! within the time for which the server is said to forgive it.

mod answer;

use std::{fmt, time::Duration};

use paceline_proto::{id::Epoch, time::Time};
use serde::{Deserialize, Serialize};

use crate::protocol::Secret;

pub use answer::{Answer, Paths, read_answer};

/// Seeds that are remembered: one that was taken is not taken again.
pub const SEEDS_MAX: usize = 16;

/// A moment of one boot of the machine: the clock that never goes back begins anew with each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The boot; 0 where the system does not tell.
    pub boot: u128,
    /// Since it began.
    pub time: Time,
}

/// What is on record of a token. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Grows by one with each rotation; 0: only a seed is there.
    generation: u64,
    refresh: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    access: Option<Access>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<Use>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    needs_auth: Option<String>,
    /// Digests of the seeds that were taken, the last one last.
    seeds: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Access {
    token: String,
    #[serde(with = "hexadecimal")]
    boot: u128,
    /// It came of a request that began then.
    since: Time,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    life: Option<Life>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Life {
    due: Time,
    ends: Time,
}

/// A use of the refresh token that began and has no outcome yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Use {
    #[serde(with = "hexadecimal")]
    boot: u128,
    /// When the first use of this refresh token began.
    first: Time,
    /// It is not the first one.
    repeated: bool,
    epoch: Epoch,
    pid: u32,
}

/// The record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the record of a token: {0}; a newer build wrote it, or it is damaged")]
pub struct RecordError(String);

/// The first refresh token, as the configuration gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seed {
    /// The token.
    pub refresh: Secret,
    /// Its digest, which says nothing of it.
    pub digest: String,
}

/// Who wants a token, and by which rules.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// One that is younger than this generation.
    pub after: u64,
    /// Now.
    pub now: Moment,
    /// A use without an outcome may be repeated for so long.
    pub grace: Duration,
    /// The seed of who asks.
    pub seed: Option<&'a Seed>,
    /// The reign.
    pub epoch: Epoch,
    /// The process.
    pub pid: u32,
}

/// What may be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// The access token of the record serves.
    Serve,
    /// Once this record is durable, its refresh token may be used.
    Use(Record),
    /// This is to be recorded: somebody has to sign in.
    NeedsAuth(Record),
    /// There is nothing to begin with.
    NoSeed,
}

impl Record {
    /// Reads what [`Record::to_bytes`] wrote.
    ///
    /// # Errors
    /// Says where; shows nothing of the record.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RecordError> {
        serde_json::from_slice(bytes).map_err(|error| {
            RecordError(format!("{:?} at line {} column {}", error.classify(), error.line(), error.column()))
        })
    }

    /// JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        // Texts and numbers: this cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Grows by one with each rotation.
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// The refresh token, for the one request that uses it.
    pub fn refresh(&self) -> Secret {
        Secret::new(&self.refresh)
    }

    /// Why somebody has to sign in.
    pub fn needs_auth(&self) -> Option<&str> {
        self.needs_auth.as_deref()
    }

    /// The access token, while it is valid.
    pub fn access(&self, now: Moment) -> Option<Secret> {
        let access = self.access.as_ref().filter(|access| access.is_of(now))?;
        let valid = access.life.is_none_or(|life| now.time < life.ends);
        valid.then(|| Secret::new(&access.token))
    }

    /// How long the access token serves without a refresh; `None` for ever, zero when it is due.
    pub fn due_in(&self, now: Moment) -> Option<Duration> {
        let Some(access) = self.access.as_ref().filter(|access| access.is_of(now)) else {
            return Some(Duration::ZERO);
        };
        access.life.map(|life| life.due.since(now.time))
    }

    /// Whether it has a token younger than `after` that is not due.
    pub fn serves(&self, after: u64, now: Moment) -> bool {
        self.generation > after && self.access(now).is_some() && self.due_in(now) != Some(Duration::ZERO)
    }

    /// What may be done for who asks. Only who holds the token's lock may do it.
    pub fn next(record: Option<Self>, asked: &Asked<'_>) -> Next {
        let mut record = match (record, asked.seed) {
            (Some(record), _) => record,
            (None, Some(seed)) => Self::of_seed(seed),
            (None, None) => return Next::NoSeed,
        };
        if record.serves(asked.after, asked.now) {
            return Next::Serve;
        }
        record.give_up(asked);
        if record.needs_auth.is_some() && !record.take_seed(asked.seed) {
            return Next::NeedsAuth(record);
        }
        let (boot, now) = (asked.now.boot, asked.now.time);
        let (first, repeated) = record.used.map_or((now, false), |used| (used.first, true));
        record.used = Some(Use { boot, first, repeated, epoch: asked.epoch, pid: asked.pid });
        Next::Use(record)
    }

    /// What is to be recorded when the seed of who asks is a new sign-in, and one is needed.
    pub fn signed_in(mut self, asked: &Asked<'_>) -> Option<Self> {
        self.give_up(asked);
        (self.needs_auth.is_some() && self.take_seed(asked.seed)).then_some(self)
    }

    /// What is to be recorded once the use has an outcome. The request began at `sent`; the token counts as due `before` its
    /// end, or half-way where its life is short.
    pub fn after(self, answer: &Answer, sent: Moment, before: Duration) -> Self {
        match answer {
            Answer::Rotated { access, refresh, expires_in } => Self {
                generation: self.generation + 1,
                refresh: refresh.as_ref().map_or(self.refresh, |refresh| refresh.reveal().to_owned()),
                access: Some(Access {
                    token: access.reveal().to_owned(),
                    boot: sent.boot,
                    since: sent.time,
                    life: expires_in.map(|life| Life {
                        due: sent.time + life.saturating_sub(before.min(life / 2)),
                        ends: sent.time + life,
                    }),
                }),
                used: None,
                needs_auth: None,
                seeds: self.seeds,
            },
            Answer::Refused(why) => Self { used: None, needs_auth: Some(why.clone()), ..self },
            Answer::Declined(_) => self.withdrawn(),
            Answer::Unknown(_) => self,
        }
    }

    /// What is to be recorded when the use did not happen after all.
    pub fn withdrawn(self) -> Self {
        Self { used: self.used.filter(|used| used.repeated), ..self }
    }

    fn of_seed(seed: &Seed) -> Self {
        Self {
            generation: 0,
            refresh: seed.refresh.reveal().to_owned(),
            access: None,
            used: None,
            needs_auth: None,
            seeds: vec![seed.digest.clone()],
        }
    }

    /// A use whose outcome nobody can know any more ends it.
    fn give_up(&mut self, asked: &Asked<'_>) {
        if self.needs_auth.is_none() && self.used.is_some_and(|used| !used.is_forgiven(asked)) {
            self.needs_auth = Some(UNKNOWN.to_owned());
        }
    }

    /// Somebody signed in, if the seed is a new one.
    fn take_seed(&mut self, seed: Option<&Seed>) -> bool {
        let Some(seed) = seed.filter(|seed| !self.seeds.contains(&seed.digest)) else { return false };
        self.seeds.push(seed.digest.clone());
        if self.seeds.len() > SEEDS_MAX {
            self.seeds.remove(0);
        }
        seed.refresh.reveal().clone_into(&mut self.refresh);
        (self.used, self.needs_auth) = (None, None);
        true
    }
}

const UNKNOWN: &str = "a refresh ended without an answer, and the server may have counted it";

impl Access {
    /// Its times are those of the boot that runs.
    fn is_of(&self, now: Moment) -> bool {
        self.boot == now.boot && self.since <= now.time
    }
}

impl Use {
    fn is_forgiven(&self, asked: &Asked<'_>) -> bool {
        self.boot == asked.now.boot
            && self.first <= asked.now.time
            && asked.now.time.since(self.first) < asked.grace
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("generation", &self.generation)
            .field("used", &self.used)
            .field("needs_auth", &self.needs_auth)
            .finish_non_exhaustive()
    }
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(number: &u128, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{number:032x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u128, D::Error> {
        let text = String::deserialize(deserializer)?;
        u128::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Duration = Duration::from_secs(60);
    const BOOT: u128 = 7;

    fn at(seconds: u64) -> Moment {
        Moment { boot: BOOT, time: Time::ZERO + Duration::from_secs(seconds) }
    }

    fn seed(text: &str) -> Seed {
        Seed { refresh: Secret::new(text), digest: format!("digest of {text}") }
    }

    fn asked<'a>(after: u64, seconds: u64, grace: u64, seed: Option<&'a Seed>) -> Asked<'a> {
        let (now, grace) = (at(seconds), Duration::from_secs(grace));
        Asked { after, now, grace, seed, epoch: Epoch(3), pid: 42 }
    }

    fn rotated(access: &str, refresh: &str, expires_in: u64) -> Answer {
        Answer::Rotated {
            access: Secret::new(access),
            refresh: Some(Secret::new(refresh)),
            expires_in: Some(Duration::from_secs(expires_in)),
        }
    }

    fn used(next: Next) -> Record {
        match next {
            Next::Use(record) => record,
            other => panic!("{other:?}"),
        }
    }

    /// A record with the first pair, of a request that began at the second 100 and brought a life of 600 s.
    fn first_pair() -> Record {
        let record = used(Record::next(None, &asked(0, 100, 0, Some(&seed("s")))));
        record.after(&rotated("a1", "r1", 600), at(100), BEFORE)
    }

    #[test]
    fn a_token_serves_until_it_is_due_and_is_valid_until_it_ends() {
        let record = first_pair();
        assert_eq!((record.generation(), record.refresh().reveal()), (1, "r1"));
        for (seconds, valid, serves) in
            [(100, true, true), (639, true, true), (640, true, false), (700, false, false)]
        {
            assert_eq!(record.access(at(seconds)).is_some(), valid, "{seconds}");
            assert_eq!(record.serves(0, at(seconds)), serves, "{seconds}");
        }
        assert!(!record.serves(1, at(100)), "whoever saw it rejected wants a younger one");
        let other = Moment { boot: BOOT + 1, ..at(200) };
        assert_eq!(record.access(other), None, "nothing is known of its age after another boot");
        assert_eq!(record.access(at(99)), None, "nor on a clock that went back");
    }

    #[test]
    fn a_short_life_is_due_half_way_and_an_endless_one_never() {
        let record = used(Record::next(None, &asked(0, 100, 0, Some(&seed("s")))));
        let short = record.clone().after(&rotated("a", "r", 30), at(100), BEFORE);
        assert_eq!(short.due_in(at(100)), Some(Duration::from_secs(15)));
        let answer = Answer::Rotated { access: Secret::new("a"), refresh: None, expires_in: None };
        let endless = record.after(&answer, at(100), BEFORE);
        assert_eq!((endless.due_in(at(u32::MAX.into())), endless.refresh().reveal()), (None, "s"));
    }

    #[test]
    fn a_use_without_an_outcome_is_repeated_within_the_grace_and_never_after_it() {
        let intent = used(Record::next(Some(first_pair()), &asked(1, 700, 0, None)));
        assert_eq!(intent.refresh().reveal(), "r1");
        let next = |seconds, grace| Record::next(Some(intent.clone()), &asked(1, seconds, grace, None));
        assert!(matches!(next(700, 0), Next::NeedsAuth(_)), "no grace at all");
        let again = used(next(709, 10));
        assert_eq!(again.refresh().reveal(), "r1");
        assert!(matches!(next(710, 10), Next::NeedsAuth(_)));
        let third = Record::next(Some(again.clone()), &asked(1, 710, 10, None));
        assert!(matches!(third, Next::NeedsAuth(_)), "the grace counts from the first use");
        let other = Moment { boot: BOOT + 1, ..at(705) };
        let rebooted = Record::next(Some(intent.clone()), &Asked { now: other, ..asked(1, 705, 10, None) });
        assert!(matches!(rebooted, Next::NeedsAuth(_)));
        let back = Record::next(Some(intent), &asked(1, 699, 10, None));
        assert!(matches!(back, Next::NeedsAuth(_)), "a clock that went back proves nothing");
    }

    #[test]
    fn what_did_not_count_leaves_the_token_good_and_an_older_unknown_use_unknown() {
        let declined = Answer::Declined("429".to_owned());
        let intent = used(Record::next(Some(first_pair()), &asked(1, 700, 10, None)));
        let left = intent.clone().after(&declined, at(700), BEFORE);
        used(Record::next(Some(left), &asked(1, 9000, 0, None)));
        let again = used(Record::next(Some(intent.clone()), &asked(1, 705, 10, None)));
        for left in [again.clone().after(&declined, at(705), BEFORE), again.withdrawn()] {
            assert!(matches!(Record::next(Some(left), &asked(1, 711, 10, None)), Next::NeedsAuth(_)));
        }
        used(Record::next(Some(intent.withdrawn()), &asked(1, 9000, 0, None)));
    }

    #[test]
    fn a_new_seed_is_a_new_sign_in_and_one_that_was_taken_is_none() {
        let refused = Answer::Refused("invalid_grant".to_owned());
        let intent = used(Record::next(Some(first_pair()), &asked(1, 700, 10, None)));
        let dead = intent.after(&refused, at(700), BEFORE);
        assert_eq!(dead.needs_auth(), Some("invalid_grant"));
        let next = |seed: Option<&Seed>| Record::next(Some(dead.clone()), &asked(1, 701, 10, seed));
        assert!(matches!(next(None), Next::NeedsAuth(_)));
        assert!(matches!(next(Some(&seed("s"))), Next::NeedsAuth(_)), "an old session has the old one");
        assert_eq!(dead.clone().signed_in(&asked(1, 701, 10, Some(&seed("s")))), None);
        assert_eq!(first_pair().signed_in(&asked(1, 701, 10, Some(&seed("t")))), None, "none is needed");
        let recorded = dead.clone().signed_in(&asked(1, 701, 10, Some(&seed("t")))).unwrap();
        assert_eq!((recorded.refresh().reveal(), recorded.needs_auth()), ("t", None));
        let begun = used(next(Some(&seed("t"))));
        assert_eq!((begun.refresh().reveal(), begun.needs_auth()), ("t", None));
        let signed_in = begun.after(&rotated("a2", "r2", 600), at(701), BEFORE);
        assert_eq!(signed_in.generation(), 2, "generations go on");
        let healthy = used(Record::next(Some(signed_in), &asked(2, 702, 0, Some(&seed("u")))));
        assert_eq!(healthy.refresh().reveal(), "r2", "a token that is good is kept");
        assert_eq!(Record::next(None, &asked(0, 1, 0, None)), Next::NoSeed);
    }

    #[test]
    fn as_many_seeds_are_remembered_as_may_be_and_one_more_pushes_out_the_oldest() {
        let mut record = first_pair();
        let mut sign_in = |name: &str| {
            record.needs_auth = Some(String::new());
            record.take_seed(Some(&seed(name)))
        };
        for n in 1..SEEDS_MAX {
            assert!(sign_in(&n.to_string()));
        }
        assert!(!sign_in("s"), "the first one is remembered");
        assert!(sign_in("one more"));
        assert!(sign_in("s"), "it is forgotten");
    }

    #[test]
    fn a_record_reads_back_and_shows_no_secret() {
        let record = used(Record::next(Some(first_pair()), &asked(1, 700, 10, None)));
        assert_eq!(Record::from_bytes(&record.to_bytes()), Ok(record.clone()));
        let shown = format!("{record:?} {:?}", Record::next(Some(record.clone()), &asked(1, 700, 10, None)));
        assert!(shown.contains("generation: 1") && !shown.contains("r1") && !shown.contains("a1"), "{shown}");
        let damaged = [&record.to_bytes()[..20], br#"{"generation":1,"refresh":"hunter2","seeds":[],"x":1}"#];
        for bytes in damaged {
            let error = Record::from_bytes(bytes).unwrap_err().to_string();
            assert!(error.contains("line 1") && !error.contains("hunter2"), "{error}");
        }
    }
}
