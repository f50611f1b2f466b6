//! Environment of a program: what it inherits from the worker, and what its task sets. Pure.
//!
//! A program gets few variables of the worker, so that it gets no secrets: neither those that configure machinist nor
//! those of anything else. `env_pass` names more, and `env` sets further ones. docs/command-tasks.md has the list.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
};

/// Variables that every program inherits. Those that begin with `LC_` are inherited too.
const INHERITED: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR"];
/// First part of the names of variables that configure machinist.
const OWN: &str = "MACHINIST_";

/// Variables that a program gets from the worker and its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Environment(BTreeMap<OsString, OsString>);

/// Variables of a task.
#[derive(Debug, Clone, Copy)]
pub(super) struct TaskVariables<'a> {
    /// Names of variables to inherit; one that ends with `*` stands for all that begin so.
    pub(super) pass: &'a [String],
    /// Variables to set.
    pub(super) set: &'a BTreeMap<String, String>,
}

impl Environment {
    /// Chooses from the variables of the worker. A pattern never stands for the variables in `secret`, for those of
    /// `MACHINIST_` or for those of the service manager; their full names pass them.
    pub(super) fn choose(
        worker: impl Iterator<Item = (OsString, OsString)>,
        secret: &BTreeSet<String>,
        task: TaskVariables<'_>,
    ) -> Self {
        let set = task.set.iter().map(|(name, value)| (name.into(), value.into()));
        Self(worker.filter(|(name, _)| is_passed(name, task.pass, secret)).chain(set).collect())
    }

    /// Returns the variables with further ones, which go before these.
    pub(super) fn with(
        &self,
        further: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Vec<(OsString, OsString)> {
        let mut all = self.0.clone();
        all.extend(further.into_iter().map(|(name, value)| (name.into(), value.into())));
        all.into_iter().collect()
    }
}

fn is_passed(name: &OsStr, pass: &[String], secret: &BTreeSet<String>) -> bool {
    // No setting can name a variable whose name is not UTF-8.
    let Some(name) = name.to_str() else { return false };
    if INHERITED.contains(&name) || name.starts_with("LC_") || pass.iter().any(|passed| passed == name) {
        return true;
    }
    let is_own = name.starts_with(OWN) || secret.contains(name) || crate::systemd::VARIABLES.contains(&name);
    let matches = |pattern: &String| pattern.strip_suffix('*').is_some_and(|start| name.starts_with(start));
    !is_own && pass.iter().any(matches)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(pass: &[&str], set: &[(&str, &str)]) -> Vec<String> {
        let worker =
            ["PATH", "LC_ALL", "AWS_KEY", "AWS_REGION", "MACHINIST_BROKER", "MY_KEY", "NOTIFY_SOCKET"];
        let worker = worker.map(|name| (name.into(), "worker".into()));
        let pass: Vec<String> = pass.iter().map(|name| (*name).to_owned()).collect();
        let set = set.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let secret = BTreeSet::from(["MY_KEY".to_owned()]);
        let task = TaskVariables { pass: &pass, set: &set };
        let chosen = Environment::choose(worker.into_iter(), &secret, task);
        chosen.0.iter().map(|(name, value)| format!("{}={}", name.display(), value.display())).collect()
    }

    #[test]
    fn a_program_inherits_little() {
        assert_eq!(chosen(&[], &[]), ["LC_ALL=worker", "PATH=worker"]);
    }

    #[test]
    fn names_and_patterns_pass_more_but_a_pattern_passes_no_secret() {
        assert_eq!(
            chosen(&["AWS_*"], &[]),
            ["AWS_KEY=worker", "AWS_REGION=worker", "LC_ALL=worker", "PATH=worker"]
        );
        assert_eq!(
            chosen(&["*"], &[]),
            ["AWS_KEY=worker", "AWS_REGION=worker", "LC_ALL=worker", "PATH=worker"]
        );
        assert!(chosen(&["MACHINIST_*", "MY_*", "NOTIFY*"], &[]).len() == 2);
        assert!(chosen(&["MACHINIST_BROKER"], &[]).contains(&"MACHINIST_BROKER=worker".to_owned()));
    }

    #[test]
    fn a_task_sets_variables() {
        assert_eq!(chosen(&[], &[("PATH", "/bin"), ("X", "1")]), ["LC_ALL=worker", "PATH=/bin", "X=1"]);
    }

    #[test]
    fn the_variables_of_a_run_go_before_all_others() {
        let set = BTreeMap::from([("MACHINIST_ATTEMPT".to_owned(), "9".to_owned())]);
        let task = TaskVariables { pass: &[], set: &set };
        let environment = Environment::choose(std::iter::empty(), &BTreeSet::new(), task);
        let all = environment.with([("MACHINIST_ATTEMPT", "1".to_owned())]);
        assert_eq!(all, [("MACHINIST_ATTEMPT".into(), "1".into())]);
    }
}
