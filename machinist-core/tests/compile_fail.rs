//! What must not compile does not, and the compiler says why in our words.
//!
//! Each file of `compile_fail/` is a program. Those that hold `//~ ERROR: sentence` lines must fail with these
//! sentences in what the compiler says about them; those without must compile. Nothing else of the compiler's text
//! is compared, because it changes with every version of it.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

#[test]
fn what_does_not_fit_does_not_compile_and_says_why() {
    let programs = programs();
    assert!(programs.len() > 10, "the programs were not found");
    let checked = check(&programs);
    let mut wrong = String::new();
    for (name, expected) in &programs {
        let said = checked.said.get(name).map_or("", String::as_str);
        if checked.compiled.contains(name) != expected.is_empty() {
            let verb = if expected.is_empty() { "should compile" } else { "should not compile" };
            writeln!(wrong, "{name} {verb}:\n{said}").unwrap();
        }
        for sentence in expected.iter().filter(|sentence| !said.contains(*sentence)) {
            writeln!(wrong, "{name} should say: {sentence}\nit says:\n{said}").unwrap();
        }
    }
    assert!(wrong.is_empty(), "{wrong}\n{}", checked.cargo);
}

/// The programs by name, each with the sentences that it must fail with.
fn programs() -> BTreeMap<String, Vec<String>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let source = fs::read_to_string(&path).unwrap();
        let expected = source.lines().filter_map(|line| line.strip_prefix("//~ ERROR: ")).map(str::to_owned);
        programs.insert(name, expected.collect());
    }
    programs
}

/// What cargo made of the programs.
struct Checked {
    compiled: BTreeSet<String>,
    said: BTreeMap<String, String>,
    /// What cargo itself said, for a failure that is none of the programs'.
    cargo: String,
}

/// Checks all programs as binaries of one package, in one run of cargo. The package has its own folder and so its
/// own lock: the run that builds this test does not hold it.
fn check(programs: &BTreeMap<String, Vec<String>>) -> Checked {
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile-fail");
    fs::create_dir_all(&package).unwrap();
    fs::write(package.join("Cargo.toml"), manifest(core, programs.keys())).unwrap();
    // The same versions as the workspace: they are on this machine already.
    fs::copy(core.join("../Cargo.lock"), package.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--keep-going", "--bins", "--message-format=json", "--target-dir"])
        .arg(package.join("target"))
        .current_dir(&package)
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();

    let mut checked = Checked {
        compiled: BTreeSet::new(),
        said: BTreeMap::new(),
        cargo: String::from_utf8_lossy(&output.stderr).into_owned(),
    };
    for line in String::from_utf8(output.stdout).unwrap().lines() {
        let message: Value = serde_json::from_str(line).unwrap();
        let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        match message["reason"].as_str() {
            Some("compiler-artifact") => {
                checked.compiled.insert(name);
            }
            Some("compiler-message") => {
                let text = message["message"]["rendered"].as_str().unwrap_or_default();
                checked.said.entry(name).or_default().push_str(text);
            }
            _ => {}
        }
    }
    checked
}

fn manifest<'a>(core: &Path, programs: impl Iterator<Item = &'a String>) -> String {
    let mut manifest = format!(
        "[workspace]\n\n\
         [package]\nname = \"compile-fail\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n\
         [dependencies]\nmachinist-core = {{ path = {core:?} }}\n\
         serde = {{ version = \"1\", features = [\"derive\"] }}\n"
    );
    for name in programs {
        let path = core.join("tests/compile_fail").join(name).with_extension("rs");
        write!(manifest, "\n[[bin]]\nname = {name:?}\npath = {path:?}\n").unwrap();
    }
    manifest
}
