//! Settings: flag > `PACELINE_*` > default.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use paceline::Builder;
use paceline_ipc::{
    dirs::{DirectoryError, StateDir},
    group::{GroupName, InvalidGroupName},
};

use crate::{
    args::{Args, IdleExit, duration_or_never},
    failure::Failure,
};

/// A coordinator that a command started leaves after so long alone.
const IDLE_EXIT: Duration = Duration::from_secs(600);

/// What holds for this run of the program.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The group.
    pub group: GroupName,
    /// Whose account.
    pub principal: Option<String>,
    /// Where groups lie, if not where they lie by default.
    pub state_dir: Option<PathBuf>,
    /// Commands may start a coordinator.
    pub spawn: bool,
    /// When a coordinator that a command starts leaves.
    pub idle_exit: IdleExit,
    /// How long to wait for an answer.
    pub timeout: Duration,
}

impl Settings {
    /// Reads the command line and the environment.
    pub fn find(args: &Args) -> Result<Self, Failure> {
        Self::with(args, &|name| std::env::var_os(name))
    }

    fn with(args: &Args, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let text = |name: &str| -> Result<Option<String>, Failure> {
            match env(name).filter(|value| !value.is_empty()).map(OsString::into_string) {
                None => Ok(None),
                Some(Ok(value)) => Ok(Some(value)),
                Some(Err(_)) => Err(Failure::Usage(format!("{name} is not UTF-8"))),
            }
        };
        let group = args.group.clone().map_or_else(|| text("PACELINE_GROUP"), |group| Ok(Some(group)))?;
        let group = group.map_or(Ok(GroupName::default()), |group| group.parse());
        let group = group.map_err(|error: InvalidGroupName| Failure::Usage(format!("failed to {error}")))?;
        let spawn = match text("PACELINE_SPAWN")?.as_deref() {
            None | Some("true" | "1") => true,
            Some("false" | "0") => false,
            Some(other) => {
                return Err(Failure::Usage(format!("PACELINE_SPAWN is true or false, not {other:?}")));
            }
        };
        let idle_exit = text("PACELINE_IDLE_EXIT")?.map(|value| duration_or_never(&value)).transpose();
        let idle_exit = idle_exit.map_err(|why| Failure::Usage(format!("PACELINE_IDLE_EXIT: {why}")))?;
        let principal =
            args.principal.clone().map_or_else(|| text("PACELINE_PRINCIPAL"), |who| Ok(Some(who)))?;
        let state_dir = args.state_dir.clone();
        Ok(Self {
            group,
            principal,
            state_dir: state_dir.or_else(|| env("PACELINE_STATE_DIR").map(PathBuf::from)),
            spawn,
            idle_exit: idle_exit.unwrap_or(IdleExit::After(IDLE_EXIT)),
            timeout: args.timeout,
        })
    }

    /// The group's directory, made where it is missing.
    pub fn open_dir(&self) -> Result<StateDir, Failure> {
        Ok(StateDir::open(&self.group, self.principal.as_deref(), self.state_dir.as_deref())?)
    }

    /// The group's directory, if there is one.
    pub fn find_dir(&self) -> Result<Option<StateDir>, Failure> {
        Ok(StateDir::find(&self.group, self.principal.as_deref(), self.state_dir.as_deref())?)
    }

    /// The group of this name and principal in another directory of groups, if there is one.
    pub fn in_container(&self, container: &Path) -> Result<Option<StateDir>, DirectoryError> {
        StateDir::find(&self.group, self.principal.as_deref(), Some(container))
    }

    /// A session of the group, to be joined.
    pub fn session(&self, label: &str) -> Builder {
        let mut builder = paceline::Session::builder(self.group.as_str()).label(label);
        if let Some(principal) = &self.principal {
            builder = builder.principal(principal);
        }
        if let Some(path) = &self.state_dir {
            builder = builder.state_dir(path);
        }
        builder
    }

    /// The arguments that let another process of this program find the same group.
    pub fn as_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--group".into(), self.group.as_str().into()];
        if let Some(principal) = &self.principal {
            arguments.extend(["--principal".into(), principal.into()]);
        }
        if let Some(path) = &self.state_dir {
            arguments.extend(["--state-dir".into(), path.into()]);
        }
        arguments
    }

    /// The failure of commands that need a group where none runs.
    pub fn no_group(&self) -> Failure {
        Failure::NoGroup { group: self.group.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn find(args: &[&str], env: &[(&str, &str)]) -> Result<Settings, Failure> {
        let args = Args::try_parse_from([&["paceline"], args].concat()).unwrap();
        let value = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        Settings::with(&args, &value)
    }

    #[test]
    fn a_flag_wins_over_the_environment_and_that_over_the_default() {
        assert_eq!(find(&["status"], &[]).unwrap().group.as_str(), "default");
        let env = [("PACELINE_GROUP", "env"), ("PACELINE_STATE_DIR", "/e")];
        assert_eq!(find(&["status"], &env).unwrap().group.as_str(), "env");
        let settings = find(&["status", "-g", "flag", "--state-dir", "/f"], &env).unwrap();
        assert_eq!((settings.group.as_str(), settings.state_dir), ("flag", Some("/f".into())));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        for (name, value) in [("PACELINE_SPAWN", "maybe"), ("PACELINE_IDLE_EXIT", "10")] {
            let failure = find(&["status"], &[(name, value)]).unwrap_err();
            assert!(failure.to_string().contains(name), "{failure}");
            assert_eq!(failure.code(), crate::failure::USAGE);
        }
        assert_eq!(find(&["status", "-g", "A"], &[]).unwrap_err().code(), crate::failure::USAGE);
    }
}
