//! Parser of event streams, by the rules of the WHATWG (HTML, 9.2.6), with a bound.
//!
//! However the bytes are cut into pieces, the same items come out. UTF-8 that is none is replaced as everywhere on the
//! web; since no line end is part of a longer character, that can wait until a line is whole.

use std::{sync::Arc, time::Duration};

/// Something a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event {
        /// Its name, `message` where it has none.
        name: String,
        /// Its data.
        data: String,
        /// The last id up to it, its own or that of an event before it; empty before the first.
        id: Arc<str>,
        /// The id is its own.
        own: bool,
    },
    /// An id without an event.
    Id(Arc<str>),
    /// How long to wait before the next connection.
    Retry(Duration),
}

/// A line and the event it belongs to exceed the bound. The parser is of no use after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLong;

/// The parser of one stream.
#[derive(Debug)]
pub struct EventStream {
    /// Longest event with the line under way, bytes.
    max: usize,
    line: Vec<u8>,
    /// A line has ended: no mark of the byte order can follow.
    begun: bool,
    /// The last byte was a CR, which ended a line: an LF right behind it belongs to it.
    after_cr: bool,
    data: Vec<u8>,
    name: String,
    id: Arc<str>,
    /// The event under way has said its id.
    own: bool,
}

impl EventStream {
    /// At the beginning of a stream.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            line: Vec::new(),
            begun: false,
            after_cr: false,
            data: Vec::new(),
            name: String::new(),
            id: "".into(),
            own: false,
        }
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// When an event grows beyond the bound. What ended before it is in `out`.
    pub fn feed(&mut self, chunk: &[u8], out: &mut Vec<Item>) -> Result<(), TooLong> {
        let mut rest = chunk;
        if self.after_cr && !rest.is_empty() {
            self.after_cr = false;
            rest = rest.strip_prefix(b"\n").unwrap_or(rest);
        }
        while let Some(end) = rest.iter().position(|byte| matches!(byte, b'\r' | b'\n')) {
            self.lengthen(&rest[..end])?;
            self.end_line(out);
            let is_cr = rest[end] == b'\r';
            rest = &rest[end + 1..];
            if is_cr {
                self.after_cr = rest.is_empty();
                rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            }
        }
        self.lengthen(rest)
    }

    fn lengthen(&mut self, piece: &[u8]) -> Result<(), TooLong> {
        if self.data.len() + self.line.len() + piece.len() > self.max {
            return Err(TooLong);
        }
        self.line.extend_from_slice(piece);
        Ok(())
    }

    fn end_line(&mut self, out: &mut Vec<Item>) {
        let line = std::mem::take(&mut self.line);
        let bytes = line.as_slice();
        let bytes = if self.begun { bytes } else { bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes) };
        self.begun = true;
        if bytes.is_empty() {
            self.end_event(out);
        } else if let Some(colon) = bytes.iter().position(|byte| *byte == b':') {
            // A comment is a field without a name.
            let value = &bytes[colon + 1..];
            self.field(&bytes[..colon], value.strip_prefix(b" ").unwrap_or(value), out);
        } else {
            self.field(bytes, b"", out);
        }
        // Its room is used again.
        self.line = line;
        self.line.clear();
    }

    fn field(&mut self, name: &[u8], value: &[u8], out: &mut Vec<Item>) {
        match name {
            b"data" => {
                self.data.extend_from_slice(value);
                self.data.push(b'\n');
            }
            b"event" => self.name = text(value),
            b"id" if !value.contains(&0) => {
                self.id = text(value).into();
                self.own = true;
            }
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                let ms = text(value).parse().unwrap_or(u64::MAX);
                out.push(Item::Retry(Duration::from_millis(ms)));
            }
            _ => {}
        }
    }

    fn end_event(&mut self, out: &mut Vec<Item>) {
        let name = std::mem::take(&mut self.name);
        let own = std::mem::take(&mut self.own);
        let id = self.id.clone();
        if self.data.pop().is_some() {
            let name = if name.is_empty() { "message".to_owned() } else { name };
            out.push(Item::Event { name, data: text(&self.data), id, own });
            self.data.clear();
        } else if own {
            out.push(Item::Id(id));
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(stream: &[u8]) -> Vec<Item> {
        let mut items = Vec::new();
        EventStream::new(1 << 16).feed(stream, &mut items).unwrap();
        items
    }

    fn event(name: &str, data: &str, id: &str, own: bool) -> Item {
        Item::Event { name: name.into(), data: data.into(), id: id.into(), own }
    }

    /// The cases of the web platform's own tests, by what they are about.
    #[test]
    fn every_rule_of_the_standard_holds() {
        let m = |data: &str| event("message", data, "", false);
        let table: &[(&str, &[u8], Vec<Item>)] = &[
            ("one line", b"data: a\n\n", vec![m("a")]),
            (
                "line ends",
                b"data:a\r\rdata:b\n\ndata:c\r\n\r\ndata:d\r\n\n",
                vec![m("a"), m("b"), m("c"), m("d")],
            ),
            ("one space goes", b"data:  a\n\ndata:\ta\n\n", vec![m(" a"), m("\ta")]),
            ("lines join", b"data: a\ndata: b\ndata\n\n", vec![m("a\nb\n")]),
            (
                "data without a value is an event",
                b"data\n\ndata:\n\ndata\ndata\n\n",
                vec![m(""), m(""), m("\n")],
            ),
            ("no data is none", b"event: x\n\n:\n\n\n\ndata: a\n\n", vec![m("a")]),
            ("comments", b": data: a\n:\ndata: b\n\n", vec![m("b")]),
            (
                "unknown fields and other case",
                b"DATA: a\n data: b\ndata : c\nx\nxdata: d\ndata: e\n\n",
                vec![m("e")],
            ),
            ("what has not ended is nothing", b"data: a\n\ndata: b\n", vec![m("a")]),
            ("colons in the value", b"data:a:b: c\n\n", vec![m("a:b: c")]),
            (
                "named, for one event",
                b"event: x\ndata: a\n\ndata: b\n\n",
                vec![event("x", "a", "", false), m("b")],
            ),
            ("the last name counts", b"event: x\nevent:\ndata: a\n\n", vec![m("a")]),
            ("one mark goes", b"\xef\xbb\xbfdata: a\n\n", vec![m("a")]),
            ("the second is part of a name", b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", vec![m("b")]),
            ("later ones too", b"data: a\n\n\xef\xbb\xbfdata: b\n\n", vec![m("a")]),
            ("NUL in data stays", b"data: a\0b\n\n", vec![m("a\0b")]),
            (
                "ids last",
                b"id: 1\ndata: a\n\ndata: b\n\nid: 2\n\nid\ndata: c\n\n",
                vec![
                    event("message", "a", "1", true),
                    event("message", "b", "1", false),
                    Item::Id("2".into()),
                    event("message", "c", "", true),
                ],
            ),
            ("NUL in an id", b"id: 1\0\ndata: a\n\n", vec![m("a")]),
            ("an id without its end is none", b"id: 1\ndata: a\n", vec![]),
            (
                "retry is digits",
                b"retry: 1500\nretry: 1.5\nretry:\nretry: -1\nretry: 99999999999999999999\nretry: x\n",
                vec![Item::Retry(Duration::from_millis(1500)), Item::Retry(Duration::from_millis(u64::MAX))],
            ),
            ("bad UTF-8 is replaced", b"data: a\xffb\xe2\x82\n\n", vec![m("a\u{fffd}b\u{fffd}")]),
            ("a null byte begins no field", b"\0data: a\n\ndata: b\n\n", vec![m("b")]),
        ];
        for (what, stream, expected) in table {
            assert_eq!(parse(stream), *expected, "{what}");
        }
    }

    #[test]
    fn an_event_at_the_bound_is_taken_and_one_byte_more_is_not() {
        let feed = |stream: &[u8]| {
            let mut items = Vec::new();
            EventStream::new(16).feed(stream, &mut items).map(|()| items.len())
        };
        assert_eq!(feed(b"data: 0123456789\n\n"), Ok(1));
        assert_eq!(feed(b"data: 0123456789a"), Err(TooLong));
        // An endless line of any kind, and an endless event.
        assert_eq!(feed(&[b':'; 17]), Err(TooLong));
        assert_eq!(feed(&b"data:ab\n".repeat(10)), Err(TooLong));
        assert_eq!(feed(&b"data:ab\n\n".repeat(10)), Ok(10));
    }

    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop::sample::select(vec![
            &b"data"[..],
            b"event",
            b"id",
            b"retry",
            b":",
            b" ",
            b"\n",
            b"\r",
            b"\r\n",
            b"\n\n",
            b"\xef\xbb\xbf",
            b"\0",
            b"7",
            b"x",
            "\u{fc}".as_bytes(),
            b"\xff",
            b"data: a\n\n",
            b"id: 3\n",
        ]);
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_split_of_the_bytes_gives_the_same_items(stream in stream(), cuts in prop::collection::vec(0_usize..40, 0..60)) {
            let whole = parse(&stream);
            let mut items = Vec::new();
            let mut parser = EventStream::new(1 << 16);
            let mut rest = stream.as_slice();
            for cut in cuts {
                let (piece, tail) = rest.split_at(cut.min(rest.len()));
                parser.feed(piece, &mut items).unwrap();
                rest = tail;
            }
            parser.feed(rest, &mut items).unwrap();
            prop_assert_eq!(&items, &whole);
            let mut items = Vec::new();
            let mut parser = EventStream::new(1 << 16);
            stream.iter().for_each(|byte| parser.feed(&[*byte], &mut items).unwrap());
            prop_assert_eq!(items, whole);
        }

        #[test]
        fn no_bytes_break_the_parser_or_its_bound(stream in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut parser = EventStream::new(32);
            let mut items = Vec::new();
            let fed = stream.chunks(7).try_for_each(|chunk| parser.feed(chunk, &mut items));
            prop_assert!(fed.is_ok() || stream.len() > 32);
            prop_assert!(parser.line.len() + parser.data.len() <= 33);
        }
    }
}
