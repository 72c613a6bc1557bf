//! A stream of bytes cut into frames.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use paceline_proto::limits::{FRAME_MAX, HALF_FRAME_TIMEOUT, HELLO_MAX, WRITE_MAX};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{Instant, timeout_at},
};

use crate::codec::LENGTH_BYTES;

/// A frame announces more bytes than its reader takes. Nothing was allocated for it; the stream is unusable from here,
/// close it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("take a frame of {length} bytes: at most {cap} are allowed here")]
pub struct FrameTooLong {
    /// What it announces.
    pub length: usize,
    /// What is allowed.
    pub cap: usize,
}

/// Cuts bytes into the bodies of frames. Pure.
///
/// Begins with a cap of [`HELLO_MAX`], so that a stranger costs no more than that.
#[derive(Debug)]
pub struct FrameSplitter {
    buffer: BytesMut,
    cap: usize,
}

impl Default for FrameSplitter {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), cap: HELLO_MAX }
    }
}

impl FrameSplitter {
    /// A splitter at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// From here on frames up to [`FRAME_MAX`] are taken: the peer has proven itself.
    pub fn raise_cap(&mut self) {
        self.cap = FRAME_MAX;
    }

    /// Appends bytes as they come from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Takes the next whole frame's body. It shares the memory of what was pushed with it.
    ///
    /// # Errors
    /// [`FrameTooLong`], now and at every later call, until the cap is raised over it.
    pub fn split(&mut self) -> Result<Option<Bytes>, FrameTooLong> {
        let Some(length) = self.announced()? else { return Ok(None) };
        if self.buffer.len() < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(LENGTH_BYTES);
        Ok(Some(self.buffer.split_to(length).freeze()))
    }

    /// Whether a frame has begun that is not whole yet. Only meaningful after [`Self::split`] returned `None`.
    pub fn is_partial(&self) -> bool {
        !self.buffer.is_empty()
    }

    fn announced(&self) -> Result<Option<usize>, FrameTooLong> {
        let Some(header) = self.buffer.first_chunk::<LENGTH_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length > self.cap { Err(FrameTooLong { length, cap: self.cap }) } else { Ok(Some(length)) }
    }

    /// Bytes that the frame which has begun still lacks, as far as it is known.
    fn missing(&self) -> usize {
        match self.announced() {
            Ok(Some(length)) => (LENGTH_BYTES + length).saturating_sub(self.buffer.len()),
            Ok(None) | Err(_) => 0,
        }
    }
}

/// Why reading frames ended. The connection is unusable: drop it. Frames handed out before are whole and valid.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A frame is longer than allowed.
    #[error(transparent)]
    TooLong(#[from] FrameTooLong),
    /// A frame was begun and not finished within [`HALF_FRAME_TIMEOUT`].
    #[error("read a frame: it was begun and not finished within {HALF_FRAME_TIMEOUT:?}")]
    HalfFrame,
    /// The connection failed.
    #[error("read a frame: {0}")]
    Io(#[from] io::Error),
}

/// Bytes asked for at once: a connection begins small, and grows while its reads come back full.
const CHUNK_MIN: usize = 4 << 10;
const CHUNK_MAX: usize = 64 << 10;

/// Reads frames, all that are there at each wake-up. Needs a tokio runtime with time enabled.
#[derive(Debug)]
pub struct FrameReader<R> {
    reader: R,
    splitter: FrameSplitter,
    chunk: usize,
    /// When the frame that has begun was seen first.
    partial_since: Option<Instant>,
    /// Met behind frames that had to be handed out first.
    pending: Option<FrameTooLong>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Reads from the start of a stream.
    pub fn new(reader: R) -> Self {
        Self { reader, splitter: FrameSplitter::new(), chunk: CHUNK_MIN, partial_since: None, pending: None }
    }

    /// From here on frames up to [`FRAME_MAX`] are taken: the peer has proven itself.
    pub fn raise_cap(&mut self) {
        self.splitter.raise_cap();
        self.pending = None;
    }

    /// Waits until at least one frame is whole, appends all that are, and returns how many; 0 = the stream ended (a
    /// frame that had begun is lost with it). At most about [`WRITE_MAX`] bytes are read in one call.
    ///
    /// Cancel-safe: what was read is kept for the next call.
    ///
    /// # Errors
    /// [`ReadError`]. Frames before the failure are handed out first, the failure at the next call.
    pub async fn read_batch(&mut self, frames: &mut Vec<Bytes>) -> Result<usize, ReadError> {
        let before = frames.len();
        loop {
            self.split(frames)?;
            if frames.len() > before {
                return Ok(frames.len() - before);
            }
            let read = match self.partial_since {
                None => self.fill().await?,
                Some(since) => timeout_at(since + HALF_FRAME_TIMEOUT, self.fill())
                    .await
                    .map_err(|_| ReadError::HalfFrame)??,
            };
            if read == 0 {
                return Ok(0);
            }
        }
    }

    fn split(&mut self, frames: &mut Vec<Bytes>) -> Result<(), ReadError> {
        if let Some(error) = self.pending {
            return Err(error.into());
        }
        let before = frames.len();
        loop {
            match self.splitter.split() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) if frames.len() > before => {
                    self.pending = Some(error);
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        // A frame is finished: what is left began with the last read.
        if frames.len() > before || !self.splitter.is_partial() {
            self.partial_since = None;
        }
        if self.splitter.is_partial() {
            self.partial_since.get_or_insert_with(Instant::now);
        }
        Ok(())
    }

    /// One wake-up: reads until nothing is there or enough was read.
    async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut total = 0;
        loop {
            let wanted = self.chunk.max(self.splitter.missing());
            let read = match self.poll_read(context, wanted) {
                Poll::Ready(Ok(read)) => read,
                // What came before the failure or the wait is worth more than either.
                Poll::Ready(Err(_)) | Poll::Pending if total > 0 => return Poll::Ready(Ok(total)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            total += read;
            if read < wanted || total >= self.budget() {
                if read < self.chunk / 4 {
                    self.chunk = (self.chunk / 2).max(CHUNK_MIN);
                }
                return Poll::Ready(Ok(total));
            }
            self.chunk = (self.chunk * 2).min(CHUNK_MAX);
        }
    }

    /// A stranger's bytes are not collected ahead.
    fn budget(&self) -> usize {
        if self.splitter.cap < FRAME_MAX { CHUNK_MIN } else { WRITE_MAX }
    }

    fn poll_read(&mut self, context: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let buffer = &mut self.splitter.buffer;
        buffer.reserve(wanted);
        let mut space = buffer.limit(wanted);
        // The future keeps nothing between polls, so a new one each time loses nothing.
        pin!(self.reader.read_buf(&mut space)).poll(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        frame.extend(body);
        frame
    }

    fn announce(length: usize) -> Vec<u8> {
        u32::try_from(length).unwrap().to_le_bytes().to_vec()
    }

    fn all(splitter: &mut FrameSplitter) -> Vec<Bytes> {
        std::iter::from_fn(|| splitter.split().unwrap()).collect()
    }

    #[test]
    fn lengths_just_inside_and_just_outside_each_cap() {
        for (raised, cap) in [(false, HELLO_MAX), (true, FRAME_MAX)] {
            let mut splitter = FrameSplitter::new();
            if raised {
                splitter.raise_cap();
            }
            splitter.push(&frame(&vec![1; cap]));
            assert_eq!(all(&mut splitter), [vec![1; cap]]);
            splitter.push(&announce(cap + 1));
            let error = FrameTooLong { length: cap + 1, cap };
            assert_eq!(splitter.split(), Err(error));
            assert_eq!(splitter.split(), Err(error), "it stays an error");
            assert!(error.to_string().contains(&format!("{} bytes: at most {cap} ", cap + 1)), "{error}");
        }
    }

    #[test]
    fn a_frame_that_waited_for_the_cap_is_taken_after_it_was_raised() {
        let mut splitter = FrameSplitter::new();
        splitter.push(&frame(b"hello"));
        splitter.push(&frame(&[2; HELLO_MAX + 1]));
        assert_eq!(splitter.split(), Ok(Some(Bytes::from_static(b"hello"))));
        assert!(splitter.split().is_err());
        splitter.raise_cap();
        assert_eq!(all(&mut splitter), [vec![2; HELLO_MAX + 1]]);
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut splitter = FrameSplitter::new();
        splitter.push(&announce(u32::MAX as usize));
        assert!(splitter.split().is_err());
        assert!(splitter.buffer.capacity() < HELLO_MAX);
    }

    proptest! {
        #[test]
        fn any_split_of_a_stream_gives_the_same_frames(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
            cuts in prop::collection::vec(1_usize..400, 1..50),
        ) {
            let stream: Vec<u8> = bodies.iter().flat_map(|body| frame(body)).collect();
            let mut splitter = FrameSplitter::new();
            let (mut rest, mut got) = (&stream[..], Vec::new());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, behind) = rest.split_at((*cut).min(rest.len()));
                splitter.push(piece);
                got.extend(all(&mut splitter));
                rest = behind;
            }
            prop_assert!(!splitter.is_partial());
            prop_assert_eq!(got, bodies);
        }

        #[test]
        fn garbage_never_panics(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20)) {
            let mut splitter = FrameSplitter::new();
            for piece in pieces {
                splitter.push(&piece);
                while let Ok(Some(_)) = splitter.split() {}
            }
        }
    }

    #[tokio::test]
    async fn one_wake_up_gives_all_whole_frames() {
        let (mut ours, theirs) = duplex(1 << 20);
        let mut reader = FrameReader::new(theirs);
        let mut frames = Vec::new();
        for body in [&b"a"[..], b"", b"ccc"] {
            ours.write_all(&frame(body)).await.unwrap();
        }
        ours.write_all(&announce(4)).await.unwrap();
        assert_eq!(reader.read_batch(&mut frames).await.unwrap(), 3);
        ours.write_all(b"dddd").await.unwrap();
        assert_eq!(reader.read_batch(&mut frames).await.unwrap(), 1);
        assert_eq!(frames, [&b"a"[..], b"", b"ccc", b"dddd"]);
        drop(ours);
        assert_eq!(reader.read_batch(&mut frames).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn whole_frames_come_before_the_error_behind_them() {
        let (mut ours, theirs) = duplex(1 << 20);
        let mut reader = FrameReader::new(theirs);
        let mut frames = Vec::new();
        ours.write_all(&frame(b"fine")).await.unwrap();
        ours.write_all(&announce(HELLO_MAX + 1)).await.unwrap();
        assert_eq!(reader.read_batch(&mut frames).await.unwrap(), 1);
        for _ in 0..2 {
            let error = reader.read_batch(&mut frames).await.unwrap_err();
            assert!(
                matches!(error, ReadError::TooLong(FrameTooLong { length, .. }) if length == HELLO_MAX + 1)
            );
        }
    }

    #[tokio::test]
    async fn large_frames_come_whole_and_many_small_ones_at_once() {
        let (mut ours, theirs) = duplex(4 << 20);
        let mut reader = FrameReader::new(theirs);
        reader.raise_cap();
        let mut frames = Vec::new();
        ours.write_all(&frame(&vec![9; FRAME_MAX])).await.unwrap();
        assert_eq!(reader.read_batch(&mut frames).await.unwrap(), 1);
        assert_eq!(frames[0], vec![9; FRAME_MAX]);
        let small: Vec<u8> = (0..10_000).flat_map(|_| frame(b"0123456789")).collect();
        ours.write_all(&small).await.unwrap();
        assert_eq!(reader.read_batch(&mut frames).await.unwrap(), 10_000);
    }

    #[tokio::test]
    async fn a_stranger_is_not_read_ahead() {
        let (mut ours, theirs) = duplex(1 << 20);
        let mut reader = FrameReader::new(theirs);
        let mut frames = Vec::new();
        ours.write_all(&frame(b"x").repeat(100_000)).await.unwrap();
        let taken = reader.read_batch(&mut frames).await.unwrap();
        assert!(taken <= CHUNK_MIN / frame(b"x").len(), "{taken}");
        assert!(reader.splitter.buffer.capacity() <= 2 * CHUNK_MIN);
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_frame_may_take_its_time_but_no_longer() {
        for (wait, finished) in
            [(HALF_FRAME_TIMEOUT - Duration::from_millis(1), true), (HALF_FRAME_TIMEOUT, false)]
        {
            let (mut ours, theirs) = duplex(64);
            let mut reader = FrameReader::new(theirs);
            let mut frames = Vec::new();
            let writer = async move {
                // An idle stream has all the time in the world.
                tokio::time::sleep(Duration::from_secs(3600)).await;
                ours.write_all(&announce(3)).await.unwrap();
                tokio::time::sleep(wait).await;
                // Bytes that do not finish the frame win no time.
                let _ = ours.write_all(b"ab").await;
                let _ = ours.write_all(b"c").await;
                ours
            };
            match tokio::join!(writer, reader.read_batch(&mut frames)).1 {
                Ok(1) if finished => {}
                Err(ReadError::HalfFrame) if !finished => {}
                other => panic!("after {wait:?}: {other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn dripping_bytes_do_not_win_time() {
        let (mut ours, theirs) = duplex(64);
        let mut reader = FrameReader::new(theirs);
        ours.write_all(&announce(100)).await.unwrap();
        let begun = Instant::now();
        let drip = async {
            loop {
                ours.write_all(b"x").await.unwrap();
                tokio::time::sleep(HALF_FRAME_TIMEOUT / 10).await;
            }
        };
        let mut frames = Vec::new();
        let ended = tokio::select! {
            ended = reader.read_batch(&mut frames) => ended,
            () = drip => unreachable!("it drips for ever"),
        };
        assert!(matches!(ended, Err(ReadError::HalfFrame)), "{ended:?}");
        assert_eq!(begun.elapsed(), HALF_FRAME_TIMEOUT);
    }

    #[tokio::test]
    async fn a_cancelled_read_loses_nothing() {
        let (mut ours, theirs) = duplex(64);
        let mut reader = FrameReader::new(theirs);
        let mut frames = Vec::new();
        for byte in frame(b"piecemeal") {
            {
                let mut read = pin!(reader.read_batch(&mut frames));
                let once = poll_fn(|context| Poll::Ready(read.as_mut().poll(context))).await;
                assert!(once.is_pending());
            }
            ours.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(reader.read_batch(&mut frames).await.unwrap(), 1);
        assert_eq!(frames, [&b"piecemeal"[..]]);
    }
}
