//! Every place in the code where a test may let a session die is a place where a test does.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{root, text};

#[test]
fn every_failpoint_is_died_at() {
    let mut places = BTreeSet::new();
    for entry in fs::read_dir(root().join("crates")).expect("crates are there").flatten() {
        collect(&entry.path().join("src"), &mut places);
    }
    assert!(places.len() > 20, "the places were not found: {places:?}");
    let tests = text("tests/tests/failpoints.rs") + &text("tests/tests/tokens.rs");
    let missing: Vec<_> = places.iter().filter(|place| !tests.contains(&format!("\"{place}\""))).collect();
    assert!(
        missing.is_empty(),
        "neither tests/tests/failpoints.rs nor tests/tests/tokens.rs lets anybody die at {missing:?}"
    );
}

/// The places named in `hit("…")` in the files of a folder.
fn collect(folder: &Path, places: &mut BTreeSet<String>) {
    for path in fs::read_dir(folder).expect("the folder is readable").flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, places);
            continue;
        }
        let source = fs::read_to_string(&path).expect("sources are text");
        let calls = source.split("hit(\"").skip(1);
        places.extend(calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned));
    }
}
