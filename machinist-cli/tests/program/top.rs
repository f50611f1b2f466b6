//! `machinist top` at a real terminal, with a real worker on the embedded default.

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use xtask::terminal::Terminal;

use crate::support::{Folder, contents};

/// Starts top with these arguments, and returns its process id.
fn start(terminal: &Terminal, folder: &Folder, arguments: &str) -> Pid {
    let pid = folder.path().join("top.pid");
    // It is there from the start before.
    let _ = std::fs::remove_file(&pid);
    let bin = env!("CARGO_BIN_EXE_machinist");
    folder.script("start", &format!("echo $$ > top.pid; MACHINIST_LOG=trace exec {bin} top {arguments}"));
    terminal.line("./start; echo ended=$?").unwrap();
    let pid = contents(&pid).parse().unwrap();
    terminal.shows(&["[1 Overview]"]).unwrap();
    Pid::from_raw(pid)
}

/// Presses the key of an action, answers its question with yes, and waits for what it says.
fn act(terminal: &Terminal, key: &str, question: &[&str], done: &str) {
    terminal.types(key).unwrap();
    terminal.shows(question).unwrap();
    terminal.types("y").unwrap();
    terminal.shows(&[done]).unwrap();
}

fn is_paused(folder: &Folder) -> bool {
    folder.run(&["queues", "--json"]).ended(0).json()[0]["paused"].as_bool().unwrap()
}

#[test]
fn top_shows_and_acts_and_leaves_the_terminal_clean() {
    let folder = Folder::new();
    let test = "top_shows_and_acts_and_leaves_the_terminal_clean";
    let Some(terminal) = Terminal::open(folder.path(), test).unwrap() else { return };
    let worker = folder.worker(&["--demo", "--name", "w1"]);
    let running = folder.send(&["sleep", "600"]);
    let failed = folder.send(&["fail", "--retries", "0"]);
    start(&terminal, &folder, "--log-file top.log");
    terminal.shows(&["sqlite://", "machinist.db", "running 1 of"]).unwrap();

    // A queue is paused after a yes, and not after anything else.
    terminal.types("2").unwrap();
    terminal.shows(&["[2 Queues]", "default"]).unwrap();
    terminal.types("P").unwrap();
    terminal.shows(&["pause queue default for all workers?"]).unwrap();
    terminal.types("n").unwrap();
    terminal.shows(&["nothing was changed"]).unwrap();
    assert!(!is_paused(&folder));
    let done = "paused: queue default; 1 of 1 workers obeyed";
    act(&terminal, "P", &["pause queue default for all workers?"], done);
    assert!(is_paused(&folder));
    act(&terminal, "R", &["resume queue default for all workers?"], "resumed: queue default");
    assert!(!is_paused(&folder));

    // A task is found, shown and revoked by its id.
    terminal.types("4").unwrap();
    terminal.shows(&["[4 Tasks]", &running, "STARTED"]).unwrap();
    terminal.presses("Enter").unwrap();
    terminal.shows(&["why", "running"]).unwrap();
    // The line breaks somewhere in it.
    let question = ["revoke task", &running, "(sleep)?"];
    act(&terminal, "X", &question, "it runs, and was asked to end");
    folder.run(&["status", &running, "--watch"]).ended(1);
    terminal.types("/state=FAILURE name=f*").unwrap();
    terminal.presses("Enter").unwrap();
    terminal.shows(&["filter: state=FAILURE name=f*", &failed]).unwrap();
    let question = ["retry task", &failed, "(fail)?"];
    act(&terminal, "R", &question, "was sent again as");

    // A larger screen has room for more columns.
    terminal.types("2").unwrap();
    let small = terminal.shows(&["[2 Queues]", "READY"]).unwrap();
    assert!(!small.contains("UNACKED"), "{small}");
    terminal.resize(300, 100).unwrap();
    terminal.shows(&["UNACKED", "EMPTY IN"]).unwrap();
    terminal.resize(80, 24).unwrap();

    terminal.types("q").unwrap();
    terminal.is_clean_after(0, "Overview").unwrap();
    let log = std::fs::read_to_string(folder.path().join("top.log")).unwrap();
    assert!(log.contains("TRACE"), "{log}");
    worker.stop().ended(0);
}

#[test]
fn a_signal_ends_top_as_a_key_does() {
    let folder = Folder::new();
    let test = "a_signal_ends_top_as_a_key_does";
    let Some(terminal) = Terminal::open(folder.path(), test).unwrap() else { return };
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        kill(start(&terminal, &folder, ""), signal).unwrap();
        terminal.is_clean_after(0, "Overview").unwrap();
    }
    start(&terminal, &folder, "");
    terminal.presses("C-c").unwrap();
    terminal.is_clean_after(0, "Overview").unwrap();
}

#[test]
fn where_nobody_sees_a_screen_top_says_what_to_use() {
    let folder = Folder::new();
    folder.run(&["top"]).ended(64).reports(&["needs a terminal", "`machinist queues --watch`"]);
    folder.run(&["top", "--json"]).ended(64).reports(&["prints no JSON", "`machinist queues --watch`"]);
    let lost = folder.run(&["top", "--log-file", "no/such/file"]).ended(78);
    lost.reports(&["--log-file: no/such/file cannot be opened", "name a file in a folder"]);
}
