//! Local inter-process parts: directories, claims, locks, kits, sockets, framing and codec.
