//! Claims: one file per epoch, which makes a session the owner of that epoch.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Component, Path},
    time::{Duration, SystemTime},
};

use paceline_proto::{
    id::{Epoch, Nonce, SessionId},
    limits::CLAIMS_KEPT,
    program::ProtoRange,
};

use crate::{
    dirs::{StateDir, database_name, socket_name},
    lock::{self, LockState},
    os,
    process::ProcessMark,
};

/// Version of the text below. Readers ignore keys they do not know, so it grows only when old keys change their meaning.
const FORMAT: u32 = 1;
/// A body is far shorter; what is behind this is not ours.
const BODY_MAX: u64 = 8 << 10;
/// Characters kept of a label or a build, which are for people.
const TEXT_MAX: usize = 200;

/// What a claim says about its owner. The epoch is in the file's name only: a kit is made before its epoch is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimBody {
    /// Names the kit and proves to the owner that a peer could read the claim.
    pub nonce: Nonce,
    /// The owner's session.
    pub session: SessionId,
    /// A name for people; control characters become spaces, at most 200 characters.
    pub label: String,
    /// The owner's process: a hint for [`crate::process::is_stopped`] and for people, never a proof.
    pub process: ProcessMark,
    /// Build of the owner's binary, for people; treated like `label`.
    pub build: String,
    /// Protocol versions the owner speaks.
    pub proto: ProtoRange,
    /// Schema of the owner's database.
    pub schema: u32,
    /// The lowest schema a build must know to read that database. A build below it never claims over this claim.
    pub min_reader: u32,
    /// File name of the owner's socket below `s/`.
    pub socket: String,
    /// File name of the owner's queue database below `S`.
    pub database: String,
}

/// Who is about to make a kit: everything of a claim's body that does not follow from its nonce.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimant {
    /// The session.
    pub session: SessionId,
    /// A name for people.
    pub label: String,
    /// Build of the binary.
    pub build: String,
    /// Protocol versions spoken.
    pub proto: ProtoRange,
    /// Schema of the databases it writes.
    pub schema: u32,
    /// Lowest schema that can read them.
    pub min_reader: u32,
}

impl ClaimBody {
    /// The body of a claim by this process.
    pub fn new(nonce: Nonce, claimant: Claimant) -> Self {
        let Claimant { session, label, build, proto, schema, min_reader } = claimant;
        Self {
            nonce,
            session,
            label: for_people(&label),
            process: ProcessMark::own(),
            build: for_people(&build),
            proto,
            schema,
            min_reader,
            socket: socket_name(nonce),
            database: database_name(nonce),
        }
    }

    /// The text of the file: `key=value` lines, closed by `end=1` so that a cut body is recognised.
    pub fn to_text(&self) -> String {
        let ProcessMark { pid, start_time, boot_id } = self.process;
        let lines = [
            ("format", FORMAT.to_string()),
            ("nonce", self.nonce.to_string()),
            ("session", self.session.to_string()),
            ("label", for_people(&self.label)),
            ("pid", pid.to_string()),
            ("start_time", start_time.to_string()),
            ("boot_id", format!("{boot_id:032x}")),
            ("build", for_people(&self.build)),
            ("proto_min", self.proto.min.to_string()),
            ("proto_max", self.proto.max.to_string()),
            ("schema", self.schema.to_string()),
            ("min_reader", self.min_reader.to_string()),
            ("socket", self.socket.clone()),
            ("database", self.database.clone()),
            ("end", "1".to_owned()),
        ];
        lines.iter().map(|(key, value)| format!("{key}={value}\n")).collect()
    }

    /// Reads the text of a claim. `None` = owner unknown: empty, cut, or without a key that is needed to reach the
    /// owner. Unknown keys are ignored; what is only for people may be missing.
    pub fn from_text(text: &str) -> Option<Self> {
        let text = text.strip_suffix("end=1\n")?;
        let value = |key: &str| {
            text.lines()
                .find_map(|line| line.split_once('=').filter(|(found, _)| *found == key))
                .map(|(_, v)| v)
        };
        fn number<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
            text?.parse().ok()
        }
        let file_name = |key| value(key).filter(|name| is_plain_name(name)).map(str::to_owned);
        Some(Self {
            nonce: number(value("nonce"))?,
            session: number(value("session"))?,
            label: value("label").unwrap_or_default().to_owned(),
            process: ProcessMark {
                pid: number(value("pid")).unwrap_or_default(),
                start_time: number(value("start_time")).unwrap_or_default(),
                boot_id: value("boot_id")
                    .and_then(|id| u128::from_str_radix(id, 16).ok())
                    .unwrap_or_default(),
            },
            build: value("build").unwrap_or_default().to_owned(),
            proto: ProtoRange { min: number(value("proto_min"))?, max: number(value("proto_max"))? },
            schema: number(value("schema"))?,
            min_reader: number(value("min_reader"))?,
            socket: file_name("socket")?,
            database: file_name("database")?,
        })
    }
}

/// A claim as another session sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimSeen {
    /// What it says; `None` = owner unknown (missing, unreadable, empty or cut).
    pub body: Option<ClaimBody>,
    /// Whether its owner's process exists.
    pub lock: LockState,
}

/// The epochs claimed, ascending. Names that are not epochs are ignored.
///
/// The listing is not atomic: a claim linked meanwhile may be missing from it, which is why a claimer lists again
/// after its link.
///
/// # Errors
/// As `readdir`. The listing changed nothing; an error must not be read as "no claims".
pub fn list_claims(dir: &StateDir) -> io::Result<Vec<Epoch>> {
    let mut epochs = Vec::new();
    for entry in fs::read_dir(dir.claims())? {
        epochs.extend(entry?.file_name().to_str().and_then(epoch_of));
    }
    epochs.sort_unstable();
    Ok(epochs)
}

/// Whether a higher epoch than `epoch` is claimed.
///
/// # Errors
/// As [`list_claims`].
pub fn listed_above(dir: &StateDir, epoch: Epoch) -> io::Result<bool> {
    Ok(list_claims(dir)?.last().is_some_and(|&highest| highest > epoch))
}

/// Whether the reign of `epoch` has ended, for a session that does not own it: a successor has claimed. Looks at the two claims
/// in the order of the fence; what cannot be seen counts as ended.
pub fn is_over(dir: &StateDir, epoch: Epoch) -> bool {
    let is_there = |epoch| fs::symlink_metadata(dir.claim(epoch)).map(drop);
    let absent = |seen: io::Result<()>| seen.is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    !absent(is_there(Epoch(epoch.0 + 1))) || is_there(epoch).is_err()
}

/// Reads the claim of `epoch` and tests its lock, on a descriptor of its own. Never waits for the owner.
pub fn inspect_claim(dir: &StateDir, epoch: Epoch) -> ClaimSeen {
    match os::no_follow().read(true).open(dir.claim(epoch)) {
        Ok(file) => ClaimSeen { body: read_body(&file), lock: lock::test(&file) },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ClaimSeen { body: None, lock: LockState::Missing }
        }
        Err(error) => ClaimSeen { body: None, lock: LockState::Unreadable(error.to_string()) },
    }
}

/// When the claim of `epoch` was linked, for people: a link changes the inode, and nothing does after it.
pub fn claimed_at(dir: &StateDir, epoch: Epoch) -> Option<SystemTime> {
    let found = fs::symlink_metadata(dir.claim(epoch)).ok()?;
    let (seconds, nanos) = (u64::try_from(found.ctime()).ok()?, u32::try_from(found.ctime_nsec()).ok()?);
    Some(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos))
}

/// Removes old claims: lists first, then unlinks **ascending** from that list. The newest 16 stay, and so does every
/// claim at or above `keep_from` (the lowest epoch that an undecided send names). Returns what this call removed.
///
/// **Invariant:** no claim is gone while a lower one is still there. A sleeping owner looks for its successor's claim
/// first and for its own second; were the successor's removed first, it would find itself unfenced.
///
/// May run while the group lives, in any session and in several at once.
///
/// # Errors
/// The first failure ends the collection, and nothing above it is removed. A retry is safe.
pub fn collect_claims(dir: &StateDir, keep_from: Option<Epoch>) -> io::Result<Vec<Epoch>> {
    let listed = list_claims(dir)?;
    let old = listed.len().saturating_sub(CLAIMS_KEPT);
    let mut removed = Vec::new();
    for &epoch in listed[..old].iter().take_while(|&&epoch| keep_from.is_none_or(|bound| epoch < bound)) {
        if lock::remove(&dir.claim(epoch))? {
            removed.push(epoch);
        }
    }
    Ok(removed)
}

/// Makes the names of claims durable: `claims/`, `S`, and once per opened directory the parents. Wanted before an owner
/// commits `complete`, so that a power loss never keeps a database and loses the claim it belongs to.
///
/// # Errors
/// As `fsync`. Whether the names are durable is then unknown, and **a retry proves nothing**: claim again with another kit.
pub fn sync_claims(dir: &StateDir) -> io::Result<()> {
    os::sync_dir(&dir.claims())?;
    os::sync_dir(dir.root())?;
    dir.sync_parents()
}

pub(crate) fn read_body(file: &File) -> Option<ClaimBody> {
    let mut bytes = Vec::new();
    file.take(BODY_MAX).read_to_end(&mut bytes).ok()?;
    ClaimBody::from_text(std::str::from_utf8(&bytes).ok()?)
}

/// Only the one spelling of a number is its name, so that no epoch has two files.
fn epoch_of(name: &str) -> Option<Epoch> {
    let epoch = Epoch(name.parse().ok()?);
    (epoch != Epoch::NONE && format!("{:08}", epoch.0) == name).then_some(epoch)
}

pub(crate) fn for_people(text: &str) -> String {
    text.chars().take(TEXT_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A name of one file, as this program gives them: without a line's end, which the text of a claim could not hold.
fn is_plain_name(name: &str) -> bool {
    if name.contains(char::is_control) {
        return false;
    }
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    pub(crate) fn body(nonce: u128) -> ClaimBody {
        let claimant = Claimant {
            session: SessionId(0x17),
            label: "editor".to_owned(),
            build: "1.2.3".to_owned(),
            proto: ProtoRange { min: 1, max: 2 },
            schema: 4,
            min_reader: 3,
        };
        ClaimBody::new(Nonce(nonce), claimant)
    }

    pub(crate) fn state_dir() -> (tempfile::TempDir, StateDir) {
        let base = tempfile::tempdir().unwrap();
        let dir = StateDir::open(&"g".parse().unwrap(), None, Some(base.path())).unwrap();
        (base, dir)
    }

    fn plant(dir: &StateDir, epochs: impl IntoIterator<Item = u64>) {
        for epoch in epochs {
            fs::write(dir.claim(Epoch(epoch)), b"").unwrap();
        }
    }

    fn epochs(dir: &StateDir) -> Vec<u64> {
        list_claims(dir).unwrap().into_iter().map(|epoch| epoch.0).collect()
    }

    #[test]
    fn bodies_read_back_what_was_written() {
        let body = body(0xfeed);
        assert_eq!(ClaimBody::from_text(&body.to_text()), Some(body.clone()));
        assert!(body.to_text().contains("\nsocket=0000feed.sock\n"));
        assert!(body.to_text().contains(&format!("\npid={}\n", std::process::id())));
    }

    #[test]
    fn a_body_cut_anywhere_has_no_owner() {
        let text = body(1).to_text();
        for end in 0..text.len() {
            assert_eq!(ClaimBody::from_text(&text[..end]), None, "cut at {end}");
        }
    }

    #[test]
    fn unknown_keys_are_ignored_and_needed_ones_needed() {
        let text = body(1).to_text();
        let newer = text.replace("nonce=", "colour=blue\na line\n=\nnonce=").replace("format=1", "format=9");
        assert_eq!(ClaimBody::from_text(&newer), Some(body(1)));
        let without = |key: &str| {
            let lines = text.lines().filter(|line| !line.starts_with(&format!("{key}=")));
            ClaimBody::from_text(&lines.map(|line| format!("{line}\n")).collect::<String>())
        };
        for key in
            ["nonce", "session", "proto_min", "proto_max", "schema", "min_reader", "socket", "database"]
        {
            assert_eq!(without(key), None, "{key}");
        }
        for key in ["format", "label", "pid", "start_time", "boot_id", "build"] {
            assert!(without(key).is_some(), "{key}");
        }
    }

    #[test]
    fn text_for_people_cannot_add_lines_and_names_cannot_leave_the_directory() {
        let mut rude = body(1);
        rude.label = "x\nnonce=2\r".to_owned();
        assert_eq!(ClaimBody::from_text(&rude.to_text()).unwrap().label, "x nonce=2 ");
        assert_eq!(ClaimBody::from_text(&rude.to_text()).unwrap().nonce, Nonce(1));
        for name in ["", "/", "a/b", "../a", "..", ".", "./a", "a/"] {
            let mut away = body(1);
            away.socket = name.to_owned();
            assert_eq!(ClaimBody::from_text(&away.to_text()), None, "{name:?}");
        }
    }

    #[test]
    fn claims_are_listed_in_order_and_strangers_ignored() {
        let (_base, dir) = state_dir();
        plant(&dir, [100_000_000, 2, 10]);
        for stranger in ["00000000", "0000003", "000000004", "5", "+0000006", "0000000a", "00000007.tmp"] {
            fs::write(dir.claims().join(stranger), b"").unwrap();
        }
        assert_eq!(epochs(&dir), [2, 10, 100_000_000]);
        assert!(listed_above(&dir, Epoch(99_999_999)).unwrap());
        assert!(!listed_above(&dir, Epoch(100_000_000)).unwrap());
    }

    #[test]
    fn a_listing_that_fails_is_no_empty_listing() {
        let (_base, dir) = state_dir();
        fs::remove_dir(dir.claims()).unwrap();
        assert!(list_claims(&dir).is_err());
        assert!(listed_above(&dir, Epoch(1)).is_err());
    }

    #[test]
    fn claims_are_seen_as_they_are() {
        let (_base, dir) = state_dir();
        let unknown = |lock| ClaimSeen { body: None, lock };
        assert_eq!(inspect_claim(&dir, Epoch(1)), unknown(LockState::Missing));
        plant(&dir, [1]);
        assert_eq!(inspect_claim(&dir, Epoch(1)), unknown(LockState::Free), "emptied by a power loss");
        fs::write(dir.claim(Epoch(2)), body(5).to_text()).unwrap();
        assert_eq!(inspect_claim(&dir, Epoch(2)), ClaimSeen { body: Some(body(5)), lock: LockState::Free });
        symlink(dir.claim(Epoch(2)), dir.claim(Epoch(3))).unwrap();
        assert!(matches!(inspect_claim(&dir, Epoch(3)).lock, LockState::Unreadable(_)));
    }

    #[test]
    fn the_newest_sixteen_stay() {
        for (count, removed) in [(0, 0), (16, 0), (17, 1), (40, 24)] {
            let (_base, dir) = state_dir();
            plant(&dir, 1..=count);
            let gone: Vec<u64> =
                collect_claims(&dir, None).unwrap().into_iter().map(|epoch| epoch.0).collect();
            assert_eq!(gone, (1..=removed).collect::<Vec<_>>(), "{count} claims, lowest first");
            assert_eq!(epochs(&dir), (removed + 1..=count).collect::<Vec<_>>());
        }
    }

    #[test]
    fn claims_that_a_send_names_stay_with_all_above() {
        for (bound, removed) in [(1, 0), (2, 1), (4, 3), (5, 4), (6, 4)] {
            let (_base, dir) = state_dir();
            plant(&dir, 1..=20);
            assert_eq!(collect_claims(&dir, Some(Epoch(bound))).unwrap().len(), removed, "bound {bound}");
            assert_eq!(epochs(&dir)[0], removed as u64 + 1);
        }
    }

    #[test]
    fn a_claim_that_cannot_be_removed_keeps_all_above_it() {
        let (_base, dir) = state_dir();
        plant(&dir, (1..=20).filter(|&epoch| epoch != 2));
        fs::create_dir(dir.claim(Epoch(2))).unwrap();
        assert!(collect_claims(&dir, None).is_err());
        assert_eq!(epochs(&dir), (2..=20).collect::<Vec<_>>());
    }

    #[test]
    fn syncing_reports_what_is_missing() {
        let (_base, dir) = state_dir();
        sync_claims(&dir).unwrap();
        fs::remove_dir(dir.claims()).unwrap();
        assert!(sync_claims(&dir).is_err());
    }

    #[test]
    fn a_reign_is_over_once_the_next_is_claimed_and_when_its_own_claim_is_gone() {
        let (_base, dir) = state_dir();
        plant(&dir, [3]);
        assert!(!is_over(&dir, Epoch(3)));
        plant(&dir, [4]);
        assert!(is_over(&dir, Epoch(3)) && !is_over(&dir, Epoch(4)));
        fs::remove_file(dir.claim(Epoch(4))).unwrap();
        fs::remove_file(dir.claim(Epoch(3))).unwrap();
        assert!(is_over(&dir, Epoch(3)), "it was collected");
    }
}
