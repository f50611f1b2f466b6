//! Programs of command tasks as processes: how they end, and what they inherit.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    process::{Command, Stdio},
};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use crate::support::{Folder, WAIT_TIMEOUT, contents, eventually, gone};

/// Shell script that starts a process in a new session, and returns when its id is in the file `child`.
const LEAVES_THE_GROUP: &str =
    "setsid sh -c 'echo $$ > new; mv new child; exec sleep 1000' & until [ -s child ]; do sleep 0.01; done";

fn pid(text: &str) -> Pid {
    Pid::from_raw(text.trim().parse().unwrap())
}

/// Returns the parent of a process.
fn parent(process: &str) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().to_owned()
}

/// Returns the states of the children of a process.
fn children(process: &str) -> Vec<char> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let child = |stat: String| {
        let mut fields = stat.rsplit(") ").next()?.split(' ').map(str::to_owned);
        let state = fields.next()?.chars().next()?;
        (fields.next()? == process).then_some(state)
    };
    stats.filter_map(child).collect()
}

#[test]
fn what_a_program_leaves_running_ends_with_it() {
    let folder = Folder::new();
    let script = format!("sleep 1000 & echo $! > member; {LEAVES_THE_GROUP}; echo done");
    folder.write("machinist.toml", &format!("[tasks.leave]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n"));
    let _worker = folder.worker(&[]);
    assert_eq!(folder.outcome(&["leave"])["results"], json!(["done"]));
    gone(&contents(&folder.path().join("member")));
    gone(&contents(&folder.path().join("child")));
}

#[test]
fn a_timeout_ends_what_has_left_the_group_and_ignores_the_request() {
    let folder = Folder::new();
    let script = format!("trap '' TERM; {LEAVES_THE_GROUP}; wait; wait");
    let toml = format!("[tasks.slow]\ncommand = [\"sh\", \"-c\", \"{script}\"]\ntimeout = \"2s\"\n");
    folder.write("machinist.toml", &toml);
    let _worker = folder.worker(&[]);
    assert_eq!(folder.outcome(&["slow"])["kind"], "timeout");
    gone(&contents(&folder.path().join("child")));
}

#[test]
fn a_program_does_not_outlive_its_worker() {
    let folder = Folder::new();
    let script = format!("echo $$ > leader; {LEAVES_THE_GROUP}; trap '' TERM; sleep 1000; sleep 1000");
    folder.write("machinist.toml", &format!("[tasks.run]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n"));
    let worker = folder.worker(&[]);
    folder.send(&["run"]);
    let leader = contents(&folder.path().join("leader"));
    let child = contents(&folder.path().join("child"));
    worker.signal(Signal::SIGKILL);
    gone(&leader);
    gone(&child);
}

#[test]
fn a_killed_supervisor_fails_its_run_and_leaves_no_program() {
    // The background job leads a process group.
    let folder = Folder::with(
        "[tasks.run]\ncommand = [\"sh\", \"-mc\", \"sleep 1000 & echo $! > child; echo $$ > leader; sleep 1000\"]\n",
    );
    let worker = folder.worker(&[]);
    let id = folder.send(&["run"]);
    let leader = contents(&folder.path().join("leader"));
    let child = contents(&folder.path().join("child"));
    kill(pid(&parent(&leader)), Signal::SIGKILL).unwrap();
    gone(&leader);
    gone(&child);
    let ended = folder.run(&["status", &id, "--watch"]);
    let shown = ended.ended(1).stdout;
    assert!(shown.contains("sh was killed together with its supervisor"), "{shown}");
    worker.stop().ended(0);
}

#[test]
fn a_signal_to_all_processes_of_a_service_leaves_the_decision_to_the_worker() {
    let folder = Folder::with(
        "[tasks.run]\ncommand = [\"sh\", \"-c\", \"trap '' TERM; echo $$ > leader; until [ -e go ]; do sleep 0.05; done\"]\n",
    );
    let mut worker = folder.worker(&[]);
    let id = folder.send(&["run"]);
    let leader = contents(&folder.path().join("leader"));
    for process in [parent(&leader), leader] {
        kill(pid(&process), Signal::SIGTERM).unwrap();
    }
    worker.signal(Signal::SIGTERM);
    worker.stderr.until("stopping");
    folder.write("go", "");
    worker.end().ended(0);
    assert_eq!(folder.status(&id)["state"], "SUCCESS");
}

#[test]
fn a_program_need_not_read_its_input() {
    let folder = Folder::with("[tasks.deaf]\ncommand = [\"true\"]\n");
    let _worker = folder.worker(&[]);
    let long = folder.write("long", &"x".repeat(900_000));
    assert_eq!(folder.outcome(&["deaf", &format!("@{}", long.display())])["state"], "SUCCESS");
}

#[test]
fn a_long_log_is_cut_and_its_end_is_kept() {
    let folder = Folder::with("[tasks.talk]\ncommand = [\"./talk.sh\"]\n");
    folder.script("talk.sh", "head -c 9000 /dev/zero | tr '\\0' x >&2; echo >&2; seq 100 >&2; exit 1");
    let _worker = folder.worker(&[]);
    let task = folder.outcome(&["talk"]);
    let log = task["log"].as_str().unwrap();
    assert_eq!(log.lines().next().unwrap().len(), 4100, "{task}");
    assert!(log.ends_with("99\n100\n"), "{task}");
    assert_eq!(task["error"]["chain"][1].as_str().unwrap().lines().count(), 10);
}

#[test]
fn a_program_gets_no_secret_of_its_worker() {
    let mut folder = Folder::new();
    let key = std::fs::read_to_string(folder.key("a.key", "a")).unwrap();
    folder.set("MY_KEY", &key);
    folder.set("MACHINIST_BROKER", "sqlite://m.db?password=geheim");
    folder.set("MACHINIST_BACKEND", "sqlite://m.db");
    folder.set("DATABASE_URL", "postgres://app:geheim@db");
    folder.set("AWS_REGION", "eu");
    folder.set("LC_ALL", "C");
    folder.set("NOTIFY_SOCKET", "/nowhere");
    folder.write(
        "conf/machinist.toml",
        r#"
        broker = "sqlite://m.db"
        [[keys]]
        env = "MY_KEY"
        [tasks.env]
        command = ["env"]
        [tasks.more]
        command = ["sh", "-c", "env; pwd"]
        env = { LEVEL = "debug" }
        env_pass = ["*"]
        cwd = "work"
        [tasks.named]
        command = ["env"]
        env_pass = ["DATABASE_URL"]
        "#,
    );
    folder.write("conf/work/here", "");
    folder.set("MACHINIST_BROKER", "");
    let config = ["--config", "conf/machinist.toml"];
    let _worker = folder.worker(&config);
    let ask = |task: &str| {
        let ended = folder.outcome(&[&config[..], &[task]].concat());
        ended["results"][0].as_str().unwrap_or_else(|| panic!("{ended}")).to_owned()
    };
    let names = |text: &str| {
        let names = text.lines().filter_map(|line| Some(line.split_once('=')?.0.to_owned()));
        // A shell adds its own.
        let mut names: Vec<String> =
            names.filter(|name| !["_", "PWD", "OLDPWD", "SHLVL"].contains(&name.as_str())).collect();
        names.sort();
        names
    };
    let own = [
        "MACHINIST_ATTEMPT",
        "MACHINIST_FENCING_TOKEN",
        "MACHINIST_QUEUE",
        "MACHINIST_TASK_ID",
        "MACHINIST_TASK_NAME",
    ];
    let expected = |others: &[&str]| {
        let mut all: Vec<String> = own.iter().chain(others).map(|name| (*name).to_owned()).collect();
        all.sort();
        all
    };
    let env = ask("env");
    assert_eq!(names(&env), expected(&["LC_ALL", "PATH", "TRACEPARENT"]));
    assert!(env.contains("MACHINIST_QUEUE=default"), "{env}");
    let more = ask("more");
    assert_eq!(
        names(&more),
        expected(&["AWS_REGION", "DATABASE_URL", "LC_ALL", "LEVEL", "PATH", "TRACEPARENT"])
    );
    assert!(more.trim_end().ends_with("/conf/work"), "{more}");
    assert!(ask("named").contains("DATABASE_URL=postgres://app:geheim@db"));
}

#[test]
fn a_program_belongs_to_the_trace_of_its_task() {
    let folder = Folder::with("[tasks.trace]\ncommand = [\"sh\", \"-c\", \"echo $TRACEPARENT\"]\n");
    let _worker = folder.worker(&[]);
    let task = folder.outcome(&["trace"]);
    let context = task["results"][0].as_str().unwrap();
    assert_eq!(context.split('-').nth(1), task["trace_id"].as_str(), "{task}");
}

#[test]
fn a_program_runs_as_another_user_where_the_worker_is_root() {
    let folder = Folder::with(
        "[tasks.who]\ncommand = [\"sh\", \"-c\", \"id -un; id -G | wc -w; echo $USER\"]\nuser = \"nobody\"\ncwd = \"/\"\n",
    );
    if !nix::unistd::geteuid().is_root() {
        let refused = folder.run(&["worker"]);
        refused.ended(78).reports(&["tasks.who.user", "only a worker that runs as root"]);
        return;
    }
    let _worker = folder.worker(&[]);
    assert_eq!(folder.outcome(&["who"])["results"], json!(["nobody\n1\nnobody"]));
}

#[test]
fn an_unknown_user_is_reported_at_the_start() {
    let folder = Folder::with("[tasks.who]\ncommand = [\"id\"]\nuser = \"no-such-user\"\n");
    let refused = folder.run(&["worker"]);
    refused.ended(78).reports(&["machinist.toml:3: tasks.who.user: there is no user no-such-user"]);
}

#[test]
fn a_value_becomes_no_option_of_a_program() {
    let folder = Folder::with(
        "[tasks.sort]\ncommand = [\"sort\", \"{0}\"]\n[tasks.safe]\ncommand = [\"echo\", \"--\", \"{0}\"]\n",
    );
    let _worker = folder.worker(&[]);
    let refused = folder.outcome(&["sort", "--", "--output=taken"]);
    assert_eq!(refused["kind"], "malformed");
    assert!(!Path::new(&folder.path().join("taken")).exists());
    assert_eq!(folder.outcome(&["sort", "--", "-9"])["kind"], "malformed", "a number is an option too");
    assert_eq!(folder.outcome(&["safe", "--", "--x"])["results"], json!(["-- --x"]));
}

#[test]
fn numbers_arrive_as_they_were_typed() {
    let folder = Folder::with("[tasks.show]\ncommand = [\"printf\", \"--\", \"%s\", \"{0}\"]\n");
    let _worker = folder.worker(&["--demo"]);
    for number in ["1.10", "1e10", "12345678901234567890123", "18446744073709551616", "-0", "1.5", "-7"] {
        let ran = folder.run(&["send", "show", "--wait=10m", "--", number]).ended(0);
        assert_eq!(ran.stdout.lines().last(), Some(number));
    }
    // A handler that takes numbers reads them all the same.
    assert_eq!(folder.outcome(&["add", "1.50", "1e1"])["results"], json!([11.5]));
    folder.run(&["send", "show", "[12345678901234567890123]"]).ended(64).reports(&["another value"]);
}

#[test]
fn few_open_files_mean_few_programs_and_no_failure() {
    let folder = Folder::with("[tasks.nap]\ncommand = [\"sleep\", \"0.2\"]\n");
    let mut worker = folder.start_limited("ulimit -n 64", &["worker", "--concurrency", "64"]);
    worker.stderr.until("tasks run at once instead of 64 (flag --concurrency)");
    worker.stderr.until("is ready");
    let ran = folder.run(&["send", "nap", "--count", "40", "--wait=10m"]).ended(0);
    assert_eq!(ran.stdout.lines().count(), 40, "{ran:?}");
    folder.start_limited("ulimit -n 34", &["worker"]).end().ended(78).reports(&["too few", "ulimit -n"]);
}

#[test]
fn programs_get_the_limit_of_open_files_that_the_worker_had() {
    let folder = Folder::with("[tasks.limit]\ncommand = [\"sh\", \"-c\", \"ulimit -Sn\"]\n");
    let mut worker = folder.start_limited("ulimit -Sn 70", &["worker", "--concurrency", "64"]);
    worker.stderr.until("64 at once");
    assert_eq!(folder.outcome(&["limit"])["results"], json!([70]));
}

#[test]
fn a_task_waits_while_no_program_can_be_started() {
    let folder = Folder::with("[tasks.quick]\ncommand = [\"echo\", \"done\"]\n");
    let mut worker = folder.worker(&[]);
    let process = rustix::process::Pid::from_raw(worker.id()).unwrap();
    let normal = getrlimit(Resource::Nofile);
    prlimit(Some(process), Resource::Nofile, Rlimit { current: Some(3), ..normal }).unwrap();
    let id = folder.send(&["quick"]);
    worker.stderr.until("programs cannot be started now");
    prlimit(Some(process), Resource::Nofile, normal).unwrap();
    let ended = folder.run(&["status", &id, "--watch"]).ended(0);
    assert!(ended.stdout.contains("SUCCESS"), "{ended:?}");
    assert_eq!(folder.status(&id)["attempt"], 1);
}

#[test]
fn a_supervisor_that_gets_no_thread_starts_no_program() {
    let folder = Folder::new();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut supervisor = Command::new(env!("CARGO_BIN_EXE_machinist"))
        .args(["internal-supervise-program", "touch"])
        .current_dir(folder.path())
        // No address space has room for such a stack, so the system refuses every thread.
        .env("RUST_MIN_STACK", (1_u64 << 50).to_string())
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let text = |text: &str| json!({ "Unix": text.as_bytes() });
    let path = std::env::var("PATH").unwrap_or_default();
    let order = json!({
        "program": text("touch"),
        "args": ["started"],
        "environment": [[text("PATH"), text(&path)]],
        "folder": null,
        "user": null,
        "open_files": null,
        "input_bytes": 0,
    });
    writeln!(ours, "{order}").unwrap();
    ours.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let mut reports = String::new();
    ours.read_to_string(&mut reports).unwrap();
    supervisor.wait().unwrap();
    let report: serde_json::Value = serde_json::from_str(&reports).unwrap();
    assert_eq!(report["Failed"]["errno"], nix::errno::Errno::EAGAIN as i32, "{reports}");
    assert!(!folder.path().join("started").exists());
}

#[test]
fn as_first_process_it_reaps_and_hears_signals() {
    let folder = Folder::with("[tasks.leave]\ncommand = [\"sh\", \"-c\", \"echo ok\"]\n");
    let mut first = folder.start(&["internal-first-process", "worker"]);
    first.stderr.until("is ready");
    assert_eq!(folder.outcome(&["leave"])["results"], json!(["ok"]));
    first.stop().ended(0).reports(&["everything that had started has ended"]);

    let waiting = folder.start(&["internal-first-process", "send", "nobody", "--wait"]);
    let id = waiting.id().to_string();
    eventually("its child runs", || (!children(&id).is_empty()).then_some(()));
    // The default action of the signal ends the child, as everywhere but in process 1.
    waiting.signal(Signal::SIGTERM);
    waiting.end().ended(128 + 15);
}

#[test]
fn as_first_process_it_reaps_processes_of_others() {
    // A second run, of a worker that stood still for too long, ends at once.
    let script = "[ -e leader ] && exit; echo $$ > leader; exec sleep 1000";
    let folder = Folder::with(&format!("[tasks.run]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n"));
    let mut first = folder.start(&["internal-first-process", "worker"]);
    first.stderr.until("is ready");
    let id = folder.send(&["run"]);
    let leader = contents(&folder.path().join("leader"));
    let supervisor = parent(&leader);
    let worker = parent(&supervisor);
    assert_eq!(parent(&worker), first.id().to_string());
    // The worker stands still, so that the program outlives its supervisor.
    kill(pid(&worker), Signal::SIGSTOP).unwrap();
    kill(pid(&supervisor), Signal::SIGKILL).unwrap();
    let adopted = || (parent(&leader) == first.id().to_string()).then_some(());
    eventually("the first process adopts the program", adopted);
    kill(pid(&leader), Signal::SIGKILL).unwrap();
    let reaped = || (!Path::new(&format!("/proc/{leader}")).exists()).then_some(());
    eventually("the first process reaps the program", reaped);
    kill(pid(&worker), Signal::SIGCONT).unwrap();
    folder.run(&["status", &id, "--watch"]);
    first.stop().ended(0);
}

#[test]
fn a_worker_that_still_connects_obeys_a_signal() {
    let mut folder = Folder::new();
    // It takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    mute.set_nonblocking(true).unwrap();
    folder.set("MACHINIST_BROKER", &format!("amqp://{}/%2f", mute.local_addr().unwrap()));
    folder.set("MACHINIST_BACKEND", "sqlite://machinist.db");
    folder.set("MACHINIST_KEY_FILE", &folder.key("test.key", "test"));
    let ended_while_it_connects = |arguments: &[&str]| {
        // A worker before it may have connected more than once.
        while mute.accept().is_ok() {}
        let worker = folder.start(arguments);
        let connected = eventually("it connects", || mute.accept().ok());
        worker.signal(Signal::SIGTERM);
        let ended = worker.end();
        drop(connected);
        ended
    };
    // Where everything is slow, it may have given the broker up before the signal came.
    let obeyed = |arguments: &[&str]| {
        let mut tries = (0..10).map(|_| ended_while_it_connects(arguments));
        tries.find(|ended| ended.code != 69).expect("the signal ends it, and not the broker's silence")
    };
    assert_eq!(obeyed(&["worker", "--demo"]).code, -1, "it has the default action of the signal");
    assert_eq!(obeyed(&["internal-first-process", "worker", "--demo"]).code, 128 + 15);
}
