//! Publisher that writes raw AMQP frames, as an attacker can and a library does not.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const END: u8 = 0xce;

/// Connection with one channel in confirm mode.
pub(crate) struct RawPublisher(TcpStream);

/// Message as it is written on the wire. Names are bytes, not text.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawMessage {
    pub(crate) routing_key: Vec<u8>,
    pub(crate) content_type: Option<Vec<u8>>,
    /// Field table without its length.
    pub(crate) headers: Option<Vec<u8>>,
    pub(crate) correlation_id: Option<Vec<u8>>,
    pub(crate) reply_to: Option<Vec<u8>>,
    pub(crate) message_id: Option<Vec<u8>>,
    pub(crate) kind: Option<Vec<u8>>,
    pub(crate) app_id: Option<Vec<u8>>,
    pub(crate) body: Vec<u8>,
}

pub(crate) fn short(bytes: &[u8]) -> Vec<u8> {
    [&[u8::try_from(bytes.len()).unwrap()], bytes].concat()
}

pub(crate) fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

/// Returns an entry of a table: its name, the letter of its type, its value.
pub(crate) fn entry(name: &[u8], letter: u8, value: &[u8]) -> Vec<u8> {
    [&short(name)[..], &[letter], value].concat()
}

impl RawPublisher {
    /// Logs in at `amqp://USER:PASSWORD@HOST:PORT/…`, vhost `/`.
    pub(crate) fn connect(url: &str) -> Self {
        let rest = url.split_once("://").unwrap().1;
        let (login, rest) = rest.rsplit_once('@').unwrap();
        let (user, password) = login.split_once(':').unwrap();
        let stream = TcpStream::connect(rest.split('/').next().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut this = Self(stream);
        this.0.write_all(b"AMQP\x00\x00\x09\x01").unwrap();
        this.expect([10, 10]);
        let response = long(format!("\0{user}\0{password}").as_bytes());
        this.method(0, [10, 11], &[&long(b""), &short(b"PLAIN"), &response, &short(b"en_US")]);
        let tune = this.expect([10, 30]);
        this.method(0, [10, 31], &[&tune[..6], &[0, 0]]);
        this.method(0, [10, 40], &[&short(b"/"), &short(b""), &[0]]);
        this.expect([10, 41]);
        this.method(1, [20, 10], &[&short(b"")]);
        this.expect([20, 11]);
        this.method(1, [85, 10], &[&[0]]);
        this.expect([85, 11]);
        this
    }

    /// Publishes to the default exchange. Returns `true` if the broker confirms the message; if it refuses it, this
    /// connection is closed.
    pub(crate) fn publish(&mut self, message: &RawMessage) -> bool {
        let key = short(&message.routing_key);
        self.method(1, [60, 40], &[&[0, 0], &short(b""), &key, &[0]]);
        let properties = [
            (15, message.content_type.as_deref().map(short)),
            (13, message.headers.as_deref().map(long)),
            (12, Some(vec![2])),
            (10, message.correlation_id.as_deref().map(short)),
            (9, message.reply_to.as_deref().map(short)),
            (7, message.message_id.as_deref().map(short)),
            (5, message.kind.as_deref().map(short)),
            (3, message.app_id.as_deref().map(short)),
        ];
        let (mut flags, mut values) = (0u16, Vec::new());
        for (bit, value) in properties {
            if let Some(value) = value {
                flags |= 1 << bit;
                values.extend(value);
            }
        }
        let size = (message.body.len() as u64).to_be_bytes();
        let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), &values].concat();
        self.frame(HEADER, 1, &header);
        self.frame(BODY, 1, &message.body);
        self.next().0 == [60, 80]
    }

    fn method(&mut self, channel: u16, id: [u8; 2], arguments: &[&[u8]]) {
        let payload = [&[0, id[0], 0, id[1]][..], &arguments.concat()].concat();
        self.frame(METHOD, channel, &payload);
    }

    fn frame(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        let frame = [&[kind][..], &channel.to_be_bytes(), &long(payload), &[END]].concat();
        self.0.write_all(&frame).unwrap();
    }

    /// Reads the arguments of the next method, which must be this one.
    fn expect(&mut self, id: [u8; 2]) -> Vec<u8> {
        let (found, arguments) = self.next();
        assert_eq!(found, id, "{}", String::from_utf8_lossy(&arguments));
        arguments
    }

    /// Reads the next method and its arguments.
    fn next(&mut self) -> ([u8; 2], Vec<u8>) {
        loop {
            let mut start = [0; 7];
            self.0.read_exact(&mut start).unwrap();
            let size = u32::from_be_bytes([start[3], start[4], start[5], start[6]]) as usize;
            let mut payload = vec![0; size + 1];
            self.0.read_exact(&mut payload).unwrap();
            if start[0] == METHOD {
                return ([payload[1], payload[3]], payload[4..size].to_vec());
            }
        }
    }
}
