//! `machinist web`: who may open it to a network, what it serves, and how sessions and passwords are handled.

use std::{
    io::{Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{Folder, Running, WAIT_TIMEOUT, eventually};

/// A running dashboard.
struct Web {
    process: Running,
    address: String,
}

impl Web {
    fn start(folder: &Folder, more: &[&str]) -> Self {
        let mut process = folder.start(&[&["web", "--listen", "127.0.0.1:0"], more].concat());
        let line = process.stderr.until("is ready at");
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
        Self { process, address }
    }

    fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n{headers}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    fn json(&self, path: &str) -> Value {
        let (code, answer) = self.ask("GET", path, "");
        assert_eq!(code, 200, "{answer}");
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }
}

#[test]
fn without_a_log_in_it_is_not_open_to_a_network() {
    let folder = Folder::new();
    let refused = folder.run(&["web", "--listen", "0.0.0.0:0"]).ended(78);
    refused.reports(&["--listen", "nobody would have to log in", "web.password_file"]);
    let folder = Folder::with("[web]\nlisten = \"[::]:0\"\n");
    folder.run(&["web"]).ended(78).reports(&["machinist.toml:2", "nobody would have to log in"]);
    let folder = Folder::with("[web]\nlisten = \"0.0.0.0:0\"\nproxy_header = \"X-Forwarded-User\"\n");
    folder.run(&["web"]).ended(78).reports(&["web.proxy_header", "proxy_addresses"]);
    let folder = Folder::with("[web]\nlisten = \"0.0.0.0:0\"\npassword_file = \"users.txt\"\n");
    folder.write_with_mode("users.txt", "ada:admin:s3cret\n", 0o620);
    folder.run(&["web"]).ended(78).reports(&["web.password_file", "chmod 600"]);
    folder.write_with_mode("users.txt", "ada:admin:s3cret\n", 0o640);
    let refused = folder.run(&["web"]).ended(78).reports(&["web.password_file", "line 1"]);
    assert!(!refused.stderr.contains("s3cret"), "{refused:?}");
}

#[test]
fn it_tells_the_same_as_the_commands_and_acts() {
    let folder = Folder::with("[tasks.fails]\ncommand = [\"false\"]\n[web]\nname = \"test <house>\"\n");
    let _worker = folder.worker(&[]);
    let id = folder.send(&["fails"]);
    eventually("the task has failed", || (folder.status(&id)["state"] == "FAILURE").then_some(()));
    let web = Web::start(&folder, &[]);
    let (code, page) = web.ask("GET", "/", "");
    assert!(code == 200 && page.contains("test &lt;house&gt;") && page.contains("default"), "{page}");
    let told = web.json(&format!("/api/tasks/{id}"));
    assert_eq!(told, folder.status(&id));
    let (code, answer) = web.ask("POST", &format!("/api/tasks/{id}/retry"), "");
    assert_eq!(code, 403, "{answer}");
    let (code, answer) =
        web.ask("POST", &format!("/api/tasks/{id}/retry"), "Sec-Fetch-Site: same-origin\r\n");
    assert_eq!(code, 200, "{answer}");
    assert!(folder.status(&id)["retried_as"].is_string());
    web.process.signal(Signal::SIGTERM);
    let ended = web.process.end().ended(0);
    assert!(ended.stderr.contains("machinist::audit") && ended.stderr.contains(&id), "{ended:?}");
}

#[test]
fn a_read_only_dashboard_needs_no_key_and_changes_nothing() {
    let folder = Folder::with("[tasks.fails]\ncommand = [\"false\"]\n");
    let _worker = folder.worker(&[]);
    let id = folder.send(&["fails"]);
    eventually("the task has failed", || (folder.status(&id)["state"] == "FAILURE").then_some(()));
    let web = Web::start(&folder, &["--read-only"]);
    let (code, answer) =
        web.ask("POST", &format!("/api/tasks/{id}/retry"), "Sec-Fetch-Site: same-origin\r\n");
    assert!(code == 403 && answer.contains("read-only"), "{answer}");
    let (_, page) = web.ask("GET", &format!("/tasks/{id}"), "");
    assert!(page.contains("FAILURE") && !page.contains("method=\"post\""), "{page}");
}

#[test]
fn a_line_of_the_password_file_opens_the_dashboard_until_the_sessions_are_ended() {
    let folder = Folder::with("[web]\npassword_file = \"users.txt\"\n");
    let line = user_line(&folder, "ada", "open sesame");
    assert!(line.starts_with("ada:operator:$argon2id$"), "{line}");
    folder.write("users.txt", &line);
    let web = Web::start(&folder, &[]);
    assert_eq!(web.ask("GET", "/api/queues", "").0, 401);
    let cookie = log_in(&web, "name=ada&password=open+sesame");
    let with_cookie = format!("Cookie: {cookie}\r\n");
    assert_eq!(web.ask("GET", "/api/queues", &with_cookie).0, 200);
    folder.run(&["web", "logout", "ada"]).ended(0);
    assert_eq!(web.ask("GET", "/api/queues", &with_cookie).0, 401);
    for name in ["", "a:b", " a", "#a"] {
        folder.run(&["web", "user", name]).ended(64);
    }
}

fn user_line(folder: &Folder, name: &str, password: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_machinist"))
        .args(["web", "user", name, "--role", "operator"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(format!("{password}\n").as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Logs in, and returns the cookie.
fn log_in(web: &Web, form: &str) -> String {
    let mut stream = TcpStream::connect(&web.address).unwrap();
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).unwrap();
    let head = format!(
        "POST /login HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nSec-Fetch-Site: same-origin\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{form}",
        form.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 303"), "{answer}");
    let line = answer.lines().find(|line| line.to_lowercase().starts_with("set-cookie:")).unwrap();
    line.split_once(": ").unwrap().1.split(';').next().unwrap().to_owned()
}
