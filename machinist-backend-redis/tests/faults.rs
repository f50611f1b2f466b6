//! What Redis and the network do to a backend, and what it makes of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::Namespace;
use machinist_backend_redis::{RedisBackend, RedisOptions};
use machinist_conformance::{Proxy, eventually, within};
use machinist_core::{
    backend::{Backend, BackendError, Commit, Committed, Expiry},
    diagnose::{Diagnose, Level},
    id::TaskId,
};

const BOUND: Duration = Duration::from_secs(300);

fn write(id: &TaskId) -> Commit {
    Commit {
        facts: vec![("name".into(), Bytes::from_static(b"\"add\""))],
        expiry: Expiry::After(Duration::from_secs(60)),
        wake: true,
        ..Commit::new(id.clone())
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

async fn commit(backend: &dyn Backend, id: &TaskId) -> Result<Committed, BackendError> {
    within(BOUND, "an answer", backend.commit(vec![write(id).into()])).await.remove(0)
}

async fn writes_again(backend: &dyn Backend) {
    let id = TaskId::fresh();
    assert!(eventually(BOUND, async || commit(backend, &id).await.is_ok()).await, "it never wrote again");
}

#[tokio::test]
async fn an_emptied_script_cache_is_filled_again() {
    let Some(namespace) = Namespace::fresh() else { return };
    let backend = namespace.connect(&namespace.url).await;
    let mut door = namespace.side_door().await;
    for batch in [1, 3, 600] {
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut door).await.unwrap();
        let commits = (0..batch).map(|_| write(&TaskId::fresh()).into()).collect();
        for answer in within(BOUND, "answers", backend.commit(commits)).await {
            assert_eq!(answer.unwrap(), Committed::Done { count: None });
        }
    }
    namespace.erase().await;
}

#[tokio::test]
async fn a_batch_keeps_its_order_for_each_record_when_the_script_has_to_be_loaded() {
    let Some(namespace) = Namespace::fresh() else { return };
    let backend = namespace.connect(&namespace.url).await;
    let id = TaskId::fresh();
    let value = |n: usize| ("name".into(), Bytes::from(n.to_string()));
    let commits = (0..5).map(|n| Commit { facts: vec![value(n)], ..write(&id) }.into()).collect();
    let mut door = namespace.side_door().await;
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut door).await.unwrap();
    for answer in within(BOUND, "answers", backend.commit(commits)).await {
        assert_eq!(answer.unwrap(), Committed::Done { count: None });
    }
    let records = backend.read(&[id.into()]).await.unwrap();
    assert_eq!(records[0].get("name").unwrap(), "0", "the first writer wins");
    namespace.erase().await;
}

#[tokio::test]
async fn a_commit_too_large_for_a_script_is_refused_whole() {
    let Some(namespace) = Namespace::fresh() else { return };
    let backend = namespace.connect(&namespace.url).await;
    let id = TaskId::fresh();
    let drop = (0..9000).map(|n| n.to_string().into()).collect();
    let answer = backend.commit(vec![Commit { drop, ..write(&id) }.into()]).await.remove(0);
    match answer {
        Err(BackendError::Record { reason }) => assert!(reason.contains("fewer facts"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(backend.read(&[id.into()]).await.unwrap()[0].is_empty());
    namespace.erase().await;
}

#[tokio::test]
async fn a_closed_port_is_unavailable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    drop(listener);
    let error =
        within(BOUND, "a refusal", RedisBackend::connect(&url, RedisOptions::default())).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    assert!(chain(&error).contains("refused"), "{}", chain(&error));
}

#[tokio::test]
async fn a_peer_that_never_answers_is_unavailable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let options = RedisOptions { connect_timeout: Duration::from_millis(200), ..RedisOptions::default() };
    let error = within(BOUND, "a timeout", RedisBackend::connect(&url, options)).await.unwrap_err();
    assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
}

#[tokio::test]
async fn a_stalled_connection_times_out_and_is_replaced() {
    let Some(namespace) = Namespace::fresh() else { return };
    let (proxy, through) = Proxy::before(&namespace.url).await.unwrap();
    let patience = Duration::from_millis(200);
    let options =
        RedisOptions { response_timeout: patience, connect_timeout: patience, ..namespace.options() };
    let backend = RedisBackend::connect(&through, options).await.unwrap();
    proxy.stall();
    for _ in 0..3 {
        let error = commit(&backend, &TaskId::fresh()).await.unwrap_err();
        assert!(matches!(error, BackendError::Unavailable(_)), "{error:?}");
    }
    proxy.pass();
    writes_again(&backend).await;
    namespace.erase().await;
}

/// What a firewall does that forgets a connection: the old socket leads nowhere and never says so, a new one works.
#[tokio::test]
async fn a_connection_into_nowhere_is_left() {
    let Some(namespace) = Namespace::fresh() else { return };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, server) = namespace.url.rsplit_once("//").unwrap();
    let server = server.rsplit('@').next().unwrap().split('/').next().unwrap().to_owned();
    let url = namespace.url.replace(&server, &listener.local_addr().unwrap().to_string());
    let forgotten = Arc::new(tokio::sync::Notify::new());
    let forget = Arc::clone(&forgotten);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let forgotten = Arc::clone(&forgotten);
            let server = server.clone();
            tokio::spawn(async move {
                let mut redis = tokio::net::TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut client, &mut redis) => {}
                    () = forgotten.notified() => std::future::pending().await,
                }
            });
        }
    });
    let options = RedisOptions { response_timeout: Duration::from_millis(200), ..namespace.options() };
    let backend = RedisBackend::connect(&url, options).await.unwrap();
    forget.notify_waiters();
    for _ in 0..2 {
        let error = commit(&backend, &TaskId::fresh()).await.unwrap_err();
        assert!(chain(&error).contains("no answer in time"), "{}", chain(&error));
    }
    commit(&backend, &TaskId::fresh()).await.unwrap();
    namespace.erase().await;
}

#[tokio::test]
async fn many_callers_of_a_dead_server_fail_together() {
    let Some(namespace) = Namespace::fresh() else { return };
    let (proxy, through) = Proxy::before(&namespace.url).await.unwrap();
    let options = RedisOptions { connect_timeout: Duration::from_secs(1), ..namespace.options() };
    let backend = Arc::new(RedisBackend::connect(&through, options).await.unwrap());
    proxy.refuse();
    let callers: Vec<_> = (0..200)
        .map(|_| {
            let backend = Arc::clone(&backend);
            tokio::spawn(async move { backend.now().await.is_err() })
        })
        .collect();
    for caller in callers {
        assert!(within(BOUND, "a failure", caller).await.unwrap());
    }
    proxy.pass();
    writes_again(&*backend).await;
    namespace.erase().await;
}

#[tokio::test]
async fn a_watch_survives_its_connection() {
    let Some(namespace) = Namespace::fresh() else { return };
    let (proxy, through) = Proxy::before(&namespace.url).await.unwrap();
    let backend = namespace.connect(&through).await;
    let other = namespace.connect(&namespace.url).await;
    let id = TaskId::fresh();
    let mut watch = within(BOUND, "a watch", backend.watch(&(&id).into())).await.unwrap();
    for _ in 0..3 {
        proxy.cut();
        within(BOUND, "the wake-up after a reconnect", watch.changed()).await;
        commit(&other, &id).await.unwrap();
        within(BOUND, "a wake-up", watch.changed()).await;
    }
    namespace.erase().await;
}

#[tokio::test]
async fn a_watch_survives_an_outage() {
    let Some(namespace) = Namespace::fresh() else { return };
    let (proxy, through) = Proxy::before(&namespace.url).await.unwrap();
    let backend = namespace.connect(&through).await;
    let id = TaskId::fresh();
    let mut watch = within(BOUND, "a watch", backend.watch(&(&id).into())).await.unwrap();
    proxy.refuse();
    let error = within(BOUND, "a failure", async {
        loop {
            if let Err(error) = backend.watch(&TaskId::fresh().into()).await {
                return error;
            }
        }
    });
    assert!(matches!(error.await, BackendError::Unavailable(_)));
    proxy.pass();
    within(BOUND, "the wake-up after the outage", watch.changed()).await;
    namespace.erase().await;
}

#[tokio::test]
async fn a_dropped_watch_ends_its_subscription() {
    let Some(namespace) = Namespace::fresh() else { return };
    let backend = namespace.connect(&namespace.url).await;
    let id = TaskId::fresh();
    let channel = format!("{}:task:{{{id}}}", namespace.prefix);
    let door = namespace.side_door().await;
    let listeners = async || {
        let mut ask = redis::cmd("PUBSUB");
        ask.arg("SHARDNUMSUB").arg(&channel);
        let (_, count): (String, u64) = ask.query_async(&mut door.clone()).await.unwrap();
        count
    };
    let watches = [backend.watch(&(&id).into()).await.unwrap(), backend.watch(&(&id).into()).await.unwrap()];
    assert_eq!(listeners().await, 1, "one subscription serves every watch of a process");
    drop(watches);
    assert!(eventually(BOUND, async || listeners().await == 0).await);
    let mut again = backend.watch(&(&id).into()).await.unwrap();
    commit(&backend, &id).await.unwrap();
    within(BOUND, "a wake-up", again.changed()).await;
    namespace.erase().await;
}

/// A lease is renewed from a thread of its own while handlers block the runtime that connected.
#[tokio::test]
async fn a_blocked_runtime_does_not_stop_another() {
    let Some(namespace) = Namespace::fresh() else { return };
    let backend = Arc::new(namespace.connect(&namespace.url).await);
    let id = TaskId::fresh();
    commit(&*backend, &id).await.unwrap();
    let renewing = Arc::clone(&backend);
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(within(BOUND, "an answer", commit(&*renewing, &id)))
    });
    assert!(
        thread.join().unwrap().is_ok(),
        "this thread, the only one of its runtime, was blocked all the while"
    );
    commit(&*backend, &TaskId::fresh()).await.unwrap();
    namespace.erase().await;
}

/// A user of this test's own, deleted by [`Namespace`]'s caller.
async fn user(namespace: &Namespace, rights: &[&str]) -> (String, String) {
    let name = format!("{}-user", namespace.prefix);
    let mut acl = redis::cmd("ACL");
    acl.arg("SETUSER").arg(&name).arg("on").arg(">p@ss/word").arg(rights);
    acl.exec_async(&mut namespace.side_door().await).await.unwrap();
    let url = namespace.url.replacen("redis://", &format!("redis://{name}:p%40ss%2Fword@"), 1);
    (name, url)
}

async fn forget_user(namespace: &Namespace, name: &str) {
    redis::cmd("ACL").arg("DELUSER").arg(name).exec_async(&mut namespace.side_door().await).await.unwrap();
    namespace.erase().await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_never_shown() {
    let Some(namespace) = Namespace::fresh() else { return };
    let (name, url) = user(&namespace, &["~*", "&*", "+@all"]).await;
    let backend = namespace.connect(&url).await;
    assert!(!format!("{backend:?} {}", backend.location()).contains("word"), "{backend:?}");
    assert!(backend.location().contains(&name));

    let wrong = url.replace("word", "mistake");
    let error = RedisBackend::connect(&wrong, namespace.options()).await.unwrap_err();
    match &error {
        BackendError::Refused { reason } => assert!(reason.contains("check user and password"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert!(!format!("{error} {error:?}").contains("mistake"), "{error:?}");
    forget_user(&namespace, &name).await;
}

#[tokio::test]
async fn the_rights_that_are_asked_for_suffice() {
    let Some(namespace) = Namespace::fresh() else { return };
    let keys = format!("~{}:*", namespace.prefix);
    let channels = format!("&{}:*", namespace.prefix);
    let asked = "+@hash +@sortedset +@scripting +@pubsub +@connection +time +exists +pexpire";
    let rights: Vec<&str> = [&*keys, &*channels].into_iter().chain(asked.split(' ')).collect();
    let (name, url) = user(&namespace, &rights).await;
    let backend = namespace.connect(&url).await;
    let findings = backend.diagnose().await;
    let of = |subject: &str| findings.iter().find(|finding| finding.subject == subject).unwrap();
    assert_eq!(of("permissions").level, Level::Good, "{findings:?}");
    assert!(of("version").found.contains("could not look"), "{findings:?}");
    assert!(of("role").found.contains("could not look"), "{findings:?}");
    let id = TaskId::fresh();
    let mut watch = backend.watch(&(&id).into()).await.unwrap();
    commit(&backend, &id).await.unwrap();
    within(BOUND, "a wake-up", watch.changed()).await;
    forget_user(&namespace, &name).await;
}

#[tokio::test]
async fn a_value_is_replaced_as_it_was_read_alone() {
    let Some(namespace) = Namespace::fresh() else { return };
    let values = namespace.connect(&namespace.url).await.values();
    let key = |name: &str| format!("{}:{name}", namespace.prefix);
    let (one, list) = (key("one"), key("list"));
    let mut door = namespace.side_door().await;
    let read = async || values.read(&[&*one]).await.unwrap().remove(0).map(Vec::from);

    assert!(!values.replace(&one, Some(b"old"), b"new", BOUND).await.unwrap(), "there is none");
    assert!(values.replace(&one, None, b"old", BOUND).await.unwrap());
    assert!(!values.replace(&one, None, b"new", BOUND).await.unwrap(), "there is one");
    assert!(!values.replace(&one, Some(b"other"), b"new", BOUND).await.unwrap());
    assert!(values.replace(&one, None, b"old", BOUND).await.unwrap(), "its first reply may have been lost");
    assert!(!values.write_absent(&one, b"new", BOUND).await.unwrap());
    assert_eq!(read().await.as_deref(), Some(&b"old"[..]));
    for found in ["old", "new"] {
        // A script is loaded again when the server does not know it.
        redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut door).await.unwrap();
        let replaced = values.replace(&one, Some(found.as_bytes()), b"new", BOUND).await;
        assert!(replaced.unwrap(), "{found}");
    }
    let left: i64 = redis::cmd("PTTL").arg(&one).query_async(&mut door).await.unwrap();
    assert!(left > 0 && left <= BOUND.as_millis() as i64, "{left}");
    assert!(!values.delete(&one, b"old").await.unwrap());
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut door).await.unwrap();
    assert!(values.delete(&one, b"new").await.unwrap());
    assert_eq!(read().await, None);

    redis::cmd("LPUSH").arg(&list).arg("x").exec_async(&mut door).await.unwrap();
    let refused = [
        values.read(&[&*one, &*list]).await.map(drop),
        values.replace(&list, None, b"x", BOUND).await.map(drop),
        values.delete(&list, b"x").await.map(drop),
    ];
    for refused in refused {
        let Err(BackendError::Record { reason }) = refused else { panic!("{refused:?}") };
        assert!(reason.starts_with(&list), "{reason}");
    }
    assert!(!values.write_absent(&list, b"x", BOUND).await.unwrap());
    values.write(&list, b"x", BOUND).await.unwrap();
    assert_eq!(values.read(&[&*list]).await.unwrap()[0].as_deref(), Some(&b"x"[..]), "in place of anything");
    namespace.erase().await;
}

#[tokio::test]
async fn requests_about_many_values_are_answered_each_for_itself() {
    let Some(namespace) = Namespace::fresh() else { return };
    let mut door = namespace.side_door().await;
    let keys = format!("~{}:*", namespace.prefix);
    let rights = ["+evalsha", "+script|load", "+get", "+set", "+time", "+ping", "+hello"];
    let rights: Vec<&str> = [&*keys, "resetchannels", "-@all"].into_iter().chain(rights).collect();
    let (name, url) = user(&namespace, &rights).await;
    let values = namespace.connect(&url).await.values();
    let key = |at: usize| format!("{}:{at}", namespace.prefix);
    let list = key(1000);
    redis::cmd("LPUSH").arg(&list).arg("x").exec_async(&mut door).await.unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut door).await.unwrap();
    for round in 0..3 {
        let (before, after) = (format!("v{round}"), format!("v{}", round + 1));
        let found = (round > 0).then_some(before.as_bytes());
        let each = (0..300).map(|at| {
            let (values, after, key) = (&values, after.as_bytes(), key(at));
            async move {
                // Every third one is not as it was read.
                let found = if at % 3 == 0 && found.is_some() { Some(&b"other"[..]) } else { found };
                values.replace(&key, found, after, BOUND).await.unwrap()
            }
        });
        let others = async {
            let wrong = futures_util::future::join3(
                values.replace(&list, None, b"x", BOUND),
                values.replace("elsewhere", None, b"x", BOUND),
                values.read(&["elsewhere"]),
            )
            .await;
            assert!(matches!(wrong.0, Err(BackendError::Record { .. })), "{:?}", wrong.0);
            assert!(matches!(wrong.1, Err(BackendError::Refused { .. })), "{:?}", wrong.1);
            assert!(matches!(wrong.2, Err(BackendError::Refused { .. })), "{:?}", wrong.2);
        };
        let (replaced, ()) = futures_util::future::join(futures_util::future::join_all(each), others).await;
        for (at, replaced) in replaced.iter().enumerate() {
            assert_eq!(*replaced, at % 3 > 0 || round == 0, "{at} in round {round}");
        }
        let names: Vec<String> = (0..300).map(key).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for (at, found) in values.read(&names).await.unwrap().into_iter().enumerate() {
            let expected = if at % 3 > 0 { &*after } else { "v1" };
            assert_eq!(found.as_deref(), Some(expected.as_bytes()), "{at}");
        }
    }
    let left: i64 = redis::cmd("PTTL").arg(key(1)).query_async(&mut door).await.unwrap();
    assert!(left > 0 && left <= BOUND.as_millis() as i64, "{left}");
    forget_user(&namespace, &name).await;
}

#[tokio::test]
async fn values_need_few_rights_and_a_script_that_can_be_loaded() {
    let Some(namespace) = Namespace::fresh() else { return };
    let keys = format!("~{}:*", namespace.prefix);
    let asked = "resetchannels -@all +evalsha +script|load +get +set +del +time +ping +hello";
    let rights: Vec<&str> = std::iter::once(&*keys).chain(asked.split(' ')).collect();
    let (name, url) = user(&namespace, &rights).await;
    let values = namespace.connect(&url).await.values();
    let key = format!("{}:value", namespace.prefix);
    let mut door = namespace.side_door().await;
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut door).await.unwrap();
    assert!(values.replace(&key, None, b"1", BOUND).await.unwrap());
    assert!(values.delete(&key, b"1").await.unwrap());
    match values.read(&["elsewhere"]).await {
        Err(BackendError::Refused { reason }) => assert!(reason.contains("from-machinery.md"), "{reason}"),
        other => panic!("{other:?}"),
    }
    forget_user(&namespace, &name).await;
}

#[tokio::test]
async fn a_missing_right_is_refused_with_the_remedy() {
    let Some(namespace) = Namespace::fresh() else { return };
    let (name, url) = user(&namespace, &["~*", "&*", "+@read", "+@connection", "+time", "+evalsha"]).await;
    let backend = namespace.connect(&url).await;
    match commit(&backend, &TaskId::fresh()).await {
        Err(BackendError::Refused { reason }) => assert!(reason.contains("ACL SETUSER"), "{reason}"),
        other => panic!("{other:?}"),
    }
    let findings = backend.diagnose().await;
    let found = findings.iter().find(|finding| finding.subject == "permissions").unwrap();
    assert_eq!(found.level, Level::Error);
    assert!(found.found.contains("ZADD"), "{found:?}");
    forget_user(&namespace, &name).await;
}

#[tokio::test]
async fn a_key_of_another_program_is_named_with_the_remedy() {
    let Some(namespace) = Namespace::fresh() else { return };
    let backend = namespace.connect(&namespace.url).await;
    let id = TaskId::fresh();
    let key = format!("{}:task:{{{id}}}", namespace.prefix);
    redis::cmd("SET").arg(&key).arg("x").exec_async(&mut namespace.side_door().await).await.unwrap();
    let committed = commit(&backend, &id).await.unwrap_err();
    let read = backend.read(&[id.into()]).await.unwrap_err();
    for error in [committed, read] {
        match error {
            BackendError::Record { reason } => {
                assert!(reason.contains("another namespace") && reason.contains(&key), "{reason}");
            }
            other => panic!("{other:?}"),
        }
    }
    namespace.erase().await;
}

#[tokio::test]
async fn a_key_of_another_program_harms_only_its_own_task() {
    let Some(namespace) = Namespace::fresh() else { return };
    let backend = namespace.connect(&namespace.url).await;
    let ids: Vec<TaskId> = (0..5).map(|_| TaskId::fresh()).collect();
    let key = format!("{}:task:{{{}}}", namespace.prefix, ids[2]);
    redis::cmd("SET").arg(key).arg("x").exec_async(&mut namespace.side_door().await).await.unwrap();
    let once = |id: &TaskId, value: &'static [u8]| Commit {
        unless: vec!["name".into()],
        facts: vec![("name".into(), Bytes::from_static(value))],
        ..write(id)
    };
    // Made together, and then one after the other by callers that do not know of each other.
    let early = backend.commit(vec![once(&ids[1], b"early").into()]).await.remove(0).unwrap();
    assert_eq!(early, Committed::Done { count: None });
    let together = backend.commit(ids.iter().map(|id| once(id, b"late").into()).collect()).await;
    let each =
        futures_util::future::join_all(ids.iter().map(|id| backend.commit(vec![once(id, b"last").into()])));
    let each = each.await.into_iter().flatten().collect();
    for (round, outcomes) in [("late", together), ("last", each)] {
        let outcomes: Vec<_> = outcomes;
        assert_eq!(outcomes.len(), ids.len());
        for (at, outcome) in outcomes.into_iter().enumerate() {
            match (at, outcome) {
                (2, Err(BackendError::Record { .. })) => {}
                // What was made before the call ended there was made again in the first round.
                (0, Ok(Committed::Refused(record))) => assert_eq!(record.get("name").unwrap(), "late"),
                (1, Ok(Committed::Refused(record))) => assert_eq!(record.get("name").unwrap(), "early"),
                (3.., Ok(Committed::Done { .. })) if round == "late" => {}
                (3.., Ok(Committed::Refused(record))) if round == "last" => {
                    assert_eq!(record.get("name").unwrap(), "late");
                }
                (at, other) => panic!("{round} {at}: {other:?}"),
            }
        }
    }
    namespace.erase().await;
}

#[tokio::test]
async fn a_diagnosis_finds_a_dead_server() {
    let Some(namespace) = Namespace::fresh() else { return };
    let (proxy, through) = Proxy::before(&namespace.url).await.unwrap();
    let backend = namespace.connect(&through).await;
    assert!(backend.diagnose().await.iter().all(|finding| finding.level < Level::Error));
    proxy.refuse();
    let dead = eventually(BOUND, async || {
        backend.diagnose().await.iter().any(|f| f.level == Level::Error && f.subject == "connection")
    });
    assert!(dead.await);
    namespace.erase().await;
}
