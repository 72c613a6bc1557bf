//! Places where a test lets this process die, to show that the group converges from there. Compiled in with the
//! feature `failpoints` only; without it `hit` is nothing.

/// Dies here, as by SIGKILL, if `PACELINE_FAILPOINT` names this place.
#[cfg(feature = "failpoints")]
pub(crate) fn hit(place: &str) {
    if std::env::var("PACELINE_FAILPOINT").is_ok_and(|wanted| wanted == place) {
        let own = rustix::process::getpid();
        // Nothing after this line runs: the signal cannot be caught.
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    }
}

/// Nothing.
#[cfg(not(feature = "failpoints"))]
pub(crate) const fn hit(_place: &str) {}
