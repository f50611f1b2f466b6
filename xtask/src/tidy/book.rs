//! The book has all pages: `docs/SUMMARY.md` names each page below `docs`, once.

use super::{Finding, files::TextFile};

const SUMMARY: &str = "docs/SUMMARY.md";

pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let Some(summary) = files.iter().find(|file| file.path == SUMMARY) else {
        let remedy = "write the table of contents of the book";
        return vec![Finding { path: SUMMARY.to_owned(), line: 0, what: "missing".to_owned(), remedy }];
    };
    let pages = files.iter().filter_map(|file| file.path.strip_prefix("docs/"));
    pages
        .filter(|page| page.ends_with(".md") && *page != "SUMMARY.md")
        .map(|page| (page, summary.text.matches(&format!("]({page})")).count()))
        .filter(|(_, times)| *times != 1)
        .map(|(page, times)| Finding {
            path: SUMMARY.to_owned(),
            line: 1,
            what: format!("{page} is named {times} times"),
            remedy: "name each page below docs once, where a reader looks for it",
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_the_book_lacks_is_found() {
        let file = |path: &str, text: &str| TextFile { path: path.to_owned(), text: text.to_owned() };
        let pages = [file("docs/a.md", ""), file("docs/adr/b.md", ""), file("README.md", "")];
        let mut files = vec![file(SUMMARY, "- [A](a.md)\n- [B](adr/b.md)\n")];
        files.extend(pages);
        assert!(check(&files).is_empty());
        files[0].text = "- [A](a.md)\n- [A](a.md)\n".to_owned();
        let whats: Vec<_> = check(&files).into_iter().map(|finding| finding.what).collect();
        assert_eq!(whats, ["a.md is named 2 times", "adr/b.md is named 0 times"]);
    }
}
