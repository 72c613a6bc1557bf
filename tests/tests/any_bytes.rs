//! Whatever bytes come: the bodies of the fuzz targets, over what was found once, over examples with small damage, and over
//! bytes that nobody made.

#[path = "../../fuzz/bodies.rs"]
mod bodies;

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*, sample::Index};

const CONFIG: &str = include_str!("../../examples/paceline.toml");
const CLAIM: &str = include_str!("../../fuzz/claim.txt");
const KEYS: [&str; 3] =
    ["packages/7", r#"["packages",7,{"status":"active","tags":["a",null,1.5]}]"#, "[\"ä\",-0.0,1e300]"];
const MESSAGES: &str = include_str!("../../crates/paceline-ipc/tests/golden/messages.txt");

type Body = fn(&[u8]);

const TARGETS: [(&str, Body); 5] = [
    ("codec", bodies::codec),
    ("frames", bodies::frames),
    ("claim", bodies::claim),
    ("config", bodies::config),
    ("keys", bodies::keys),
];

/// Inputs that a fuzzer found something with, `fuzz/regressions/<target>/*`.
#[test]
fn what_was_found_once_is_not_found_again() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/regressions");
    for (target, body) in TARGETS {
        // A target that nothing was ever found with has no folder.
        for entry in fs::read_dir(root.join(target)).into_iter().flatten().flatten() {
            body(&fs::read(entry.path()).expect("a file"));
        }
    }
}

#[test]
fn the_examples_hold() {
    messages().iter().for_each(|message| bodies::codec(message));
    bodies::frames(&stream(1, 6));
    bodies::claim(CLAIM.as_bytes());
    bodies::config(CONFIG.as_bytes());
    KEYS.iter().for_each(|key| bodies::keys(key.as_bytes()));
}

fn messages() -> Vec<Vec<u8>> {
    let byte = |hex: &str, at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    let bytes = |hex: &str| (0..hex.len()).step_by(2).map(|at| byte(hex, at)).collect();
    MESSAGES.lines().filter_map(|line| line.split_whitespace().nth(1)).map(bytes).collect()
}

fn stream(cap: u8, piece: u8) -> Vec<u8> {
    let frame = |body: Vec<u8>| [&(body.len() as u32).to_le_bytes()[..], &body].concat();
    [vec![cap, piece], messages().into_iter().flat_map(frame).collect()].concat()
}

/// Some bytes of `example` replaced, cut out or put in.
fn damaged(mut example: Vec<u8>, damage: &[(Index, u8, u8)]) -> Vec<u8> {
    for (place, what, byte) in damage {
        let at = place.index(example.len().max(1));
        match what % 4 {
            0 if at < example.len() => example[at] = *byte,
            1 if at < example.len() => drop(example.remove(at)),
            2 => example.truncate(at),
            _ => example.insert(at.min(example.len()), *byte),
        }
    }
    example
}

fn damage() -> impl Strategy<Value = Vec<(Index, u8, u8)>> {
    vec((any::<Index>(), any::<u8>(), any::<u8>()), 0..6)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn bytes_that_nobody_made(bytes in vec(any::<u8>(), 0..600)) {
        TARGETS.iter().for_each(|(_, body)| body(&bytes));
    }

    #[test]
    fn messages_with_damage(which: Index, damage in damage()) {
        bodies::codec(&damaged(which.get(&messages()).clone(), &damage));
    }

    #[test]
    fn streams_with_damage(cap: u8, piece: u8, damage in damage()) {
        bodies::frames(&damaged(stream(cap, piece), &damage));
    }

    #[test]
    fn claims_with_damage(damage in damage()) {
        bodies::claim(&damaged(CLAIM.into(), &damage));
    }

    #[test]
    fn keys_with_damage(which: Index, damage in damage()) {
        bodies::keys(&damaged(which.get(&KEYS).as_bytes().to_vec(), &damage));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn configurations_with_damage(damage in damage()) {
        bodies::config(&damaged(CONFIG.into(), &damage));
    }
}
