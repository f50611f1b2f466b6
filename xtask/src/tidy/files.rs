//! The text files of the checkout, and the rule that holds for all of them: no path of one developer's machine.
//!
//! The tree is walked instead of asking git, which is not installed everywhere and refuses checkouts of another
//! owner, as CI containers have them.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::Finding;

/// What is no part of the project although it lies in the checkout.
const SKIPPED: [&str; 3] = [".git", "target", ".services"];

/// One text file.
#[derive(Debug)]
pub(super) struct TextFile {
    /// Relative to the checkout, with `/`.
    pub(super) path: String,
    pub(super) text: String,
}

impl TextFile {
    pub(super) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }
}

/// All of them, in order of their paths.
pub(super) fn read_all(root: &Path) -> Result<Vec<TextFile>> {
    let mut files = Vec::new();
    walk(root, "", &mut files)?;
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

fn walk(dir: &Path, prefix: &str, files: &mut Vec<TextFile>) -> Result<()> {
    let unreadable = || format!("cannot read {}", dir.display());
    for entry in fs::read_dir(dir).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !SKIPPED.contains(&name.as_str()) {
                walk(&entry.path(), &path, files)?;
            }
        } else if kind.is_file() {
            let bytes = fs::read(entry.path()).with_context(|| format!("cannot read {path}"))?;
            // What is not UTF-8 is not text.
            if let Ok(text) = String::from_utf8(bytes) {
                files.push(TextFile { path, text });
            }
        }
    }
    Ok(())
}

/// Looks for absolute paths that exist on one machine only.
pub(super) fn check(file: &TextFile) -> Vec<Finding> {
    // Its tests are full of what it looks for.
    if file.path == "xtask/src/tidy/files.rs" {
        return Vec::new();
    }
    let finding = |(index, line): (usize, &str)| {
        Some(Finding {
            path: file.path.clone(),
            line: index + 1,
            what: format!("{} is a path of somebody's machine", machine_path(line)?),
            remedy: "use a relative path, or a temporary directory asked of the system",
        })
    };
    file.text.lines().enumerate().filter_map(finding).collect()
}

fn machine_path(line: &str) -> Option<&str> {
    ["/root/", "/home/", "/Users/", "/tmp/"].iter().find_map(|prefix| {
        let found = |(start, _)| {
            // Part of a longer path or of a variable: `docs/tmp/`, `${DIR}/tmp/`, `~/tmp/`.
            let before = line[..start].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || "._-~*})>".contains(before)) {
                return None;
            }
            let end =
                line[start + prefix.len()..].find(|c: char| !(c.is_alphanumeric() || "._-".contains(c)));
            let found = &line[start..end.map_or(line.len(), |end| start + prefix.len() + end)];
            // One letter is a made-up name.
            (found.len() != prefix.len() + 1).then_some(found)
        };
        line.match_indices(prefix).find_map(found)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_a_machine_are_found_and_named() {
        assert_eq!(machine_path("open(\"/home/ann/x.db\")"), Some("/home/ann"));
        assert_eq!(machine_path("sqlite:///tmp/x.db"), Some("/tmp/x.db"));
        assert_eq!(machine_path("cd /root/project"), Some("/root/project"));
    }

    #[test]
    fn parts_of_longer_paths_are_not() {
        for line in [
            "see docs/tmp/x",
            "$HOME/tmp/x",
            "${DIR}/tmp/x",
            "~/tmp/x",
            "/var/tmp/x",
            "/home/a@b",
            "root/ home/ tmp/",
        ] {
            assert_eq!(machine_path(line), None, "{line}");
        }
    }
}
