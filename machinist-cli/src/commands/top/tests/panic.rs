//! Test of the terminal after a panic. The test starts itself again inside of a terminal, where it panics in front of a picture.

use std::env;

use xtask::terminal::Terminal;

use crate::commands::top::screen::Screen;

/// Variable that is set inside of the terminal.
const INSIDE: &str = "MACHINIST_TEST_OF_A_PANIC";
const TEST: &str = "commands::top::tests::panic::a_panic_leaves_the_terminal_clean";

#[test]
fn a_panic_leaves_the_terminal_clean() {
    if env::var_os(INSIDE).is_some() {
        let mut screen = Screen::open().unwrap();
        screen.draw(|frame| frame.render_widget("the picture", frame.area())).unwrap();
        panic!("on purpose");
    }
    let dir = tempfile::tempdir().unwrap();
    let Some(terminal) = Terminal::open(dir.path(), TEST).unwrap() else { return };
    let program = env::current_exe().unwrap();
    let line = format!("{INSIDE}=1 {} --exact {TEST} --nocapture; echo ended=$?", program.display());
    terminal.line(&line).unwrap();
    let screen = terminal.is_clean_after(101, "the picture").unwrap();
    assert!(screen.contains("on purpose"), "the panic is told: {screen}");
}
