//! Files that hold a secret: keys, passwords, tokens, URLs with a password.
//!
//! Other users of the host must not change such a file, nor read a key, and reading it must not wait: a pipe would keep its
//! reader until somebody writes.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, Read},
    path::Path,
};

use zeroize::Zeroizing;

/// Reads a file with a secret, of at most so many bytes. A file that anybody but its owner can change is refused, and so is one
/// that belongs to neither this user nor root. Others may be able to read it: a container's secrets are mounted that way.
///
/// # Errors
/// The file cannot be read, or is refused; the text has the remedy and nothing of the file.
pub fn read_secret_file(path: &Path, max_bytes: u64) -> io::Result<Zeroizing<String>> {
    read(path, max_bytes, "change", 0o022)
}

/// Reads a file with keys, of at most so many bytes. A file that anybody but its owner can read or change is refused, and so is
/// one that belongs to neither this user nor root.
pub(super) fn read_key_file(path: &Path, max_bytes: u64) -> io::Result<Zeroizing<String>> {
    read(path, max_bytes, "read or change", 0o077)
}

/// Reads a file, unless others can do something with it that these bits of its mode allow.
fn read(path: &Path, max_bytes: u64, what: &str, forbidden: u32) -> io::Result<Zeroizing<String>> {
    let file = open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    check_private(&metadata, what, forbidden).map_err(io::Error::other)?;
    // One read into a sufficient capacity: a text that had to grow would leave copies of the secret behind.
    let capacity = usize::try_from(metadata.len().min(max_bytes)).unwrap_or_default();
    let mut text = Zeroizing::new(String::with_capacity(capacity + 1));
    if file.take(max_bytes.saturating_add(1)).read_to_string(&mut text)? as u64 > max_bytes {
        return Err(io::Error::other(format!("it is larger than {max_bytes} bytes")));
    }
    Ok(text)
}

/// Opens a file without waiting: a pipe would wait for its writer.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::custom_flags(
        &mut options,
        rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
    );
    options.open(path)
}

#[cfg(unix)]
fn check_private(metadata: &Metadata, what: &str, forbidden: u32) -> Result<(), String> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & forbidden != 0 {
        return Err(format!(
            "users other than its owner can {what} it (mode {mode:04o}): run `chmod 600` on it"
        ));
    }
    check_owner(metadata.uid(), rustix::process::geteuid().as_raw())
}

/// Checks that nobody but this user and root can change a file.
#[cfg(unix)]
fn check_owner(owner: u32, user: u32) -> Result<(), String> {
    if owner == user || owner == 0 {
        return Ok(());
    }
    Err(format!("it belongs to user {owner}, who can change it: run `chown {user}` on it"))
}

#[cfg(not(unix))]
fn check_private(_metadata: &Metadata, _what: &str, _forbidden: u32) -> Result<(), String> {
    Ok(())
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

    use super::*;

    /// Returns a new folder, and a file in it with this content and mode.
    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (dir, path)
    }

    fn refused(path: &Path) -> String {
        read_secret_file(path, 10).unwrap_err().to_string()
    }

    #[test]
    fn a_private_file_is_read() {
        for mode in [0o600, 0o400] {
            let (_dir, path) = file(b"ten bytes!", mode);
            assert_eq!(*read_secret_file(&path, 10).unwrap(), "ten bytes!");
            assert_eq!(*read_key_file(&path, 10).unwrap(), "ten bytes!");
        }
    }

    #[test]
    fn a_file_of_others_is_refused() {
        for mode in [0o644, 0o640, 0o444, 0o620, 0o602] {
            let (_dir, path) = file(b"geheim", mode);
            let error = read_key_file(&path, 10).unwrap_err().to_string();
            assert!(error.contains(&format!("mode {mode:04o}")) && error.contains("chmod 600"), "{error}");
            match read_secret_file(&path, 10) {
                Ok(text) => assert!(mode & 0o022 == 0 && *text == "geheim", "{mode:04o}"),
                Err(refused) => assert!(mode & 0o022 != 0 && refused.to_string().contains("can change it")),
            }
        }
        assert_eq!(check_owner(1000, 1000), Ok(()));
        assert_eq!(check_owner(0, 1000), Ok(()));
        for (owner, user) in [(1001, 1000), (1000, 0)] {
            let error = check_owner(owner, user).unwrap_err();
            assert!(error.contains(&format!("chown {user}")), "{error}");
        }
    }

    #[test]
    fn what_is_no_small_text_file_is_refused_at_once() {
        let (dir, path) = file(b"eleven byte", 0o600);
        assert_eq!(refused(&path), "it is larger than 10 bytes");
        assert_eq!(refused(dir.path()), "it is not a file");
        let pipe = dir.path().join("pipe");
        let made = Command::new("mkfifo").args(["-m", "600"]).arg(&pipe).status().unwrap();
        assert!(made.success());
        assert_eq!(refused(&pipe), "it is not a file");
        let (_dir, path) = file(b"\xff\xfe", 0o600);
        assert!(read_secret_file(&path, 10).is_err());
        assert!(read_secret_file(&dir.path().join("none"), 10).is_err());
    }
}
