//! Modules of the crates that users depend on, without those that only tests compile.

use std::collections::HashSet;

use super::{
    files::TextFile,
    source::{Source, clear},
};

/// Path of a module from the root of its crate. The root's path is empty.
pub(super) type ModulePath = Vec<String>;

/// One source file of a product crate.
#[derive(Debug, Clone)]
pub(super) struct Module<'a> {
    /// Folder of the crate.
    pub(super) crate_folder: &'a str,
    pub(super) path: ModulePath,
    pub(super) file: &'a TextFile,
}

/// Finds all modules that have a file.
pub(super) fn modules(files: &[TextFile]) -> Vec<Module<'_>> {
    let mut modules: Vec<_> = files.iter().filter_map(module).collect();
    let mut test_modules = HashSet::new();
    for Module { crate_folder, path, file } in &modules {
        let code = clear(&file.text);
        for name in Source::new(&code).test_modules {
            let mut path = path.clone();
            path.push(name.to_owned());
            test_modules.insert((*crate_folder, path));
        }
    }
    modules.retain(|Module { crate_folder, path, .. }| {
        !(1..=path.len()).any(|length| test_modules.contains(&(*crate_folder, path[..length].to_vec())))
    });
    modules
}

fn module(file: &TextFile) -> Option<Module<'_>> {
    let (crate_folder, inside) = file.path.split_once('/')?;
    let is_product = crate_folder == "machinist" || crate_folder.starts_with("machinist-");
    let inside = inside.strip_prefix("src/")?.strip_suffix(".rs").filter(|_| is_product)?;
    let mut path: ModulePath = inside.split('/').map(str::to_owned).collect();
    if inside == "lib" || path.last().is_some_and(|name| name == "mod") {
        path.pop();
    }
    Some(Module { crate_folder, path, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| TextFile { path: (*path).to_owned(), text: (*text).to_owned() })
            .collect();
        modules(&files).iter().map(|module| module.path.join("::")).collect()
    }

    #[test]
    fn modules_are_named_by_their_files() {
        let files = ["lib.rs", "main.rs", "a/mod.rs", "a/b.rs"].map(|path| format!("machinist-x/src/{path}"));
        let files: Vec<_> = files.iter().map(|path| (path.as_str(), "")).collect();
        assert_eq!(paths(&files), ["", "main", "a", "a::b"]);
    }

    #[test]
    fn other_crates_and_files_are_left_out() {
        for path in ["xtask/src/lib.rs", "machinist/tests/a.rs", "machinist/src/a.lua", "machinist/build.rs"]
        {
            assert_eq!(paths(&[(path, "")]), [""; 0], "{path}");
        }
    }

    #[test]
    fn modules_of_tests_are_left_out_with_all_below_them() {
        let files = [
            ("machinist/src/a/mod.rs", "#[cfg(test)]\nmod model;"),
            ("machinist/src/a/model/b.rs", ""),
            ("machinist/src/a/model/mod.rs", ""),
            ("machinist/src/model.rs", ""),
            ("machinist-x/src/a/model.rs", ""),
        ];
        assert_eq!(paths(&files), ["a", "model", "a::model"]);
    }
}
