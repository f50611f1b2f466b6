//! The house rules that no compiler checks. What is not checked here is a wish.
//!
//! A finding says where, what, and the remedy. The rules read text, not syntax trees: they are meant to catch a
//! slip, not to withstand somebody who wants to break them.

mod book;
mod circles;
mod crates;
mod examples;
mod files;
mod markdown;
mod names;
mod openings;
mod origins;
mod packages;
mod product;
mod prose;
mod rust;
mod signatures;
mod source;
mod words;

use std::fmt;

use anyhow::Result;

use crate::command::Workspace;

/// Something against a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Finding {
    path: String,
    /// From 1; 0 where the whole file is meant.
    line: usize,
    /// Lines after the first are details, and are shown below the remedy.
    what: String,
    remedy: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, what, remedy } = self;
        let (what, details) = what.split_once('\n').unwrap_or((what, ""));
        write!(f, "{path}:{}: {what}: {remedy}", line.max(&1))?;
        if details.is_empty() { Ok(()) } else { write!(f, "\n{details}") }
    }
}

/// Checks every rule; whether nothing was found.
pub(crate) fn run(workspace: &Workspace) -> Result<bool> {
    let files = files::read_all(workspace.root())?;
    let mut findings = Vec::new();
    findings.extend(files.iter().flat_map(files::check));
    findings.extend(openings::check(&files));
    findings.extend(files.iter().filter(|file| file.is_rust()).flat_map(rust::check));
    findings.extend(words::check(&files));
    findings.extend(files.iter().filter(|file| file.is_rust()).flat_map(signatures::check));
    findings.extend(names::check(&files));
    findings.extend(files.iter().filter_map(examples::check));
    findings.extend(circles::check(&files));
    findings.extend(markdown::check(&files));
    findings.extend(packages::check(workspace.root(), &files));
    findings.extend(book::check(&files));
    findings.extend(crates::check_graph(workspace)?);
    findings.extend(origins::check(workspace)?);
    findings.sort();
    for finding in &findings {
        say!("{finding}");
    }
    say!("tidy: {} files, {} findings", files.len(), findings.len());
    Ok(findings.is_empty())
}
