//! Who shares the wire, and what only the holder of the wire knows.

use crate::{
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Field, Reader},
    value::{Command, GroupName, Name, OrNever, Text, VariableName},
};

/// The profile that a group is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileName(Name);

impl ProfileName {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Field for ProfileName {
    fn kind() -> String {
        "name of a profile".to_owned()
    }

    fn read(node: &crate::node::Node, reader: &mut Reader<'_>) -> Option<Self> {
        let name = Name::read(node, reader)?;
        reader.refer(node, "profiles", name.as_str()).then_some(Self(name))
    }

    fn canon(&self) -> serde_json::Value {
        self.0.canon()
    }
}

table! {
    /// `[group]`: who shares the wire.
    Group {
        /// Name of the group. With the user and the machine it is the identity of the wire.
        has name: GroupName = "default", "one group of a user until something needs another",
        /// Whose account the wire belongs to; part of the group's identity.
        may principal: Text,
        /// Name of a profile in `profiles`.
        may profile: ProfileName,
        /// Whether short-lived commands may start a coordinator where no group runs.
        has spawn: bool = true, "commands that work without a set-up",
        /// After so long without a user, with an empty outbox, a coordinator leaves; other coordinators are no users.
        has idle_exit: OrNever = "10m", "a terminal that runs a command now and then keeps one wire",
    }
}

impl Check for Group {}

table! {
    /// `[secrets.NAME]`: a secret, resolved only in the process that holds the wire.
    Secret {
        /// The variable of the environment that holds it.
        may env: VariableName,
        /// A program that prints it. Not from an untrusted file.
        may command: Command; needs SecretCommands,
    }
}

impl Check for Secret {
    fn check(&self, at: &Origin, reader: &mut Reader<'_>) {
        match (&self.env, &self.command) {
            (Some(env), Some(command)) => reader.relate(
                ("command", command.origin()),
                ("env", env.origin()),
                "a secret comes from `env` or from `command`, not from both",
                "leave one out",
            ),
            (None, None) if !reader.is_malformed("env") && !reader.is_malformed("command") => {
                let problem =
                    Problem::new(ProblemKind::Missing, reader.key(), at.clone(), "comes from nowhere");
                reader.report(problem.allowed("env, command").fix("give one of them"));
            }
            (None, None) | (Some(_), None) | (None, Some(_)) => {}
        }
    }
}
