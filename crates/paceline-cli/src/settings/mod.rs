//! Settings: flag > `PACELINE_*` > project file > user file > default. The one place that finds files and reads the
//! environment.

mod files;
mod trust;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use paceline::{
    Builder,
    config::{
        Capabilities, Config, ConfigError, Draft, Layer, Override, ProblemKind, Source, value::OrNever,
    },
};
use paceline_ipc::{
    dirs::{DirectoryError, StateDir},
    group::{GroupName, InvalidGroupName},
};

pub use self::{
    files::{Files, ProjectFile},
    trust::Trusted,
};
use crate::{
    args::{Args, IdleExit},
    failure::Failure,
};

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
    /// Somebody said when; otherwise one that a person starts stays.
    pub idle_exit_is_set: bool,
    /// How long to wait for an answer.
    pub timeout: Duration,
    /// The files that count.
    pub files: Files,
    environment: Vec<Override>,
    flags: Vec<Override>,
}

impl Settings {
    /// Reads the command line, the environment and the files.
    pub fn find(args: &Args) -> Result<Self, Failure> {
        Self::unchecked(args)?.with_config()
    }

    /// The same, for commands that are there to say what is wrong with it: which group it is is not known then.
    pub fn unchecked(args: &Args) -> Result<Self, Failure> {
        let files = Files::find(args.config.as_deref())?;
        Self::with(args, files, &|name| std::env::var_os(name))
    }

    fn with(args: &Args, files: Files, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, Failure> {
        let environment = environment(env)?;
        let flags = flags(args);
        Ok(Self {
            group: GroupName::default(),
            principal: None,
            state_dir: args.state_dir.clone().or_else(|| env("PACELINE_STATE_DIR").map(PathBuf::from)),
            spawn: true,
            idle_exit: IdleExit::Never,
            idle_exit_is_set: false,
            timeout: args.timeout,
            files,
            environment,
            flags,
        })
    }

    /// Commands are observers: they run no command, send no credential and speak to no server, so that a file which is not
    /// trusted, or asks for parts that this build lacks, is no harm to them.
    fn with_config(mut self) -> Result<Self, Failure> {
        let config = self.config()?;
        let group = config.group();
        self.group = group
            .name()
            .as_str()
            .parse()
            .map_err(|error: InvalidGroupName| Failure::Usage(format!("failed to {error}")))?;
        self.principal = group.principal().as_ref().map(|principal| principal.as_str().to_owned());
        self.spawn = *group.spawn().value();
        self.idle_exit_is_set = group.idle_exit().origin().layer() != Layer::Default;
        self.idle_exit = match group.idle_exit().value() {
            OrNever::Never => IdleExit::Never,
            OrNever::After(time) => IdleExit::After(time.get()),
        };
        Ok(self)
    }

    /// Everything that is configured, for showing it.
    ///
    /// # Errors
    /// [`Failure::Config`] with all that is wrong.
    pub fn config(&self) -> Result<Config, Failure> {
        self.draft(true)?.validate(&Capabilities::all()).map_err(Failure::Config)
    }

    /// The configuration of a session that leads: of trusted files, and of parts that this build has.
    ///
    /// # Errors
    /// [`Failure::Config`] with all that is wrong, [`Failure::Refused`] where only trust is missing.
    pub fn leading_config(&self) -> Result<Config, Failure> {
        self.draft(false)?.validate(&paceline::capabilities()).map_err(refused)
    }

    /// The layers, merged. A file that was found and is not trusted counts as such unless `trust` is given.
    pub fn draft(&self, trust: bool) -> Result<Draft, Failure> {
        let mut sources = vec![
            Source::environment(|name| {
                let found = self.environment.iter().find(|it| it.name == name)?;
                Some(found.text.clone())
            }),
            Source::flags(self.flags.iter().cloned()),
        ];
        if let Some((path, text)) = &self.files.user {
            sources.push(Source::user(path.display().to_string(), text));
        }
        if let Some(project) = &self.files.project {
            let name = project.path.display().to_string();
            let trusted = trust || project.named || self.is_trusted(project)?;
            sources.push(if trusted {
                Source::named(name, &project.text)
            } else {
                Source::found(name, &project.text)
            });
        }
        Draft::new(sources).map_err(Failure::Config)
    }

    /// Whether the user trusts what the file says now.
    fn is_trusted(&self, project: &ProjectFile) -> Result<bool, Failure> {
        let asked = self.untrusted(project)?;
        Ok(asked.is_empty() || Trusted::read()?.holds(&project.path, &asked))
    }

    /// What of a project's file needs trust, whether or not it has it.
    pub fn untrusted(&self, project: &ProjectFile) -> Result<Vec<paceline::config::Untrusted>, Failure> {
        let mut sources = vec![Source::found(project.path.display().to_string(), &project.text)];
        if let Some((path, text)) = &self.files.user {
            sources.push(Source::user(path.display().to_string(), text));
        }
        Ok(Draft::new(sources).map_err(Failure::Config)?.untrusted())
    }

    /// The same, for who does not wait long.
    pub fn hasty(&self, limit: Duration) -> Self {
        Self { timeout: self.timeout.min(limit), ..self.clone() }
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
        // Its variables are for secrets; which group it is was decided here.
        let mut builder = paceline::Session::builder(self.group.as_str()).label(label).from_env();
        if let Some(principal) = &self.principal {
            builder = builder.principal(principal);
        }
        if let Some(path) = &self.state_dir {
            builder = builder.state_dir(path);
        }
        builder
    }

    /// The arguments that let another process of this program find the same group and files.
    pub fn as_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--group".into(), self.group.as_str().into()];
        if let Some(principal) = &self.principal {
            arguments.extend(["--principal".into(), principal.into()]);
        }
        if let Some(path) = &self.state_dir {
            arguments.extend(["--state-dir".into(), path.into()]);
        }
        if let Some(project) = &self.files.project {
            arguments.extend(["--config".into(), project.path.clone().into()]);
        }
        if let Some(profile) = self.flags.iter().find(|flag| flag.name == "--profile") {
            arguments.extend(["--profile".into(), profile.text.clone().into()]);
        }
        arguments
    }

    /// The failure of commands that need a group where none runs.
    pub fn no_group(&self) -> Failure {
        Failure::NoGroup { group: self.group.to_string() }
    }
}

/// A file that only lacks trust is refused; everything else is to be mended.
fn refused(error: ConfigError) -> Failure {
    let trust_only = error.problems.iter().all(|problem| problem.kind == ProblemKind::Untrusted);
    if trust_only { Failure::Refused(format!("failed to {error}")) } else { Failure::Config(error) }
}

/// The variables that set keys.
fn environment(env: &dyn Fn(&str) -> Option<OsString>) -> Result<Vec<Override>, Failure> {
    let mut found = Vec::new();
    for (name, key) in paceline::config::VARIABLES {
        let Some(value) = env(name) else { continue };
        let text = value.into_string().map_err(|_| Failure::Usage(format!("{name} is not UTF-8")))?;
        found.push(Override { name: (*name).to_owned(), key: (*key).to_owned(), text });
    }
    Ok(found)
}

/// The flags that set keys.
fn flags(args: &Args) -> Vec<Override> {
    let given = [
        ("--group", "group.name", &args.group),
        ("--principal", "group.principal", &args.principal),
        ("--profile", "group.profile", &args.profile),
    ];
    given
        .into_iter()
        .filter_map(|(name, key, text)| {
            Some(Override { name: name.to_owned(), key: key.to_owned(), text: text.clone()? })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    const USER: &str = "[group]\nname = \"user\"\nidle_exit = \"1m\"\n";
    const PROJECT: &str = "[group]\nname = \"project\"\n";

    fn find(args: &[&str], env: &[(&str, &str)], user: &str, project: &str) -> Result<Settings, Failure> {
        let args = Args::try_parse_from([&["paceline"], args].concat()).unwrap();
        let value = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into());
        let file =
            |path: &str, text: &str| (!text.is_empty()).then(|| (PathBuf::from(path), text.to_owned()));
        let files = Files {
            user: file("/home/u/.config/paceline/paceline.toml", user),
            project: file("/p/paceline.toml", project).map(|(path, text)| ProjectFile {
                path,
                text,
                named: false,
            }),
        };
        Settings::with(&args, files, &value)?.with_config()
    }

    #[test]
    fn each_layer_wins_over_those_below() {
        let env = [("PACELINE_GROUP", "env"), ("PACELINE_STATE_DIR", "/e")];
        let group = |settings: Result<Settings, Failure>| settings.unwrap().group.to_string();
        assert_eq!(group(find(&["status"], &[], "", "")), "default");
        assert_eq!(group(find(&["status"], &[], USER, "")), "user");
        assert_eq!(group(find(&["status"], &[], USER, PROJECT)), "project");
        assert_eq!(group(find(&["status"], &env, USER, PROJECT)), "env");
        let settings = find(&["status", "-g", "flag", "--state-dir", "/f"], &env, USER, PROJECT).unwrap();
        assert_eq!((settings.group.as_str(), settings.state_dir), ("flag", Some("/f".into())));
        assert_eq!(
            settings.idle_exit,
            IdleExit::After(Duration::from_secs(60)),
            "from below, where nobody else says it"
        );
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_origin() {
        for (name, value) in [("PACELINE_SPAWN", "maybe"), ("PACELINE_IDLE_EXIT", "10")] {
            let failure = find(&["status"], &[(name, value)], "", "").unwrap_err();
            assert!(failure.to_string().contains(name), "{failure}");
            assert_eq!(failure.code(), crate::failure::USAGE);
        }
        assert_eq!(find(&["status", "-g", "A"], &[], "", "").unwrap_err().code(), crate::failure::USAGE);
        let failure = find(&["status"], &[], "", "[group]\nnmae = \"x\"\n").unwrap_err().to_string();
        assert!(failure.contains("/p/paceline.toml:2:1") && failure.contains("`name`"), "{failure}");
    }

    #[test]
    fn a_file_that_is_found_may_be_read_but_not_led_by() {
        let project = "[upstreams.feed]\nprotocol = \"websocket\"\nurl = \"wss://api.example.com/ws\"\n";
        let settings = find(&["status"], &[], "", project).unwrap();
        let asked = settings.untrusted(settings.files.project.as_ref().unwrap()).unwrap();
        assert_eq!(asked[0].key, "upstreams.feed.url");
        let failure =
            refused(settings.draft(false).unwrap().validate(&paceline::capabilities()).unwrap_err());
        assert_eq!(failure.code(), 6, "{failure}");
        assert!(failure.to_string().contains("paceline trust"), "{failure}");
    }
}
