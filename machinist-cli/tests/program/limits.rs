//! How large and how old things may be, as the file says.

use crate::support::Folder;

#[test]
fn limits_are_settings() {
    let folder = Folder::with(
        "[limits]\nbody = 500\nheaders = \"2KiB\"\nargs = 2\ndepth = 5\nresults = 20\nerrors = \"1KiB\"\n",
    );
    let config = folder.run(&["config"]).ended(0).stdout;
    for row in ["limits.body", "limits.headers", "2KiB", "limits.depth", "machinist.toml:2"] {
        assert!(config.contains(row), "{row}: {config}");
    }
    let large = "x".repeat(600);
    folder.run(&["send", "add", &large]).ended(64).told(&["body", "500 is the limit"]);
    folder.run(&["send", "add", "1", "2", "3"]).ended(64).told(&["arguments", "2 is the limit"]);
    folder.run(&["send", "add", "[[[1]]]"]).ended(64).told(&["nesting", "5 is the limit"]);
    let worker = folder.worker(&["--demo"]);
    let told = folder.outcome(&["echo", &"x".repeat(40)]);
    assert!(
        told["error"].to_string().contains("more than 20 bytes") || told["kind"] == "unregistered",
        "{told}"
    );
    worker.stop().ended(0);
}

#[test]
fn limits_that_make_no_sense_are_told() {
    let folder = Folder::new();
    for (toml, words) in [
        ("[limits]\nbody = \"much\"", &["machinist.toml:2", "limits.body", "is not a size"][..]),
        ("[limits]\ndepth = 101", &["limits.depth", "100"]),
        ("[limits]\nargs = 0", &["limits.args", "0 would refuse every task"]),
        ("[limits]\nbodyy = 1", &["did you mean \"body\"?"]),
        ("freshness = \"2d\"", &["results_ttl", "freshness"]),
        ("freshness = \"0s\"", &["freshness", "0s"]),
    ] {
        folder.write("machinist.toml", toml);
        folder.run(&["send", "add", "1"]).ended(78).told(words);
    }
    folder.write("machinist.toml", "freshness = \"2d\"\nresults_ttl = \"2d\"");
    folder.run(&["send", "add", "1"]).ended(0);
}
