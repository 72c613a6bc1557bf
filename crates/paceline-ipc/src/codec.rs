//! Messages to bytes and back. The only place that knows the encoding.
//!
//! A frame is the length of its body (u32, little endian) and the body. Lengths are checked before anything is
//! allocated, decoding has a limit of its own, and bytes left over are an error.

use bincode::{
    config::{self, Configuration, Limit},
    enc::write::Writer,
    error::{DecodeError, EncodeError},
};
use bytes::{BufMut, Bytes, BytesMut};
use paceline_proto::limits::FRAME_MAX;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes of the length before each body.
pub const LENGTH_BYTES: usize = 4;

/// What decoding may claim in memory. The encoding counts an integer at its full width although it may take one byte on
/// the wire, at most 16 for 1; with this factor every body that was encoded can be decoded.
const DECODE_LIMIT: usize = 16 * FRAME_MAX;
/// A first guess that holds most frames.
const FIRST_CAPACITY: usize = 256;

const CONFIG: Configuration<config::LittleEndian, config::Varint, Limit<DECODE_LIMIT>> =
    config::standard().with_limit::<DECODE_LIMIT>();

/// A message cannot be turned into bytes or back. Nothing changed; the same input never works.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The body would be, or is, longer than [`FRAME_MAX`].
    #[error("encode or decode a frame: its body is longer than {FRAME_MAX} bytes")]
    TooLong,
    /// The type cannot be encoded. A mistake in the program.
    #[error("encode a frame: {0}")]
    Encode(EncodeError),
    /// The bytes are not an encoding of the type.
    #[error("decode a frame: {0}")]
    Decode(DecodeError),
    /// The encoding of the type ended before the bytes did.
    #[error("decode a frame: {0} bytes are left over")]
    LeftOver(usize),
}

/// Encodes a message as a whole frame, length included.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::Encode`].
pub fn encode_frame<T: Serialize + ?Sized>(message: &T) -> Result<Bytes, CodecError> {
    let mut buffer = BytesMut::with_capacity(FIRST_CAPACITY);
    encode_into(message, &mut buffer)?;
    Ok(buffer.freeze())
}

/// Appends a message as a whole frame, length included.
///
/// # Errors
/// As [`encode_frame`]; the buffer is then as it was.
pub fn encode_into<T: Serialize + ?Sized>(message: &T, buffer: &mut BytesMut) -> Result<(), CodecError> {
    let start = buffer.len();
    buffer.put_u32_le(0);
    let mut body = Body { buffer, left: FRAME_MAX };
    if let Err(error) = bincode::serde::encode_into_writer(message, &mut body, CONFIG) {
        buffer.truncate(start);
        return Err(match error {
            EncodeError::UnexpectedEnd => CodecError::TooLong,
            other => CodecError::Encode(other),
        });
    }
    // The body is at most FRAME_MAX long.
    let length = (buffer.len() - start - LENGTH_BYTES) as u32;
    buffer[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    Ok(())
}

/// Decodes the body of a frame, without its length.
///
/// # Errors
/// [`CodecError::TooLong`], [`CodecError::Decode`], [`CodecError::LeftOver`]. Never panics, whatever the bytes.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    if body.len() > FRAME_MAX {
        return Err(CodecError::TooLong);
    }
    let (message, used) = bincode::serde::decode_from_slice(body, CONFIG).map_err(CodecError::Decode)?;
    if used < body.len() {
        return Err(CodecError::LeftOver(body.len() - used));
    }
    Ok(message)
}

/// Stops a body that grows too long before it is in memory.
struct Body<'a> {
    buffer: &'a mut BytesMut,
    left: usize,
}

impl Writer for Body<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), EncodeError> {
        self.left = self.left.checked_sub(bytes.len()).ok_or(EncodeError::UnexpectedEnd)?;
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use proptest::prelude::*;
    use serde::{Deserialize, Deserializer, Serializer, de::Visitor};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Example {
        number: u64,
        text: String,
        bytes: Bytes,
        list: Vec<Option<u128>>,
    }

    fn example() -> Example {
        Example {
            number: 300,
            text: "ä".to_owned(),
            bytes: Bytes::from_static(b"{}"),
            list: vec![None, Some(u128::MAX), Some(0)],
        }
    }

    #[test]
    fn frames_are_a_length_and_a_body() {
        let frame = encode_frame(&example()).unwrap();
        assert_eq!(u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize, frame.len() - 4);
        assert_eq!(decode::<Example>(&frame[4..]).unwrap(), example());
    }

    #[test]
    fn appended_frames_leave_what_was_there() {
        let mut buffer = BytesMut::from(&b"before"[..]);
        encode_into(&1_u8, &mut buffer).unwrap();
        assert_eq!(&buffer[..], b"before\x01\0\0\0\x01");
        assert!(matches!(encode_into(&vec![0_u8; FRAME_MAX + 1], &mut buffer), Err(CodecError::TooLong)));
        assert_eq!(&buffer[..], b"before\x01\0\0\0\x01");
    }

    #[test]
    fn the_longest_body_and_one_byte_more() {
        let prefix = 5; // of a length over u16::MAX
        let body = |length: usize| Bytes::from(vec![b'x'; length - prefix]);
        let frame = encode_frame(&body(FRAME_MAX)).unwrap();
        assert_eq!(frame.len(), LENGTH_BYTES + FRAME_MAX);
        assert_eq!(decode::<Bytes>(&frame[4..]).unwrap(), body(FRAME_MAX));
        assert!(matches!(encode_frame(&body(FRAME_MAX + 1)), Err(CodecError::TooLong)));
        assert!(matches!(decode::<Bytes>(&vec![0; FRAME_MAX + 1]), Err(CodecError::TooLong)));
    }

    #[test]
    fn a_body_of_the_smallest_integers_can_be_decoded() {
        let many = vec![0_u128; FRAME_MAX - 5];
        let frame = encode_frame(&many).unwrap();
        assert_eq!(frame.len(), LENGTH_BYTES + FRAME_MAX);
        assert_eq!(decode::<Vec<u128>>(&frame[4..]).unwrap(), many);
    }

    #[test]
    fn left_over_and_missing_bytes_are_errors() {
        let frame = encode_frame(&example()).unwrap();
        let body = &frame[4..];
        for end in 0..body.len() {
            assert!(matches!(decode::<Example>(&body[..end]), Err(CodecError::Decode(_))), "cut at {end}");
        }
        let mut longer = body.to_vec();
        longer.push(0);
        assert!(matches!(decode::<Example>(&longer), Err(CodecError::LeftOver(1))));
    }

    #[test]
    fn a_length_over_the_limit_is_refused_before_it_is_allocated() {
        let mut body = vec![253]; // a u64 follows
        body.extend((1_u64 << 40).to_le_bytes());
        match decode::<Bytes>(&body) {
            Err(CodecError::Decode(DecodeError::LimitExceeded)) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Fails where bytes would be handed over one by one.
    struct Whole(Bytes);

    impl Serialize for Whole {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for Whole {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct OnlyWhole;
            impl Visitor<'_> for OnlyWhole {
                type Value = Whole;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("all bytes at once")
                }

                fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Whole, E> {
                    Ok(Whole(bytes.into()))
                }
            }
            deserializer.deserialize_byte_buf(OnlyWhole)
        }
    }

    #[test]
    fn bytes_travel_as_a_whole() {
        struct CountWrites(usize);
        impl Writer for CountWrites {
            fn write(&mut self, _: &[u8]) -> Result<(), EncodeError> {
                self.0 += 1;
                Ok(())
            }
        }
        let value = Whole(Bytes::from(vec![7; 4096]));
        let mut writes = CountWrites(0);
        bincode::serde::encode_into_writer(&value, &mut writes, CONFIG).unwrap();
        assert!(writes.0 <= 3, "{} writes", writes.0);
        let frame = encode_frame(&value).unwrap();
        assert_eq!(decode::<Whole>(&frame[4..]).unwrap().0, value.0);
    }

    proptest! {
        #[test]
        fn whatever_is_encoded_is_decoded(number: u64, text: String, bytes: Vec<u8>, list: Vec<Option<u128>>) {
            let example = Example { number, text, bytes: bytes.into(), list };
            let frame = encode_frame(&example).unwrap();
            prop_assert_eq!(decode::<Example>(&frame[4..]).unwrap(), example);
        }
    }
}
