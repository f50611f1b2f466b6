//! Limits that people set, look at and reset while workers run.

use serde_json::json;

use crate::support::{Folder, eventually};

#[test]
fn a_limit_is_set_shown_and_reset_without_a_restart() {
    let folder = Folder::with("[tasks.ok]\ncommand = [\"true\"]\n");
    folder.run(&["limits", "set", "task:ok", "burst=3"]).ended(64).reports(&["burst needs a rate"]);
    folder.run(&["limits", "set", "ok", "rate=5/s"]).ended(64).reports(&["task:NAME or queue:NAME"]);
    let set = folder.run(&["limits", "set", "task:ok", "max_running=0", "--json"]).ended(0);
    let set = set.reports(&["a limit of zero pauses these tasks"]).json();
    assert_eq!((&set["target"], &set["limit"]["max_running"]), (&json!("task:ok"), &json!(0)));
    let worker = folder.worker(&[]);
    let id = folder.send(&["ok"]);
    let why = eventually("it waits", || {
        let why = folder.run(&["why", &id, "--json"]).json();
        (why["reason"] == "limited").then_some(why)
    });
    assert_eq!(why["class"], "act", "nothing but people ends a limit of zero: {why}");
    let shown = eventually("it is listed as waiting", || {
        let shown = folder.run(&["limits", "show", "task:ok", "--json"]).ended(0).json();
        (shown[0]["waiting"] == 1).then_some(shown)
    });
    assert_eq!(shown[0]["source"], "live", "{shown}");
    let reset = folder.run(&["limits", "reset", "task:ok", "--json"]).ended(0).json();
    assert_eq!((&reset["target"], &reset["released"]), (&json!("task:ok"), &json!(1)));
    eventually("it runs", || (folder.status(&id)["state"] == "SUCCESS").then_some(()));
    folder.run(&["limits", "show", "task:ok"]).ended(64).reports(&["no live worker has a limit of task:ok"]);
    let keyed = ["limits", "set", "task:ok", "rate=0/s", "limit_key={0}"];
    folder.run(&keyed).ended(0);
    let unknown = folder.run(&["limits", "reset", "task:oj"]).ended(0);
    unknown.reports(&["no live worker has a limit of task:oj", "did you mean task:ok?"]);
    let merged = folder.run(&["limits", "set", "task:ok", "max_running=0"]).ended(0);
    merged.reports(&["limit_key={0}; without it"]);
    folder.run(&keyed).ended(0);
    folder.run(&["limits", "reset", "task:ok"]).ended(0).reports(&["with --key KEY"]);
    let stderr = worker.stop().ended(0).stderr;
    assert!(stderr.contains("a limit of zero pauses these tasks"), "{stderr}");
}
