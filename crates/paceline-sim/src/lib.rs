//! Virtual world for the pure machines: clock, network, disk, faults, oracle and invariants.
