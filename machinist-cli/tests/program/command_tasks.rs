//! Command tasks: tasks that are programs.

use serde_json::json;

use crate::support::{Folder, contents, gone};

#[test]
fn a_program_gets_its_arguments_everywhere() {
    let folder = Folder::new();
    folder.write(
        "conf/machinist.toml",
        r#"
        broker = "sqlite://here.db"
        backend = "sqlite://here.db"
        [tasks.show]
        command = ["./show.sh", "{src}", "{1}", "--to={src}.out", "{{src}}"]
        args = ["src", "width"]
        "#,
    );
    folder.script(
        "conf/show.sh",
        r#"read input
        printf '{"argv": ["%s","%s","%s","%s"], "input": %s, "id": "%s", "name": "%s", "attempt": %s, "token": %s}' \
          "$1" "$2" "$3" "$4" "$input" "$MACHINIST_TASK_ID" "$MACHINIST_TASK_NAME" "$MACHINIST_ATTEMPT" \
          "$MACHINIST_FENCING_TOKEN""#,
    );
    let config = ["--config", "conf/machinist.toml"];
    let _worker = folder.worker(&config);
    assert!(folder.path().join("conf/here.db").exists(), "a relative file belongs to its configuration");
    let task = folder.outcome(&[&config[..], &["show", "a b; $HOME", "--arg", "width=640"]].concat());
    let result = &task["results"][0];
    assert_eq!(result["argv"], json!(["a b; $HOME", "640", "--to=a b; $HOME.out", "{src}"]), "{task}");
    assert_eq!(result["input"]["args"], json!(["a b; $HOME", 640]));
    assert_eq!(result["input"]["named"], json!({"src": "a b; $HOME", "width": 640}));
    assert_eq!(result["input"]["queue"], "default");
    assert_eq!(result["id"], task["id"]);
    assert_eq!((&result["name"], &result["attempt"]), (&json!("show"), &json!(1)));
    assert!(result["token"].as_u64().unwrap() > 0);
}

#[test]
fn a_program_says_how_it_went() {
    let folder = Folder::with(
        r#"
        [tasks.text]
        command = ["printf", " two words\n"]
        [tasks.nothing]
        command = ["true"]
        [tasks.later]
        command = ["./later.sh"]
        backoff = "fixed:10ms"
        [tasks.broken]
        command = ["./broken.sh"]
        retries = 1
        backoff = "fixed:10ms"
        [tasks.killed]
        command = ["sh", "-c", "kill -9 $$"]
        [tasks.missing]
        command = ["./not-there"]
        [tasks.bytes]
        command = ["printf", "\\377"]
        [tasks.flood]
        command = ["yes"]
        "#,
    );
    folder.script("later.sh", "[ \"$MACHINIST_ATTEMPT\" = 1 ] && exit 75; echo '\"now\"'");
    folder.script("broken.sh", "echo looking >&2; echo 'no such cat' >&2; exit 3");
    let _worker = folder.worker(&[]);
    assert_eq!(folder.outcome(&["text"])["results"], json!(["two words"]));
    assert_eq!(folder.outcome(&["nothing"])["results"], json!([]));

    let later = folder.outcome(&["later"]);
    assert_eq!((&later["results"], &later["attempt"]), (&json!(["now"]), &json!(2)));
    assert!(
        later["history"][0]["error"]["message"].as_str().unwrap().contains("asked to be run later"),
        "{later}"
    );

    let broken = folder.outcome(&["broken"]);
    assert_eq!((&broken["kind"], &broken["attempt"]), (&json!("error"), &json!(2)));
    assert_eq!(
        broken["error"]["chain"],
        json!(["./broken.sh failed with exit code 3", "looking\nno such cat"])
    );
    assert_eq!(broken["log"], "looking\nno such cat\n");

    for (task, sentence) in [
        ("killed", "sh was ended by signal 9 (SIGKILL)"),
        ("missing", "./not-there does not exist on this worker"),
        ("bytes", "standard output that is not UTF-8"),
        ("flood", "more than 1 MiB"),
    ] {
        let failed = folder.outcome(&[task]);
        assert!(failed["error"]["message"].as_str().unwrap().contains(sentence), "{failed}");
        assert_eq!(failed["kind"], "error");
    }
}

#[test]
fn the_time_limit_ends_the_whole_process_group() {
    let folder = Folder::with("[tasks.slow]\ncommand = [\"./slow.sh\"]\ntimeout = \"500ms\"\n");
    folder.script("slow.sh", "trap '' TERM; sleep 1000 & echo $! > child; wait; wait");
    let _worker = folder.worker(&[]);
    let task = folder.outcome(&["slow"]);
    assert_eq!((&task["state"], &task["kind"]), (&json!("FAILURE"), &json!("timeout")));
    gone(&contents(&folder.path().join("child")));
}

#[test]
fn wrong_arguments_harm_nobody_else() {
    let folder = Folder::with("[tasks.two]\ncommand = [\"echo\", \"{a}\", \"{b}\"]\nargs = [\"a\", \"b\"]\n");
    let _worker = folder.worker(&["--demo"]);
    for (arguments, sentence) in [
        (&["two", "1"][..], "argument \"b\" is missing; the task takes 2 (a, b)"),
        (&["two", "1", "2", "3"], "3 arguments were sent, and the task takes 2 (a, b)"),
        (&["two", "1", "--arg", "c=2"], "there is no argument named \"c\"; the task takes 2 (a, b)"),
        (&["two", "1", "--arg", "a=2"], "argument \"a\" was sent twice"),
        (&["add", "x"], "add takes numbers"),
    ] {
        let task = folder.outcome(arguments);
        assert_eq!((&task["kind"], &task["code"]), (&json!("malformed"), &json!(-8)), "{task}");
        assert!(task["error"]["message"].as_str().unwrap().contains(sentence), "{task}");
    }
    assert_eq!(folder.outcome(&["two", "1", "2"])["results"], json!(["1 2"]));
}

#[test]
fn wrong_templates_are_told_before_anything_starts() {
    let folder = Folder::with("[tasks.two]\nargs = [\"a\"]\ncommand = [\"echo\", \"{b}\"]\n");
    folder
        .run(&["worker"])
        .ended(78)
        .reports(&["machinist.toml:3: tasks.two.command: unknown placeholder {b}", "args names a"]);
}

#[test]
fn a_task_is_sent_to_the_queue_of_its_configuration() {
    let folder = Folder::with("[tasks.resize]\ncommand = [\"true\"]\nqueue = \"images\"\n");
    let sent = folder.run(&["send", "resize", "--json"]).ended(0).json();
    assert_eq!(sent["queue"], "images");
    let mut worker = folder.worker(&["--queue", "other"]);
    worker.signal(nix::sys::signal::Signal::SIGTERM);
    worker.stderr.until("stopping");
    worker
        .end()
        .ended(0)
        .reports(&["resize is sent to queue images (machinist.toml:3), which this worker does not consume"]);
    let _worker = folder.worker(&[]);
    let task = folder.run(&["status", sent["id"].as_str().unwrap(), "--watch"]).ended(0);
    assert!(task.stdout.contains("queue     images"), "{task:?}");
}
