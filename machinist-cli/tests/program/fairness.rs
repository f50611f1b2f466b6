//! Shares of the keys of a queue.

use crate::{
    servers::servers,
    support::{contents, eventually},
};

const TOML: &str = r#"
[queues.mail]
fair_key = "{0}"
fair_rate = "1/h"
fair_burst = 3
[tasks.note]
command = ["sh", "-c", "echo $1 >> noted", "note", "{0}"]
queue = "mail"
"#;

#[test]
fn what_exceeds_a_share_waits_in_the_queue_itself() {
    let Some(folder) = servers("what_exceeds_a_share_waits_in_the_queue_itself") else { return };
    folder.write("machinist.toml", TOML);
    let queues = |args: &[&str]| {
        let sent = folder.run(&[&["send", "note"], args, &["--json"]].concat()).ended(0).json();
        let queue = |sent: &serde_json::Value| sent["queue"].as_str().unwrap().to_owned();
        let mut queues: Vec<_> = sent.as_array().unwrap().iter().map(queue).collect();
        queues.sort();
        queues
    };
    let (share, base) = ("mail+fair:share", "mail");
    assert_eq!(queues(&["many", "--count", "5"]), [base, base, share, share, share]);
    assert_eq!(queues(&["few", "--count", "2"]), [share, share]);
    assert_eq!(queues(&["few", "--count", "4", "--fair-key", "many"]), [base, share, share, share]);
    let worker = folder.worker(&[]);
    let noted = folder.path().join("noted");
    eventually("all tasks run", || (contents(&noted).lines().count() == 11).then_some(()));
    worker.stop();
    let config = folder.run(&["config"]).ended(0).stdout;
    assert!(config.contains("queues.mail.fair_rate") && config.contains("1/h"), "{config}");
}
