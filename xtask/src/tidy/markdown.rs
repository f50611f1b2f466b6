//! Links between the project's own pages lead somewhere, headings included.

use std::collections::{HashMap, HashSet};

use super::{Finding, files::TextFile};

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut paths: HashSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    // A link may also name a folder.
    for file in files {
        paths.extend(file.path.match_indices('/').map(|(at, _)| &file.path[..at]));
    }
    let pages = || files.iter().filter(|file| file.path.ends_with(".md"));
    let anchors: HashMap<&str, HashSet<String>> =
        pages().map(|page| (page.path.as_str(), anchors(&page.text))).collect();
    let mut findings = Vec::new();
    for page in pages() {
        for (line, target) in links(&page.text) {
            if let Some(what) = broken(&page.path, target, &paths, &anchors) {
                let remedy = "correct the link, or add what it points to";
                findings.push(Finding { path: page.path.clone(), line, what, remedy });
            }
        }
    }
    findings
}

fn broken(
    page: &str,
    target: &str,
    paths: &HashSet<&str>,
    anchors: &HashMap<&str, HashSet<String>>,
) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { Some(page.to_owned()) } else { resolve(page, file) };
    let Some(path) = path.filter(|path| path.is_empty() || paths.contains(path.as_str())) else {
        return Some(format!("link to `{target}`, which does not exist"));
    };
    let missing =
        !anchor.is_empty() && anchors.get(path.as_str()).is_some_and(|known| !known.contains(anchor));
    missing.then(|| format!("link to `{target}`, but {path} has no such heading"))
}

/// A relative link, from the root of the checkout; `None` where it leaves it.
fn resolve(page: &str, link: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// Line numbers and targets of inline links and of `[label]: target` definitions, outside of code.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let in_code = |at: usize| line[..at].matches('`').count() % 2 == 1;
        for (at, _) in line.match_indices("](") {
            let rest = &line[at + 2..];
            if let Some(target) = rest.find(')').map(|end| &rest[..end])
                && !in_code(at)
            {
                // A title may follow the target.
                links.push((number, target.split_whitespace().next().unwrap_or_default()));
            }
        }
        if let Some((label, target)) = line.split_once("]: ")
            && label.starts_with('[')
        {
            links.push((number, target.split_whitespace().next().unwrap_or_default()));
        }
    }
    links
}

/// The lines that are not in a fenced block, with their numbers.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((index + 1, line))
    })
}

/// The names by which its headings can be linked to, as GitHub makes them.
fn anchors(text: &str) -> HashSet<String> {
    let headings = prose(text).filter(|(_, line)| line.starts_with('#'));
    let slug = |heading: &str| -> String {
        let kept = heading.trim_start_matches('#').trim().chars();
        let kept = kept.filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).flat_map(char::to_lowercase).collect()
    };
    headings.map(|(_, line)| slug(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let page = |path: &str, text: &str| TextFile { path: path.to_owned(), text: text.to_owned() };
        let files =
            [page("docs/a.md", text), page("README.md", "# Two commands, then\n"), page("docs/adr/1.md", "")];
        check(&files).into_iter().map(|finding| format!("{}: {}", finding.line, finding.what)).collect()
    }

    #[test]
    fn broken_links_are_found() {
        assert_eq!(found("x\n[y](missing.md)"), ["2: link to `missing.md`, which does not exist"]);
        assert_eq!(found("[y](../../out.md)"), ["1: link to `../../out.md`, which does not exist"]);
        assert_eq!(found("[y]: adr/2.md"), ["1: link to `adr/2.md`, which does not exist"]);
        let expected = ["1: link to `../README.md#three`, but README.md has no such heading"];
        assert_eq!(found("[y](../README.md#three)"), expected);
    }

    #[test]
    fn good_links_and_code_are_not() {
        for text in [
            "[y](../README.md#two-commands-then) [z](adr/1.md) [d](adr/) [r](../)",
            "# Here\n[y](#here)",
            "[y](https://example.com/missing.md)",
            "`[y](missing.md)`",
            "```\n[y](missing.md)\n```",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }
}
