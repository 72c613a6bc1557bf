//! Every bound and interval of the group protocol, with its reason. Sources: `docs/FAILOVER.md`.

use std::time::Duration;

/// A value on the wire or in the cache, bytes. Larger data belongs behind a URL.
pub const VALUE_MAX: usize = 1 << 20;
/// What a frame may add to its value: key, positions, operation.
pub const HEADER_MAX: usize = 64 << 10;
/// A whole frame after Hello, bytes.
pub const FRAME_MAX: usize = VALUE_MAX + HEADER_MAX;
/// Anything before and including Hello, bytes: a stranger costs no more than this.
pub const HELLO_MAX: usize = 4 << 10;
/// Bytes of a key.
pub const KEY_MAX: usize = 4 << 10;

/// An accepted connection must have said Hello by then.
pub const HELLO_TIMEOUT: Duration = Duration::from_millis(500);
/// A frame whose first byte came must be whole by then.
pub const HALF_FRAME_TIMEOUT: Duration = Duration::from_secs(2);
/// A follower that takes nothing for so long is disconnected.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Accepted connections that have not said Hello.
pub const UNAUTHENTICATED_MAX: usize = 64;
/// Sessions of a group.
pub const SESSIONS_MAX: usize = 1024;

/// Pings tell followers that the owner lives, who the heirs are and what is stable.
pub const PING_INTERVAL: Duration = Duration::from_millis(250);
/// No frame for so long (more than one ping, with slack) and a follower becomes suspicious.
pub const SUSPICION_AFTER: Duration = Duration::from_millis(300);
/// One tick while suspicious.
pub const SUSPICION_TICK: Duration = Duration::from_millis(50);
/// Own on-time ticks without a frame before the direct probe: a session that is starved itself gets no ticks and
/// so cannot usurp a primary that is merely starved too.
pub const SUSPICION_TICKS: u32 = 22;
/// A tick that comes later than this after it was due says more about the watcher than about the primary.
pub const TICK_LATE: Duration = Duration::from_millis(25);
/// The direct probe of a suspected primary.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(500);
/// Candidates wait `rank * STAGGER`, rank at most 2, so that not all link at once.
pub const CLAIM_STAGGER: Duration = Duration::from_millis(25);
/// Upper bound of the suspicion time after it doubled.
pub const SUSPICION_CAP: Duration = Duration::from_secs(15);
/// A doubled suspicion time is back to normal after so long.
pub const SUSPICION_DECAY: Duration = Duration::from_secs(60);
/// A session claims over a living owner at most once in this time.
pub const USURP_INTERVAL: Duration = Duration::from_secs(5);
/// After EOF the owner's lock may take this long to be free (measured: 0.1 ms, up to 20 ms).
pub const EOF_LOCK_WAIT: Duration = Duration::from_millis(20);
/// Sessions that are not heirs let the heirs go first after EOF.
pub const EOF_FOLLOWER_WAIT: Duration = Duration::from_millis(10);
/// A wake-up that comes so late makes an owner check its fence before anything else.
pub const OWNER_GAP: Duration = Duration::from_millis(200);
/// A draining primary whose heir has not claimed by then resumes.
pub const HANDOVER_TIMEOUT: Duration = Duration::from_secs(1);
/// Claims that the collector always leaves.
pub const CLAIMS_KEPT: usize = 16;
/// Resources that a session declares.
pub const DECLARED_MAX: usize = 1024;
/// Items of what a session declares, where sessions declare differently.
pub const ITEMS_MAX: usize = 4096;
/// Bytes of an item's name, and of its place.
pub const ITEM_TEXT_MAX: usize = 512;
/// Heirs with a kit each.
pub const HEIRS: usize = 2;

/// A member counts for so long after its connection ended without Close and without proof of death.
pub const MEMBER_SILENCE: Duration = Duration::from_secs(10);
/// Frames kept for resume: count.
pub const RING_FRAMES: usize = 4096;
/// Frames kept for resume: bytes.
pub const RING_BYTES: usize = 8 << 20;
/// Frames kept for resume: age.
pub const RING_AGE: Duration = Duration::from_secs(60);
/// A follower acknowledges after so many frames …
pub const ACK_FRAMES: u64 = 64;
/// … or after this time, whichever comes first.
pub const ACK_INTERVAL: Duration = Duration::from_millis(100);
/// Frames queued for one follower before it is conflated, if it takes nothing.
pub const LINK_QUEUE_FRAMES: usize = 1024;
/// Bytes queued for one follower before it is conflated, if it takes nothing.
pub const LINK_QUEUE_BYTES: usize = 4 << 20;
/// A follower that takes a piece of output (`WRITE_MAX`) within this time is not slow, however much came at once: a burst
/// after a takeover is no fault of its reader, nor is a processor that dozens of processes share.
pub const LINK_PATIENCE: Duration = Duration::from_secs(1);
/// So long the upstream is not read when a queue is half full and its reader has not taken the piece it was given.
pub const LINK_PAUSE: Duration = Duration::from_millis(100);
/// Times the two bounds above that a queue may hold in any case; frames are shared, so a queue costs references.
pub const LINK_QUEUE_BURST: usize = 8;
/// How long a new owner buffers a channel that cannot resume while it waits for offers.
pub const OFFER_WAIT: Duration = Duration::from_millis(500);
/// Bytes of one write to a follower; a queue is drained in pieces of this size.
pub const WRITE_MAX: usize = 256 << 10;
/// Keys, and streams, that one session may be subscribed to; as many values may be wanted from its offer.
pub const INTEREST_MAX: usize = 65_536;
/// A submit that the owner was too busy to take is sent again after this time.
pub const SUBMIT_RETRY: Duration = Duration::from_millis(50);
/// A submit that the owner did not store for so long after it first said why is answered with that reason. It is kept, and
/// stored when it can be.
pub const SUBMIT_PATIENCE: Duration = Duration::from_secs(2);
/// Items in one chunk of an offer, a subscription or a snapshot.
pub const CHUNK_ITEMS: usize = 256;

/// Layers over one key: each costs a patch whenever its value changes. Past it an operation shows when it is done.
pub const LAYERS_MAX: usize = 256;
/// Bytes of the patches over one key: they travel in one frame.
pub const LAYERS_KEY_BYTES: usize = VALUE_MAX;
/// Bytes of all patches in layers: as much as one session may have unanswered.
pub const LAYERS_BYTES: usize = 16 << 20;

/// Unanswered asks, operations and mutations of one session, and its open layers.
pub const PENDING_MAX: usize = 10_000;
/// Bytes of the unanswered ones of one session.
pub const PENDING_BYTES: usize = 16 << 20;
/// Submits of one session in one commit; sessions take turns.
pub const COMMIT_PER_SESSION: usize = 64;
/// Submits in one commit.
pub const COMMIT_MAX: usize = 1024;
/// Bytes of a group's queue databases.
pub const DISK_CAP: u64 = 256 << 20;
/// Space reserved in a kit so that a full disk does not block a takeover.
pub const KIT_RESERVE: usize = 1 << 20;

/// Fetches that one session runs at a time; connections to servers and commands are few on purpose.
pub const FETCHES_RUNNING: usize = 32;
/// Fetches that one session holds, running and waiting for their turn.
pub const FETCHES_MAX: usize = 4096;
/// Bytes of a validator, of hints, and of the words of a failure: a part of `HEADER_MAX`.
pub const FETCH_TEXT_MAX: usize = 4 << 10;
