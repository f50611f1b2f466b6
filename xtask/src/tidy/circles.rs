//! Modules of a crate import each other in one direction.
//!
//! Two modules that import each other are one module in two files: neither can be read, tested or moved alone.
//!
//! Nodes of the check are the direct children of one module, with all that is below them. The children of the crate
//! root are checked, and those of every other module. An import belongs to the module that is the closest common
//! ancestor of both ends. A module and its descendants may import each other, because they are one thing. A circle of
//! files is always a circle between the children of some module, so it needs no separate check.
//!
//! A path counts for the deepest file it reaches. A name that a file takes from its ancestor, which took it from
//! elsewhere, counts for that other place: otherwise a re-export in the parent would hide the circle. Names that
//! another module re-exports count for that module.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::{
    Finding,
    files::TextFile,
    product::{self, Module, ModulePath},
    source::{Source, Token, clear},
};

/// Module of measurements, which may import anything. No `#[cfg(test)]` says so.
const MEASUREMENTS: &str = "bench";

/// Re-exports of re-exports that are followed. More would be an endless circle of names.
const MAX_REEXPORTS: usize = 8;

/// One import or one path in code.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Import {
    /// Segments as they are written, the `crate`, `self` and `super` at the beginning included.
    path: Vec<String>,
    /// Name that the file gives it. A glob and a path in code give none.
    name: Option<String>,
    /// Modules inside the file around it.
    inline: Vec<String>,
    line: usize,
}

/// An import that goes from one child of a module to another.
#[derive(Debug, Clone)]
struct Arrow {
    file: String,
    line: usize,
    path: String,
}

/// Arrows between the children of one module, by both their names.
type Siblings = BTreeMap<(String, String), Vec<Arrow>>;

/// Finds the circles of every product crate.
pub(super) fn check(files: &[TextFile]) -> Vec<Finding> {
    let mut crates: BTreeMap<&str, Vec<Module<'_>>> = BTreeMap::new();
    for module in product::modules(files) {
        if module.path != [MEASUREMENTS] {
            crates.entry(module.crate_folder).or_default().push(module);
        }
    }
    crates.values().flat_map(|modules| check_crate(modules)).collect()
}

fn check_crate(modules: &[Module<'_>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (parent, siblings) in arrows(modules) {
        for circle in circles(&siblings) {
            findings.extend(finding(&parent, &circle, &siblings));
        }
    }
    findings
}

fn finding(parent: &[String], circle: &[String], siblings: &Siblings) -> Option<Finding> {
    let ring = || circle.iter().chain(circle.first());
    let mut what = "imports in a circle, ".to_owned();
    if !parent.is_empty() {
        what.push_str(&format!("inside `{}`, ", parent.join("::")));
    }
    what.push_str(&ring().map(String::as_str).collect::<Vec<_>>().join(" → "));
    let mut examples = Vec::new();
    for (from, to) in ring().zip(ring().skip(1)) {
        let arrows = &siblings[&(from.clone(), to.clone())];
        let example = arrows.first()?;
        examples.push(example);
        let Arrow { file, line, path } = example;
        what.push_str(&format!("\n    {from} → {to}: {file}:{line} `{path}`"));
        if arrows.len() > 1 {
            what.push_str(&format!(" and {} more", arrows.len() - 1));
        }
    }
    let Arrow { file, line, .. } = examples.first()?;
    Some(Finding {
        path: file.clone(),
        line: *line,
        what,
        remedy: "move what both need into a module below them, or let the caller hand it over",
    })
}

/// Shortest circle through every arrow that is in one, each once, from the child that comes first by name.
fn circles(siblings: &Siblings) -> BTreeSet<Vec<String>> {
    let mut circles = BTreeSet::new();
    for (from, to) in siblings.keys() {
        if let Some(mut circle) = shortest_way(siblings, to, from) {
            let first = circle.iter().enumerate().min_by_key(|(_, name)| *name).map_or(0, |(at, _)| at);
            circle.rotate_left(first);
            circles.insert(circle);
        }
    }
    circles
}

fn shortest_way(siblings: &Siblings, from: &str, to: &str) -> Option<Vec<String>> {
    let mut ways = VecDeque::from([vec![from.to_owned()]]);
    let mut seen = HashSet::from([from]);
    while let Some(way) = ways.pop_front() {
        let end = way.last()?;
        if end == to {
            return Some(way);
        }
        for (_, next) in siblings.keys().filter(|(start, _)| start == end) {
            if seen.insert(next) {
                let mut longer = way.clone();
                longer.push(next.clone());
                ways.push_back(longer);
            }
        }
    }
    None
}

/// Every arrow of a crate, by the module whose children it connects.
fn arrows(modules: &[Module<'_>]) -> BTreeMap<ModulePath, Siblings> {
    let tree = Tree::new(modules);
    let mut arrows: BTreeMap<ModulePath, Siblings> = BTreeMap::new();
    for (from, (file, imports)) in &tree.modules {
        for import in imports {
            let Some(to) = tree.target(from, import) else { continue };
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            // Without a next segment on both sides, one is the ancestor of the other.
            let (Some(start), Some(end)) = (from.get(common), to.get(common)) else { continue };
            let arrow = Arrow { file: file.clone(), line: import.line, path: import.path.join("::") };
            let siblings = arrows.entry(from[..common].to_vec()).or_default();
            siblings.entry((start.clone(), end.clone())).or_default().push(arrow);
        }
    }
    arrows
}

/// Modules of a crate that have a file, with what each imports.
#[derive(Debug)]
struct Tree {
    modules: BTreeMap<ModulePath, (String, Vec<Import>)>,
    /// Names that a file imported, with their paths.
    names: HashMap<(ModulePath, String), Vec<String>>,
}

impl Tree {
    fn new(modules: &[Module<'_>]) -> Self {
        let imports_of = |module: &Module<'_>| {
            let code = clear(&module.file.text);
            (module.path.clone(), (module.file.path.clone(), imports(&Source::new(&code).tokens)))
        };
        let modules: BTreeMap<_, _> = modules.iter().map(imports_of).collect();
        let mut names = HashMap::new();
        for (module, (_, imports)) in &modules {
            for import in imports.iter().filter(|import| import.inline.is_empty()) {
                if let Some(name) = &import.name {
                    names.insert((module.clone(), name.clone()), import.path.clone());
                }
            }
        }
        Self { modules, names }
    }

    /// Module file that an import of the file of `from` leads to; `None` where that is outside the crate.
    fn target(&self, from: &[String], import: &Import) -> Option<ModulePath> {
        let mut module = from.to_vec();
        module.extend(import.inline.iter().cloned());
        let mut path = self.absolute(&module, &import.path)?;
        for _ in 0..MAX_REEXPORTS {
            let depth = self.depth(&path);
            let reached = path[..depth].to_vec();
            let is_ancestor = reached.len() < from.len() && from.starts_with(&reached);
            let Some(name) = path.get(depth).filter(|_| is_ancestor) else { return Some(reached) };
            let Some(origin) = self.names.get(&(reached.clone(), name.clone())) else { return Some(reached) };
            let mut next = self.absolute(&reached, origin)?;
            next.extend_from_slice(&path[depth + 1..]);
            path = next;
        }
        None
    }

    /// Path from the root of the crate; `None` for a path into another crate.
    fn absolute(&self, module: &[String], path: &[String]) -> Option<Vec<String>> {
        let mut absolute = module.to_vec();
        let mut rest = path;
        match rest.first()?.as_str() {
            "crate" => {
                absolute.clear();
                rest = &rest[1..];
            }
            "self" => rest = &rest[1..],
            "super" => {}
            child => {
                absolute.push(child.to_owned());
                rest = &rest[1..];
                if !self.modules.contains_key(&absolute) {
                    return None;
                }
            }
        }
        while rest.first().is_some_and(|segment| segment == "super") {
            absolute.pop()?;
            rest = &rest[1..];
        }
        absolute.extend_from_slice(rest);
        Some(absolute)
    }

    /// Number of segments of a path that lead to a file, and no further.
    fn depth(&self, path: &[String]) -> usize {
        (1..=path.len()).take_while(|length| self.modules.contains_key(&path[..*length])).count()
    }
}

/// Imports of a file, and the paths in its code that begin with `crate`, `self` or `super`.
fn imports(tokens: &[Token<'_>]) -> Vec<Import> {
    let mut imports = Vec::new();
    let mut inline: Vec<(usize, String)> = Vec::new();
    let mut depth = 0;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let text = |ahead: usize| tokens.get(at + ahead).map_or("", |token| token.text);
        let around = || inline.iter().map(|(_, name)| name.clone()).collect();
        match token.text {
            "mod" if text(2) == "{" => inline.push((depth, text(1).to_owned())),
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                if inline.last().is_some_and(|(outside, _)| *outside == depth) {
                    inline.pop();
                }
            }
            // `use<'a>` is a bound.
            "use" if text(1) != "<" => {
                let length = tokens[at..].iter().take_while(|token| token.text != ";").count();
                let mut leaves = Vec::new();
                use_tree(&tokens[at + 1..at + length], &[], &mut leaves);
                imports.extend(leaves.into_iter().map(|import| Import { inline: around(), ..import }));
                at += length;
            }
            "crate" | "self" | "super" if text(1) == "::" => {
                let mut path = vec![token.text.to_owned()];
                let mut end = at + 1;
                while let [colons, segment, ..] = tokens[end..]
                    && colons.text == "::"
                    && segment.is_word()
                {
                    path.push(segment.text.to_owned());
                    end += 2;
                }
                imports.push(Import { path, name: None, inline: around(), line: token.line });
                at = end - 1;
            }
            _ => {}
        }
        at += 1;
    }
    imports
}

/// Imports of a tree such as `a::{self, b as c, d::*}`, below `prefix`.
fn use_tree(tokens: &[Token<'_>], prefix: &[String], imports: &mut Vec<Import>) {
    let mut path = prefix.to_vec();
    let mut name = None;
    let mut line = 0;
    for (at, token) in tokens.iter().enumerate() {
        let rest = &tokens[at + 1..];
        line = token.line;
        match token.text {
            "{" => {
                for branch in branches(rest) {
                    use_tree(branch, &path, imports);
                }
                return;
            }
            "*" => {
                name = None;
                break;
            }
            "as" => {
                name = rest.first().map(|name| name.text.to_owned());
                break;
            }
            // `::a` is always another crate.
            "::" if path.is_empty() => return,
            "::" => {}
            // `a::{self}` is `a`.
            "self" if !path.is_empty() => name = path.last().cloned(),
            segment => {
                path.push(segment.to_owned());
                name = Some(segment.to_owned());
            }
        }
    }
    imports.push(Import { path, name, inline: Vec::new(), line });
}

/// Branches between braces, up to the one that closes them.
fn branches<'a, 'b>(tokens: &'a [Token<'b>]) -> Vec<&'a [Token<'b>]> {
    let mut branches = Vec::new();
    let mut depth = 0;
    let mut start = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "{" => depth += 1,
            "}" if depth == 0 => {
                branches.push(&tokens[start..at]);
                break;
            }
            "}" => depth -= 1,
            "," if depth == 0 => {
                branches.push(&tokens[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    branches.retain(|branch| !branch.is_empty());
    branches
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Circles of a crate with these files, each with its arrows, without the remedies.
    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> = files
            .iter()
            .map(|(path, text)| TextFile {
                path: format!("machinist-x/src/{path}"),
                text: (*text).to_owned(),
            })
            .collect();
        check(&files).into_iter().map(|finding| finding.what.replace("machinist-x/src/", "")).collect()
    }

    fn paths(text: &str) -> Vec<String> {
        let code = clear(text);
        imports(&Source::new(&code).tokens).into_iter().map(|import| import.path.join("::")).collect()
    }

    #[test]
    fn a_circle_is_told_with_an_import_for_each_arrow() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\nmod c;\n"),
            ("a.rs", "use crate::b::{B, c};\n"),
            ("b/mod.rs", "mod d;\n"),
            ("b/d.rs", "\nuse crate::c::C;\n"),
            ("c.rs", "use super::a::A;\n"),
        ];
        let expected = "imports in a circle, a → b → c → a\n    a → b: a.rs:1 `crate::b::B` and 1 more\n    \
                        b → c: b/d.rs:2 `crate::c::C`\n    c → a: c.rs:1 `super::a::A`";
        assert_eq!(found(&files), [expected]);
        assert_eq!(found(&files[..4]), [""; 0]);
    }

    #[test]
    fn every_arrow_of_a_knot_is_in_a_circle_that_is_told() {
        let files = [
            ("a.rs", "use crate::{b, c};"),
            ("b.rs", "use crate::{a, c};"),
            ("c.rs", "use crate::a;"),
            ("d.rs", "use crate::a;"),
        ];
        let firsts: Vec<String> =
            found(&files).iter().flat_map(|what| what.lines().next()).map(str::to_owned).collect();
        assert_eq!(
            firsts,
            [
                "imports in a circle, a → b → a",
                "imports in a circle, a → b → c → a",
                "imports in a circle, a → c → a"
            ]
        );
    }

    #[test]
    fn siblings_inside_a_folder_are_checked() {
        let files = [
            ("a/mod.rs", "mod b; mod c;"),
            ("a/b.rs", "fn b() { super::c::c() }"),
            ("a/c.rs", "use crate::a::b::b;"),
        ];
        let expected = "imports in a circle, inside `a`, b → c → b\n    b → c: a/b.rs:1 `super::c::c`\n    \
                        c → b: a/c.rs:1 `crate::a::b::b`";
        assert_eq!(found(&files), [expected]);
    }

    #[test]
    fn parents_and_descendants_may_import_each_other() {
        let files = [
            ("lib.rs", "mod a; pub use a::A; use a::b;"),
            ("a/mod.rs", "mod b; use self::b::B; use crate::X;"),
            ("a/b.rs", "use super::A; use crate::a::C; use crate::Y;"),
        ];
        assert_eq!(found(&files), [""; 0]);
    }

    #[test]
    fn a_reexport_of_the_parent_hides_nothing() {
        let files = [
            ("lib.rs", "mod a; mod b; pub use a::A; pub use b::{B as Renamed};"),
            ("a.rs", "use crate::Renamed;"),
            ("b.rs", "use crate::{A};"),
        ];
        assert_eq!(found(&files).len(), 1);
        let endless = [("lib.rs", "use self::A; use crate::A;"), ("a.rs", "use crate::A;")];
        assert_eq!(found(&endless), [""; 0]);
    }

    #[test]
    fn a_reexport_elsewhere_counts_for_that_module() {
        let files = [
            ("a/mod.rs", "mod b; pub use b::B;"),
            ("a/b.rs", "use crate::c::C;"),
            ("c.rs", "use crate::a::B;"),
        ];
        assert!(found(&files)[0].ends_with("c → a: c.rs:1 `crate::a::B`"));
    }

    #[test]
    fn what_tests_compile_may_import_anything() {
        let used = ("b.rs", "use crate::a::A;");
        for other in [
            &[("a.rs", "#[cfg(test)]\nmod tests { use crate::b; }")][..],
            &[("a.rs", "#[cfg(test)]\nuse crate::b;")],
            &[("a/mod.rs", "#[cfg(test)] mod model;"), ("a/model/c.rs", "use crate::b;")],
            &[("a/mod.rs", "#[cfg(test)]\nmod tests;"), ("a/tests.rs", "use crate::b;")],
            &[("a.rs", "use crate::bench::c;"), ("bench.rs", "use crate::b;")],
        ] {
            let files: Vec<_> = other.iter().copied().chain([used]).collect();
            assert_eq!(found(&files), [""; 0], "{other:?}");
        }
    }

    #[test]
    fn modules_inside_a_file_belong_to_it() {
        let files = [
            ("a.rs", "mod otel { use super::X; use super::super::b; } use super::c;"),
            ("b.rs", "use crate::a;"),
        ];
        assert_eq!(found(&files).len(), 1);
        assert!(found(&files)[0].contains("a → b: a.rs:1 `super::super::b`"));
    }

    #[test]
    fn every_form_of_an_import_is_read() {
        let text =
            "use crate::{\n    a::{self, b as c, d::*},\n    e,\n};\npub(crate) use super::f;\nuse ::g::h;";
        assert_eq!(paths(text), ["crate::a", "crate::a::b", "crate::a::d", "crate::e", "super::f"]);
        let text = "fn a(b: crate::c::D<'_>) -> impl E + use<> { $crate::f!(g); self::h::<I>() }";
        assert_eq!(paths(text), ["crate::c::D", "crate::f", "self::h"]);
        assert_eq!(paths("pub(super) fn a(self) { self.b; other::crate_::c } // crate::d"), [""; 0]);
    }
}
