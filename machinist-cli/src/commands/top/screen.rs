//! The terminal: taken as a whole, and given back as it was at the end, after an error and after a panic.

use std::{
    io::{self, Stdout},
    panic,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crossterm::{
    cursor::Show,
    event::{DisableBracketedPaste, EnableBracketedPaste},
    execute,
    terminal::{EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode},
};
use ratatui::{Frame, Terminal, backend::CrosstermBackend};
use tokio::sync::Notify;

use crate::exit::{CliError, Code};

/// `true` while the terminal belongs to the screen. It is given back once: a second time would move the cursor over what was
/// printed since.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The screen. It gives the terminal back when it is dropped.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    panicked: Arc<Notify>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// The terminal cannot be controlled.
    pub(super) fn open() -> Result<Self, CliError> {
        let panicked = Arc::new(Notify::new());
        give_back_on_panic(Arc::clone(&panicked));
        TAKEN.store(true, Ordering::SeqCst);
        let taken = enable_raw_mode()
            .and_then(|()| execute!(io::stdout(), EnterAlternateScreen, EnableBracketedPaste))
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
        match taken {
            Ok(terminal) => Ok(Self { terminal, panicked }),
            Err(error) => {
                give_back();
                Err(lost(&error))
            }
        }
    }

    /// Draws a picture, for the size that the terminal has now.
    ///
    /// # Errors
    /// The terminal is gone.
    pub(super) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> Result<(), CliError> {
        self.terminal.draw(picture).map(|_| ()).map_err(|error| lost(&error))
    }

    /// Returns what tells that a thread has panicked: the terminal is given back by then.
    pub(super) fn panicked(&self) -> Arc<Notify> {
        Arc::clone(&self.panicked)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Returns the error of a terminal that does not answer.
pub(super) fn lost(error: &io::Error) -> CliError {
    CliError::from_error(Code::Fault, error).context("the terminal cannot be used")
}

/// Gives the terminal back, if it is taken.
fn give_back() {
    if !TAKEN.swap(false, Ordering::SeqCst) {
        return;
    }
    // A terminal that is gone needs nothing back, and there is no place to complain.
    let _ = disable_raw_mode();
    let _ = execute!(io::stdout(), DisableBracketedPaste, LeaveAlternateScreen, Show);
}

/// Gives the terminal back before a panic is printed, and tells the screen to end.
fn give_back_on_panic(panicked: Arc<Notify>) {
    let before = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        give_back();
        before(panic);
        panicked.notify_one();
    }));
}
