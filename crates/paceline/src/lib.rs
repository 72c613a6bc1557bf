//! Client of a Paceline group: one wire, one cache, one outbox for all sessions of an application on a machine.
