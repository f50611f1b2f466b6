//! The sessions of the guides, typed as they are printed.
//!
//! Blocks marked `console` of a page run in one folder, in their order: each line after `$ ` is a command, and the lines
//! below it are what it must print. `…` stands for any text, and a line of it alone for any number of lines. A task id
//! stands for the id that is printed in its place, also in later commands. A command with ` &` runs until the page ends.
//! Blocks whose first line names a file, `# machinist.toml` or `#!/bin/sh NAME`, are written to it before.

use std::{collections::HashMap, fs, os::unix::fs::PermissionsExt, path::Path};

use crate::support::{Folder, Running};

const PAGES: [(&str, &str); 5] = [
    ("getting-started", include_str!("../../../docs/book/getting-started.md")),
    ("errors", include_str!("../../../docs/book/errors.md")),
    ("delays", include_str!("../../../docs/book/delays.md")),
    ("fleet", include_str!("../../../docs/fleet.md")),
    ("periodic", include_str!("../../../docs/periodic.md")),
];

/// Length of a task id that machinist created.
const ID_LENGTH: usize = 36;

/// Part of a page that a reader types or saves.
#[derive(Debug)]
enum Step<'a> {
    File { name: &'a str, text: String },
    Command { line: &'a str, output: Vec<&'a str> },
}

#[test]
fn the_sessions_of_the_guides_are_what_the_program_prints() {
    for (page, text) in PAGES {
        let steps = steps(text);
        assert!(steps.iter().any(|step| matches!(step, Step::Command { .. })), "{page} has no session");
        follow(page, &steps);
    }
}

fn follow(page: &str, steps: &[Step<'_>]) {
    let mut folder = Folder::new();
    let bin = Path::new(env!("CARGO_BIN_EXE_machinist")).parent().unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    folder.set("PATH", &format!("{}:{path}", bin.display()));
    let mut ids: HashMap<&str, String> = HashMap::new();
    let mut running: Vec<Running> = Vec::new();
    for step in steps {
        match step {
            Step::File { name, text } => {
                let path = folder.write(name, text);
                fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
            }
            Step::Command { line, output } => {
                eprintln!("{page}: $ {line}");
                let command =
                    ids.iter().fold((*line).to_owned(), |line, (shown, id)| line.replace(shown, id));
                match command.strip_suffix(" &") {
                    Some(command) => {
                        let mut worker = folder.start_shell(&format!("exec {command} 2>&1"));
                        output.iter().for_each(|line| until(&mut worker, line));
                        running.push(worker);
                    }
                    None => {
                        let printed = folder.start_shell(&format!("{{ {command}; }} 2>&1")).end().stdout;
                        compare(page, line, output, &printed, &mut ids);
                    }
                }
            }
        }
    }
    running.into_iter().for_each(|worker| drop(worker.stop()));
}

/// Waits for a line, whose beginning up to the first `…` is known.
fn until(worker: &mut Running, line: &str) {
    let known = line.split('…').max_by_key(|part| part.len()).unwrap_or_default();
    worker.stdout.until(known);
}

/// Compares what a command has printed with the page.
fn compare<'a>(
    page: &str,
    command: &str,
    expected: &[&'a str],
    printed: &str,
    ids: &mut HashMap<&'a str, String>,
) {
    let mut lines = printed.lines();
    let mut skipping = false;
    for want in expected {
        if *want == "…" {
            skipping = true;
            continue;
        }
        let found = if skipping { lines.find(|line| fits(want, line, ids)) } else { lines.next() };
        let line = found.unwrap_or_else(|| panic!("{page}: {command}: {want:?} is missing:\n{printed}"));
        assert!(fits(want, line, ids), "{page}: {command}: {want:?} is not {line:?}:\n{printed}");
        remember(want, line, ids);
        skipping = false;
    }
    let rest: Vec<_> = lines.collect();
    assert!(skipping || rest.is_empty(), "{page}: {command}: the page does not show {rest:?}");
}

/// Returns `true` if a printed line is the expected one. Its blanks may be more or fewer.
fn fits(want: &str, line: &str, ids: &HashMap<&str, String>) -> bool {
    let want = want.split_whitespace().map(|word| known(word, ids)).collect::<Vec<_>>().join(" ");
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = line.as_str();
    let parts: Vec<_> = want.split('…').collect();
    let [first, middle @ .., last] = &parts[..] else { return want == line };
    let Some(after) = rest.strip_prefix(first) else { return false };
    rest = after;
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Puts the printed id in the place of that on the page. The id of a dead letter begins with that of its task.
fn known(word: &str, ids: &HashMap<&str, String>) -> String {
    match word.split_at_checked(ID_LENGTH) {
        Some((id, rest)) if is_id(id) => format!("{}{rest}", ids.get(id).map_or("…", String::as_str)),
        _ => word.to_owned(),
    }
}

fn remember<'a>(want: &'a str, line: &str, ids: &mut HashMap<&'a str, String>) {
    if let Some(shown) = want.split_whitespace().find(|word| is_id(word)) {
        ids.entry(shown).or_insert_with(|| id_in(line).to_owned());
    }
}

fn id_in(line: &str) -> &str {
    line.split_whitespace().find(|word| is_id(word)).unwrap_or("no id")
}

fn is_id(word: &str) -> bool {
    word.len() == ID_LENGTH && word.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit())
}

fn steps(text: &str) -> Vec<Step<'_>> {
    let mut steps = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(language) = line.strip_prefix("```").filter(|language| !language.is_empty()) else {
            continue;
        };
        let block: Vec<_> = lines.by_ref().take_while(|line| *line != "```").collect();
        match (language, block.first()) {
            ("console", _) => steps.extend(commands(&block)),
            ("toml", Some(&"# machinist.toml")) => {
                steps.push(Step::File { name: "machinist.toml", text: block.join("\n") + "\n" });
            }
            ("sh", Some(first)) if first.starts_with("#!/bin/sh") => {
                let name = block.get(1).and_then(|line| line.strip_prefix("# ")).unwrap_or("script");
                steps.push(Step::File { name, text: block.join("\n") + "\n" });
            }
            _ => {}
        }
    }
    steps
}

fn commands<'a>(block: &[&'a str]) -> Vec<Step<'a>> {
    let mut commands = Vec::new();
    for line in block {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(line), _) => commands.push(Step::Command { line, output: Vec::new() }),
            (None, Some(Step::Command { output, .. })) => output.push(line),
            (None, _) => panic!("output before the first command: {line:?}"),
        }
    }
    commands
}
