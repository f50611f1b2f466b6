//! Workflows of command tasks: sent from files, shown, revoked and repeated.

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{Folder, contents, eventually};

const TASKS: &str = r#"
[tasks.inc]
command = ["sh", "-c", "echo $(($1 + 1))", "inc", "{0}"]
[tasks.words]
command = ["sh", "-c", "echo \"$1|$2\"", "words", "{0}", "{1}"]
[tasks.list]
command = ["cat"]
[tasks.fails]
command = ["sh", "-c", "echo broken >&2; exit 1"]
[tasks.note]
command = ["sh", "-c", "echo \"$1\" >> noted", "note", "{0}"]
[tasks.flaky]
command = ["sh", "-c", "test -e on && echo $(($1 * 10))", "flaky", "{0}"]
[tasks.count]
command = ["sh", "-c", "echo run >> counted; echo $1", "count", "{0}"]
[tasks.hold]
command = ["sh", "-c", "touch begun; sleep 1000"]
queue = "slow"
"#;

fn folder() -> Folder {
    Folder::with(TASKS)
}

/// Sends the workflow, waits for its end, and returns it.
fn ended(folder: &Folder, flow: &str) -> Value {
    folder.write("flow.toml", flow);
    folder.outcome(&["--flow", "flow.toml"])
}

fn step<'a>(workflow: &'a Value, name: &str) -> &'a Value {
    let steps = workflow["steps"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == name).unwrap_or_else(|| panic!("{name}: {workflow}"))
}

#[test]
fn results_become_arguments_of_the_next_step() {
    let folder = folder();
    let _worker = folder.worker(&[]);
    let chain = "[steps.a]\ntask = \"inc\"\nargs = [1]\n[steps.b]\ntask = \"words\"\nargs = [\"x y\"]\nafter = [\"a\"]\n";
    let done = ended(&folder, chain);
    assert_eq!((&done["state"], &done["results"]), (&json!("SUCCESS"), &json!(["x y|2"])), "{done}");
    assert_eq!(done["progress"], json!({"done": 2, "total": 2}));
    folder.write(
        "chain.json",
        r#"{"steps": {"b": {"task": "inc", "after": ["a"]}, "a": {"task": "inc", "args": [1]}}}"#,
    );
    let ran = folder.run(&["send", "--flow", "chain.json", "--wait=10m"]).ended(0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    assert_eq!((lines.len(), lines[1]), (2, "3"), "{ran:?}");
    assert!(!lines[0].is_empty());
    let immutable = ended(&folder, &chain.replace("after", "immutable = true\nafter"));
    assert_eq!(
        (&immutable["state"], &immutable["kind"]),
        (&json!("FAILURE"), &json!("malformed")),
        "{immutable}"
    );
}

#[test]
fn a_group_gives_one_list_in_order() {
    let folder = folder();
    let _worker = folder.worker(&["--concurrency", "4"]);
    let group = "name = \"numbers\"\n[steps.many]\ntask = \"inc\"\neach = [[1], [2], [3]]\n";
    let done = ended(&folder, group);
    assert_eq!(done["results"], json!([[2, 3, 4]]), "{done}");
    assert_eq!(done["workflow_name"], "numbers");
    assert_eq!(step(&done, "many")["members"], json!({"total": 3, "done": 3, "failed": 0}));
    let chord = format!("{group}[steps.list]\ntask = \"list\"\nafter = [\"many\"]\n");
    let done = ended(&folder, &chord);
    assert_eq!(done["results"][0]["args"], json!([[2, 3, 4]]), "{done}");
    let two = format!("{group}[steps.one]\ntask = \"inc\"\nargs = [8]\n");
    folder.write("two.toml", &two);
    let ran = folder.run(&["send", "--flow", "two.toml", "--wait=10m"]).ended(0);
    let lines: Vec<&str> = ran.stdout.lines().skip(1).collect();
    assert_eq!(lines, ["many  [2,3,4]", "one  9"]);
    let nothing = ended(
        &folder,
        "[steps.many]\ntask = \"inc\"\neach = []\n[steps.list]\ntask = \"list\"\nafter = [\"many\"]\n",
    );
    assert_eq!(nothing["results"][0]["args"], json!([[]]), "{nothing}");
}

#[test]
fn every_part_can_be_asked_for() {
    let folder = folder();
    let _worker = folder.worker(&[]);
    let flow = "[steps.many]\ntask = \"inc\"\neach = [[1], [2], [3]]\n[steps.last]\ntask = \"list\"\nafter = [\"many\"]\n";
    let done = ended(&folder, flow);
    let root = done["id"].as_str().unwrap();
    let page = folder.run(&["status", root]).ended(0).stdout;
    for part in [root, "SUCCESS", "100%  4 of 4", "many", "3/3", "└ last"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    let members = |more: &[&str]| {
        folder.run(&[&["status", root, "--json", "--members", "many"], more].concat()).ended(0).json()
    };
    let all = members(&[]);
    let indexes: Vec<&Value> = all.as_array().unwrap().iter().map(|member| &member["index"]).collect();
    assert_eq!(indexes, [0, 1, 2]);
    assert_eq!((&all[2]["results"], &all[2]["id"]), (&json!([4]), &json!(format!("{root}.many.2"))));
    let second = members(&["--after", "0", "--limit", "1"]);
    assert_eq!((second.as_array().unwrap().len(), &second[0]["index"]), (1, &json!(1)));
    assert!(folder.run(&["status", root, "--members", "many"]).ended(0).stdout.contains("SUCCESS"));
    folder.run(&["status", root, "--members", "mani"]).ended(64).reports(&["\"mani\" is no group", "many"]);

    let member = folder.status(&format!("{root}.many.1"));
    assert_eq!((&member["workflow"], &member["results"]), (&json!(root), &json!([3])), "{member}");
    assert!(
        folder
            .run(&["status", &format!("{root}.last")])
            .ended(0)
            .stdout
            .contains(&format!("workflow  {root}\n"))
    );
    // A group has no record.
    let group = folder.status(&format!("{root}.many"));
    assert_eq!((&group["workflow"], &group["state"]), (&json!(root), &json!("SUCCESS")), "{group}");
    assert_eq!(group["members"]["done"], 3);
    folder.run(&["status", &format!("{root}.none")]).ended(3);
    let alone = folder.send(&["inc", "1"]);
    folder.run(&["status", &alone, "--members", "many"]).ended(64).reports(&["--members", "root's id"]);
}

#[test]
fn a_failure_ends_what_follows_and_calls_what_catches() {
    let folder = folder();
    let _worker = folder.worker(&[]);
    let flow = "\
[steps.bad]
task = \"fails\"
on_error = [\"tell\"]
[steps.never]
task = \"inc\"
args = [1]
after = [\"bad\"]
[steps.tell]
task = \"note\"
";
    folder.write("flow.toml", flow);
    let ran = folder.run(&["send", "--flow", "flow.toml", "--wait=10m"]).ended(1);
    assert!(ran.stdout.contains("FAILURE (error, -3): step bad: sh failed with exit code 1"), "{ran:?}");
    assert_eq!(contents(&folder.path().join("noted")), "sh failed with exit code 1: broken");
    let root = ran.stdout.lines().next().unwrap();
    let status = folder.run(&["status", root, "--json"]).ended(1).json();
    assert_eq!(
        (&status["state"], &status["kind"], &status["code"]),
        (&json!("FAILURE"), &json!("error"), &json!(-3))
    );
    assert_eq!(step(&status, "never")["kind"], "upstream");
    assert_eq!(status["progress"], json!({"done": 2, "total": 2}));
    let page = folder.run(&["status", root]).ended(1).stdout;
    assert!(page.contains("FAILURE (upstream)"), "{page}");

    // The letter names the workflow.
    let letters = eventually("a dead letter", || {
        let letters = folder.run(&["dead", "list", "--json"]).ended(0).json();
        letters.as_array().is_some_and(|letters| !letters.is_empty()).then_some(letters)
    });
    assert_eq!(letters.as_array().unwrap().len(), 1, "{letters}");
    assert_eq!((&letters[0]["workflow"], &letters[0]["task"]), (&json!(root), &json!(format!("{root}.bad"))));
    let dead = letters[0]["dead_id"].as_str().unwrap();
    assert!(folder.run(&["dead", "show", dead]).ended(0).stdout.contains(&format!("workflow  {root}\n")));
    assert!(folder.run(&["dead", "list"]).ended(0).stdout.contains("WORKFLOW"));
}

#[test]
fn a_retry_runs_only_what_did_not_succeed() {
    let folder = folder();
    let _worker = folder.worker(&[]);
    let flow = "\
[steps.many]
task = \"count\"
each = [[1], [2]]
[steps.one]
task = \"count\"
args = [4]
[steps.flaky]
task = \"flaky\"
after = [\"one\"]
[steps.list]
task = \"list\"
after = [\"many\", \"flaky\"]
";
    let failed = ended(&folder, flow);
    assert_eq!(failed["state"], "FAILURE", "{failed}");
    let root = failed["id"].as_str().unwrap();
    let counted = || std::fs::read_to_string(folder.path().join("counted")).unwrap().lines().count();
    eventually("all have run", || (counted() == 3).then_some(()));
    eventually("all have ended", || {
        let steps = folder.status(root);
        (step(&steps, "many")["state"] == "SUCCESS").then_some(())
    });
    folder.write("on", "");
    let again = folder.run(&["retry", root, "--json"]).ended(0).json();
    assert_eq!(again["retry_of"], root);
    let id = again["id"].as_str().unwrap();
    assert_ne!(id, root);
    let done = eventually("the second one ends", || {
        let status = folder.status(id);
        (status["state"] == "SUCCESS").then_some(status)
    });
    assert_eq!(step(&done, "list")["results"][0]["args"], json!([[1, 2], 40]), "{done}");
    assert_eq!(counted(), 3, "what has succeeded is not run again");
    assert_eq!((&done["retry_of"], &folder.status(root)["retried_as"]), (&json!(root), &json!(id)));
    assert_eq!(folder.run(&["retry", root]).ended(0).stdout.trim(), id, "once only");
    folder.run(&["retry", id]).ended(64).reports(&["only a workflow in FAILURE"]);
}

#[test]
fn a_revoked_workflow_ends() {
    let folder = folder();
    let _worker = folder.worker(&["--queue", "default", "--queue", "slow"]);
    folder.write(
        "flow.toml",
        "[steps.a]\ntask = \"hold\"\n[steps.b]\ntask = \"note\"\nargs = [\"b\"]\nafter = [\"a\"]\n",
    );
    let root = folder.send(&["--flow", "flow.toml"]);
    let mut watched = folder.start(&["status", &root, "--watch"]);
    eventually("it runs", || folder.path().join("begun").exists().then_some(()));
    watched.stdout.until("STARTED");
    let running = folder.run(&["status", &root, "--json"]).ended(2).json();
    assert_eq!((&running["state"], &step(&running, "b")["state"]), (&json!("STARTED"), &json!("PENDING")));
    // A step that is not sent yet has no record.
    assert_eq!(folder.run(&["status", &format!("{root}.b"), "--json"]).ended(2).json()["state"], "PENDING");
    folder.run(&["revoke", &root, "--terminate"]).ended(64).reports(&["--terminate is for single tasks"]);
    let revoked = folder.run(&["revoke", &root, "--json"]).ended(0).json();
    assert_eq!((&revoked["id"], &revoked["asked"]), (&json!(root), &json!(1)), "{revoked}");
    let ran = watched.end().ended(1);
    assert!(ran.stdout.contains("FAILURE (revoked)") && ran.stdout.contains("FAILURE (upstream)"), "{ran:?}");
    assert!(!folder.path().join("noted").exists());
}

#[test]
fn options_of_the_whole_are_kept_and_others_refused() {
    let folder = folder();
    folder.write("flow.toml", "[steps.a]\ntask = \"inc\"\nargs = [1]\n");
    let root = folder.send(&["--flow", "flow.toml", "--id", "mine", "--countdown", "1h", "--expires", "2h"]);
    assert_eq!(root, "mine");
    let status = folder.run(&["status", "mine", "--json"]).ended(2).json();
    assert_eq!((&status["state"], &status["incomplete"]), (&json!("PENDING"), &json!(false)));
    assert!(status["eta"].is_string() && status["expires_at"].is_string(), "{status}");
    for (option, word) in [
        (&["--queue", "q"][..], "--queue"),
        (&["--retries", "1"], "--retries"),
        (&["--label", "a=b"], "--label"),
        (&["--count", "2"], "--count"),
        (&["--arg", "a=1"], "--arg"),
        (&["inc"], "\"inc\""),
    ] {
        folder.run(&[&["send", "--flow", "flow.toml"], option].concat()).ended(64).reports(&[word, "--flow"]);
    }
}

#[test]
fn files_that_are_no_workflows_send_nothing() {
    let folder = folder();
    for (name, text, words) in [
        (
            "typo.toml",
            "[steps.a]\ntask = \"inc\"\nargz = [1]\n",
            &["typo.toml:3:1: step \"a\"", "did you mean \"args\"?"][..],
        ),
        (
            "typo.json",
            "{\"steps\":\n {\"a\": {\"task\": 1}}}",
            &["typo.json:2:17: step \"a\"", "expected text in quotes for task"],
        ),
        (
            "cycle.toml",
            "[steps.a]\ntask = \"x\"\nafter = [\"b\"]\n[steps.b]\ntask = \"x\"\nafter = [\"a\"]\n",
            &["cycle.toml:1:8: step \"a\"", "cycle"],
        ),
        (
            "lost.toml",
            "[steps.a]\ntask = \"x\"\nafter = [\"b\"]\n",
            &["lost.toml:3:10: step \"a\": after: there is no step \"b\""],
        ),
        ("cut.toml", "[steps.a", &["cut.toml:1:"]),
    ] {
        folder.write(name, text);
        let ran = folder.run(&["send", "--flow", name]).ended(64).reports(words);
        assert!(ran.stdout.is_empty(), "{ran:?}");
    }
    folder
        .run(&["send", "--flow", "nowhere.toml"])
        .ended(64)
        .reports(&["--flow: nowhere.toml cannot be read"]);
    assert!(!folder.path().join("machinist.db").exists(), "nothing was even opened");
}

#[test]
fn a_workflow_on_standard_input_survives_the_end_of_its_worker() {
    let folder = folder();
    let command = "echo '{\"steps\": {\"a\": {\"task\": \"inc\", \"args\": [1]}, \"b\": {\"task\": \"inc\", \"after\": [\"a\"]}}}' \
                   | \"$0\" send --flow -";
    let sent = std::process::Command::new("sh")
        .args(["-c", command, env!("CARGO_BIN_EXE_machinist")])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(sent.status.success(), "{sent:?}");
    let root = String::from_utf8(sent.stdout).unwrap().trim().to_owned();
    let worker = folder.worker(&[]);
    worker.signal(Signal::SIGKILL);
    drop(worker);
    let _other = folder.worker(&[]);
    let done = eventually("it ends", || {
        let status = folder.status(&root);
        (status["state"] == "SUCCESS").then_some(status)
    });
    assert_eq!(done["results"], json!([3]));
}

/// Reads the blocks of `docs/workflows.md` that are marked as parts of its session: files by name, and the console.
fn session() -> (Vec<(&'static str, &'static str)>, &'static str) {
    let docs = include_str!("../../../docs/workflows.md");
    let block = |rest: &'static str| {
        let (_, inner) = rest.split_once("```").unwrap().1.split_once('\n').unwrap();
        inner.split_once("```").unwrap().0
    };
    let files = docs.split("<!-- session: ").skip(1);
    let files = files.map(|rest| (rest.split_once(" -->").unwrap().0, block(rest))).collect();
    (files, block(docs.split_once("<!-- session -->").unwrap().1))
}

#[test]
fn the_session_of_the_page_is_what_a_user_sees() {
    let (files, console) = session();
    let folder = Folder::new();
    assert_eq!(files.len(), 2);
    for (name, text) in files {
        folder.write(name, text);
    }
    let mut worker = None;
    let mut commands = 0;
    for part in console.split("$ machinist ").skip(1) {
        let (command, expected) = part.split_once('\n').unwrap();
        let arguments: Vec<&str> = command.split_whitespace().collect();
        commands += 1;
        if arguments == ["worker", "&"] {
            worker = Some(folder.worker(&[]));
            continue;
        }
        let ran = folder.run(&arguments).ended(0);
        let (shown, expected): (Vec<&str>, Vec<&str>) =
            (ran.stdout.split_whitespace().collect(), expected.split_whitespace().collect());
        let same = shown.len() == expected.len()
            && shown.iter().zip(&expected).all(|(shown, expected)| *expected == "…" || shown == expected);
        assert!(same, "{command}: {ran:?}");
    }
    assert!(worker.is_some() && commands == 3);
}
