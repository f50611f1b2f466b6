//! The place of a task in its workflow: the workflow's root, and a path of names and numbers.
//!
//! Every id of a workflow follows from the place. Two processes that publish the same step publish the same task, and its
//! record makes the second copy harmless.

use sha2::{Digest, Sha256};

use crate::id::TaskId;

/// Maximum length of an id that is written out, in bytes. A longer one holds a hash of its path.
const MAX_ID: usize = 200;
/// Maximum length of the id of what is spawned, in bytes: it can be the root of a workflow.
const MAX_SPAWNED_ID: usize = 150;

/// StepPlace of a task in a workflow.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct StepPlace {
    root: TaskId,
    path: String,
}

impl StepPlace {
    /// Returns the place of the root.
    pub(crate) fn root(root: TaskId) -> Self {
        Self { root, path: String::new() }
    }

    /// Returns the place at this path; `None` if the text is not a path: names and numbers, separated by dots.
    pub(crate) fn parse(root: TaskId, path: &str) -> Option<Self> {
        let names = path.is_empty() || path.split('.').all(is_part);
        names.then(|| Self { root, path: path.to_owned() })
    }

    /// Returns the id of the workflow's root.
    pub(crate) fn root_id(&self) -> &TaskId {
        &self.root
    }

    /// Returns the path as it is sent.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// Returns `true` if it is the place of the root.
    pub(crate) fn is_root(&self) -> bool {
        self.path.is_empty()
    }

    /// Returns the id of the task at this place.
    pub(crate) fn id(&self) -> TaskId {
        if self.path.is_empty() {
            return self.root.clone();
        }
        let full = format!("{}.{}", self.root, self.path);
        let text = if full.len() <= MAX_ID {
            full
        } else {
            format!("{}.#{}", self.root, short_hash(self.path.as_bytes()))
        };
        // INVARIANT: a root is an id without control characters, and a path adds few plain ones; the sender of a workflow
        // has checked that the root leaves room for a hash.
        TaskId::parse(&text).unwrap_or_else(|_| self.root.clone())
    }

    /// Returns the path of the scope in which the steps that follow the task have their names.
    fn scope_path(&self) -> &str {
        let mut end = self.path.len();
        loop {
            let path = &self.path[..end];
            let start = path.rfind('.').map_or(0, |dot| dot + 1);
            if path[start..].bytes().next().is_none_or(|first| first.is_ascii_digit()) {
                return path;
            }
            end = start.saturating_sub(1);
        }
    }

    /// Returns the place of the scope: the root, or a member of a group.
    pub(crate) fn scope(&self) -> Self {
        Self { root: self.root.clone(), path: self.scope_path().to_owned() }
    }

    /// Returns the scope this number of scopes further out.
    pub(crate) fn outer_scope(&self, up: u32) -> Self {
        let mut scope = self.scope();
        for _ in 0..up {
            // The member's number and the name of its group.
            for _ in 0..2 {
                let end = scope.path.rfind('.').unwrap_or(0);
                scope.path.truncate(end);
            }
            scope = scope.scope();
        }
        scope
    }

    /// Returns the number of the member in whose scope the task lies, this number of scopes further out.
    pub(crate) fn member_index(&self, up: u32) -> Option<u32> {
        let scope = self.outer_scope(up);
        scope.path.rsplit('.').next()?.parse().ok()
    }

    /// Returns the place of a step in the scope of this place.
    pub(crate) fn step(&self, name: &str) -> Self {
        let scope = self.scope_path();
        let path = if scope.is_empty() { name.to_owned() } else { format!("{scope}.{name}") };
        Self { root: self.root.clone(), path }
    }

    /// Returns the place of a member of the group at this place.
    pub(crate) fn member(&self, index: u32) -> Self {
        Self { root: self.root.clone(), path: format!("{}.{index}", self.path) }
    }

    /// Returns the ids of all tasks of the step at this place: of each member, if it is a group, its first task and these
    /// steps after it.
    pub(crate) fn tasks<'a>(
        &self,
        members: Option<u32>,
        inner: &(impl Iterator<Item = &'a String> + Clone),
    ) -> Vec<TaskId> {
        let Some(members) = members else { return vec![self.id()] };
        let mut tasks = Vec::new();
        for member in (0..members).map(|index| self.member(index)) {
            tasks.push(member.id());
            tasks.extend(inner.clone().map(|step| member.step(step).id()));
        }
        tasks
    }
}

/// Returns the id of a task or workflow that the handler of another task has spawned. Spawning in turn leads to longer ids, until
/// they hold a hash.
pub(crate) fn spawned_id(parent: &TaskId, number: usize) -> TaskId {
    let full = format!("{parent}+{number}");
    let text = if full.len() <= MAX_SPAWNED_ID {
        full
    } else {
        let origin = parent.as_str().split('+').next().unwrap_or_default();
        let origin =
            &origin[..(0..=64.min(origin.len())).rev().find(|at| origin.is_char_boundary(*at)).unwrap_or(0)];
        format!("{origin}+#{}", short_hash(full.as_bytes()))
    };
    // INVARIANT: part of an id, and a few plain characters.
    TaskId::parse(&text).unwrap_or_else(|_| parent.clone())
}

/// Returns the root of what was spawned, from the id of its last task.
pub(crate) fn spawned_root(last: &TaskId) -> TaskId {
    let text = last.as_str();
    let end = text.rfind('+').and_then(|plus| Some(plus + text[plus..].find('.')?));
    end.and_then(|end| TaskId::parse(&text[..end]).ok()).unwrap_or_else(|| last.clone())
}

fn short_hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns `true` if a text can be a part of a path: a name or a number.
fn is_part(part: &str) -> bool {
    is_step_name(part)
        || (part == "0" || !part.starts_with('0')) && part.parse::<u32>().is_ok() && !part.starts_with('+')
}

/// Returns `true` if a text can be the name of a step: `[a-z][a-z0-9_-]{0,39}`.
pub(crate) fn is_step_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_lowercase());
    first
        && text.len() <= 40
        && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> StepPlace {
        StepPlace::parse("R".try_into().unwrap(), path).unwrap()
    }

    #[test]
    fn ids_follow_from_places() {
        let root = place("");
        assert_eq!(root.id().as_str(), "R");
        assert_eq!(root.step("many").member(3).id().as_str(), "R.many.3");
        assert_eq!(root.step("many").member(3).step("s1").id().as_str(), "R.many.3.s1");
        assert_eq!(place("many.3.s1").step("s2").id().as_str(), "R.many.3.s2");
        assert_eq!(place("a").step("b").id().as_str(), "R.b");
    }

    #[test]
    fn scopes_are_members_of_groups() {
        let deep = place("many.3.inner.7.s1");
        assert_eq!(deep.scope(), place("many.3.inner.7"));
        assert_eq!(deep.outer_scope(1), place("many.3"));
        assert_eq!(deep.outer_scope(2), place(""));
        assert_eq!(deep.outer_scope(9), place(""));
        assert_eq!(
            (deep.member_index(0), deep.member_index(1), deep.member_index(2)),
            (Some(7), Some(3), None)
        );
        assert_eq!(place("many.3").scope(), place("many.3"));
        assert_eq!(place("a").scope(), place(""));
    }

    #[test]
    fn long_paths_become_hashes() {
        let path = vec!["a".repeat(40); 6].join(".");
        let (one, other) = (place(&path).id(), place(&path[1..]).id());
        assert!(one.as_str().starts_with("R.#") && one.as_str().len() < 40 && one != other);
    }

    #[test]
    fn what_is_spawned_again_and_again_keeps_short_ids() {
        let mut id: TaskId = "R".try_into().unwrap();
        assert_eq!(spawned_id(&id, 1).as_str(), "R+1");
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            id = spawned_id(&id, 2);
            assert!(id.as_str().len() <= MAX_SPAWNED_ID && seen.insert(id.clone()), "{id}");
        }
    }

    #[test]
    fn the_root_of_what_was_spawned_follows_from_its_last_task() {
        let root = |id: &str| spawned_root(&id.try_into().unwrap()).to_string();
        assert_eq!(root("R.s1+1"), "R.s1+1");
        assert_eq!(root("R.s1+1.last"), "R.s1+1");
        assert_eq!(root("R.s1+1.s0+2.last"), "R.s1+1.s0+2");
        assert_eq!(root("R+#0123.last"), "R+#0123");
    }

    #[test]
    fn paths_are_names_and_numbers() {
        for bad in [".", "A", "a..b", "a.01", "a.+1", "a.b ", "a.-1", "é"] {
            assert_eq!(StepPlace::parse("R".try_into().unwrap(), bad), None, "{bad}");
        }
        assert!(
            is_step_name("a-1_x")
                && !is_step_name("1a")
                && !is_step_name("")
                && !is_step_name(&"a".repeat(41))
        );
    }
}
