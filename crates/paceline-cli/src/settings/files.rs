//! Where the files are.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// The name of a project's file, looked for in the working directory and those above it.
pub const PROJECT_FILE: &str = "paceline.toml";

/// The files that count.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// The user's own.
    pub user: Option<(PathBuf, String)>,
    /// The project's.
    pub project: Option<ProjectFile>,
}

/// A project's file.
#[derive(Debug, Clone)]
pub struct ProjectFile {
    /// Its whole path.
    pub path: PathBuf,
    /// What it says.
    pub text: String,
    /// `--config` named it; otherwise it was found.
    pub named: bool,
}

impl Files {
    /// Reads the user's file, and the project's: the one named, or the nearest.
    ///
    /// # Errors
    /// Where a file that is there, or was named, cannot be read.
    pub fn find(named: Option<&Path>) -> Result<Self, Failure> {
        let user = user_directory().map(|directory| directory.join(PROJECT_FILE));
        let user = match user {
            Some(path) => read(&path)?.map(|text| (path, text)),
            None => None,
        };
        let project = match named {
            Some(path) => Some(ProjectFile::named(path)?),
            None => nearest(user.as_ref().map(|(path, _)| path.as_path()))?,
        };
        Ok(Self { user, project })
    }
}

impl ProjectFile {
    /// The file that the user named.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn named(path: &Path) -> Result<Self, Failure> {
        let whole = fs::canonicalize(path).map_err(|error| unreadable(path, &error))?;
        let text = fs::read_to_string(&whole).map_err(|error| unreadable(path, &error))?;
        Ok(Self { path: whole, text, named: true })
    }
}

/// The user's directory of settings.
pub fn user_directory() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    Some(base.join("paceline"))
}

/// The file in the working directory, or in the nearest directory above it that has one.
fn nearest(user: Option<&Path>) -> Result<Option<ProjectFile>, Failure> {
    // A working directory that was removed has no files.
    let Ok(directory) = env::current_dir() else { return Ok(None) };
    for directory in directory.ancestors() {
        let path = directory.join(PROJECT_FILE);
        if user.is_some_and(|user| user == path) {
            continue;
        }
        if let Some(text) = read(&path)? {
            return Ok(Some(ProjectFile { path, text, named: false }));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<String>, Failure> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!("failed to read {}: {error}", path.display()))
}
