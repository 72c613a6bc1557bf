//! Actor shells that run the pure machines on one thread of a session.
