//! Where each dependency comes from, and under which licence.
//!
//! cargo-deny asks the same by the same file, deny.toml, but compiling it takes minutes that the continuous integration
//! does not have. The nightly run has them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use spdx::{Expression, Licensee};

use super::Finding;
use crate::command::{self, Workspace};

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";
/// File with the rules of cargo-deny.
pub(super) const RULES: &str = "deny.toml";

/// Asks cargo for all packages, those for other systems included.
pub(super) fn check(workspace: &Workspace) -> Result<Vec<Finding>> {
    let rules = std::fs::read_to_string(workspace.root().join(RULES)).with_context(|| RULES.to_owned())?;
    let rules = LicenceRules::parse(&rules)?;
    let mut cargo = workspace.cargo(["metadata", "--format-version", "1", "--all-features", "--locked"]);
    let metadata: Value = serde_json::from_str(&command::output(&mut cargo)?)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    Ok(packages.iter().flat_map(|package| judge(package, &rules)).collect())
}

/// The licences of deny.toml.
struct LicenceRules {
    allowed: Vec<Licensee>,
    /// Those that single crates may have besides.
    exceptions: Vec<(String, Vec<Licensee>)>,
}

impl LicenceRules {
    fn parse(rules: &str) -> Result<Self> {
        let rules: toml::Table = rules.parse().with_context(|| RULES.to_owned())?;
        let list = |name: &str| rules.get("licenses")?.get(name)?.as_array();
        let names = list("allow").with_context(|| format!("{RULES} has no list [licenses] allow"))?;
        ensure!(!names.is_empty(), "{RULES} allows no licence");
        let exceptions = list("exceptions").into_iter().flatten().map(|exception| {
            let name = exception.get("crate").and_then(toml::Value::as_str);
            let names = exception.get("allow").and_then(toml::Value::as_array);
            let (name, names) =
                name.zip(names).with_context(|| format!("{RULES}: {exception} is no exception"))?;
            Ok((name.to_owned(), licensees(names)?))
        });
        Ok(Self { allowed: licensees(names)?, exceptions: exceptions.collect::<Result<_>>()? })
    }

    /// Whether one of the alternatives of a licence asks for nothing that this crate may not have.
    fn permit(&self, name: Option<&str>, licence: &str) -> bool {
        let excepted = self.exceptions.iter().filter(|(crate_name, _)| name == Some(crate_name));
        let allowed = self.allowed.iter().chain(excepted.flat_map(|(_, more)| more));
        // Packages from before 2018 separate alternatives by a slash.
        Expression::parse_mode(licence, spdx::ParseMode::LAX).is_ok_and(|expression| {
            expression.evaluate(|asked| allowed.clone().any(|licence| licence.satisfies(asked)))
        })
    }
}

fn licensees(names: &[toml::Value]) -> Result<Vec<Licensee>> {
    let each = names.iter().map(|name| {
        let name = name.as_str().with_context(|| format!("{RULES}: {name} is no licence"))?;
        Licensee::parse(name).with_context(|| format!("{RULES}: {name} is no licence"))
    });
    each.collect()
}

fn judge(package: &Value, rules: &LicenceRules) -> Vec<Finding> {
    let text = |key: &str| package[key].as_str();
    let what = format!("{} {}", text("name").unwrap_or("a package"), text("version").unwrap_or_default());
    let finding = |what: String, remedy| Finding { path: "Cargo.toml".to_owned(), line: 0, what, remedy };
    let mut findings = Vec::new();
    match text("source") {
        None => findings.extend(wildcards(package).map(|name| {
            finding(format!("{what} takes any version of {name}"), "name the version that it was built with")
        })),
        Some(CRATES_IO) => {}
        Some(other) => {
            findings.push(finding(format!("{what} comes from {other}"), "take it from crates.io"));
        }
    }
    let licence = text("license");
    if !licence.is_some_and(|licence| rules.permit(text("name"), licence)) {
        let licence = licence.unwrap_or("no licence that it names");
        findings.push(finding(
            format!("{what} is under {licence}"),
            "use another crate, or allow its licence in deny.toml once the project can bear its terms",
        ));
    }
    findings
}

/// Dependencies on any version; those inside the workspace have a path instead.
fn wildcards(package: &Value) -> impl Iterator<Item = &str> {
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    dependencies
        .filter(|dependency| dependency["req"] == "*" && dependency["path"].is_null())
        .filter_map(|dependency| dependency["name"].as_str())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whats(package: &Value) -> Vec<String> {
        let rules = "[licenses]\nallow = [\"MIT\", \"Unicode-3.0\"]\n\
                     exceptions = [{ crate = \"b\", allow = [\"MPL-2.0\"] }]";
        judge(package, &LicenceRules::parse(rules).unwrap()).into_iter().map(|finding| finding.what).collect()
    }

    #[test]
    fn a_licence_nobody_allowed_is_found() {
        let package = |license: Value| json!({"name": "a", "version": "1.0.0", "source": CRATES_IO, "license": license});
        for good in ["MIT", "MIT OR Apache-2.0", "GPL-3.0/MIT", "(MIT OR GPL-2.0) AND Unicode-3.0"] {
            assert_eq!(whats(&package(json!(good))), [""; 0], "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-2.0", "what one likes"] {
            assert_eq!(whats(&package(json!(bad))), [format!("a 1.0.0 is under {bad}")]);
        }
        assert_eq!(whats(&package(Value::Null)), ["a 1.0.0 is under no licence that it names"]);
        let excepted =
            |name: &str| json!({"name": name, "version": "1.0.0", "source": CRATES_IO, "license": "MPL-2.0"});
        assert_eq!(whats(&excepted("b")), [""; 0]);
        assert_eq!(whats(&excepted("a")), ["a 1.0.0 is under MPL-2.0"]);
    }

    #[test]
    fn another_origin_is_found() {
        let package =
            json!({"name": "a", "version": "1.0.0", "source": "git+https://host/a", "license": "MIT"});
        assert_eq!(whats(&package), ["a 1.0.0 comes from git+https://host/a"]);
    }

    #[test]
    fn a_dependency_on_any_version_is_found() {
        let dependencies = json!([
            {"name": "b", "req": "*"}, {"name": "c", "req": "*", "path": "c"}, {"name": "d", "req": "^1"}
        ]);
        let package =
            json!({"name": "a", "version": "0.1.0", "license": "MIT", "dependencies": dependencies});
        assert_eq!(whats(&package), ["a 0.1.0 takes any version of b"]);
    }

    #[test]
    fn rules_that_allow_nothing_are_an_error() {
        let is_wrong = |rules: &str| LicenceRules::parse(rules).is_err();
        assert!(is_wrong("[licenses]\nallow = []"));
        assert!(is_wrong("[licenses]"));
        assert!(is_wrong("[licenses]\nallow = [\"none such\"]"));
        assert!(is_wrong("[licenses]\nallow = [\"MIT\"]\nexceptions = [\"b\"]"));
    }
}
