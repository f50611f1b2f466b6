//! The ways to run Redis that the shared test server is not: TLS, unix socket, replicas, sentinels, a cluster, a
//! full server. Each test starts servers of its own, where `redis-server` is installed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use machinist_backend_redis::{RedisBackend, RedisOptions};
use machinist_conformance::{Authority, Papers, Proxy, eventually, service_url, within};
use machinist_core::{
    App, State, TaskContext, TaskDef, TaskError, Worker,
    backend::{Backend, BackendError, Commit, Committed, Expiry, Index, IndexUpdate},
    clock::Timestamp,
    diagnose::{Diagnose, Level},
    id::{RecordId, SessionId, TaskId},
    tls::Tls,
};

use machinist_memory::MemoryBroker;
use tokio::sync::Semaphore;

const BOUND: Duration = Duration::from_secs(300);

/// A `redis-server` of this test, stopped when dropped.
struct Server {
    process: Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Server {
    /// `None` where there is no `redis-server` to start, or nobody asked for tests with servers.
    fn start(settings: &[&str]) -> Option<Self> {
        wanted().then(|| Self::start_at(free_port(), settings))
    }

    fn start_at(port: u16, settings: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("redis-server");
        command.args(["--save", "", "--bind", "127.0.0.1", "--dir"]).arg(dir.path());
        if !settings.contains(&"--tls-port") {
            command.args(["--port", &port.to_string()]);
        }
        command.args(settings).stdout(Stdio::null());
        let process = command.spawn().unwrap();
        Self { process, port, dir }
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// A command to this server, once it answers.
    async fn ask(&self, words: &[&str]) -> redis::Value {
        self.ask_at(&self.url(), words).await
    }

    async fn ask_as(&self, password: &str, words: &[&str]) -> redis::Value {
        self.ask_at(&format!("redis://:{password}@127.0.0.1:{}", self.port), words).await
    }

    async fn ask_at(&self, url: &str, words: &[&str]) -> redis::Value {
        let client = redis::Client::open(url).unwrap();
        let mut answer = None;
        let up = eventually(BOUND, async || {
            let Ok(mut door) = client.get_multiplexed_async_connection().await else { return false };
            let mut cmd = redis::cmd(words[0]);
            answer = cmd.arg(&words[1..]).query_async(&mut door).await.ok();
            answer.is_some()
        });
        assert!(up.await, "{words:?} at {}", self.url());
        answer.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether somebody asked for tests with servers, and there is a `redis-server` to start.
fn wanted() -> bool {
    if service_url("MACHINIST_TEST_REDIS_URL").is_none() {
        return false;
    }
    let installed = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status().is_ok();
    if !installed {
        machinist_conformance::skip("redis-server is not installed");
    }
    installed
}

/// Below the range from which the system takes ports for connections, so that none of these takes it meanwhile.
fn free_port() -> u16 {
    loop {
        let port = 10_000 + (uuid_bits() % 12_000) as u16;
        // A node of a cluster takes the port plus 10000 too.
        if TcpListener::bind(("127.0.0.1", port)).is_ok()
            && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok()
        {
            return port;
        }
    }
}

fn uuid_bits() -> u32 {
    u32::from_str_radix(&TaskId::fresh().as_str()[28..], 16).unwrap()
}

async fn connect(url: &str) -> RedisBackend {
    let mut backend = None;
    let connected = eventually(BOUND, async || {
        let options = RedisOptions { response_timeout: Duration::from_secs(1), ..RedisOptions::default() };
        backend = RedisBackend::connect(url, options).await.ok();
        backend.is_some()
    });
    assert!(connected.await, "no connection");
    backend.unwrap()
}

fn write(id: &TaskId) -> Commit {
    Commit {
        facts: vec![("name".into(), Bytes::from_static(b"\"add\""))],
        expiry: Expiry::After(Duration::from_secs(60)),
        wake: true,
        ..Commit::new(id.clone())
    }
}

/// All that the backend does with keys, once.
async fn works(backend: &dyn Backend) {
    let ids: Vec<TaskId> = (0..50).map(|_| TaskId::fresh()).collect();
    let records: Vec<RecordId> = ids.iter().map(Into::into).collect();
    let mut watch = within(BOUND, "a watch", backend.watch(&records[0])).await.unwrap();
    for answer in
        within(BOUND, "answers", backend.commit(ids.iter().map(|id| write(id).into()).collect())).await
    {
        assert_eq!(answer.unwrap(), Committed::Done { count: None });
    }
    within(BOUND, "a wake-up", watch.changed()).await;
    assert!(backend.read(&records).await.unwrap().iter().all(|record| record.has("name")));
    let extend = Commit {
        require: vec![("name".into(), Bytes::from_static(b"\"add\""))],
        expiry: Expiry::After(Duration::from_secs(60)),
        count: true,
        ..Commit::new(&ids[0])
    };
    let extended = backend.commit(vec![extend.into()]).await.remove(0).unwrap();
    assert_eq!(extended, Committed::Done { count: Some(1) });
    let before = backend.now().await.unwrap();
    let update = IndexUpdate::Put { index: Index::Sessions, at: before, member: "one".to_owned() };
    backend.update_indexes(vec![update]).await.unwrap();
    assert_eq!(backend.list(&Index::Sessions, None, 10).await.unwrap().len(), 1);
    assert!(backend.now().await.unwrap() >= before);
}

async fn writes(backend: &dyn Backend) -> Result<Committed, BackendError> {
    within(BOUND, "an answer", backend.commit(vec![write(&TaskId::fresh()).into()])).await.remove(0)
}

fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

#[tokio::test]
async fn a_unix_socket() {
    let Some(server) = Server::start(&["--unixsocket", "redis.sock", "--requirepass", "secret"]) else {
        return;
    };
    let socket = server.dir.path().join("redis.sock");
    for scheme in ["unix", "redis+unix"] {
        let backend = connect(&format!("{scheme}://{}?pass=secret", socket.display())).await;
        works(&backend).await;
        assert!(!backend.location().contains("secret"), "{}", backend.location());
    }
}

#[tokio::test]
async fn a_full_server_is_unavailable_and_changes_nothing() {
    let Some(server) = Server::start(&[]) else { return };
    server.ask(&["PING"]).await;
    let backend = connect(&server.url()).await;
    writes(&backend).await.unwrap();
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let id = TaskId::fresh();
    let error = backend.commit(vec![write(&id).into()]).await.remove(0).unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(chain(&error).contains("raise maxmemory"), "{}", chain(&error));
    assert!(backend.read(&[id.into()]).await.unwrap()[0].is_empty());
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    writes(&backend).await.unwrap();
}

/// Otherwise nobody could make room: what fills the server can be removed.
#[tokio::test]
async fn a_full_server_lets_go_of_what_it_holds() {
    let Some(server) = Server::start(&[]) else { return };
    let backend = connect(&server.url()).await;
    let ids: Vec<TaskId> = (0..4).map(|_| TaskId::fresh()).collect();
    let held = |id: &TaskId| Commit {
        facts: ["name", "queue", "dead"].map(|name| (name.into(), Bytes::from_static(b"1"))).into(),
        ..Commit::new(id)
    };
    for answer in backend.commit(ids.iter().map(|id| held(id).into()).collect()).await {
        answer.unwrap();
    }
    let member = || "m".to_owned();
    let put = IndexUpdate::Put { index: Index::DeadLetters, at: Timestamp::from_micros(1), member: member() };
    backend.update_indexes(vec![put]).await.unwrap();
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    server.ask(&["SCRIPT", "FLUSH"]).await;
    let all = || vec!["name".into(), "queue".into(), "dead".into()];
    let require = vec![("name".into(), Bytes::from_static(b"1"))];
    let removals = [
        Commit { drop: all(), ..Commit::new(&ids[0]) },
        Commit { drop: all(), require, wake: true, count: true, ..Commit::new(&ids[1]) },
        Commit { drop: all(), unless: vec!["end".into()], ..Commit::new(&ids[2]) },
        Commit { expiry: Expiry::After(Duration::from_millis(1)), ..Commit::new(&ids[3]) },
    ];
    for removal in &removals {
        let answer = backend.commit(vec![removal.clone().into()]).await.remove(0);
        assert!(matches!(answer, Ok(Committed::Done { .. })), "{removal:?}: {answer:?}");
    }
    let gone = eventually(BOUND, async || {
        let records: Vec<RecordId> = ids.iter().map(RecordId::from).collect();
        backend.read(&records).await.unwrap().iter().all(machinist_core::record::Facts::is_empty)
    });
    assert!(gone.await, "something was not removed");
    backend
        .update_indexes(vec![IndexUpdate::Remove { index: Index::DeadLetters, member: member() }])
        .await
        .unwrap();
    assert!(backend.list(&Index::DeadLetters, None, 10).await.unwrap().is_empty());
    // Together with what cannot be written.
    let mixed = backend.commit(vec![held(&ids[0]).into(), removals[1].clone().into()]).await;
    assert!(matches!(mixed[0], Err(BackendError::Unavailable(_))), "{:?}", mixed[0]);
    assert!(mixed[1].is_ok(), "{:?}", mixed[1]);
}

const WAITS: TaskDef<(), ()> = TaskDef::new("waits");

/// Handler that counts its runs, and waits for a permit. Cancelled, it fails.
async fn waits(cx: TaskContext, State(gate): State<Arc<(Semaphore, Semaphore)>>) -> Result<(), TaskError> {
    gate.0.add_permits(1);
    tokio::select! {
        _ = gate.1.acquire() => Ok(()),
        () = cx.cancellation().cancelled() => Err("it was told to end")?,
    }
}

/// The session of a worker goes on while the server is full, and with it what the worker runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_keeps_its_runs_while_the_server_is_full() {
    let Some(server) = Server::start(&[]) else { return };
    server.ask(&["PING"]).await;
    let lease = Duration::from_secs(3);
    let gate = Arc::new((Semaphore::new(0), Semaphore::new(0)));
    let broker = MemoryBroker::new();
    let backend = Arc::new(connect(&server.url()).await);
    let app = App::builder(Arc::new(broker.clone()), backend.clone()).build().await.unwrap();
    let worker = Worker::builder(&app).session_lease(lease).state(Arc::clone(&gate)).task(WAITS, waits);
    let working = tokio::spawn(worker.build().unwrap().run_until(std::future::pending()));
    let client = app.client();
    let early = client.send(WAITS.call(())).await.unwrap();
    drop(within(BOUND, "the run", gate.0.acquire()).await);
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    server.ask(&["SCRIPT", "FLUSH"]).await;
    // What it shows of its runs changes meanwhile, and another worker opens its session.
    let late = client.send(WAITS.call(())).await.unwrap();
    let other = App::builder(Arc::new(broker.connect()), backend.clone()).build().await.unwrap();
    let second = Worker::builder(&other).session_lease(lease).queue("other").task(WAITS, waits);
    let second = second.state(Arc::clone(&gate)).build().unwrap();
    let ready = second.ready();
    let second = tokio::spawn(second.run_until(std::future::pending()));
    within(BOUND, "the second worker", ready.cancelled()).await;
    tokio::time::sleep(3 * lease).await;
    let facts = backend.read(&[early.id().into()]).await.unwrap().remove(0);
    assert!(facts.has("s:1:1") && !facts.has("s:1:2"), "nobody else has taken it: {facts:?}");
    server.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    gate.1.close();
    for task in [early, late] {
        within(BOUND, "success", task.wait(BOUND)).await.unwrap();
        assert_eq!(task.record().await.unwrap().attempt, 1);
    }
    assert_eq!(gate.0.available_permits(), 2, "each ran once");
    working.abort();
    second.abort();
}

#[tokio::test]
async fn a_full_server_can_be_emptied() {
    let Some(server) = Server::start(&[]) else { return };
    server.ask(&["PING"]).await;
    let backend = connect(&server.url()).await;
    let id = TaskId::fresh();
    backend.commit(vec![write(&id).into()]).await.remove(0).unwrap();
    let (index, member) = (Index::DeadLetters, id.to_string());
    let put =
        IndexUpdate::Put { index: index.clone(), at: backend.now().await.unwrap(), member: member.clone() };
    backend.update_indexes(vec![put]).await.unwrap();
    server.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    // The server has forgotten the script, as after its restart.
    server.ask(&["SCRIPT", "FLUSH"]).await;
    let backend = connect(&server.url()).await;
    let update = IndexUpdate::Remove { index: index.clone(), member };
    backend.update_indexes(vec![update]).await.unwrap();
    let mut removal = Commit::new(id.clone());
    removal.drop = write(&id).facts.into_iter().map(|(name, _)| name).collect();
    backend.commit(vec![removal.into()]).await.remove(0).unwrap();
    assert!(backend.read(&[id.into()]).await.unwrap()[0].is_empty());
    assert!(backend.list(&index, None, 9).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_demoted_master_is_unavailable_and_found_by_the_doctor() {
    let (Some(server), Some(other)) = (Server::start(&[]), Server::start(&[])) else { return };
    let backend = connect(&server.url()).await;
    other.ask(&["PING"]).await;
    let fit = backend.diagnose().await;
    assert!(fit.iter().any(|f| f.subject == "persistence" && f.level == Level::Warning), "{fit:?}");
    server.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await;
    server.ask(&["REPLICAOF", "127.0.0.1", &other.port.to_string()]).await;
    let error = writes(&backend).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(chain(&error).contains("READONLY"), "{}", chain(&error));
    let unfit = backend.diagnose().await;
    assert!(unfit.iter().any(|f| f.subject == "role" && f.level == Level::Error), "{unfit:?}");
    assert!(unfit.iter().any(|f| f.subject == "eviction policy" && f.level == Level::Warning), "{unfit:?}");
    server.ask(&["REPLICAOF", "NO", "ONE"]).await;
    assert!(eventually(BOUND, async || writes(&backend).await.is_ok()).await);
}

#[tokio::test]
async fn sentinels_lead_to_the_new_master() {
    let Some(master) = Server::start(&["--requirepass", "", "--masterauth", ""]) else { return };
    master.ask(&["PING"]).await;
    let Some(replica) = Server::start(&["--replicaof", "127.0.0.1", &master.port.to_string()]) else {
        return;
    };
    let in_sync =
        async || format!("{:?}", master.ask(&["INFO", "replication"]).await).contains("state=online");
    assert!(eventually(BOUND, in_sync).await);

    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = dir.path().join("sentinel.conf");
    let settings = [
        format!("port {port}"),
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", dir.path().display()),
        format!("sentinel monitor main 127.0.0.1 {} 1", master.port),
        "sentinel down-after-milliseconds main 500".to_owned(),
        "sentinel failover-timeout main 3000".to_owned(),
    ];
    std::fs::write(&config, settings.join("\n")).unwrap();
    let mut sentinel = Command::new("redis-server");
    sentinel.arg(&config).arg("--sentinel").stdout(Stdio::null());
    let sentinel = Server { process: sentinel.spawn().unwrap(), port, dir };
    let knows_replica = async || {
        format!("{:?}", sentinel.ask(&["SENTINEL", "REPLICAS", "main"]).await)
            .contains(&replica.port.to_string())
    };
    assert!(eventually(BOUND, knows_replica).await);

    let backend = connect(&format!("redis+sentinel://127.0.0.1:{port}/main")).await;
    works(&backend).await;
    let id = TaskId::fresh();
    let mut watch = backend.watch(&(&id).into()).await.unwrap();
    drop(master);
    let recovered = eventually(BOUND, async || writes(&backend).await.is_ok());
    assert!(recovered.await, "no write after the failover");
    within(BOUND, "the wake-up after the failover", watch.changed()).await;
    assert!(format!("{:?}", replica.ask(&["ROLE"]).await).contains("master"));
    works(&backend).await;
}

/// An address of no host (RFC 5737).
const ELSEWHERE: &str = "192.0.2.7";

async fn connect_here(url: &str) -> Result<RedisBackend, BackendError> {
    let options = RedisOptions { loopback_only: true, ..RedisOptions::default() };
    within(BOUND, "an answer", RedisBackend::connect(url, options)).await
}

#[tokio::test]
async fn a_password_does_not_go_where_sentinels_point() {
    let Some(master) = Server::start(&["--requirepass", "secret"]) else { return };
    master.ask_as("secret", &["PING"]).await;
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let config = dir.path().join("sentinel.conf");
    let settings = [
        format!("port {port}"),
        "bind 127.0.0.1".to_owned(),
        format!("dir {}", dir.path().display()),
        format!("sentinel monitor elsewhere {ELSEWHERE} 6379 1"),
        format!("sentinel monitor here 127.0.0.1 {} 1", master.port),
    ];
    std::fs::write(&config, settings.join("\n")).unwrap();
    let mut sentinel = Command::new("redis-server");
    sentinel.arg(&config).arg("--sentinel").stdout(Stdio::null());
    let sentinel = Server { process: sentinel.spawn().unwrap(), port, dir };
    sentinel.ask(&["PING"]).await;
    let url = |master: &str| format!("redis+sentinel://:secret@127.0.0.1:{port}/{master}");
    let error = connect_here(&url("elsewhere")).await.unwrap_err();
    assert!(matches!(error, BackendError::Refused { .. }), "{error}");
    let error = error.to_string();
    assert!(error.contains(ELSEWHERE) && error.contains("rediss+sentinel://"), "{error}");
    assert!(!error.contains("secret"), "{error}");
    works(&connect_here(&url("here")).await.unwrap()).await;
}

#[tokio::test]
async fn a_password_does_not_go_where_a_cluster_points() {
    let cluster = ["--cluster-enabled", "yes", "--requirepass", "secret"];
    let start =
        |announced: &str| Server::start(&[&cluster[..], &["--cluster-announce-ip", announced]].concat());
    for (announced, works_here) in [("127.0.0.1", true), (ELSEWHERE, false)] {
        let Some(node) = start(announced) else { return };
        let url = format!("redis+cluster://:secret@127.0.0.1:{}", node.port);
        node.ask_as("secret", &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
        let ok =
            async || format!("{:?}", node.ask_as("secret", &["CLUSTER", "INFO"]).await).contains("state:ok");
        assert!(eventually(BOUND, ok).await);
        match connect_here(&url).await {
            Ok(backend) => {
                assert!(works_here);
                works(&backend).await;
            }
            Err(error) => {
                assert!(!works_here && error.to_string().contains(ELSEWHERE), "{error:?}");
            }
        }
    }
}

/// A master, and a replica that is fed through a proxy, which can stall it.
struct Replicated {
    master: Server,
    replica: Server,
    feed: Proxy,
}

impl Replicated {
    async fn start() -> Option<Self> {
        let master = Server::start(&[])?;
        master.ask(&["PING"]).await;
        let (feed, through) = Proxy::before(&master.url()).await.unwrap();
        let port = through.rsplit(':').next().unwrap().trim_end_matches('/').to_owned();
        let replica = Server::start(&["--replicaof", "127.0.0.1", &port])?;
        let both = Self { master, replica, feed };
        assert!(eventually(BOUND, async || both.is_online().await).await);
        Some(both)
    }

    async fn is_online(&self) -> bool {
        format!("{:?}", self.master.ask(&["INFO", "replication"]).await).contains("state=online")
    }

    /// Kills the master, and makes the replica the master of those who connect to it.
    async fn fail_over(self) -> Server {
        drop(self.master);
        self.replica.ask(&["REPLICAOF", "NO", "ONE"]).await;
        self.replica
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_replicas_have_confirmed_survives_the_master() {
    let Some(both) = Replicated::start().await else { return };
    let backend = connect(&format!("{}?wait_replicas=1", both.master.url())).await;
    let feed = &both.feed;
    let write_all = async || {
        let commits = (0..300).map(|_| async {
            let id = TaskId::fresh();
            let answer = backend.commit(vec![write(&id).into()]).await.remove(0);
            answer.is_ok().then_some(id)
        });
        futures_util::future::join_all(commits).await.into_iter().flatten().collect::<Vec<TaskId>>()
    };
    // On a busy machine the replica may be late for some of them.
    let mut acknowledged = Vec::new();
    let many = eventually(BOUND, async || {
        acknowledged.extend(write_all().await);
        acknowledged.len() >= 300
    });
    assert!(many.await, "only {} commits were confirmed", acknowledged.len());
    // The replica gets nothing more, and the master does not know that.
    feed.stall();
    acknowledged.extend(write_all().await);
    let replica = both.fail_over().await;
    let survivor = connect(&replica.url()).await;
    let ids: Vec<RecordId> = acknowledged.iter().map(RecordId::from).collect();
    let records = survivor.read(&ids).await.unwrap();
    let lost = records.iter().filter(|facts| facts.is_empty()).count();
    assert_eq!(lost, 0, "of {} acknowledged commits", ids.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_no_replica_confirms_is_not_answered_until_one_does() {
    let Some(both) = Replicated::start().await else { return };
    let backend = connect(&format!("{}?wait_replicas=1", both.master.url())).await;
    let findings = backend.diagnose().await;
    assert!(findings.iter().any(|f| f.subject == "replicas" && f.level == Level::Warning), "{findings:?}");
    let id = TaskId::fresh();
    let session = SessionId::fresh();
    let lease = Commit {
        facts: vec![("lease".into(), Bytes::from_static(b"1"))],
        expiry: Expiry::After(BOUND),
        ..Commit::new(&session)
    };
    both.feed.stall();
    // Repeated, it changes nothing, and is not answered all the same: also on another connection.
    let other = connect(&format!("{}?wait_replicas=1", both.master.url())).await;
    for backend in [&backend, &backend, &other] {
        let error = backend.commit(vec![write(&id).into()]).await.remove(0).unwrap_err();
        assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
        assert!(chain(&error).contains("wait_replicas is 1"), "{}", chain(&error));
    }
    assert!(!backend.read(&[(&id).into()]).await.unwrap()[0].is_empty(), "the master has it");
    // A lease does not wait: the worker's runs go on.
    assert_eq!(backend.commit(vec![lease.into()]).await.remove(0).unwrap(), Committed::Done { count: None });
    both.feed.pass();
    let answered =
        eventually(BOUND, async || backend.commit(vec![write(&id).into()]).await.remove(0).is_ok());
    assert!(answered.await, "no answer although the replica is back");
}

#[tokio::test]
async fn a_cluster() {
    let cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"];
    let Some(first) = Server::start(&cluster) else { return };
    let nodes: Vec<Server> =
        std::iter::once(first).chain((0..2).filter_map(|_| Server::start(&cluster))).collect();
    for (node, slots) in nodes.iter().zip([("0", "5460"), ("5461", "10922"), ("10923", "16383")]) {
        node.ask(&["CLUSTER", "ADDSLOTSRANGE", slots.0, slots.1]).await;
        node.ask(&["CLUSTER", "MEET", "127.0.0.1", &nodes[0].port.to_string()]).await;
    }
    for node in &nodes {
        let agreed = async || {
            let info = format!("{:?}", node.ask(&["CLUSTER", "INFO"]).await);
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        };
        assert!(eventually(BOUND, agreed).await);
    }
    let hosts: Vec<String> = nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)).collect();
    let backend = connect(&format!("redis+cluster://{}", hosts.join(","))).await;
    works(&backend).await;
    for node in &nodes {
        node.ask(&["SCRIPT", "FLUSH"]).await;
    }
    works(&backend).await;
    let id = TaskId::fresh();
    let mut watch = backend.watch(&(&id).into()).await.unwrap();
    for node in &nodes {
        node.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    }
    within(BOUND, "the wake-up after the loss", watch.changed()).await;
    works(&backend).await;
    let findings = backend.diagnose().await;
    assert!(findings.iter().all(|finding| finding.level < Level::Error), "{findings:?}");

    // A plain URL to a node of a cluster says what is wrong.
    let plain = connect(&nodes[0].url()).await;
    let refused = within(BOUND, "a refusal", async {
        loop {
            match writes(&plain).await {
                Ok(_) => {}
                Err(error) => return error,
            }
        }
    });
    assert!(refused.await.to_string().contains("redis+cluster://"));
}

/// A server that speaks TLS only, and asks for a certificate where `clients` is `yes`.
fn tls_server(papers: &Papers, authority: &Authority, clients: &str) -> Server {
    let port = free_port();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = papers.write(dir.path(), "server").unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, authority.certificate()).unwrap();
    let path = |path: &Path| path.display().to_string();
    let certificate = path(&certificate);
    let key = path(&key);
    let ca = path(&ca);
    let tls_port = port.to_string();
    let settings = [
        ("--port", "0"),
        ("--tls-port", &tls_port),
        ("--tls-cert-file", &certificate),
        ("--tls-key-file", &key),
        ("--tls-ca-cert-file", &ca),
        ("--tls-auth-clients", clients),
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|(name, value)| [*name, *value]).collect();
    // Redis reads its files at the start: they may go once it listens.
    let server = Server::start_at(port, &settings);
    let listening = || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok();
    let deadline = std::time::Instant::now() + BOUND;
    while !listening() {
        assert!(std::time::Instant::now() < deadline, "Redis with TLS does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

/// What a client trusts, and who it is.
fn trusting(authority: &Authority, own: Option<&Papers>) -> Tls {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, authority.certificate()).unwrap();
    let own = own.map(|own| own.write(dir.path(), "client").unwrap());
    Tls::read(Some(&ca), own.as_ref().map(|(certificate, key)| (&**certificate, &**key))).unwrap()
}

async fn refusal(url: &str, tls: Tls) -> String {
    let options = RedisOptions { tls, connect_timeout: Duration::from_secs(1), ..RedisOptions::default() };
    match within(BOUND, "an answer", RedisBackend::connect(url, options)).await {
        Err(BackendError::Refused { reason }) => reason,
        other => panic!("{url}: {other:?}"),
    }
}

#[tokio::test]
async fn tls_with_an_authority_and_certificates_of_ones_own() {
    if !wanted() {
        return;
    }
    let authority = Authority::new("ours").unwrap();
    let server = tls_server(&authority.server("localhost").unwrap(), &authority, "yes");
    let url = format!("rediss://localhost:{}", server.port);
    let own = authority.client("worker").unwrap();
    let options = RedisOptions { tls: trusting(&authority, Some(&own)), ..RedisOptions::default() };
    works(&RedisBackend::connect(&url, options).await.unwrap()).await;

    let told = refusal(&url, trusting(&authority, None)).await;
    assert!(told.contains("requires a client certificate") && told.contains("--tls-cert-file"), "{told}");
    let foreign = Authority::new("theirs").unwrap();
    let told = refusal(&url, trusting(&authority, Some(&foreign.client("worker").unwrap()))).await;
    assert!(told.contains("does not accept our certificate"), "{told}");
    let told = refusal(&url, trusting(&foreign, Some(&own))).await;
    assert!(
        told.contains("an authority that is not trusted here") && told.contains("--tls-ca-file"),
        "{told}"
    );
    let other_name = format!("rediss://127.0.0.1:{}", server.port);
    let told = refusal(&other_name, trusting(&authority, Some(&own))).await;
    assert!(told.contains("\"localhost\"") && told.contains("not for \"127.0.0.1\""), "{told}");
    let without = format!("redis://localhost:{}", server.port);
    let told = refusal(&without, Tls::default()).await;
    assert!(told.contains("speaks TLS on this port; take rediss://"), "{told}");
}

#[tokio::test]
async fn tls_with_a_server_that_is_not_as_it_should_be() {
    if !wanted() {
        return;
    }
    let authority = Authority::new("ours").unwrap();
    let expired = tls_server(&authority.expired("localhost").unwrap(), &authority, "no");
    let told = refusal(&format!("rediss://localhost:{}", expired.port), trusting(&authority, None)).await;
    assert!(told.contains("expired at 2021-01-01T00:00:00Z"), "{told}");
    for protected in [None, Some("secret")] {
        let plain = Server::start_at(free_port(), &["--requirepass", protected.unwrap_or_default()]);
        let client = || std::net::TcpStream::connect(("127.0.0.1", plain.port));
        assert!(eventually(BOUND, async || client().is_ok()).await);
        let told = refusal(&format!("rediss://localhost:{}", plain.port), trusting(&authority, None)).await;
        assert!(told.contains("does not speak TLS on this port; take redis://"), "{told}");
    }
}

/// The certificates of the system are those that `SSL_CERT_FILE` names, so the part that speaks TLS is a process
/// of its own: this test once more.
#[tokio::test]
async fn tls_with_the_certificates_of_the_system() {
    if let Ok(url) = std::env::var("MACHINIST_TLS_TEST_URL") {
        works(&connect(&url).await).await;
        return;
    }
    if !wanted() {
        return;
    }
    let authority = Authority::new("ours").unwrap();
    let server = tls_server(&authority.server("localhost").unwrap(), &authority, "no");
    let url = format!("rediss://localhost:{}", server.port);
    let mut inner = Command::new(std::env::current_exe().unwrap());
    inner.args(["--exact", "tls_with_the_certificates_of_the_system", "--nocapture"]);
    let ca = server.dir.path().join("ca.pem");
    std::fs::write(&ca, authority.certificate()).unwrap();
    inner.env("MACHINIST_TLS_TEST_URL", &url).env("SSL_CERT_FILE", &ca);
    let trusted = tokio::task::spawn_blocking(move || inner.output()).await.unwrap().unwrap();
    assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stderr));
    let told = refusal(&url, Tls::default()).await;
    assert!(told.contains("an authority that is not trusted here"), "{told}");
}
