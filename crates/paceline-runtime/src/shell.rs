//! The one place where a pure machine meets actix.
//!
//! A [`Business`] holds a machine and what it needs to carry out effects; [`Shell`] is the actor around it. For every
//! message the shell fires a due deadline first, opens a span, calls `handle`, and writes a record to the trace ring.
//! What the business starts (connections, disk, timers of its own) comes back through the completion set as a message
//! of its own type, never through a mailbox that could be full.
//!
//! **Invariant:** an actor holds one spawned item, the `Driver`, with one timer that is reset in place. Replacing
//! actix by another actor library touches this file and `thread.rs` only.

use std::{
    any::Any,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use actix::{
    Actor, ActorContext, ActorFuture, AsyncContext, Context, Handler, Message, Recipient, dev::SendError,
};
use futures_util::{FutureExt, StreamExt, future::LocalBoxFuture, stream::FuturesUnordered};
use paceline_ipc::clock;
use paceline_proto::{
    event::Event,
    id::{Key, Trace},
    time::Time,
};

use crate::{
    death::{Death, End},
    observe::Observer,
    trace::{Outcome, Record, Ring},
    unique::unique,
};

/// Messages an actor's mailbox holds before `offer` is refused and `tell` reports the limit.
pub(crate) const MAILBOX: usize = 16 << 10;
/// Completions handled before the driver lets others run.
const COMPLETIONS_PER_POLL: usize = 64;

/// A pure machine with what it needs to act.
pub(crate) trait Business: Unpin + 'static {
    /// The actor's name in traces.
    const NAME: &'static str;
    /// Its messages, completions of its own work included.
    type Input: Describe + Send + 'static;

    /// Handles one message.
    fn handle(&mut self, input: Self::Input, io: &mut Io<'_, Self::Input>);

    /// When `due` must be called.
    fn deadline(&self) -> Option<Time>;

    /// The deadline has passed.
    fn due(&mut self, io: &mut Io<'_, Self::Input>);

    /// Nothing more is waiting: write what was gathered.
    fn flush(&mut self, _io: &mut Io<'_, Self::Input>) {}
}

/// What traces say about a message.
pub(crate) trait Describe {
    /// Stable name of the kind.
    fn kind(&self) -> &'static str;

    /// The key it is about.
    fn key(&self) -> Option<&Key> {
        None
    }
}

/// A message in a mailbox.
pub(crate) struct Envelope<I> {
    input: I,
    trace: Trace,
    queued: Time,
}

impl<I: Send + 'static> Message for Envelope<I> {
    type Result = ();
}

/// A sender to an actor. Three named ways to send, no other.
pub(crate) struct Mail<I: Send + 'static> {
    to: Recipient<Envelope<I>>,
    observer: Observer,
}

impl<I: Send + 'static> Clone for Mail<I> {
    fn clone(&self) -> Self {
        Self { to: self.to.clone(), observer: self.observer.clone() }
    }
}

impl<I: Send + 'static> Mail<I> {
    /// Must arrive: the bound is reported, never enforced by dropping. For messages between actors of one session,
    /// whose number is bounded by what was started.
    pub(crate) fn tell(&self, input: I, trace: Trace) {
        match self.to.try_send(Envelope { input, trace, queued: clock::boottime() }) {
            Ok(()) => {}
            Err(SendError::Full(envelope)) => {
                self.observer.event(Event::LimitReached { limit: "MAILBOX" });
                #[expect(
                    clippy::disallowed_methods,
                    reason = "full was reported, and the message must arrive"
                )]
                self.to.do_send(envelope);
            }
            // The actor ended with its runtime; the handles learn it from `Death`.
            Err(SendError::Closed(_)) => {}
        }
    }

    /// May be refused when the mailbox is full or closed: for callers outside the runtime.
    pub(crate) fn offer(&self, input: I, trace: Trace) -> Result<(), Refused> {
        self.to.try_send(Envelope { input, trace, queued: clock::boottime() }).map_err(|error| match error {
            SendError::Full(_) => Refused::Full,
            SendError::Closed(_) => Refused::Closed,
        })
    }
}

/// Why an offered message was not taken. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

/// Something with a cause of its own inside a message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Begun {
    /// Its cause and own span.
    pub own: Trace,
    parent: u64,
    at: Time,
}

/// What a handler may use.
pub(crate) struct Io<'a, I> {
    /// When this message is handled.
    pub now: Time,
    /// The cause of this message, and its own span: what it sends carries this.
    pub trace: Trace,
    actor: &'static str,
    ring: &'a Ring,
    spans: &'a mut Spans,
    started: &'a mut Vec<LocalBoxFuture<'static, I>>,
}

impl<I: 'static> Io<'_, I> {
    /// The context for something that begins here: a trace of its own where the message belongs to none.
    pub(crate) fn cause(&self) -> Trace {
        if self.trace.trace == 0 { Trace { trace: unique(), ..self.trace } } else { self.trace }
    }

    /// The context for what follows from something with a cause of its own that came inside this message.
    pub(crate) fn begin(&mut self, cause: Trace) -> Begun {
        let own = Trace { trace: cause.trace, span: self.spans.next() };
        Begun { own, parent: cause.span, at: clock::boottime() }
    }

    /// Records what was begun.
    pub(crate) fn note(&self, kind: &'static str, key: Option<&Key>, begun: Begun) {
        self.ring.push(Record {
            run_ns: saturate(clock::boottime().since(begun.at)),
            trace: begun.own,
            parent: begun.parent,
            ..Record::new(self.actor, kind, begun.at, Outcome::Done).with_key(key)
        });
    }

    /// Starts work whose result comes back as a message.
    pub(crate) fn complete(&mut self, work: impl Future<Output = I> + 'static) {
        self.started.push(work.boxed_local());
    }
}

/// The actor around a business.
pub(crate) struct Shell<B: Business> {
    business: B,
    completions: FuturesUnordered<LocalBoxFuture<'static, B::Input>>,
    started: Vec<LocalBoxFuture<'static, B::Input>>,
    ring: Ring,
    death: Death,
    spans: Spans,
}

/// Makes span ids that differ between the actors of a session and between sessions.
struct Spans(u64);

impl Spans {
    fn next(&mut self) -> u64 {
        // SplitMix64 over a counter: unique within the actor, spread over the id space.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).max(1)
    }
}

impl<B: Business> Shell<B> {
    /// Starts the actor on the current arbiter.
    pub(crate) fn start(business: B, ring: Ring, death: Death, observer: Observer) -> Mail<B::Input> {
        let seed = uuid::Uuid::new_v4().as_u64_pair().1;
        let shell = Self {
            business,
            completions: FuturesUnordered::new(),
            started: Vec::new(),
            ring,
            death,
            spans: Spans(seed),
        };
        Mail { to: Actor::start(shell).recipient(), observer }
    }

    fn handle_one(&mut self, input: B::Input, trace: Trace, queued: Option<Time>) {
        let now = clock::boottime();
        self.fire_due(now);
        let own = Trace { trace: trace.trace, span: self.spans.next() };
        let record = Record::new(B::NAME, input.kind(), now, Outcome::Done).with_key(input.key());
        let span = tracing::trace_span!("handle", actor = B::NAME, kind = record.kind);
        let entered = span.enter();
        let business = &mut self.business;
        let mut io = Io {
            now,
            trace: own,
            actor: B::NAME,
            ring: &self.ring,
            spans: &mut self.spans,
            started: &mut self.started,
        };
        let result = catch_unwind(AssertUnwindSafe(|| business.handle(input, &mut io)));
        drop(entered);
        self.ring.push(Record {
            queue_ns: saturate(queued.map_or(Duration::ZERO, |at| now.since(at))),
            run_ns: saturate(clock::boottime().since(now)),
            trace: own,
            parent: trace.span,
            outcome: if result.is_ok() { Outcome::Done } else { Outcome::Panicked },
            ..record
        });
        if let Err(panic) = result {
            self.die(&*panic);
        }
    }

    fn fire_due(&mut self, now: Time) {
        if self.business.deadline().is_none_or(|at| at > now) {
            return;
        }
        let own = Trace { trace: 0, span: self.spans.next() };
        let business = &mut self.business;
        let mut io = Io {
            now,
            trace: own,
            actor: B::NAME,
            ring: &self.ring,
            spans: &mut self.spans,
            started: &mut self.started,
        };
        let result = catch_unwind(AssertUnwindSafe(|| business.due(&mut io)));
        self.ring.push(Record {
            run_ns: saturate(clock::boottime().since(now)),
            trace: own,
            ..Record::new(B::NAME, "deadline", now, Outcome::Due)
        });
        if let Err(panic) = result {
            self.die(&*panic);
        }
    }

    fn flush(&mut self) {
        let own = Trace { trace: 0, span: self.spans.next() };
        let business = &mut self.business;
        let mut io = Io {
            now: clock::boottime(),
            trace: own,
            actor: B::NAME,
            ring: &self.ring,
            spans: &mut self.spans,
            started: &mut self.started,
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| business.flush(&mut io))) {
            self.die(&*panic);
        }
    }

    fn die(&self, panic: &(dyn Any + Send)) {
        let text = panic
            .downcast_ref::<&str>()
            .map(|s| (*s).to_owned())
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without a text".to_owned());
        tracing::error!(actor = B::NAME, %text, "an actor panicked; the runtime ends");
        self.death.declare(End::Panicked(Arc::from(format!("{}: {text}", B::NAME))));
    }
}

fn saturate(d: Duration) -> u32 {
    u32::try_from(d.as_nanos()).unwrap_or(u32::MAX)
}

impl<B: Business> Actor for Shell<B> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.spawn(Driver { timer: Box::pin(tokio::time::sleep(Duration::ZERO)), armed: None });
    }
}

impl<B: Business> Handler<Envelope<B::Input>> for Shell<B> {
    type Result = ();

    fn handle(&mut self, envelope: Envelope<B::Input>, _: &mut Self::Context) {
        self.handle_one(envelope.input, envelope.trace, Some(envelope.queued));
    }
}

/// The actor's one spawned item: completions, the flush after a drained mailbox, and the timer.
struct Driver {
    timer: Pin<Box<tokio::time::Sleep>>,
    armed: Option<Time>,
}

impl<B: Business> ActorFuture<Shell<B>> for Driver {
    type Output = ();

    fn poll(
        mut self: Pin<&mut Self>,
        shell: &mut Shell<B>,
        ctx: &mut Context<Shell<B>>,
        task: &mut TaskContext<'_>,
    ) -> Poll<()> {
        for round in 0.. {
            shell.completions.extend(shell.started.drain(..));
            if shell.death.get().is_some() {
                ctx.stop();
                return Poll::Ready(());
            }
            if round == COMPLETIONS_PER_POLL {
                shell.flush();
                task.waker().wake_by_ref();
                return Poll::Pending;
            }
            let completions = &mut shell.completions;
            let next = catch_unwind(AssertUnwindSafe(|| completions.poll_next_unpin(task)));
            match next {
                Err(panic) => shell.die(&*panic),
                Ok(Poll::Ready(Some(input))) => shell.handle_one(input, Trace::NONE, None),
                Ok(Poll::Ready(None) | Poll::Pending) => {
                    shell.flush();
                    if shell.started.is_empty() && !self.arm_or_fire(shell, task) {
                        return Poll::Pending;
                    }
                }
            }
        }
        Poll::Pending
    }
}

impl Driver {
    /// Arms the timer for the business's deadline; fires it if it has passed and says so.
    fn arm_or_fire<B: Business>(&mut self, shell: &mut Shell<B>, task: &mut TaskContext<'_>) -> bool {
        let Some(at) = shell.business.deadline() else {
            self.armed = None;
            return false;
        };
        let now = clock::boottime();
        if at <= now {
            shell.fire_due(now);
            return true;
        }
        if self.armed != Some(at) {
            self.armed = Some(at);
            self.timer.as_mut().reset(tokio::time::Instant::now() + at.since(now));
        }
        if self.timer.as_mut().poll(task).is_ready() {
            // The timer's clock ran ahead by less than its resolution: look again.
            self.armed = None;
            self.timer.as_mut().reset(tokio::time::Instant::now() + Duration::from_millis(1));
            return self.timer.as_mut().poll(task).is_ready();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[derive(Debug, PartialEq)]
    enum Seen {
        Due,
        Handled(&'static str),
        Flushed,
    }

    enum In {
        Note(&'static str),
        Arm(Duration),
        Complete(&'static str),
        Panic,
        PanicLater,
    }

    impl Describe for In {
        fn kind(&self) -> &'static str {
            "test"
        }
    }

    struct Recorder {
        seen: mpsc::Sender<Seen>,
        deadline: Option<Time>,
        dirty: bool,
    }

    impl Business for Recorder {
        const NAME: &'static str = "recorder";
        type Input = In;

        fn handle(&mut self, input: In, io: &mut Io<'_, In>) {
            self.dirty = true;
            match input {
                In::Note(text) => self.seen.send(Seen::Handled(text)).unwrap(),
                In::Arm(delay) => self.deadline = Some(io.now + delay),
                In::Complete(text) => io.complete(async move { In::Note(text) }),
                In::Panic => panic!("on purpose"),
                In::PanicLater => io.complete(async { panic!("later, on purpose") }),
            }
        }

        fn deadline(&self) -> Option<Time> {
            self.deadline
        }

        fn due(&mut self, _: &mut Io<'_, In>) {
            self.deadline = None;
            self.seen.send(Seen::Due).unwrap();
        }

        fn flush(&mut self, _: &mut Io<'_, In>) {
            if std::mem::take(&mut self.dirty) {
                self.seen.send(Seen::Flushed).unwrap();
            }
        }
    }

    /// Runs `inputs` through a shell until `count` things were seen or the runtime died.
    fn run(inputs: Vec<In>, count: usize) -> (Vec<Seen>, Option<End>, Ring) {
        let (seen, all) = mpsc::channel();
        let (ring, death) = (Ring::default(), Death::default());
        let system = actix::System::new();
        let (shared_ring, shared_death) = (ring.clone(), death.clone());
        let collected = system.block_on(async move {
            let recorder = Recorder { seen, deadline: None, dirty: false };
            let mail = Shell::start(recorder, shared_ring, shared_death.clone(), Observer::default());
            for input in inputs {
                mail.tell(input, Trace { trace: 7, span: 1 });
            }
            let mut collected = Vec::new();
            while collected.len() < count && shared_death.get().is_none() {
                collected.extend(all.try_iter());
                tokio::task::yield_now().await;
            }
            collected
        });
        (collected, death.get(), ring)
    }

    #[test]
    fn what_is_waiting_is_handled_before_it_is_flushed() {
        let (seen, ..) = run(vec![In::Note("a"), In::Note("b")], 3);
        assert_eq!(seen, [Seen::Handled("a"), Seen::Handled("b"), Seen::Flushed]);
    }

    #[test]
    fn a_due_deadline_fires_before_the_message_that_waits() {
        let (seen, ..) = run(vec![In::Arm(Duration::ZERO), In::Note("late")], 2);
        assert_eq!(seen[..2], [Seen::Due, Seen::Handled("late")]);
    }

    #[test]
    fn a_deadline_fires_without_a_message_and_a_completion_comes_back() {
        let (seen, ..) = run(vec![In::Arm(Duration::from_millis(5)), In::Complete("done")], 3);
        assert!(seen.contains(&Seen::Due) && seen.contains(&Seen::Handled("done")), "{seen:?}");
    }

    #[test]
    fn a_panic_in_a_handler_or_a_completion_ends_the_runtime_and_says_where() {
        for (input, text) in [(In::Panic, "on purpose"), (In::PanicLater, "later, on purpose")] {
            let (_, end, _) = run(vec![input], usize::MAX);
            assert_eq!(end, Some(End::Panicked(format!("recorder: {text}").into())));
        }
    }

    #[test]
    fn a_full_mailbox_refuses_offers_and_takes_what_must_arrive_with_an_event() {
        let (seen, all) = mpsc::channel();
        let (death, observer) = (Death::default(), Observer::default());
        let system = actix::System::new();
        let (shared, told) = (death.clone(), observer.clone());
        let taken = system.block_on(async move {
            let recorder = Recorder { seen, deadline: None, dirty: false };
            let mail = Shell::start(recorder, Ring::default(), shared.clone(), told.clone());
            mail.tell(In::Note("started"), Trace::NONE);
            while all.try_recv().is_err() {
                tokio::task::yield_now().await;
            }
            // Nothing is handled before this task lets others run.
            let mut taken = 0;
            while mail.offer(In::Note("offered"), Trace::NONE).is_ok() {
                taken += 1;
            }
            assert_eq!(told.counts().get("limit_reached"), None, "a refused offer is the caller's to tell");
            mail.tell(In::Note("told"), Trace::NONE);
            while all.recv().is_ok_and(|seen| seen != Seen::Handled("told")) {
                tokio::task::yield_now().await;
            }
            taken
        });
        // The library lets each sender have one message more.
        assert!((MAILBOX..=MAILBOX + 2).contains(&taken), "{taken}");
        assert_eq!(observer.counts().get("limit_reached"), Some(&1));
    }

    #[test]
    fn every_message_leaves_a_record_with_its_cause() {
        let (_, _, ring) = run(vec![In::Note("a")], 1);
        let (records, _) = ring.read();
        assert_eq!((records[0].actor, records[0].trace.trace, records[0].parent), ("recorder", 7, 1));
        assert_ne!(records[0].trace.span, 1);
    }
}
