//! Immediate wake-ups between the processes that use one file.
//!
//! A process that waits binds a datagram socket in `FILE-owners/`, its listener. A process that has committed a change
//! that others may wait for sends one byte to every listener in that directory. A wake-up carries no information and
//! may be lost: waiting processes also check the file at an interval (see [`file_watcher`](crate::file_watcher)), which
//! is shorter if no listener could be bound.

#[cfg(unix)]
pub(crate) use unix::{WakeListener, WakeSender};

#[cfg(not(unix))]
pub(crate) use elsewhere::{WakeListener, WakeSender};

/// Suffix of the names of listener sockets. Other processes may run another version, so it must not change.
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

    /// Length that a socket path must stay below, in bytes. A socket address has room for about a hundred bytes.
    const MAX_SOCKET_PATH_BYTES: usize = 100;
    /// Maximum age of the list of listeners while the modification time of the directory is unchanged.
    const MAX_LISTENER_LIST_AGE: Duration = Duration::from_secs(1);

    /// Receives the wake-ups of other processes.
    #[derive(Debug)]
    pub(crate) struct WakeListener {
        socket: UnixDatagram,
        path: PathBuf,
    }

    impl WakeListener {
        /// Binds the listener of a store. `store_id` is unique among the stores of the file.
        pub(crate) fn bind(file: &Path, store_id: i64) -> io::Result<Self> {
            let directory = owners::create_directory(file)?;
            let name = socket_name(store_id);
            let sockets = SocketDirectory::open(directory.clone())?;
            let socket = UnixDatagram::bind(sockets.path_of(&name))?;
            Ok(Self { socket, path: directory.join(name) })
        }

        /// Waits for a wake-up, for at most `timeout`, and discards all that have arrived.
        pub(crate) fn wait(&self, timeout: Duration) {
            let received =
                self.socket.set_read_timeout(Some(timeout)).and_then(|()| self.socket.recv(&mut [0; 1]));
            if received.is_ok() && self.socket.set_nonblocking(true).is_ok() {
                while self.socket.recv(&mut [0; 1]).is_ok() {}
                // If this fails, the next wait returns at once; the caller's minimum interval keeps it from spinning.
                let _ = self.socket.set_nonblocking(false);
            }
        }
    }

    impl Drop for WakeListener {
        fn drop(&mut self) {
            // Only for tidiness: senders remove the sockets of listeners that are gone.
            let _ = fs::remove_file(&self.path);
        }
    }

    /// Sends wake-ups to the listeners of other processes.
    #[derive(Debug)]
    pub(crate) struct WakeSender {
        directory: PathBuf,
        own_name: String,
        socket: Option<UnixDatagram>,
        sockets: Option<SocketDirectory>,
        listeners: Vec<String>,
        listed: Option<ListingTime>,
    }

    /// State of the directory when its listeners were listed.
    #[derive(Debug, Clone, Copy)]
    struct ListingTime {
        modified: SystemTime,
        listed_at: Instant,
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

        /// Wakes the waiting processes, and this process if `include_own`.
        pub(crate) fn send(&mut self, include_own: bool) {
            // If this fails, the others find the change at their next check.
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
                    // Its process was killed. A socket that is full wakes its process anyway.
                    let _ = fs::remove_file(path);
                }
            }
            Ok(())
        }

        /// Lists the listeners again if the directory may have changed.
        fn list_listeners(&mut self) -> io::Result<()> {
            let modified = fs::metadata(&self.directory)?.modified()?;
            if self.listed.is_some_and(|listed| {
                listed.modified == modified && listed.listed_at.elapsed() < MAX_LISTENER_LIST_AGE
            }) {
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
            self.listed = Some(ListingTime { modified, listed_at: Instant::now() });
            Ok(())
        }
    }

    fn socket_name(store_id: i64) -> String {
        format!("{store_id:x}{SOCKET_SUFFIX}")
    }

    /// Directory of the listener sockets, which can be reached by a path that is short enough.
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
            // Works on Linux. On other systems a file at such a long path has no listeners.
            format!("/proc/self/fd/{}/{name}", self.open.as_raw_fd()).into()
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn wake_ups_are_received_and_dead_listeners_are_removed() {
            let temporary = tempfile::tempdir().unwrap();
            let deep = temporary.path().join("d".repeat(150));
            fs::create_dir(&deep).unwrap();
            for file in [temporary.path().join("m.db"), deep.join("m.db")] {
                let listener = WakeListener::bind(&file, 1).unwrap();
                let mut sender = WakeSender::new(&file, 2);
                let hard_timeout = Duration::from_secs(60);
                for _ in 0..3 {
                    sender.send(false);
                    let started = Instant::now();
                    listener.wait(hard_timeout);
                    assert!(started.elapsed() < hard_timeout, "the wake-up was not received");
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
        fn a_process_wakes_itself_only_if_asked() {
            let temporary = tempfile::tempdir().unwrap();
            let file = temporary.path().join("m.db");
            let listener = WakeListener::bind(&file, 1).unwrap();
            let mut sender = WakeSender::new(&file, 1);
            listener.socket.set_nonblocking(true).unwrap();
            sender.send(false);
            assert!(listener.socket.recv(&mut [0; 1]).is_err());
            sender.send(true);
            assert!(listener.socket.recv(&mut [0; 1]).is_ok());
        }
    }
}

/// Substitute for systems without such sockets: there, waiting processes check the file more often.
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
