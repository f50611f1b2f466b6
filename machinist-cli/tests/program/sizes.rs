//! Maximum sizes and the freshness window in machinist.toml.

use crate::support::Folder;

#[test]
fn sizes_are_settings() {
    let folder = Folder::with(
        "[sizes]\nbody = 500\nheaders = \"2KiB\"\nargs = 2\ndepth = 5\nresults = 20\nerrors = \"1KiB\"\n",
    );
    let config = folder.run(&["config"]).ended(0).stdout;
    for row in ["sizes.body", "sizes.headers", "2KiB", "sizes.depth", "machinist.toml:2"] {
        assert!(config.contains(row), "{row}: {config}");
    }
    let large = "x".repeat(600);
    folder.run(&["send", "add", &large]).ended(64).reports(&["body", "500 is the limit"]);
    folder.run(&["send", "add", "1", "2", "3"]).ended(64).reports(&["arguments", "2 is the limit"]);
    folder.run(&["send", "add", "[[[1]]]"]).ended(64).reports(&["nesting", "5 is the limit"]);
    let worker = folder.worker(&["--demo"]);
    let told = folder.outcome(&["echo", &"x".repeat(40)]);
    assert!(
        told["error"].to_string().contains("more than 20 bytes") || told["kind"] == "unregistered",
        "{told}"
    );
    worker.stop().ended(0);
}

#[test]
fn sizes_that_make_no_sense_are_reported() {
    let folder = Folder::new();
    for (toml, words) in [
        ("[sizes]\nbody = \"much\"", &["machinist.toml:2", "sizes.body", "is not a size"][..]),
        ("[sizes]\ndepth = 101", &["sizes.depth", "100"]),
        ("[sizes]\nargs = 0", &["sizes.args", "0 would refuse every task"]),
        ("[sizes]\nbodyy = 1", &["did you mean \"body\"?"]),
        ("freshness = \"2d\"", &["results_ttl", "freshness"]),
        ("freshness = \"0s\"", &["freshness", "0s"]),
    ] {
        folder.write("machinist.toml", toml);
        folder.run(&["send", "add", "1"]).ended(78).reports(words);
    }
    folder.write("machinist.toml", "freshness = \"2d\"\nresults_ttl = \"2d\"");
    folder.run(&["send", "add", "1"]).ended(0);
}

#[test]
fn the_old_section_limits_is_read_with_a_warning() {
    let folder = Folder::with("[limits]\nbody = 500\n");
    let config = folder.run(&["config"]).ended(0).reports(&["[limits]", "[sizes]", "machinist.toml:1"]);
    assert_eq!(config.stderr.matches("[limits]").count(), 1, "{config:?}");
    assert!(config.stdout.contains("sizes.body"), "{config:?}");
    folder.run(&["send", "add", &"x".repeat(600)]).ended(64).reports(&["body", "500 is the limit"]);
    folder.write("machinist.toml", "[limits]\nbody = 500\n[sizes]\nbody = 500\n");
    folder.run(&["config"]).ended(78).reports(&["machinist.toml:1", "[limits]", "[sizes]"]);
}
