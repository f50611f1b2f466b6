//! What is shown is what it is: hidden characters are visible, and an outcome that nobody has verified is no proof.

use serde_json::json;

use crate::support::{Folder, eventually};

#[test]
fn hidden_characters_are_visible_in_pages_lists_and_json() {
    let folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    let error = "no\u{202e}\u{9b}31m\u{200b}luck\nid        forged";
    let failed = folder.outcome(&["fail", error, "--queue", "default"]);
    assert_eq!(failed["error"]["message"], json!(error), "readers of JSON get it as it was");
    let id = failed["id"].as_str().unwrap();
    let visible = "no\\u{202e}\\u{9b}31m\\u{200b}luck";
    let page = folder.run(&["status", id]).ended(1).stdout;
    assert!(page.contains(&format!("error     {visible}\n          id        forged\n")), "{page}");
    let raw = folder.run(&["status", id, "--json"]).ended(1).stdout;
    assert!(raw.contains("no\\u202e\\u009b31m\\u200bluck\\nid"), "{raw}");

    // A list has one line for each task.
    let waits =
        folder.send(&["fail", error, "--queue", "default", "--retries", "1", "--backoff", "fixed:1h"]);
    let listed = eventually("it is listed", || {
        let listed = folder.run(&["scheduled"]).ended(0).stdout;
        listed.contains(&waits).then_some(listed)
    });
    assert!(listed.contains("\\u{202e}") && !listed.contains('\u{202e}'), "{listed}");
    assert_eq!(listed.lines().count(), 2, "{listed}");
}

#[test]
fn a_status_without_a_key_is_not_verified() {
    let mut folder = Folder::new();
    let _worker = folder.worker(&["--demo"]);
    let ended = folder.outcome(&["add", "1", "2"]);
    assert_eq!(ended["verified"], json!(true));
    let id = ended["id"].as_str().unwrap();
    assert!(!folder.run(&["status", id]).ended(0).stdout.contains("verified"));
    std::fs::rename(folder.path().join("machinist.db.key"), folder.path().join("elsewhere.key")).unwrap();
    let page = folder.run(&["status", id]).ended(0).stdout;
    assert!(page.contains("\nverified  no: without a key here"), "{page}");
    assert_eq!(folder.status(id)["verified"], json!(false));

    // What has not ended has no outcome to verify.
    folder.set("MACHINIST_KEY_FILE", &folder.path().join("elsewhere.key").display().to_string());
    let waiting = folder.send(&["add", "1", "2", "--countdown", "1h"]);
    assert_eq!(folder.status(&waiting)["verified"], json!(null));
}
