//! What holds for all resources, and the servers their requests go to.

use crate::{
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Reader, Sourced},
    tables::Jitter,
    value::{Count, HeaderName, Headers, Interval, OrNever, ServerUrl, Staleness, Wait},
};

words! {
    /// What refetches a stale value.
    Trigger {
        /// A session subscribes.
        Subscribe = "subscribe",
        /// A session gains focus.
        Focus = "focus",
        /// The network is back.
        Reconnect = "reconnect",
    }
}

words! {
    /// Whether requests wait for the network.
    NetworkMode {
        /// Nothing is asked while offline.
        Online = "online",
        /// The network is of no importance.
        Always = "always",
        /// One attempt is made in any case, retries wait for the network.
        OfflineFirst = "offline-first",
    }
}

table! {
    /// How often a fetch that a caller waits for is tried.
    Retry {
        /// Retries after the first attempt.
        has times: Count<0, 100> = 3, "a hiccup is not shown to a user, an outage is",
        /// The first delay; it doubles with each failure.
        has base: Interval = "1s", "a server that restarts is back by then",
        /// The longest delay.
        has cap: Interval = "30s", "the longest a user waits for a server that is back",
        /// How a delay is drawn below its bound.
        has jitter: Jitter = "full", "groups of many machines do not come back at one instant",
    }
}

impl Check for Retry {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if self.base.value() > self.cap.value() {
            let what =
                format!("the first delay of {} is longer than the longest of {}", *self.base, *self.cap);
            reader.relate(
                ("base", self.base.origin()),
                ("cap", self.cap.origin()),
                &what,
                "make `cap` at least `base`",
            );
        }
    }
}

table! {
    /// The service that keeps active values fresh in the background.
    Refresh {
        /// How often it looks for what is due.
        has check_interval: Interval = "30s", "half of the shortest usual staleness",
        /// Most refreshes at a time.
        has concurrent: Count<1, 64> = 3, "foreground requests keep most of the connections",
        /// Most refreshes of one look.
        has batch: Count<1, 1024> = 5, "a long list is refreshed over several looks",
        /// A failed refresh is tried again after so long.
        has retry_interval: Interval = "60s", "two looks later",
        /// Retries of a refresh.
        has max_retries: Count<0, 100> = 3, "three minutes, then the next trigger decides",
    }
}

impl Check for Refresh {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if self.concurrent.value().get() > self.batch.value().get() {
            let what = format!(
                "{} refreshes at a time are never reached by batches of {}",
                self.concurrent.value().get(),
                self.batch.value().get()
            );
            reader.relate(
                ("concurrent", self.concurrent.origin()),
                ("batch", self.batch.origin()),
                &what,
                "make `batch` at least `concurrent`",
            );
        }
        if self.retry_interval.value() < self.check_interval.value() {
            let what = format!(
                "a retry after {} waits for the next look, which comes after {}",
                *self.retry_interval, *self.check_interval
            );
            reader.relate(
                ("retry_interval", self.retry_interval.origin()),
                ("check_interval", self.check_interval.origin()),
                &what,
                "make `retry_interval` at least `check_interval`",
            );
        }
    }
}

table! {
    /// `[defaults]`: what holds for resources that do not say otherwise.
    Defaults {
        /// Age at which a value turns stale.
        has stale_time: Staleness = "0s", "nothing is taken for fresh unless somebody says so",
        /// A value that nobody looks at is removed after so long.
        has gc_time: OrNever = "5m", "going back to a view shows it at once",
        /// What refetches a stale value.
        has refetch_on: Vec<Sourced<Trigger>> = ["subscribe", "focus", "reconnect"],
            "what a user comes back to is fresh",
        /// Whether requests wait for the network.
        has network_mode: NetworkMode = "online", "nothing is asked in vain",
        /// How often a fetch that a caller waits for is tried.
        table retry: Retry,
        /// The service that keeps active values fresh.
        table refresh: Refresh,
        /// Triggers within this time are one.
        has debounce: Wait = "1s", "focus and reconnect come together when a laptop is opened",
        /// Invalidations are gathered until so long after the last one.
        has batch_window: Wait = "100ms", "below what a person notices",
    }
}

impl Check for Defaults {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        unique(&self.refetch_on, "refetch_on", reader);
    }
}

/// No element twice.
pub(super) fn unique<T: PartialEq + crate::reader::Field>(
    items: &Sourced<Vec<Sourced<T>>>,
    key: &str,
    reader: &mut Reader<'_>,
) {
    for (n, item) in items.iter().enumerate() {
        if let Some(first) = items[..n].iter().position(|before| before.value() == item.value()) {
            let key = reader.key_of(key);
            let what = format!("names {} again", item.value().canon());
            let problem =
                Problem::new(ProblemKind::Duplicate, format!("{key}[{n}]"), item.origin().clone(), what)
                    .related(format!("{key}[{first}]"), items[first].origin().clone())
                    .fix("leave one out");
            reader.report(problem);
        }
    }
}

table! {
    /// `[http.NAME]`: a server that resources, mutations and tags refer to.
    Http {
        /// Paths are put behind it.
        must base: ServerUrl,
        /// Headers of every request.
        table headers: Headers,
        /// A request that takes longer has failed.
        has timeout: Interval = "20s", "longer than a slow answer, shorter than a person's patience",
        /// Header that carries the idempotency key of a mutation.
        has idempotency_header: HeaderName = "Idempotency-Key", "the name in the IETF draft",
    }
}

impl Check for Http {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        for (name, value) in self.headers.iter() {
            if let Some(unbound) = value.template().names().next() {
                let what = format!("fills in {{{unbound}}}, and nothing binds it here");
                let key = reader.key_of(&format!("headers.{name}"));
                let problem = Problem::new(ProblemKind::Reference, key, value.origin().clone(), what);
                reader.report(problem.allowed("{secret:NAME}, {token.access}"));
            }
        }
    }
}
