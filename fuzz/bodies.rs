//! What must hold for any bytes from outside. The fuzz targets and the property tests (`tests/tests/any_bytes.rs`) run these.

#![allow(dead_code, reason = "each target uses one")]

use std::fmt::Debug;

use bytes::Bytes;
use paceline_config::{Capabilities, Config, ConfigError, Draft, Source};
use paceline_ipc::{
    claim::ClaimBody,
    codec::{LENGTH_BYTES, decode, encode_frame},
    framing::FrameSplitter,
};
use paceline_proto::{
    id::Key,
    limits::{FRAME_MAX, HELLO_MAX},
    message::{ToHub, ToSession},
};
use paceline_query::key::QueryKey;
use serde::{Serialize, de::DeserializeOwned};

/// The body of a frame, from either side: refused, or a message that is encoded in no more bytes and decoded as itself.
pub fn codec(bytes: &[u8]) {
    message::<ToHub>(bytes);
    message::<ToSession>(bytes);
}

fn message<T: Serialize + DeserializeOwned + PartialEq + Debug>(body: &[u8]) {
    let Ok(message) = decode::<T>(body) else { return };
    let frame = encode_frame(&message).expect("what was decoded can be encoded");
    assert!(frame.len() - LENGTH_BYTES <= body.len(), "{message:?}");
    let again: T = decode(&frame[LENGTH_BYTES..]).expect("what was encoded can be decoded");
    assert_eq!(again, message);
}

/// A stream, its first two bytes saying how it is cut: the same frames whatever the pieces, none longer than allowed, and
/// after one that is too long nothing.
pub fn frames(bytes: &[u8]) {
    let [cap, piece, stream @ ..] = bytes else { return };
    let (raised, piece) = (cap % 2 == 1, usize::from(*piece) + 1);
    let (whole, cut) = (split(stream, stream.len().max(1), raised), split(stream, piece, raised));
    assert_eq!(whole, cut);
    let (frames, too_long) = whole;
    let most = if raised { FRAME_MAX } else { HELLO_MAX };
    let mut rest = stream;
    for frame in frames {
        assert!(frame.len() <= most);
        let (length, behind) = rest.split_at(LENGTH_BYTES);
        assert_eq!(length, (frame.len() as u32).to_le_bytes());
        rest = behind.strip_prefix(&frame[..]).expect("a frame is what came");
    }
    let announced = rest.first_chunk::<LENGTH_BYTES>().map(|length| u32::from_le_bytes(*length) as usize);
    assert_eq!(too_long, announced.is_some_and(|length| length > most), "what is left: {rest:?}");
    assert!(too_long || announced.is_none_or(|length| rest.len() < LENGTH_BYTES + length));
}

fn split(stream: &[u8], piece: usize, raised: bool) -> (Vec<Bytes>, bool) {
    let mut splitter = FrameSplitter::new();
    if raised {
        splitter.raise_cap();
    }
    let mut frames = Vec::new();
    for bytes in stream.chunks(piece) {
        splitter.push(bytes);
        loop {
            match splitter.split() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => {
                    assert!(splitter.split().is_err(), "it is over for good");
                    return (frames, true);
                }
            }
        }
    }
    (frames, false)
}

/// The text of a claim: unreadable, or a body that is written as itself.
pub fn claim(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Some(body) = ClaimBody::from_text(text) else { return };
    let written = body.to_text();
    let again = ClaimBody::from_text(&written).expect("what was written can be read");
    // What is for people loses what a terminal would obey; nothing else changes.
    let (label, build) = (again.label.clone(), again.build.clone());
    assert_eq!(again, ClaimBody { label, build, ..body });
    assert_eq!(again.to_text(), written);
}

/// A configuration: every problem has a place, or it is one that is written as itself and declares the same.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match read(text) {
        Ok(config) => {
            let written = config.to_toml();
            let again = read(&written).unwrap_or_else(|error| panic!("{error}\n{written}"));
            assert_eq!(again.declared().root(), config.declared().root());
            assert_eq!(again.to_toml(), written);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn read(text: &str) -> Result<Config, ConfigError> {
    Draft::new([Source::named("f", text)])?.validate(&Capabilities::all())
}

/// A key as text, and as bytes of a peer: refused, or written as itself in both.
pub fn keys(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(key) = text.parse::<QueryKey>()
    {
        written(&key);
    }
    if let Ok(key) = QueryKey::from_key(&Key::copy_from(bytes)) {
        assert_eq!(key.to_key().0, bytes, "bytes are taken in their one form");
        written(&key);
    }
}

fn written(key: &QueryKey) {
    assert_eq!(QueryKey::from_key(&key.to_key()).as_ref(), Ok(key));
    assert_eq!(key.to_string().parse::<QueryKey>().as_ref(), Ok(key), "{key}");
    let segments = key.segments();
    assert_eq!(QueryKey::new(&segments).as_ref(), Ok(key));
    let first = QueryKey::new(&segments[..1]).expect("a part of a key is a key");
    assert!(first.is_prefix_of(key) && (segments.len() == 1 || !key.is_prefix_of(&first)));
}
