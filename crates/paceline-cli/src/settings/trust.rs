//! What the user trusts: project files, each for the commands, credentials and servers that it named at the time.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use paceline::config::Untrusted;

use super::files::user_directory;
use crate::failure::Failure;

/// The user's list: `<digest> <path>` lines, in a file that only the user may write.
#[derive(Debug)]
pub struct Trusted {
    path: PathBuf,
    lines: Vec<(String, PathBuf)>,
}

impl Trusted {
    /// Reads the list; it may be missing.
    ///
    /// # Errors
    /// Where it cannot be read, or others may have written it.
    pub fn read() -> Result<Self, Failure> {
        let directory = user_directory().ok_or_else(|| {
            Failure::Refused(
                "neither XDG_CONFIG_HOME nor HOME names a directory, so nothing can be trusted".to_owned(),
            )
        })?;
        Self::read_at(directory.join("trusted"))
    }

    fn read_at(path: PathBuf) -> Result<Self, Failure> {
        let failed =
            |error: io::Error| Failure::failed(format!("failed to read {}: {error}", path.display()));
        let text = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(failed(error)),
            Ok(found) => {
                let own = rustix::process::geteuid().as_raw();
                if !found.is_file() || found.uid() != own || found.mode() & 0o022 != 0 {
                    return Err(Failure::Refused(format!(
                        "{} is not a file that only you may write: chmod go-w it, or remove it and trust again",
                        path.display()
                    )));
                }
                fs::read_to_string(&path).map_err(failed)?
            }
        };
        let line = |line: &str| line.split_once(' ').map(|(digest, path)| (digest.to_owned(), path.into()));
        let lines = text.lines().filter_map(line).collect();
        Ok(Self { path, lines })
    }

    /// Whether the file is trusted with exactly this.
    pub fn holds(&self, file: &Path, asked: &[Untrusted]) -> bool {
        let digest = Untrusted::digest(asked).to_string();
        self.lines.iter().any(|(known, path)| *known == digest && path == file)
    }

    /// Trusts the file with this, and with nothing that it was trusted with before.
    ///
    /// # Errors
    /// Where the list cannot be written. Nothing changed.
    pub fn add(&mut self, file: &Path, asked: &[Untrusted]) -> Result<(), Failure> {
        if file.to_str().is_none_or(|path| path.contains('\n')) {
            return Err(Failure::Refused("a path that is no line of text cannot be trusted".to_owned()));
        }
        self.lines.retain(|(_, path)| path != file);
        self.lines.push((Untrusted::digest(asked).to_string(), file.to_owned()));
        self.write()
            .map_err(|error| Failure::failed(format!("failed to write {}: {error}", self.path.display())))
    }

    /// Beside it and then over it, so that a list is never cut.
    fn write(&self) -> io::Result<()> {
        if let Some(directory) = self.path.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        }
        let beside = self.path.with_extension(format!("new-{}", std::process::id()));
        let mut file = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&beside)?;
        let text: String =
            self.lines.iter().map(|(digest, path)| format!("{digest} {}\n", path.display())).collect();
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        let renamed = written.and_then(|()| fs::rename(&beside, &self.path));
        if renamed.is_err() {
            // The error counts, not what is left of the attempt.
            let _ = fs::remove_file(&beside);
        }
        renamed
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use paceline::config::{Draft, Source};

    use super::*;

    fn asked(command: &str) -> Vec<Untrusted> {
        let text = format!("[secrets.api]\ncommand = [\"{command}\"]\n");
        Draft::new([Source::found("paceline.toml", text)]).unwrap().untrusted()
    }

    #[test]
    fn trust_is_for_one_file_and_what_it_asked_for() {
        let scratch = tempfile::tempdir().unwrap();
        let list = scratch.path().join("config/trusted");
        let mut trusted = Trusted::read_at(list.clone()).unwrap();
        trusted.add(Path::new("/p/paceline.toml"), &asked("pass")).unwrap();
        let trusted = Trusted::read_at(list).unwrap();
        assert!(trusted.holds(Path::new("/p/paceline.toml"), &asked("pass")));
        assert!(!trusted.holds(Path::new("/p/paceline.toml"), &asked("rm")), "another command");
        assert!(!trusted.holds(Path::new("/q/paceline.toml"), &asked("pass")), "another file");
    }

    #[test]
    fn a_list_that_others_may_write_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let list = scratch.path().join("trusted");
        fs::write(&list, "").unwrap();
        fs::set_permissions(&list, PermissionsExt::from_mode(0o620)).unwrap();
        assert_eq!(Trusted::read_at(list).unwrap_err().code(), 6);
    }
}
