//! Programs that must not compile, and the sentences with which the compiler explains them.
//!
//! Each file of `compile_fail/` is a program. A program with `//~ ERROR: sentence` lines must fail, and the compiler's
//! text about it must hold these sentences; a program without such lines must compile. Nothing else of the compiler's
//! text is compared, because it changes with every version of the compiler.

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
fn programs_that_do_not_fit_fail_with_their_sentences() {
    let programs = programs();
    assert!(programs.len() > 10, "the programs were not found");
    let checked = check(&programs);
    let mut failures = String::new();
    for (name, expected) in &programs {
        let messages = checked.messages.get(name).map_or("", String::as_str);
        if checked.compiled.contains(name) != expected.is_empty() {
            let verb = if expected.is_empty() { "should compile" } else { "should not compile" };
            writeln!(failures, "{name} {verb}:\n{messages}").unwrap();
        }
        for sentence in expected.iter().filter(|sentence| !messages.contains(*sentence)) {
            writeln!(failures, "{name} should say: {sentence}\nit says:\n{messages}").unwrap();
        }
    }
    assert!(failures.is_empty(), "{failures}\n{}", checked.cargo);
}

/// Returns the programs by name, each with the sentences with which it must fail.
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

/// Result of checking the programs.
struct Checked {
    compiled: BTreeSet<String>,
    messages: BTreeMap<String, String>,
    /// Output of cargo itself, for a failure that does not belong to a program.
    cargo: String,
}

/// Checks all programs as binaries of one package, in one run of cargo. The package has its own folder and therefore
/// its own lock, which the run that builds this test does not hold.
fn check(programs: &BTreeMap<String, Vec<String>>) -> Checked {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compile-fail");
    fs::create_dir_all(&package).unwrap();
    fs::write(package.join("Cargo.toml"), manifest(here, programs.keys())).unwrap();
    // The same versions as the workspace: they are already on this machine.
    fs::copy(here.join("../Cargo.lock"), package.join("Cargo.lock")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["check", "--offline", "--keep-going", "--bins", "--message-format=json", "--target-dir"])
        .arg(package.join("target"))
        .current_dir(&package)
        .env_remove("RUSTFLAGS")
        .output()
        .unwrap();

    let mut checked = Checked {
        compiled: BTreeSet::new(),
        messages: BTreeMap::new(),
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
                checked.messages.entry(name).or_default().push_str(text);
            }
            _ => {}
        }
    }
    checked
}

fn manifest<'a>(here: &Path, programs: impl Iterator<Item = &'a String>) -> String {
    let [core, macros] = ["core", "macros"].map(|name| here.join(format!("../machinist-{name}")));
    let mut manifest = format!(
        "[workspace]\n\n\
         [package]\nname = \"compile-fail\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n\
         [dependencies]\nmachinist-core = {{ path = {core:?} }}\nmachinist-macros = {{ path = {macros:?} }}\n\
         serde = {{ version = \"1\", features = [\"derive\"] }}\n"
    );
    for name in programs {
        let path = here.join("tests/compile_fail").join(name).with_extension("rs");
        write!(manifest, "\n[[bin]]\nname = {name:?}\npath = {path:?}\n").unwrap();
    }
    manifest
}
