//! Running the examples themselves, as a user does.

use std::{path::PathBuf, process::Command};

/// The example of this name.
///
/// Cargo builds examples with the tests of their package; a run of one test file alone builds the example when it is not
/// there yet.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile_dir = test.parent().and_then(std::path::Path::parent).unwrap();
    let path = profile_dir.join("examples").join(name);
    if !path.exists() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--package", "paceline-examples", "--example", name, "--target-dir"]);
        build.arg(profile_dir.parent().unwrap());
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "the example does not build");
    }
    path
}
