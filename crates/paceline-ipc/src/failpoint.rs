//! Places where a test lets this process die, stop, panic or wait, to show that the group converges from there. Compiled in
//! with the feature `failpoints` only; without it [`hit`] is nothing.

#[cfg(feature = "failpoints")]
pub use armed::{Action, arm, hit, is_held, release};

/// Nothing.
#[cfg(not(feature = "failpoints"))]
pub const fn hit(_place: &str) {}

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        collections::{BTreeMap, BTreeSet},
        str::FromStr,
        sync::LazyLock,
    };

    use nix::sys::signal::{Signal, raise};
    use parking_lot::{Condvar, Mutex};

    /// What happens at a place.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Action {
        /// The process dies as by SIGKILL.
        Kill,
        /// The process stops as by SIGSTOP, once, and goes on from there when somebody continues it.
        Stop,
        /// The code panics, once.
        Panic,
        /// The thread waits here until [`release`].
        Hold,
    }

    impl FromStr for Action {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            match text {
                "kill" => Ok(Self::Kill),
                "stop" => Ok(Self::Stop),
                "panic" => Ok(Self::Panic),
                "hold" => Ok(Self::Hold),
                other => Err(format!("{other} is not kill, stop, panic or hold")),
            }
        }
    }

    /// `PACELINE_FAILPOINT` names a place to die at from the start.
    static ARMED: LazyLock<Mutex<BTreeMap<String, Action>>> = LazyLock::new(|| {
        let place = std::env::var("PACELINE_FAILPOINT").ok();
        Mutex::new(place.map(|place| (place, Action::Kill)).into_iter().collect())
    });

    static HELD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    static LET_GO: Condvar = Condvar::new();

    /// From here on the next visit to `place` does `action`.
    pub fn arm(place: &str, action: Action) {
        ARMED.lock().insert(place.to_owned(), action);
    }

    /// Whether a thread is held at `place`.
    pub fn is_held(place: &str) -> bool {
        HELD.lock().contains(place)
    }

    /// Lets threads that are held at `place` go on.
    pub fn release(place: &str) {
        HELD.lock().remove(place);
        LET_GO.notify_all();
    }

    /// This thread came to `place`.
    pub fn hit(place: &str) {
        let Some(action) = ARMED.lock().remove(place) else { return };
        // Sent to this thread: one that is sent to the process takes effect in another thread first, and this one runs on
        // for a moment.
        let signal = |signal| {
            if let Err(error) = raise(signal) {
                tracing::error!(%error, place, "a failpoint could not send its signal");
            }
        };
        match action {
            Action::Kill => signal(Signal::SIGKILL),
            Action::Stop => signal(Signal::SIGSTOP),
            Action::Panic => panic!("the failpoint {place}"),
            Action::Hold => {
                let mut held = HELD.lock();
                held.insert(place.to_owned());
                while held.contains(place) {
                    LET_GO.wait(&mut held);
                }
            }
        }
    }
}
