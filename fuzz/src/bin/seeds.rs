//! Writes `corpus/<target>/` from what the project has of each: the messages whose encoding is held, the example of a
//! configuration, claims, and keys of the documents.

use std::{fs, path::Path};

const MESSAGES: &str = include_str!("../../../crates/paceline-ipc/tests/golden/messages.txt");
const CONFIG: &str = include_str!("../../../examples/paceline.toml");
const CLAIM: &str = include_str!("../../claim.txt");

fn main() -> std::io::Result<()> {
    let messages: Vec<Vec<u8>> = MESSAGES.lines().filter_map(bytes_of).collect();
    let stream = |parity: u8, piece: u8| {
        let frame = |body: &Vec<u8>| [&(body.len() as u32).to_le_bytes()[..], body].concat();
        [vec![parity, piece], messages.iter().flat_map(frame).collect()].concat()
    };
    write("codec", &messages)?;
    write("frames", &[stream(0, 0), stream(1, 6), stream(1, 255)])?;
    write("claim", &[CLAIM.into()])?;
    // Whole, and each table alone.
    let tables = CONFIG.split("\n[").skip(1).map(|table| format!("[{table}").into_bytes());
    write("config", &[vec![CONFIG.as_bytes().to_vec()], tables.collect()].concat())?;
    let keys =
        ["packages/7", r#"["packages",7,{"status":"active","tags":["a",null,1.5]}]"#, "[\"ä\",-0.0,1e300]"];
    write("keys", &keys.map(|key| key.as_bytes().to_vec()))
}

/// The bytes of a line `name hex`.
fn bytes_of(line: &str) -> Option<Vec<u8>> {
    let hex = line.split_whitespace().nth(1)?;
    let byte = |at: usize| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok();
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn write(target: &str, seeds: &[Vec<u8>]) -> std::io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    seeds.iter().enumerate().try_for_each(|(n, seed)| fs::write(folder.join(format!("seed-{n:03}")), seed))
}
