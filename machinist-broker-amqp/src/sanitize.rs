//! Sanitizes the frames of a broker before lapin parses them.
//!
//! A broker does not check the messages of other clients: their names may not be text, and their headers may be nested
//! thousands deep. lapin mistakes the first for a broken connection, and recurses into the second until its stack
//! overflows. The message is still in its queue when the worker is back, so this would repeat forever. Therefore the
//! frames that carry names and headers are checked on their way from the socket. Names that are not text get question
//! marks, nested headers become plain bytes, and nothing changes its length. A changed message does not pass the
//! verification later.

use std::{
    fmt, io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{AsyncRead, AsyncWrite};
use machinist_adapter::broker::MAX_HEADER_DEPTH;

use crate::socket::SocketHandle;

/// Maximum size of a frame, in bytes. Brokers agree on 128 KiB unless they are configured otherwise.
const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;

/// Number of bytes that are read at once.
const READ_CHUNK_BYTES: usize = 32 * 1024;

/// Size of the type, channel and length of a frame, which come before its payload, in bytes.
const FRAME_HEADER_BYTES: usize = 7;

/// Maximum depth of nested headers that lapin gets: one level more than is read, so that a header that is cut off there is
/// left out and not read as bytes.
const MAX_PARSED_DEPTH: usize = MAX_HEADER_DEPTH + 1;

/// Types of frames.
const METHOD_FRAME: u8 = 1;
const HEADER_FRAME: u8 = 2;
const BODY_FRAME: u8 = 3;
const HEARTBEAT_FRAME: u8 = 8;

/// Stream whose reader gets only frames that lapin can parse.
pub(crate) struct SanitizedStream<S> {
    inner: S,
    /// Bytes that were read from `inner`, and room behind them, which is zeroed once and not for each read.
    bytes: Vec<u8>,
    /// Number of leading bytes that were read.
    read: usize,
    /// Number of leading bytes that the reader already has.
    delivered: usize,
    /// Number of leading bytes that are sanitized.
    sanitized: usize,
    socket: SocketHandle,
}

impl<S> SanitizedStream<S> {
    pub(crate) fn new(inner: S, socket: SocketHandle) -> Self {
        Self { inner, bytes: Vec::new(), read: 0, delivered: 0, sanitized: 0, socket }
    }

    /// Sanitizes the complete frames among the bytes.
    fn sanitize_frames(&mut self) -> io::Result<()> {
        let bytes = &mut self.bytes[..self.read];
        while let Some(start) = bytes.get(self.sanitized..self.sanitized + FRAME_HEADER_BYTES) {
            let kind = start[0];
            if !matches!(kind, METHOD_FRAME | HEADER_FRAME | BODY_FRAME | HEARTBEAT_FRAME) {
                // Not a frame: the peer speaks another protocol. lapin reports it.
                self.sanitized = bytes.len();
                return Ok(());
            }
            let payload = u32::from_be_bytes([start[3], start[4], start[5], start[6]]) as usize;
            if payload > MAX_FRAME_BYTES {
                let error = format!("a frame of {payload} bytes is larger than {MAX_FRAME_BYTES}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            let end = self.sanitized + FRAME_HEADER_BYTES + payload + 1;
            let Some(frame) = bytes.get_mut(self.sanitized..end) else { return Ok(()) };
            sanitize_frame(kind, &mut frame[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + payload]);
            self.sanitized = end;
        }
        Ok(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for SanitizedStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.delivered == this.sanitized {
            // Not for each piece of a large frame.
            if this.delivered > 0 {
                this.bytes.copy_within(this.delivered..this.read, 0);
                this.read -= this.delivered;
                this.delivered = 0;
                this.sanitized = 0;
            }
            let room = this.read..this.read + READ_CHUNK_BYTES;
            if this.bytes.len() < room.end {
                this.bytes.resize(room.end, 0);
            }
            let read = ready!(Pin::new(&mut this.inner).poll_read(cx, &mut this.bytes[room]));
            let Ok(count @ 1..) = read else {
                ready!(this.socket.poll_end(cx));
                return Poll::Ready(read);
            };
            this.read += count;
            this.sanitize_frames()?;
        }
        let count = out.len().min(this.sanitized - this.delivered);
        out[..count].copy_from_slice(&this.bytes[this.delivered..this.delivered + count]);
        this.delivered += count;
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

/// Sanitizes the payload of a frame. From the first byte that violates the protocol on, the payload stays unchanged: lapin
/// fails at the same byte.
fn sanitize_frame(kind: u8, payload: &mut [u8]) {
    let mut cursor = PayloadCursor { bytes: payload, at: 0 };
    let _until_the_first_violation = match kind {
        METHOD_FRAME => sanitize_method(&mut cursor),
        HEADER_FRAME => sanitize_properties(&mut cursor),
        _ => Some(()),
    };
}

/// Sanitizes the methods that repeat strings of a publisher: exchange and routing key.
fn sanitize_method(cursor: &mut PayloadCursor<'_>) -> Option<()> {
    match (cursor.number(2)?, cursor.number(2)?) {
        // basic.deliver: consumer tag, delivery tag, redelivered, exchange, routing key
        (60, 60) => {
            cursor.short_string()?;
            cursor.skip(9)?;
        }
        // basic.get-ok: delivery tag, redelivered, exchange, routing key
        (60, 71) => cursor.skip(9)?,
        // basic.return: code, text, exchange, routing key
        (60, 50) => {
            cursor.skip(2)?;
            cursor.short_string()?;
        }
        _ => return Some(()),
    }
    cursor.short_string()?;
    cursor.short_string()
}

/// Sanitizes a content header: class, weight, size, flags of the properties, then the properties in the order of the bits.
fn sanitize_properties(cursor: &mut PayloadCursor<'_>) -> Option<()> {
    cursor.skip(12)?;
    let flags = cursor.number(2)?;
    for bit in (2..16).rev().filter(|bit| flags & (1 << bit) != 0) {
        match bit {
            // headers
            13 => {
                let table = cursor.prefixed(4)?;
                sanitize_values(&mut cursor.part(table), true, 0)?;
            }
            // delivery mode, priority
            11 | 12 => cursor.skip(1)?,
            // timestamp
            6 => cursor.skip(8)?,
            // the rest are short strings
            _ => cursor.short_string()?,
        }
    }
    Some(())
}

/// Sanitizes the values of a table (with names) or a list (without).
fn sanitize_values(cursor: &mut PayloadCursor<'_>, named: bool, depth: usize) -> Option<()> {
    while !cursor.is_done() {
        if named {
            cursor.short_string()?;
        }
        let letter = cursor.take(1)?;
        let kind = cursor.bytes[letter.start];
        match kind {
            b't' | b'b' | b'B' => cursor.skip(1)?,
            b's' | b'U' | b'u' => cursor.skip(2)?,
            b'I' | b'i' | b'f' => cursor.skip(4)?,
            b'D' => cursor.skip(5)?,
            b'l' | b'L' | b'd' | b'T' => cursor.skip(8)?,
            b'V' => {}
            b'S' | b'x' => {
                cursor.prefixed(4)?;
            }
            b'F' | b'A' => {
                let inside = cursor.prefixed(4)?;
                if depth < MAX_PARSED_DEPTH {
                    sanitize_values(&mut cursor.part(inside), kind == b'F', depth + 1)?;
                } else {
                    cursor.bytes[letter.start] = b'x';
                }
            }
            _ => return None,
        }
    }
    Some(())
}

/// Position in a payload.
struct PayloadCursor<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl PayloadCursor<'_> {
    fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    /// Takes the next `count` bytes.
    fn take(&mut self, count: usize) -> Option<Range<usize>> {
        let range = self.at..self.at.checked_add(count).filter(|end| *end <= self.bytes.len())?;
        self.at = range.end;
        Some(range)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.take(count).map(|_| ())
    }

    /// Takes an unsigned number of `size` bytes.
    fn number(&mut self, size: usize) -> Option<usize> {
        let range = self.take(size)?;
        Some(self.bytes[range].iter().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    }

    /// Takes a field after its length, which is a number of `prefix` bytes.
    fn prefixed(&mut self, prefix: usize) -> Option<Range<usize>> {
        let size = self.number(prefix)?;
        self.take(size)
    }

    /// Takes a short string and makes it UTF-8.
    fn short_string(&mut self) -> Option<()> {
        let range = self.prefixed(1)?;
        let name = &mut self.bytes[range];
        if std::str::from_utf8(name).is_err() {
            name.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        Some(())
    }

    /// Cursor over a part of the payload.
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

    /// Stream that gives at most a set number of bytes at once.
    struct Slow(Source<Vec<u8>>, usize);

    impl AsyncRead for Slow {
        fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
            let this = self.get_mut();
            let most = out.len().min(this.1);
            Pin::new(&mut this.0).poll_read(cx, &mut out[..most])
        }
    }

    fn through(bytes: &[u8], at_once: usize) -> io::Result<Vec<u8>> {
        let mut sanitized =
            SanitizedStream::new(Slow(Source::new(bytes.to_vec()), at_once), SocketHandle::default());
        let mut out = Vec::new();
        futures_util::FutureExt::now_or_never(sanitized.read_to_end(&mut out)).unwrap()?;
        Ok(out)
    }

    #[tokio::test]
    async fn the_end_is_held_back_while_a_connection_closes() {
        let socket = SocketHandle::default();
        let answer = frame(METHOD_FRAME, &[0, 10, 0, 51]);
        let mut stream = SanitizedStream::new(Source::new(answer.clone()), socket.clone());
        socket.hold_back_end();
        let mut out = Vec::new();
        let early = futures_util::FutureExt::now_or_never(stream.read_to_end(&mut out));
        assert!(early.is_none(), "{early:?}");
        let both = async { tokio::join!(stream.read_to_end(&mut out), async { socket.shut_down() }).0 };
        let ended = tokio::time::timeout(std::time::Duration::from_secs(10), both).await;
        ended.expect("the reader is woken").unwrap();
        assert_eq!(out, answer);
    }

    fn content_header(flags: u16, values: &[u8]) -> Vec<u8> {
        [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..], &flags.to_be_bytes(), values].concat()
    }

    /// Properties as lapin reads them.
    fn parsed(payload: &[u8]) -> Option<BasicProperties> {
        let frame = frame(HEADER_FRAME, payload);
        let frame = through(&frame, 7).unwrap();
        let parsed =
            lapin::protocol::basic::parse_properties(&frame[FRAME_HEADER_BYTES + 12..frame.len() - 1]);
        parsed.ok().map(|(_, properties)| properties)
    }

    #[test]
    fn names_that_are_not_text_become_text() {
        let header = content_header(1 << 7 | 1 << 5, &[short(b"caf\xe9"), short("é".as_bytes())].concat());
        let properties = parsed(&header).unwrap();
        assert_eq!(properties.message_id().as_ref().map(ShortString::as_str), Some("caf?"));
        assert_eq!(properties.kind().as_ref().map(ShortString::as_str), Some("é"), "text stays");
        let deliver = |key: &[u8]| {
            [&[0, 60, 0, 60][..], &short(b"tag"), &[0; 9], &short(b"exchange"), &short(key)].concat()
        };
        let sanitized = through(&frame(METHOD_FRAME, &deliver(b"\xff\xfe")), 3).unwrap();
        assert_eq!(sanitized, frame(METHOD_FRAME, &deliver(b"??")));
    }

    #[test]
    fn nested_headers_become_bytes() {
        let mut table = Vec::new();
        for _ in 0..20_000 {
            table = [&short(b"")[..], b"F", &long(&table)].concat();
        }
        let properties = parsed(&content_header(1 << 13, &long(&table))).unwrap();
        let headers = properties.headers().clone().unwrap();
        let mut inner = headers;
        for _ in 0..MAX_PARSED_DEPTH {
            let Some(AMQPValue::FieldTable(next)) = inner.inner().get("").cloned() else {
                panic!("{inner:?}")
            };
            inner = next;
        }
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
        leaf.prop_recursive(4, 8, 4, |inner| {
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

        /// Nothing that a peer sends makes the stream panic, lose a byte, or give lapin a name that is not text.
        #[test]
        fn any_frame_keeps_its_length(payload: Vec<u8>, flags: u16, header: bool, at_once in 1usize..50) {
            let frame = if header {
                frame(HEADER_FRAME, &content_header(flags, &payload))
            } else {
                frame(METHOD_FRAME, &[&[0, 60, 0, 60][..], &payload].concat())
            };
            let sanitized = through(&frame, at_once).unwrap();
            prop_assert_eq!(sanitized.len(), frame.len());
            prop_assert_eq!(through(&sanitized, at_once).unwrap(), sanitized);
        }
    }
}
