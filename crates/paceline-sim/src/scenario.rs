//! What a run is made of: how many sessions, which feeds, how much work, which faults.

use crate::feed::FeedKind;

/// Places between two steps of one process where stopping or killing it is most telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// Claims were listed.
    Listed,
    /// The claim is linked, nothing was checked yet.
    ClaimLinked,
    /// The claims were listed again after the link.
    Relisted,
    /// The claim is won, adoption has not begun.
    ClaimWon,
    /// The predecessor's rows were read.
    AdoptionRead,
    /// Directories are synced, `complete` is not written.
    DirectoriesSynced,
    /// `complete` is written.
    CompleteWritten,
    /// A batch is about to be written.
    CommitBegun,
    /// A batch is written, not synced.
    CommitWritten,
    /// A batch is durable, the fence is not checked.
    CommitSynced,
    /// The first half of a fence was checked.
    FenceHalf,
    /// The fence was checked, the answer is not sent.
    FenceChecked,
    /// The collector removed one claim.
    ClaimCollected,
    /// A fold is durable, its predecessor's file is still there.
    FoldSynced,
    /// Between two effects of one input.
    Effect,
}

/// How often each fault strikes, in thousandths of all faults drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// SIGKILL of a random process; a new session replaces it.
    pub kill: u32,
    /// SIGKILL of the owner.
    pub kill_owner: u32,
    /// SIGKILL of the owner and its heirs: whoever takes over then may know less than others.
    pub kill_heirs: u32,
    /// SIGSTOP of a random process, SIGCONT later.
    pub stop: u32,
    /// SIGSTOP of the owner.
    pub stop_owner: u32,
    /// A process gets little processor time for a while.
    pub starve: u32,
    /// The machine loses power and starts again.
    pub power: u32,
    /// The machine is suspended.
    pub suspend: u32,
    /// The disk is full for a while.
    pub disk_full: u32,
    /// One commit of the owner fails.
    pub write_error: u32,
    /// A session leaves.
    pub leave: u32,
    /// A session asks for a handover.
    pub promote: u32,
    /// A local connection breaks.
    pub cut: u32,
    /// A follower stops reading for a while.
    pub slow_reader: u32,
    /// The owner's socket path is removed or forbidden for a while.
    pub unreachable: u32,
    /// A feed drops its consumer.
    pub feed_cut: u32,
    /// A feed publishes many messages at once.
    pub burst: u32,
    /// A server that replays nothing sets a key back, and the owner fetches it.
    pub set_back: u32,
}

/// A kind of run. One seed and one scenario fix everything that happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Its name, for reports.
    pub name: &'static str,
    /// Sessions at the start; faults keep about so many alive.
    pub sessions: usize,
    /// How many of them never lead.
    pub observers: usize,
    /// How many of them are coordinators.
    pub preferred: usize,
    /// Milliseconds over which the sessions start.
    pub start_within_ms: u64,
    /// Milliseconds of the chaos phase.
    pub chaos_ms: u64,
    /// Milliseconds after which a group that has not come to rest counts as stuck.
    pub heal_ms: u64,
    /// The upstreams.
    pub feeds: Vec<FeedKind>,
    /// Mean milliseconds between two messages of a feed.
    pub publish_ms: u64,
    /// Mean milliseconds between two acts of callers, all sessions together.
    pub work_ms: u64,
    /// Sessions submit mutations.
    pub submits: bool,
    /// Sessions set, merge and invalidate.
    pub operations: bool,
    /// Sessions lay optimistic layers, and commit or take them back.
    pub layers: bool,
    /// Sessions fetch values from a server, which the group's query engine decides about.
    pub queries: bool,
    /// Sessions change their subscriptions.
    pub resubscribe: bool,
    /// Mean milliseconds between two faults; 0 = none.
    pub fault_ms: u64,
    /// Which faults.
    pub faults: Faults,
    /// Longest stop, milliseconds.
    pub stop_ms: u64,
    /// Claims that the collector leaves; small, so that zombies lose theirs within a run.
    pub claims_kept: usize,
    /// Thousandths of passages of a point at which the process is stopped.
    pub point_stop: u32,
    /// Thousandths of passages of a point at which the process is killed.
    pub point_kill: u32,
    /// Stop at this point in half of its passages.
    pub focus: Option<Point>,
    /// Constant starvation of every process: longest extra delay of a turn, microseconds.
    pub busy_us: u64,
    /// Messages of a burst.
    pub burst: u64,
    /// Bytes a socket takes.
    pub pipe_bytes: usize,
    /// The disk says that `claims/` is synced when it is not: a claim's name may be lost after its reign was complete.
    pub claims_sync_lies: bool,
    /// Old segments are folded and their files removed.
    pub fold: bool,
    /// Releases among the sessions, from the oldest; their versions overlap, and the newest writes stores that the oldest cannot
    /// read.
    pub releases: u16,
    /// No takeover may happen at all.
    pub one_reign: bool,
    /// No fault of the scenario keeps a survivor from offering what it saw in time: a gap over such events is wrong.
    pub strict_gaps: bool,
}

const CALM: Scenario = Scenario {
    name: "calm",
    sessions: 4,
    observers: 0,
    preferred: 0,
    start_within_ms: 50,
    chaos_ms: 6_000,
    heal_ms: 60_000,
    feeds: Vec::new(),
    publish_ms: 60,
    work_ms: 40,
    submits: true,
    operations: true,
    layers: false,
    queries: false,
    resubscribe: true,
    fault_ms: 0,
    faults: Faults {
        kill: 0,
        kill_owner: 0,
        kill_heirs: 0,
        stop: 0,
        stop_owner: 0,
        starve: 0,
        power: 0,
        suspend: 0,
        disk_full: 0,
        write_error: 0,
        leave: 0,
        promote: 0,
        cut: 0,
        slow_reader: 0,
        unreachable: 0,
        feed_cut: 0,
        burst: 0,
        set_back: 0,
    },
    stop_ms: 5_000,
    claims_kept: 2,
    point_stop: 0,
    point_kill: 0,
    focus: None,
    busy_us: 0,
    burst: 0,
    pipe_bytes: 180 << 10,
    claims_sync_lies: false,
    fold: true,
    releases: 1,
    one_reign: false,
    strict_gaps: false,
};

impl Scenario {
    /// No faults at all.
    pub fn calm() -> Self {
        Self { feeds: vec![FeedKind::Resumes, FeedKind::Forgets], one_reign: true, ..CALM }
    }

    /// Everything at once.
    pub fn chaos() -> Self {
        let faults = Faults {
            kill: 120,
            kill_owner: 180,
            kill_heirs: 0,
            stop: 100,
            stop_owner: 140,
            starve: 70,
            power: 20,
            suspend: 20,
            disk_full: 30,
            write_error: 30,
            leave: 60,
            promote: 80,
            cut: 70,
            slow_reader: 30,
            unreachable: 20,
            feed_cut: 30,
            burst: 0,
            set_back: 40,
        };
        Self {
            name: "chaos",
            sessions: 5,
            preferred: 1,
            observers: 1,
            feeds: vec![FeedKind::Resumes, FeedKind::Forgets],
            fault_ms: 350,
            faults,
            point_stop: 2,
            point_kill: 2,
            ..CALM
        }
    }

    /// Owners die, others do not: nothing resumable or seen by a survivor may be lost.
    pub fn kills() -> Self {
        let faults = Faults {
            kill: 200,
            kill_owner: 500,
            kill_heirs: 100,
            leave: 80,
            promote: 120,
            set_back: 100,
            ..CALM.faults
        };
        Self {
            name: "kills",
            feeds: vec![FeedKind::Resumes, FeedKind::Forgets],
            publish_ms: 25,
            fault_ms: 450,
            faults,
            point_kill: 3,
            resubscribe: false,
            strict_gaps: true,
            ..CALM
        }
    }

    /// Upstreams of every class under kills, stops and cuts.
    pub fn upstreams() -> Self {
        let faults = Faults {
            kill_owner: 400,
            stop_owner: 150,
            feed_cut: 300,
            promote: 80,
            cut: 70,
            set_back: 100,
            ..CALM.faults
        };
        Self {
            name: "upstreams",
            feeds: vec![
                FeedKind::ResumesSparse,
                FeedKind::ResumesOpaque,
                FeedKind::ForgetsSparse,
                FeedKind::Bare,
            ],
            submits: false,
            publish_ms: 30,
            fault_ms: 400,
            faults,
            ..CALM
        }
    }

    /// Stops and kills at the telling places of claim, adoption, commit, fence and collection; short reigns.
    pub fn fence() -> Self {
        let faults = Faults {
            kill_owner: 400,
            stop_owner: 400,
            stop: 100,
            kill: 60,
            disk_full: 20,
            write_error: 20,
            ..CALM.faults
        };
        Self {
            name: "fence",
            sessions: 5,
            feeds: Vec::new(),
            work_ms: 12,
            operations: false,
            resubscribe: false,
            fault_ms: 250,
            faults,
            stop_ms: 9_000,
            claims_kept: 1,
            point_stop: 12,
            point_kill: 6,
            chaos_ms: 12_000,
            ..CALM
        }
    }

    /// The machine loses power again and again, in the middle of takeovers.
    pub fn power() -> Self {
        let faults = Faults { power: 400, kill_owner: 400, stop_owner: 50, ..CALM.faults };
        Self {
            name: "power",
            feeds: Vec::new(),
            work_ms: 12,
            operations: false,
            resubscribe: false,
            fault_ms: 250,
            faults,
            ..CALM
        }
    }

    /// As [`Scenario::power`], on a disk that loses the names of claims although it was told to keep them.
    pub fn lost_claims() -> Self {
        Self { name: "lost claims", claims_sync_lies: true, ..Self::power() }
    }

    /// Volatile operations while owners and heirs die and links are cut.
    pub fn operations() -> Self {
        let faults =
            Faults { kill_owner: 500, kill: 150, cut: 150, stop_owner: 100, promote: 60, ..CALM.faults };
        Self {
            name: "operations",
            feeds: Vec::new(),
            submits: false,
            work_ms: 6,
            fault_ms: 400,
            faults,
            point_kill: 2,
            ..CALM
        }
    }

    /// Optimistic layers while their sessions, owners and heirs die, freeze, leave and hand over.
    pub fn layers() -> Self {
        let faults = Faults {
            kill: 200,
            kill_owner: 300,
            kill_heirs: 60,
            stop: 80,
            stop_owner: 80,
            leave: 80,
            promote: 80,
            cut: 120,
            slow_reader: 40,
            ..CALM.faults
        };
        Self {
            name: "layers",
            sessions: 5,
            feeds: Vec::new(),
            submits: false,
            layers: true,
            work_ms: 8,
            fault_ms: 350,
            faults,
            stop_ms: 14_000,
            point_kill: 2,
            ..CALM
        }
    }

    /// Fetches while those who make them, and owners, die, freeze, leave and hand over, from a server that is slow and fails.
    pub fn queries() -> Self {
        let faults = Faults {
            kill: 200,
            kill_owner: 300,
            stop: 80,
            stop_owner: 80,
            leave: 80,
            promote: 100,
            cut: 120,
            slow_reader: 40,
            ..CALM.faults
        };
        Self {
            name: "queries",
            feeds: Vec::new(),
            submits: false,
            operations: false,
            queries: true,
            resubscribe: false,
            work_ms: 12,
            fault_ms: 450,
            faults,
            point_kill: 2,
            ..CALM
        }
    }

    /// Followers that read slowly or not at all while much is published.
    pub fn slow_readers() -> Self {
        let faults = Faults { slow_reader: 400, burst: 400, kill_owner: 100, stop: 50, ..CALM.faults };
        Self {
            name: "slow readers",
            feeds: vec![FeedKind::Resumes],
            submits: false,
            work_ms: 20,
            fault_ms: 300,
            faults,
            burst: 1_500,
            pipe_bytes: 4 << 10,
            chaos_ms: 4_000,
            ..CALM
        }
    }

    /// Many sessions start at one instant.
    pub fn crowd(sessions: usize) -> Self {
        Self {
            name: "crowd",
            sessions,
            start_within_ms: 0,
            chaos_ms: 1_500,
            feeds: vec![FeedKind::Resumes],
            submits: false,
            operations: false,
            resubscribe: false,
            ..CALM
        }
    }

    /// Two spinning processes starve everybody: nobody may be replaced.
    pub fn busy(chaos_ms: u64) -> Self {
        Self {
            name: "busy",
            sessions: 3,
            chaos_ms,
            feeds: vec![FeedKind::Resumes],
            publish_ms: 500,
            work_ms: 400,
            busy_us: 400_000,
            one_reign: true,
            ..CALM
        }
    }

    /// Builds of three releases under kills, stops and handovers.
    pub fn builds() -> Self {
        let faults = Faults {
            kill: 150,
            kill_owner: 350,
            kill_heirs: 80,
            stop: 60,
            stop_owner: 120,
            leave: 120,
            promote: 80,
            cut: 40,
            ..CALM.faults
        };
        Self {
            name: "builds",
            sessions: 5,
            preferred: 1,
            feeds: vec![FeedKind::Resumes],
            fault_ms: 400,
            faults,
            point_kill: 3,
            releases: 3,
            ..CALM
        }
    }

    /// What the seed batches run.
    pub fn batch() -> Vec<Self> {
        vec![
            Self::calm(),
            Self::chaos(),
            Self::kills(),
            Self::upstreams(),
            Self::fence(),
            Self::power(),
            Self::lost_claims(),
            Self::operations(),
            Self::layers(),
            Self::queries(),
            Self::slow_readers(),
            Self::builds(),
        ]
    }
}
