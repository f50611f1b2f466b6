//! Pages of the lists that are sorted by name.

use clap::Args;

use super::value::positive;

/// Page of a list that is sorted by name.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PageArgs {
    /// Maximum number to list [default: all]
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<u32>,
    /// Go on after this place, which a note of the page before has named
    #[arg(long, value_name = "CURSOR")]
    pub(crate) after: Option<String>,
}

impl PageArgs {
    /// Keeps what belongs to this page of a sorted list. Returns the place after which the list goes on, unless this is its
    /// end.
    pub(crate) fn cut<T>(&self, all: &mut Vec<T>, name: impl Fn(&T) -> String) -> Option<String> {
        if let Some(after) = &self.after {
            all.retain(|one| name(one) > *after);
        }
        let limit = self.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let goes_on = all.len() > limit;
        all.truncate(limit);
        all.last().filter(|_| goes_on).map(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_a_list_are_the_list() {
        let mut page = PageArgs { limit: Some(2), after: None };
        let mut seen = Vec::new();
        loop {
            let mut names = vec!["a", "b", "c", "d", "e"];
            page.after = page.cut(&mut names, |name| (*name).to_owned());
            seen.push(names);
            if page.after.is_none() {
                break;
            }
        }
        assert_eq!(seen, [vec!["a", "b"], vec!["c", "d"], vec!["e"]]);
        let mut names = vec!["a", "b"];
        assert_eq!(page.cut(&mut names, |name| (*name).to_owned()), None);
        assert_eq!(names, ["a", "b"], "the end is not named");
    }
}
