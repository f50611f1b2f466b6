//! Priorities on a broker that does not order the messages of a queue.

use crate::{
    servers::servers,
    support::{contents, eventually},
};

const TOML: &str = r#"
[worker]
concurrency = 1
[queues.mail]
priority_queues = true
[tasks.note]
command = ["sh", "-c", "until [ -e go ]; do sleep 0.05; done; echo $1 >> noted", "note", "{0}"]
queue = "mail"
"#;

#[test]
fn higher_priorities_have_separate_queues_on_rabbitmq() {
    let Some(folder) = servers("higher_priorities_have_separate_queues_on_rabbitmq") else { return };
    folder.write("machinist.toml", TOML);
    let sends = [
        ("low", "0", "20", "mail"),
        ("medium", "5", "5", "mail+priority:medium"),
        ("high", "9", "5", "mail+priority:high"),
    ];
    for (name, priority, count, queue) in sends {
        let sent = ["send", "note", name, "--priority", priority, "--count", count, "--json"];
        let sent = folder.run(&sent).ended(0).json();
        assert!(sent.as_array().unwrap().iter().all(|sent| sent["queue"] == queue), "{sent}");
    }
    let numbers = |field: &str| {
        let queues = folder.run(&["queues", "--json"]).ended(0).json();
        ["mail", "mail+priority:medium", "mail+priority:high"].map(|name| {
            let row = queues.as_array().unwrap().iter().find(|row| row["queue"] == name);
            row.and_then(|row| row[field].as_u64())
        })
    };
    assert_eq!(numbers("ready"), [Some(20), Some(5), Some(5)]);
    let peek = folder.run(&["queues", "peek", "mail+priority:high", "--json"]).ended(0).stdout;
    assert!(peek.contains("note"), "{peek}");
    let worker = folder.worker(&[]);
    // The first task holds the only place until the worker has taken from all three queues. It stops taking from a queue
    // whose tasks wait, so each is looked at for itself.
    let mut taken = [false; 3];
    eventually("it takes from all three", || {
        for (taken, consumers) in taken.iter_mut().zip(numbers("consumers")) {
            *taken |= consumers == Some(1);
        }
        (taken == [true; 3]).then_some(())
    });
    folder.write("go", "");
    let noted = folder.path().join("noted");
    let lines = eventually("all tasks run", || {
        let lines: Vec<_> = contents(&noted).lines().map(str::to_owned).collect();
        (lines.len() == 30).then_some(lines)
    });
    // A few tasks of the other queues arrive before those of the highest priority.
    let high = lines[..15].iter().filter(|line| *line == "high").count();
    assert_eq!(high, 5, "{lines:?}");
    worker.stop();
}
