//! What a broker passes on of others' messages, made harmless before lapin parses it.
//!
//! A broker does not look into what others publish: names that are not text, headers nested thousands deep. lapin
//! takes the first for a broken connection and the second for a reason to recurse until its stack overflows, and the
//! message is still in its queue when the worker is back, for ever. So the frames that carry such things are looked
//! through on their way from the socket. What cannot be text becomes question marks, what is nested becomes plain
//! bytes, and nothing changes its length: whose message that was is verified later, and will not be.

use std::{
    fmt, io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{AsyncRead, AsyncWrite};

/// The largest frame that is taken; brokers agree to 128 KiB unless they were told otherwise.
const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// How much is read at once.
const READ_CHUNK_BYTES: usize = 32 * 1024;
/// Type, channel and length of a frame, before its payload.
const FRAME_HEADER_BYTES: usize = 7;

/// A stream whose reader sees only frames that it can parse.
pub(crate) struct SanitizedStream<S> {
    inner: S,
    /// What was read, from the first byte that has not been given out.
    bytes: Vec<u8>,
    /// How much of it is given out already.
    given: usize,
    /// How much of it has been looked through.
    seen: usize,
}

impl<S> SanitizedStream<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner, bytes: Vec::new(), given: 0, seen: 0 }
    }

    /// Looks through the frames that have come in whole.
    fn look(&mut self) -> io::Result<()> {
        while let Some(start) = self.bytes.get(self.seen..self.seen + FRAME_HEADER_BYTES) {
            let kind = start[0];
            if !matches!(kind, METHOD_FRAME | HEADER_FRAME | BODY_FRAME | HEARTBEAT_FRAME) {
                // No frame: a peer that speaks something else. lapin says so.
                self.seen = self.bytes.len();
                return Ok(());
            }
            let payload = u32::from_be_bytes([start[3], start[4], start[5], start[6]]) as usize;
            if payload > MAX_FRAME_BYTES {
                let error = format!("a frame of {payload} bytes, and {MAX_FRAME_BYTES} are the largest");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            let end = self.seen + FRAME_HEADER_BYTES + payload + 1;
            let Some(frame) = self.bytes.get_mut(self.seen..end) else { return Ok(()) };
            screen_frame(kind, &mut frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload]);
            self.seen = end;
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SanitizedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.given == this.seen {
            this.bytes.drain(..this.given);
            (this.given, this.seen) = (0, 0);
            let held = this.bytes.len();
            this.bytes.resize(held + READ_CHUNK_BYTES, 0);
            let read = Pin::new(&mut this.inner).poll_read(cx, &mut this.bytes[held..]);
            let count = if let Poll::Ready(Ok(count)) = read { count } else { 0 };
            this.bytes.truncate(held + count);
            if ready!(read)? == 0 {
                return Poll::Ready(Ok(0));
            }
            this.look()?;
        }
        let count = out.len().min(this.seen - this.given);
        out[..count].copy_from_slice(&this.bytes[this.given..this.given + count]);
        this.given += count;
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for SanitizedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, pieces)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}

impl<S> fmt::Debug for SanitizedStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SanitizedStream")
    }
}

const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const HEARTBEAT_FRAME: u8 = 8;

/// Makes a frame's payload harmless. What has another shape than the protocol says stays as it is, from there on:
/// lapin stumbles over the same byte.
fn screen_frame(kind: u8, payload: &mut [u8]) {
    let mut at = PayloadCursor { bytes: payload, at: 0 };
    let _as_far_as_it_has_the_shape = match kind {
        METHOD_FRAME => method(&mut at),
        HEADER_FRAME => properties(&mut at),
        _ => Some(()),
    };
}

/// The methods that repeat what a publisher wrote: exchange and routing key.
fn method(at: &mut PayloadCursor<'_>) -> Option<()> {
    match (at.number(2)?, at.number(2)?) {
        // basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key
        (60, 60) => {
            at.name()?;
            at.skip(9)?;
        }
        // basic.get-ok: delivery tag, redelivered, exchange, routing key
        (60, 71) => at.skip(9)?,
        // basic.return: code, text, exchange, routing key
        (60, 50) => {
            at.skip(2)?;
            at.name()?;
        }
        _ => return Some(()),
    }
    at.name()?;
    at.name()
}

/// A content header: class, weight, size, then which properties there are, then these in the order of the bits.
fn properties(at: &mut PayloadCursor<'_>) -> Option<()> {
    at.skip(12)?;
    let flags = at.number(2)?;
    for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
        match bit {
            // headers
            13 => {
                let table = at.sized(4)?;
                values(&mut at.part(table), true, 0)?;
            }
            // delivery mode, priority
            11 | 12 => at.skip(1)?,
            // timestamp
            6 => at.skip(8)?,
            // the rest are names
            _ => at.name()?,
        }
    }
    Some(())
}

/// How deep lapin may walk: a list in a header, and no list in that.
const MAX_HEADER_DEPTH: usize = 1;

/// A table (each value has a name) or a list (they have none).
fn values(at: &mut PayloadCursor<'_>, named: bool, depth: usize) -> Option<()> {
    while !at.is_done() {
        if named {
            at.name()?;
        }
        let letter = at.take(1)?;
        let kind = at.bytes[letter.start];
        match kind {
            b't' | b'b' | b'B' => at.skip(1)?,
            b's' | b'U' | b'u' => at.skip(2)?,
            b'I' | b'i' | b'f' => at.skip(4)?,
            b'D' => at.skip(5)?,
            b'l' | b'L' | b'd' | b'T' => at.skip(8)?,
            b'V' => {}
            b'S' | b'x' => {
                at.sized(4)?;
            }
            b'F' | b'A' => {
                let inside = at.sized(4)?;
                if depth < MAX_HEADER_DEPTH {
                    values(&mut at.part(inside), kind == b'F', depth + 1)?;
                } else {
                    at.bytes[letter.start] = b'x';
                }
            }
            _ => return None,
        }
    }
    Some(())
}

/// A place in a payload.
struct PayloadCursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl PayloadCursor<'_> {
    fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    fn take(&mut self, count: usize) -> Option<Range<usize>> {
        let range = self.at..self.at.checked_add(count).filter(|end| *end <= self.bytes.len())?;
        self.at = range.end;
        Some(range)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    fn number(&mut self, size: usize) -> Option<usize> {
        let range = self.take(size)?;
        Some(self.bytes[range].iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Something that begins with its length.
    fn sized(&mut self, length: usize) -> Option<Range<usize>> {
        let size = self.number(length)?;
        self.take(size)
    }

    /// A short text, which is text afterwards.
    fn name(&mut self) -> Option<()> {
        let range = self.sized(1)?;
        let name = &mut self.bytes[range];
        if std::str::from_utf8(name).is_err() {
            name.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        Some(())
    }

    fn part(&mut self, range: Range<usize>) -> PayloadCursor<'_> {
        PayloadCursor { bytes: &mut self.bytes[range], at: 0 }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{AsyncReadExt, io::Cursor as Source};
    use lapin::{
        BasicProperties,
        types::{AMQPValue, FieldArray, FieldTable, ShortString},
    };
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
    }

    fn short(bytes: &[u8]) -> Vec<u8> {
        [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
    }

    fn long(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    /// A stream that gives as many bytes at once as it is told to.
    struct Slow(Source<Vec<u8>>, usize);

    impl AsyncRead for Slow {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let most = out.len().min(this.1);
            Pin::new(&mut this.0).poll_read(cx, &mut out[..most])
        }
    }

    fn through(bytes: &[u8], at_once: usize) -> io::Result<Vec<u8>> {
        let mut screened = SanitizedStream::new(Slow(Source::new(bytes.to_vec()), at_once));
        let mut out = Vec::new();
        futures_util::FutureExt::now_or_never(screened.read_to_end(&mut out)).unwrap()?;
        Ok(out)
    }

    fn content_header(flags: u16, values: &[u8]) -> Vec<u8> {
        [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &flags.to_be_bytes(), values].concat()
    }

    /// As lapin reads it.
    fn parsed(payload: &[u8]) -> Option<BasicProperties> {
        let frame = frame(HEADER_FRAME, payload);
        let frame = through(&frame, 7).unwrap();
        let parsed =
            lapin::protocol::basic::parse_properties(&frame[FRAME_HEADER_BYTES + 12..frame.len() - 1]);
        parsed.ok().map(|(_, properties)| properties)
    }

    #[test]
    fn names_that_are_no_text_become_text() {
        let header = content_header(1 << 7 | 1 << 5, &[short(b"caf\xe9"), short("é".as_bytes())].concat());
        let properties = parsed(&header).unwrap();
        assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("caf?"));
        assert_eq!(properties.kind().as_ref().map(ShortString::as_str), Some("é"), "text stays");
        let deliver = |key: &[u8]| {
            [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"exchange"), &short(key)].concat()
        };
        let screened = through(&frame(METHOD_FRAME, &deliver(b"\xff\xfe")), 3).unwrap();
        assert_eq!(screened, frame(METHOD_FRAME, &deliver(b"??")));
    }

    #[test]
    fn nested_headers_are_not_walked() {
        let mut table = Vec::new();
        for _ in 0..20_000 {
            table = [&short(b"")[..], b"F", &long(&table)].concat();
        }
        let properties = parsed(&content_header(1 << 13, &long(&table))).unwrap();
        let headers = properties.headers().clone().unwrap();
        let Some(AMQPValue::FieldTable(inner)) = headers.inner().get("") else { panic!("{headers:?}") };
        assert!(matches!(inner.inner().get(""), Some(AMQPValue::ByteArray(_))));
        let mut list = Vec::new();
        for _ in 0..20_000 {
            list = [&b"A"[..], &long(&list)].concat();
        }
        let table = [&short(b"list")[..], b"A", &long(&list)].concat();
        assert!(parsed(&content_header(1 << 13, &long(&table))).is_some());
    }

    #[test]
    fn a_frame_that_is_too_large_ends_the_connection_before_it_is_read() {
        assert_eq!(
            through(&[BODY_FRAME, 0, 1, 0xff, 0, 0, 0], 100).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        assert_eq!(through(b"AMQP\0\0\x09\x01", 100).unwrap(), b"AMQP\0\0\x09\x01");
    }

    fn value() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<i8>().prop_map(AMQPValue::ShortShortInt),
            any::<u16>().prop_map(AMQPValue::ShortUInt),
            any::<i32>().prop_map(AMQPValue::LongInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            (-1e9..1e9f64).prop_map(AMQPValue::Double),
            ".{0,20}".prop_map(|text| AMQPValue::LongString(text.into())),
            Just(AMQPValue::Void),
        ];
        leaf.prop_recursive(1, 8, 4, |inner| {
            proptest::collection::vec(inner, 0..4)
                .prop_map(|all| AMQPValue::FieldArray(FieldArray::from(all)))
        })
    }

    proptest! {
        #[test]
        fn what_lapin_writes_comes_through_unchanged(
            id in proptest::option::of(".{0,40}"),
            priority in proptest::option::of(0u8..10),
            headers in proptest::collection::btree_map("[a-z]{1,9}", value(), 0..6),
            at_once in 1usize..50,
        ) {
            let mut properties = BasicProperties::default();
            if let Some(id) = id {
                properties = properties.with_message_id(id.into());
            }
            if let Some(priority) = priority {
                properties = properties.with_priority(priority);
            }
            let mut table = FieldTable::default();
            for (name, value) in headers {
                table.insert(name.into(), value);
            }
            let properties = properties.with_headers(table);
            let write = lapin::protocol::basic::gen_properties::<Vec<u8>>(&properties);
            let bytes = write(vec![0; 12].into()).unwrap().write;
            let all = [frame(HEADER_FRAME, &bytes), frame(BODY_FRAME, b"\xff\xfe"), frame(HEARTBEAT_FRAME, b"")].concat();
            prop_assert_eq!(through(&all, at_once).unwrap(), all);
        }

        /// Nothing that a peer sends makes it panic, lose a byte, or give lapin a name that is no text.
        #[test]
        fn whatever_comes_keeps_its_length(payload: Vec<u8>, flags: u16, header: bool, at_once in 1usize..50) {
            let frame = if header {
                frame(HEADER_FRAME, &content_header(flags, &payload))
            } else {
                frame(METHOD_FRAME, &[&[0, 60, 0, 60][..], &payload].concat())
            };
            let screened = through(&frame, at_once).unwrap();
            prop_assert_eq!(screened.len(), frame.len());
            prop_assert_eq!(through(&screened, at_once).unwrap(), screened);
        }
    }
}
