//! The end of a connection's socket: it is forced where the peer does not answer, and held back while the connection
//! closes in order.

use std::{
    fmt,
    net::{Shutdown, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

/// Second handle on the socket of a connection, which ends the connection without asking the peer.
///
/// lapin closes a connection by talking to the broker. With a peer that no longer answers, its thread and its
/// socket would stay forever, one pair for each attempt. This handle shuts the socket down, and then everything
/// that waits on it fails at once.
///
/// A broker that agrees to close a connection closes its socket right after its answer. lapin logs two errors if it
/// reads that end before it has processed the answer, so the stream shows the end only when the closing is over.
#[derive(Clone, Default)]
pub(crate) struct SocketHandle(Arc<Mutex<Socket>>);

#[derive(Default)]
struct Socket {
    stream: Option<TcpStream>,
    closing: bool,
    /// Reader that has met the end of the stream while the connection closes.
    reader: Option<Waker>,
}

impl SocketHandle {
    pub(crate) fn attach(&self, stream: TcpStream) {
        self.lock().stream = Some(stream);
    }

    /// Holds back the end of the stream from its reader until [`shut_down`](Self::shut_down).
    pub(crate) fn hold_back_end(&self) {
        self.lock().closing = true;
    }

    /// Is ready as soon as the reader may see the end of the stream.
    pub(crate) fn poll_end(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut socket = self.lock();
        if !socket.closing {
            return Poll::Ready(());
        }
        socket.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ends the connection.
    pub(crate) fn shut_down(&self) {
        let mut socket = self.lock();
        socket.closing = false;
        let (stream, reader) = (socket.stream.take(), socket.reader.take());
        drop(socket);
        if let Some(stream) = stream {
            // It fails only if the socket is already closed.
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Socket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SocketHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SocketHandle")
    }
}
