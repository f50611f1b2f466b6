//! A terminal for the tests of programs that take the whole screen: a private tmux with a shell in it.
//!
//! A test types, and waits until the screen shows what it expects. The tmux of the machine is never touched.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Maximum wait for a screen, also on a busy machine.
const SCREEN_TIMEOUT: Duration = Duration::from_secs(120);
/// Interval between two looks at the screen.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// Prompt of the shell.
const PROMPT: &str = "ready>";

/// A terminal of 80 by 24. It ends when it is dropped, with what runs in it.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// Opens a terminal whose shell is in this directory, which also has the socket. `None` where tmux is not installed and
    /// `MACHINIST_REQUIRE_SERVICES` is not `1`: the test is skipped, and says so.
    ///
    /// # Errors
    /// tmux is required and missing, or does not start.
    pub fn open(dir: &Path, test: &str) -> Result<Option<Self>> {
        let found = Command::new("tmux").arg("-V").stdout(Stdio::null()).status();
        if !found.is_ok_and(|status| status.success()) {
            let remedy = "tmux is not installed; `cargo xtask services install` installs it";
            ensure!(env::var("MACHINIST_REQUIRE_SERVICES").as_deref() != Ok("1"), "{test}: {remedy}");
            say!("SKIPPED: {test}: {remedy}");
            return Ok(None);
        }
        let terminal = Self { socket: dir.join("tmux.socket") };
        let shell = format!("env PS1='{PROMPT} ' sh");
        let dir = dir.display().to_string();
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            "-c",
            &dir,
            &shell,
        ])?;
        terminal.shows(&[PROMPT])?;
        Ok(Some(terminal))
    }

    /// Runs a command of this tmux, and returns what it prints.
    ///
    /// # Errors
    /// It fails; its words are in the text.
    pub fn tmux(&self, args: &[&str]) -> Result<String> {
        let mut tmux = Command::new("tmux");
        tmux.arg("-u").arg("-S").arg(&self.socket).args(args).stdin(Stdio::null());
        // What the machine sets must not change what programs show.
        tmux.env_clear().env("LANG", "C.UTF-8").env("PATH", env::var_os("PATH").unwrap_or_default());
        let output = tmux.output().context("cannot run tmux")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "tmux {args:?} failed: {errors}");
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Returns the screen as text.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn screen(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Types characters as they are.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn types(&self, keys: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", keys]).map(drop)
    }

    /// Presses a key by its name, such as `Enter` or `C-c`.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn presses(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Types a line of the shell.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn line(&self, line: &str) -> Result<()> {
        self.types(line)?;
        self.presses("Enter")
    }

    /// Changes the size.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]).map(drop)
    }

    /// Waits until the screen shows all of these, and returns it.
    ///
    /// # Errors
    /// It does not; the screen is in the text.
    pub fn shows(&self, words: &[&str]) -> Result<String> {
        self.shows_when(&format!("{words:?}"), |screen| words.iter().all(|word| screen.contains(word)))
    }

    /// Waits until the screen fits, and returns it.
    ///
    /// # Errors
    /// It does not; the screen is in the text.
    pub fn shows_when(&self, what: &str, fits: impl Fn(&str) -> bool) -> Result<String> {
        let deadline = Instant::now() + SCREEN_TIMEOUT;
        loop {
            let screen = self.screen()?;
            if fits(&screen) {
                return Ok(screen);
            }
            if Instant::now() >= deadline {
                bail!("the screen never shows {what}:\n{screen}");
            }
            thread::sleep(LOOK_INTERVAL);
        }
    }

    /// Waits until a program has ended that was started by a line with `; echo ended=$?`, and checks that the terminal is
    /// as it was before: the shell's screen, its cursor, and characters that are shown as they are typed.
    ///
    /// # Errors
    /// Whatever is not as it was.
    pub fn is_clean_after(&self, code: i32, picture: &str) -> Result<String> {
        let screen = self.shows(&[&format!("ended={code}")])?;
        ensure!(!screen.contains(picture), "the picture is still there:\n{screen}");
        let flags = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"])?;
        ensure!(flags.trim() == "0 1", "alternate screen and cursor are {flags}");
        self.line("echo typed-$((40 + 2))")?;
        self.shows(&["echo typed-$((40 + 2))", "typed-42"])?;
        self.line("clear")?;
        self.shows_when("a clear screen", |screen| !screen.contains("ended="))?;
        Ok(screen)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The server of this socket alone. Where it has ended, there is nothing to do.
        let _ = self.tmux(&["kill-server"]);
    }
}
