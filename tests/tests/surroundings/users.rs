//! Directories of others, open to others, or none; paths that are too long.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use paceline_tests::{Peer, Scratch};

use crate::{PEER, in_own_mounts, mount, refused, says, set_and_seen, skip};

const STRANGER: u32 = 54321;

fn refused_at(path: &Path) -> String {
    refused(Peer::start_by(Command::new(PEER), path, &[]))
}

/// A group runs; whatever `hurt` does to a directory beside it, or to its own, it goes on, and the newcomer hears why not.
fn beside_a_group(name: &str, hurt: impl FnOnce(&Scratch) -> (PathBuf, Vec<String>)) {
    let scratch = Scratch::new(name);
    let mut primary = Peer::start(PEER, &scratch, &[]);
    primary.joined();
    let (at, parts) = hurt(&scratch);
    let words = refused_at(&at);
    says(&words, &parts.iter().map(String::as_str).collect::<Vec<_>>());
    set_and_seen(&mut primary, &[], 1);
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

#[test]
fn modes_that_let_others_in_are_named_with_the_command_that_closes_them() {
    for part in ["", "claims", "s", "kits", "sessions"] {
        beside_a_group("modes", |scratch| {
            let hurt = scratch.path().join("test").join(part);
            fs::set_permissions(&hurt, Permissions::from_mode(0o755)).expect("open it");
            let hurt = hurt.components().collect::<PathBuf>();
            (scratch.path().to_owned(), vec!["mode 0755".into(), format!("run chmod 700 {}", shown(&hurt))])
        });
    }
}

#[test]
fn symbolic_links_are_named_and_not_followed() {
    beside_a_group("links", |scratch| {
        let link = scratch.path().join("link");
        symlink(scratch.path(), &link).expect("a link");
        (link.clone(), vec![shown(&link), "symbolic link".into(), "real directory".into()])
    });
    beside_a_group("claims-link", |scratch| {
        let (claims, away) = (scratch.path().join("test/claims"), scratch.path().join("away"));
        fs::rename(&claims, &away).expect("move it");
        symlink(&away, &claims).expect("a link");
        let parts = vec![shown(&claims), "symbolic link".into(), "real directory".into()];
        (scratch.path().to_owned(), parts)
    });
}

#[test]
fn a_directory_of_another_user_is_refused_with_its_owner() {
    if !rustix::process::geteuid().is_root() {
        return skip(
            "a_directory_of_another_user_is_refused_with_its_owner",
            "needs root to give a directory away",
        );
    }
    beside_a_group("foreign", |scratch| {
        let foreign = scratch.path().join("foreign");
        fs::create_dir(&foreign).expect("a directory");
        chown(&foreign, Some(STRANGER), None).expect("give it away");
        let parts = vec![shown(&foreign), format!("user {STRANGER}"), "another state directory".into()];
        (foreign, parts)
    });
}

/// The same directory, another user: it cannot look inside, and the group does not notice.
#[test]
fn another_user_is_refused_at_the_directory_of_a_running_group() {
    if !rustix::process::geteuid().is_root() {
        return skip(
            "another_user_is_refused_at_the_directory_of_a_running_group",
            "needs root to become another user",
        );
    }
    let scratch = Scratch::new("other-uid");
    let mut primary = Peer::start(PEER, &scratch, &[]);
    primary.joined();
    // The other user may pass through it, and run the program from where everybody can.
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o755)).expect("open it");
    let program = scratch.path().join("peer");
    fs::copy(PEER, &program).expect("copy the program");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("executable");
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={STRANGER}"), "--clear-groups", "--"]).arg(&program);
    let words = refused(Peer::start_by(command, scratch.path(), &[]));
    says(&words, &["use", &shown(&scratch.path().join("test")), "user 0", "another state directory"]);
    set_and_seen(&mut primary, &[], 1);
}

/// Without a state directory that was named, the home of the user database counts.
#[test]
fn a_missing_home_is_named_with_what_to_do() {
    let test = "users::a_missing_home_is_named_with_what_to_do";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "needs root to become a user without a home");
    }
    in_own_mounts(test, || {
        let outer = tempfile::tempdir().expect("a directory");
        fs::set_permissions(outer.path(), Permissions::from_mode(0o755)).expect("open it");
        let program = outer.path().join("peer");
        fs::copy(PEER, &program).expect("copy the program");
        fs::set_permissions(&program, Permissions::from_mode(0o755)).expect("executable");
        let passwd = outer.path().join("passwd");
        let text = format!(
            "root:x:0:0::/root:/bin/sh\nnobody-at-home:x:{STRANGER}:{STRANGER}::/nowhere/at/all:/bin/sh\n"
        );
        fs::write(&passwd, text).expect("a user database");
        mount(&["--bind", passwd.to_str().expect("UTF-8")], Path::new("/etc/passwd"));
        for (user, parts) in [
            (STRANGER, ["/nowhere/at/all", "not a directory", "name a state directory"]),
            (STRANGER + 1, ["no entry for user 54322", "user database", "name a state directory"]),
        ] {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={user}"), "--clear-groups", "--"]).arg(&program);
            let words = refused(Peer::start_by(command, Path::new("--own-place"), &[]));
            says(&words, &parts);
        }
    });
}

#[test]
fn what_is_no_directory_is_named() {
    beside_a_group("file", |scratch| {
        let file = scratch.path().join("file");
        fs::write(&file, b"").expect("a file");
        (file.clone(), vec![shown(&file), "not a directory".into(), "move it away".into()])
    });
    beside_a_group("relative", |_| {
        (PathBuf::from("relative/path"), vec!["relative/path".into(), "relative".into(), "whole path".into()])
    });
    beside_a_group("no-parent", |scratch| {
        let deep = scratch.path().join("a/b");
        (deep.clone(), vec![shown(&deep), "No such file".into(), "another state directory".into()])
    });
}

/// Socket paths are short by nature; what is behind a long one is reached all the same.
#[test]
fn a_path_longer_than_a_socket_may_have_works_for_all_roles() {
    let scratch = Scratch::new("long");
    let long = (0..4).fold(scratch.path().to_owned(), |path, n| path.join(format!("{n}-{}", "x".repeat(60))));
    fs::create_dir_all(&long).expect("a long path");
    let mut primary = Peer::start_by(Command::new(PEER), &long, &[]);
    primary.joined();
    let mut heir = Peer::start_by(Command::new(PEER), &long, &[]);
    heir.joined();
    primary.wait("the heir", |line| (line["ready_heirs"] == 1).then_some(()));
    set_and_seen(&mut heir, &[], 1);
    primary.kill();
    heir.above(1);
    set_and_seen(&mut heir, &[], 2);
}

#[test]
fn a_path_longer_than_the_system_takes_is_named() {
    beside_a_group("too-long", |scratch| {
        let long = scratch.path().join("x".repeat(300));
        (long.clone(), vec![shown(&long), "too long".into(), "another state directory".into()])
    });
    // The system takes it, a database does not.
    beside_a_group("too-long-for-a-database", |scratch| {
        let long =
            (0..6).fold(scratch.path().to_owned(), |path, n| path.join(format!("{n}{}", "x".repeat(80))));
        fs::create_dir_all(&long).expect("a long path");
        (long.clone(), vec![shown(&long), "400 bytes".into(), "shorter".into()])
    });
}
