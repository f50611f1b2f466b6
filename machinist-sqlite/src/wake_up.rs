//! How processes on one file wake each other at once.
//!
//! Whoever waits binds a datagram socket in `FILE-owners/`, its *ear*; whoever has committed something that others may
//! wait for sends one byte to every ear it finds there. A ring carries no information and may be lost: those who wait
//! also look at the file now and then (see [`file_watcher`](crate::file_watcher)), more often where no ear could be bound.

#[cfg(unix)]
pub(crate) use unix::{WakeListener, WakeSender};

#[cfg(not(unix))]
pub(crate) use elsewhere::{WakeListener, WakeSender};

/// What the name of an ear ends with.
#[cfg(unix)]
const SOCKET_SUFFIX: &str = ".ear";

#[cfg(unix)]
mod unix {
    use std::{
        fs::{self, File},
        io::{self, ErrorKind},
        os::{fd::AsRawFd, unix::net::UnixDatagram},
        path::{Path, PathBuf},
        time::{Duration, Instant, SystemTime},
    };

    use super::SOCKET_SUFFIX;
    use crate::owners;

    /// A socket's path has room for about a hundred bytes.
    const MAX_SOCKET_PATH_BYTES: usize = 100;
    /// How old the list of ears may be, where the directory does not say that it changed.
    const MAX_LISTENER_LIST_AGE: Duration = Duration::from_secs(1);

    /// Hears the rings of others.
    #[derive(Debug)]
    pub(crate) struct WakeListener {
        socket: UnixDatagram,
        path: PathBuf,
    }

    impl WakeListener {
        /// `mark` is the store's own, unlike any other's.
        pub(crate) fn bind(file: &Path, store_id: i64) -> io::Result<Self> {
            let directory = owners::create_directory(file)?;
            let name = socket_name(store_id);
            let sockets = SocketDirectory::open(directory.clone())?;
            let socket = UnixDatagram::bind(sockets.path_of(&name))?;
            Ok(Self { socket, path: directory.join(name) })
        }

        /// Waits for a ring, for at most `bound`, and forgets all that have come.
        pub(crate) fn wait(&self, timeout: Duration) {
            let received =
                self.socket.set_read_timeout(Some(timeout)).and_then(|()| self.socket.recv(&mut [0; 1]));
            if received.is_ok() && self.socket.set_nonblocking(true).is_ok() {
                while self.socket.recv(&mut [0; 1]).is_ok() {}
                // If it fails, the next wait is none, and the caller's own pause keeps it from spinning.
                let _ = self.socket.set_nonblocking(false);
            }
        }
    }

    impl Drop for WakeListener {
        fn drop(&mut self) {
            // Only tidiness: whoever rings at an ear that nobody has takes it away.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Rings at the ears of others.
    #[derive(Debug)]
    pub(crate) struct WakeSender {
        directory: PathBuf,
        own_name: String,
        socket: Option<UnixDatagram>,
        sockets: Option<SocketDirectory>,
        listeners: Vec<String>,
        listed: Option<(SystemTime, Instant)>,
    }

    impl WakeSender {
        pub(crate) fn new(file: &Path, store_id: i64) -> Self {
            let socket = UnixDatagram::unbound().ok().filter(|socket| socket.set_nonblocking(true).is_ok());
            Self {
                directory: owners::directory(file),
                own_name: socket_name(store_id),
                socket,
                sockets: None,
                listeners: Vec::new(),
                listed: None,
            }
        }

        /// Wakes whoever waits; this process only if `own`.
        pub(crate) fn send(&mut self, include_own: bool) {
            // Where it fails, the others find out by looking.
            let _ = self.try_send(include_own);
        }

        fn try_send(&mut self, include_own: bool) -> io::Result<()> {
            self.list_listeners()?;
            let (Some(socket), Some(sockets)) = (&self.socket, &self.sockets) else { return Ok(()) };
            for listener in
                self.listeners.iter().filter(|listener| include_own || **listener != self.own_name)
            {
                let path = sockets.path_of(listener);
                if let Err(error) = socket.send_to(&[0], &path)
                    && error.kind() == ErrorKind::ConnectionRefused
                {
                    // Its process was killed. One that is full will be heard anyway.
                    let _ = fs::remove_file(path);
                }
            }
            Ok(())
        }

        /// Reads the directory again if it may have changed.
        fn list_listeners(&mut self) -> io::Result<()> {
            let changed = fs::metadata(&self.directory)?.modified()?;
            if self
                .listed
                .is_some_and(|(then, when)| then == changed && when.elapsed() < MAX_LISTENER_LIST_AGE)
            {
                return Ok(());
            }
            if self.sockets.is_none() {
                self.sockets = Some(SocketDirectory::open(self.directory.clone())?);
            }
            self.listeners.clear();
            for entry in fs::read_dir(&self.directory)? {
                if let Ok(name) = entry?.file_name().into_string()
                    && name.ends_with(SOCKET_SUFFIX)
                {
                    self.listeners.push(name);
                }
            }
            self.listed = Some((changed, Instant::now()));
            Ok(())
        }
    }

    fn socket_name(store_id: i64) -> String {
        format!("{store_id:x}{SOCKET_SUFFIX}")
    }

    /// The directory of the ears, by a path that is short enough.
    #[derive(Debug)]
    struct SocketDirectory {
        directory: PathBuf,
        open: File,
    }

    impl SocketDirectory {
        fn open(directory: PathBuf) -> io::Result<Self> {
            Ok(Self { open: File::open(&directory)?, directory })
        }

        fn path_of(&self, name: &str) -> PathBuf {
            let direct = self.directory.join(name);
            if direct.as_os_str().len() < MAX_SOCKET_PATH_BYTES {
                return direct;
            }
            // Linux; elsewhere a file this deep has no ears.
            format!("/proc/self/fd/{}/{name}", self.open.as_raw_fd()).into()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn rings_are_heard_and_the_dead_are_forgotten() {
            let temporary = tempfile::tempdir().unwrap();
            let deep = temporary.path().join("d".repeat(150));
            fs::create_dir(&deep).unwrap();
            for file in [temporary.path().join("m.db"), deep.join("m.db")] {
                let (listener, mut sender) =
                    (WakeListener::bind(&file, 1).unwrap(), WakeSender::new(&file, 2));
                let hard_timeout = Duration::from_secs(60);
                for _ in 0..3 {
                    sender.send(false);
                    let started = Instant::now();
                    listener.wait(hard_timeout);
                    assert!(started.elapsed() < hard_timeout, "the ring was not received");
                }
                let copy = listener.path.with_file_name("dead.ear");
                drop(UnixDatagram::bind(
                    SocketDirectory::open(owners::directory(&file)).unwrap().path_of("dead.ear"),
                ));
                sender.listed = None;
                sender.send(false);
                assert!(!copy.exists());
            }
        }

        #[test]
        fn one_does_not_hear_oneself_unless_asked() {
            let temporary = tempfile::tempdir().unwrap();
            let file = temporary.path().join("m.db");
            let (listener, mut sender) = (WakeListener::bind(&file, 1).unwrap(), WakeSender::new(&file, 1));
            listener.socket.set_nonblocking(true).unwrap();
            sender.send(false);
            assert!(listener.socket.recv(&mut [0; 1]).is_err());
            sender.send(true);
            assert!(listener.socket.recv(&mut [0; 1]).is_ok());
        }
    }
}

/// Without such sockets, those who wait look more often.
#[cfg(not(unix))]
mod elsewhere {
    use std::{io, path::Path, time::Duration};

    #[derive(Debug)]
    pub(crate) struct WakeListener(std::convert::Infallible);

    impl WakeListener {
        pub(crate) fn bind(_file: &Path, _store_id: i64) -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn wait(&self, _timeout: Duration) {
            match self.0 {}
        }
    }

    #[derive(Debug)]
    pub(crate) struct WakeSender;

    impl WakeSender {
        pub(crate) fn new(_file: &Path, _store_id: i64) -> Self {
            Self
        }

        pub(crate) fn send(&mut self, _include_own: bool) {}
    }
}
