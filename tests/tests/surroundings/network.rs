//! A home that other machines may share, as the kernel shows it: a file system of FUSE, served by this test.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use paceline_tests::Peer;
use serde_json::json;

use crate::{PEER, in_own_mounts, mount, set_and_seen, skip, stored_in, submit};

/// Answers what the kernel asks of a file system that is one empty directory, `linux/fuse.h`, version 7.31.
fn serve(mut device: File, uid: u32) {
    let mut request = vec![0; 1 << 17];
    loop {
        match device.read(&mut request) {
            Ok(40..) => {}
            // It is not mounted yet.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                thread::park_timeout(Duration::from_millis(1));
                continue;
            }
            _ => return,
        }
        let number = |at: usize| u32::from_le_bytes(request[at..at + 4].try_into().expect("four bytes"));
        let (opcode, unique) = (number(4), &request[8..16]);
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let body = match opcode {
            2 | 36 | 42 => continue, // FORGET, INTERRUPT and BATCH_FORGET want no answer
            3 => {
                // GETATTR: inode 1, mode 0700, two links.
                let mut attributes = words(&[0; 26]);
                attributes[16] = 1;
                let mut put =
                    |at: usize, word: u32| attributes[at..at + 4].copy_from_slice(&word.to_le_bytes());
                put(16 + 60, 0o40_700);
                put(16 + 64, 2);
                put(16 + 68, uid);
                Ok(attributes)
            }
            17 => Ok(words(&[0; 20])), // STATFS: the kernel adds whose file system it is
            26 => {
                let mut init = words(&[7, 31]);
                init.extend(words(&[0, 0, 0, 4096, 1]));
                init.resize(64, 0);
                Ok(init)
            }
            _ => Err(38), // ENOSYS
        };
        let (error, body) = body.map_or_else(|error: i32| (-error, Vec::new()), |body| (0, body));
        let length = 16 + u32::try_from(body.len()).expect("a length");
        let answer = [&length.to_le_bytes()[..], &error.to_le_bytes(), unique, &body].concat();
        // The one that asked may be gone.
        let _ = device.write(&answer);
    }
}

/// Mounts it at `home`; false where the system does not let us.
fn mount_fuse(home: &Path) -> bool {
    let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else { return false };
    let uid = rustix::process::geteuid().as_raw();
    let options = format!("fd=0,rootmode=40700,user_id={uid},group_id={uid}");
    let kernel = device.try_clone().expect("another descriptor");
    thread::spawn(move || serve(kernel, uid));
    let mut command = Command::new("mount");
    command.args(["-i", "-t", "fuse", "-o", &options, "paceline-test"]).arg(home).stdin(Stdio::from(device));
    command.output().is_ok_and(|done| done.status.success())
}

/// Such a home is left for the machine's own place, and the sessions of the user meet there.
#[test]
fn a_home_that_lies_on_fuse_is_left_for_the_machines_own_place() {
    let test = "network::a_home_that_lies_on_fuse_is_left_for_the_machines_own_place";
    in_own_mounts(test, || {
        let outer = tempfile::tempdir().expect("a directory");
        let home = outer.path().join("home");
        fs::create_dir(&home).expect("a home");
        if !mount_fuse(&home) {
            return skip(test, "needs to mount a file system of FUSE");
        }
        let passwd = outer.path().join("passwd");
        fs::write(&passwd, format!("root:x:0:0::{}:/bin/sh\n", home.display())).expect("a user database");
        mount(&["--bind", passwd.to_str().expect("UTF-8")], Path::new("/etc/passwd"));
        let shared = Path::new("/var/tmp");
        mount(&["-t", "tmpfs", "-o", "mode=1777", "tmpfs"], shared);

        let start = || Peer::start_by(Command::new(PEER), Path::new("--own-place"), &[]);
        let mut primary = start();
        primary.joined();
        let mut heir = start();
        heir.joined();
        heir.tell(&json!({ "subscribe": ["k"] }));
        set_and_seen(&mut primary, &[&heir], 1);
        assert!(submit(&mut heir, "kept", 0).is_ok());
        let place = shared.join(format!("paceline-{}", rustix::process::geteuid().as_raw()));
        let mode = fs::metadata(&place).expect("the place").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "closed to others");
        for peer in [&mut heir, &mut primary] {
            peer.kill();
        }
        assert_eq!(stored_in(&place).into_keys().collect::<Vec<_>>(), ["kept"]);
    });
}
