//! What follows a task, by records that are missing, overwritten or contradictory, on a real Redis without a broker.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use machinist::{
    Followed, Mirror, MirroredOutcome, MirroredTask, MirroredTick,
    broker::Message,
    redis::{RedisBackend, RedisOptions},
};
use machinist_conformance::{eventually, service_url};
use machinist_core::{
    Arg,
    backend::BackendError,
    clock::{Timestamp, wall},
};
use machinist_machinery::MachineryMirror;
use redis::{AsyncCommands, aio::MultiplexedConnection};
use serde_json::{Value, json};

use crate::{
    fleet::int,
    go::{fresh, group_record, signature, state_record},
};

/// Key of the lock under which chords are triggered.
const CHORD_LOCK: &str = "TriggerChordMutex";
/// Time after which nobody comes any more who has not come.
const MOMENT: Duration = Duration::from_millis(300);
/// Maximum time for which another test holds the lock.
const LOCKED: Duration = Duration::from_secs(60);

/// A chord of three members. The first one ends here, with the result 1; the others have the results 2 and 3.
struct Chord {
    mirror: MachineryMirror,
    redis: MultiplexedConnection,
    group: String,
    members: Vec<String>,
    callback: String,
}

impl Chord {
    /// `None` without a test server.
    async fn new() -> Option<Self> {
        let url = service_url("MACHINIST_TEST_REDIS_URL")?;
        let backend = RedisBackend::connect(&url, RedisOptions::default()).await.unwrap();
        let mirror = MachineryMirror::new(backend.values(), "key").queue("key", "queue".try_into().unwrap());
        let patient = redis::AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let client = redis::Client::open(url).unwrap();
        let redis = client.get_multiplexed_async_connection_with_config(&patient).await.unwrap();
        let members = (0..3).map(|_| fresh("task")).collect();
        Some(Self { mirror, redis, group: fresh("group"), members, callback: fresh("chord") })
    }

    /// The same connections, and another chord.
    fn another(&self) -> Self {
        let members = (0..3).map(|_| fresh("task")).collect();
        let (mirror, redis) = (self.mirror.clone(), self.redis.clone());
        Self { mirror, redis, group: fresh("group"), members, callback: fresh("chord") }
    }

    /// Writes a value; `list` and `text` are none that Go writes.
    async fn put(&self, key: &str, value: &str, record: &Value) {
        let mut redis = self.redis.clone();
        let _: () = redis.del(key).await.unwrap();
        let _: () = match value {
            "gone" => return,
            "list" => redis.lpush(key, "x").await.unwrap(),
            "text" => redis.set(key, "x").await.unwrap(),
            _ => redis.set(key, record.to_string()).await.unwrap(),
        };
        let _: () = redis.expire(key, 600).await.unwrap();
    }

    /// Writes the state of a member.
    async fn member(&self, at: usize, state: &str) {
        let results =
            if state == "SUCCESS" { json!([{"Type": "int64", "Value": at + 1}]) } else { Value::Null };
        let record =
            state_record(&self.members[at], "add", state, &results, "", &json!("2026-11-20T23:37:14.5Z"));
        self.put(&self.members[at], state, &record).await;
    }

    /// Writes the record of the group: `new`, or triggered by `ours`, by ours `since` all else was published, or by `theirs`.
    async fn meta(&self, meta: &str) {
        let mut record = group_record(&self.group, &self.members, "2026-11-20T23:37:13.465526106Z");
        record["ChordTriggered"] = json!(meta != "new");
        if meta == "ours" || meta == "since" {
            record["TriggeredBy"] = self.members[0].as_str().into();
        }
        if meta == "since" {
            record["TriggeredSince"] = true.into();
        }
        self.put(&self.group, meta, &record).await;
    }

    /// The first member, as a worker of ours has it.
    fn task(&self, count: i64) -> MirroredTask {
        let mut callback = signature("add", &[int(100)]);
        callback["UUID"] = self.callback.as_str().into();
        let mut member = signature("add", &[]);
        member["UUID"] = self.members[0].as_str().into();
        member["GroupUUID"] = self.group.as_str().into();
        member["GroupTaskCount"] = count.into();
        member["ChordCallback"] = callback;
        let message = Arc::new(Message { body: member.to_string().into(), ..Message::default() });
        let id = self.members[0].as_str().try_into().unwrap();
        MirroredTask::new(id, "add".try_into().unwrap(), message, wall())
    }

    /// Ends the first member. Returns the arguments of the callbacks that follow, or `None` if that is not known yet.
    async fn follow(&self, count: i64) -> Option<Vec<Value>> {
        self.ask(&self.task(count)).await
    }

    /// Asks what follows the first member.
    async fn ask(&self, task: &MirroredTask) -> Option<Vec<Value>> {
        let mut result = Arg::from_value(json!(1));
        result.kind = "int64".to_owned();
        let results = [result];
        let outcome = MirroredOutcome::Success(&results);
        let follow = async || match task.followed {
            true => self.mirror.owed_since(task, outcome).await,
            false => self.mirror.follow(task, outcome).await,
        };
        let follow = async || match follow().await {
            // Another test holds the lock for longer than the mirror waits. A worker asks again, too.
            Err(BackendError::Unavailable(_)) => None,
            answer => Some(answer.unwrap()),
        };
        let mut answer = None;
        assert!(
            eventually(LOCKED, async || {
                answer = follow().await;
                answer.is_some()
            })
            .await,
            "the lock is free"
        );
        let Some(Followed::Owes(owed)) = answer else { return None };
        let args = |message: &Message| {
            let body: Value = serde_json::from_slice(&message.body).unwrap();
            assert_eq!(body["UUID"], self.callback);
            body["Args"].as_array().unwrap().iter().map(|arg| arg["Value"].clone()).collect()
        };
        Some(owed.iter().map(|owed| args(&owed.message)).collect())
    }

    async fn is_triggered(&self) -> bool {
        let meta: Option<String> = self.redis.clone().get(&self.group).await.unwrap();
        let meta = meta.and_then(|meta| serde_json::from_str::<Value>(&meta).ok());
        meta.is_some_and(|meta| meta["ChordTriggered"] == true)
    }
}

#[tokio::test]
async fn a_chord_follows_the_success_of_every_member_and_nothing_else() {
    let Some(first) = Chord::new().await else { return };
    let all = [json!([100, 1, 2, 3])];
    let (all, none): (&[Value], &[Value]) = (&all, &[]);
    for (why, meta, members, count, follows, triggered) in [
        ("all have succeeded", "new", ["STARTED", "SUCCESS", "SUCCESS"], 3, all, Some(true)),
        ("the first record was overwritten", "new", ["list", "SUCCESS", "SUCCESS"], 3, all, Some(true)),
        ("ours owes it", "ours", ["SUCCESS", "SUCCESS", "SUCCESS"], 3, all, Some(true)),
        ("one has not ended", "new", ["STARTED", "SUCCESS", "PENDING"], 3, none, Some(false)),
        ("one has failed", "new", ["STARTED", "SUCCESS", "FAILURE"], 3, none, Some(true)),
        ("the count is too small", "new", ["STARTED", "SUCCESS", "PENDING"], 2, none, Some(false)),
        ("the count is too small in the end", "new", ["STARTED", "SUCCESS", "SUCCESS"], 2, none, Some(false)),
        ("the count is too large", "new", ["STARTED", "SUCCESS", "SUCCESS"], 4, none, Some(false)),
        ("Go has triggered it", "theirs", ["STARTED", "SUCCESS", "SUCCESS"], 3, none, Some(true)),
        ("the group has expired", "gone", ["STARTED", "SUCCESS", "SUCCESS"], 3, none, None),
        ("the group was overwritten", "text", ["STARTED", "SUCCESS", "SUCCESS"], 3, none, None),
        ("the group is a list", "list", ["STARTED", "SUCCESS", "SUCCESS"], 3, none, None),
        ("a member has expired", "new", ["STARTED", "SUCCESS", "gone"], 3, none, Some(false)),
        ("a member was overwritten", "new", ["STARTED", "text", "SUCCESS"], 3, none, Some(false)),
        ("a member is a list", "new", ["STARTED", "SUCCESS", "list"], 3, none, Some(false)),
        ("a member of a debt is a list", "ours", ["SUCCESS", "SUCCESS", "list"], 3, none, Some(true)),
        ("a member of a debt has failed", "ours", ["SUCCESS", "FAILURE", "STARTED"], 3, none, Some(true)),
    ] {
        let chord = first.another();
        chord.meta(meta).await;
        for (at, state) in members.into_iter().enumerate() {
            chord.member(at, state).await;
        }
        assert_eq!(chord.follow(count).await.as_deref(), Some(follows), "{why}");
        if let Some(triggered) = triggered {
            assert_eq!(chord.is_triggered().await, triggered, "{why}");
        }
        let own: String = chord.redis.clone().get(&chord.members[0]).await.unwrap();
        assert!(own.contains("SUCCESS"), "{why}: {own}");
    }
}

#[tokio::test]
async fn a_member_that_comes_again_owes_the_chord_that_nobody_else_has_triggered() {
    let Some(first) = Chord::new().await else { return };
    let all = [json!([100, 1, 2, 3])];
    let (all, none): (&[Value], &[Value]) = (&all, &[]);
    for (why, meta, members, follows, triggered) in [
        ("the others have ended since", "new", ["SUCCESS", "SUCCESS", "SUCCESS"], all, true),
        ("a worker died between flag and message", "since", ["SUCCESS", "SUCCESS", "SUCCESS"], all, true),
        ("its callback was published before", "ours", ["SUCCESS", "SUCCESS", "SUCCESS"], none, true),
        ("Go has triggered it", "theirs", ["SUCCESS", "SUCCESS", "SUCCESS"], none, true),
        ("one has not ended", "new", ["SUCCESS", "STARTED", "SUCCESS"], none, false),
        ("one has failed", "new", ["SUCCESS", "FAILURE", "SUCCESS"], none, true),
    ] {
        let chord = first.another();
        chord.meta(meta).await;
        for (at, state) in members.into_iter().enumerate() {
            chord.member(at, state).await;
        }
        let mut task = chord.task(3);
        (task.followed, task.repeated) = (true, true);
        assert_eq!(chord.ask(&task).await.as_deref(), Some(follows), "{why}");
        assert_eq!(chord.is_triggered().await, triggered, "{why}");
    }
    // Before the flag is set, the debt is in a guard.
    let chord = first.another();
    chord.meta("new").await;
    for at in 0..3 {
        chord.member(at, "SUCCESS").await;
    }
    let mut task = chord.task(3);
    (task.followed, task.guarded) = (true, false);
    let answer = chord.mirror.owed_since(&task, MirroredOutcome::Success(&[])).await.unwrap();
    assert_eq!((answer, chord.is_triggered().await), (Followed::NeedsGuard, false));
    let failure = chord.mirror.owed_since(&task, MirroredOutcome::Failure("boom")).await.unwrap();
    assert_eq!(failure, Followed::Owes(Vec::new()));
}

#[tokio::test]
async fn locks_that_are_no_texts_stop_nothing() {
    let Some(chord) = Chord::new().await else { return };
    chord.meta("new").await;
    for (at, state) in ["STARTED", "SUCCESS", "SUCCESS"].into_iter().enumerate() {
        chord.member(at, state).await;
    }
    let mut redis = chord.redis.clone();
    // Only while no other test has the lock.
    let put = redis::Script::new(
        "if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end \
         redis.call('LPUSH', KEYS[1], 'x') redis.call('PEXPIRE', KEYS[1], 60000) return 1",
    );
    let is_put = async |redis: &mut MultiplexedConnection, key: &str| {
        put.key(key).invoke_async::<i64>(redis).await.unwrap() == 1
    };
    assert!(eventually(LOCKED, async || is_put(&mut redis, CHORD_LOCK).await).await);
    let followed = tokio::time::timeout(LOCKED, chord.follow(3)).await;
    let _: () = redis.del(CHORD_LOCK).await.unwrap();
    assert_eq!(followed.unwrap(), Some(vec![json!([100, 1, 2, 3])]));

    let program = fresh("program");
    let mirror = chord.mirror.clone().program(&*program);
    let second = |n: i64| Timestamp::from_micros(n * 1_000_000);
    let mut tick = MirroredTick::new("report", "* * * * *", second(60), second(120));
    assert!(is_put(&mut redis, &format!("machinery_lock_{program}report* * * * *")).await);
    assert!(!mirror.take_tick(&tick).await.unwrap(), "nobody can take it, and the next ones do not wait");
    tick.name = "other";
    assert!(mirror.take_tick(&tick).await.unwrap());
}

#[tokio::test]
async fn a_callback_that_is_owed_waits_for_a_member_that_runs_again() {
    let Some(chord) = Chord::new().await else { return };
    chord.meta("ours").await;
    for (at, state) in ["SUCCESS", "SUCCESS", "STARTED"].into_iter().enumerate() {
        chord.member(at, state).await;
    }
    assert_eq!(chord.follow(3).await, None, "a worker of Go has the message of the third");
    chord.member(2, "SUCCESS").await;
    assert_eq!(chord.follow(3).await, Some(vec![json!([100, 1, 2, 3])]));
}

#[tokio::test]
async fn a_chord_is_triggered_under_the_lock_of_go() {
    let Some(chord) = Chord::new().await else { return };
    let (token, mut redis) = (fresh("lock"), chord.redis.clone());
    let set = redis::Script::new("return redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', 600000)");
    let release = redis::Script::new(
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0",
    );
    for somebody_is_faster in [false, true] {
        let chord = chord.another();
        chord.meta("new").await;
        for (at, state) in ["STARTED", "SUCCESS", "SUCCESS"].into_iter().enumerate() {
            chord.member(at, state).await;
        }
        // Others have it for milliseconds.
        let is_taken = async || {
            let answer: Option<String> =
                set.key(CHORD_LOCK).arg(&token).invoke_async(&mut redis).await.unwrap();
            answer.is_some()
        };
        assert!(eventually(LOCKED, is_taken).await, "the lock is free");
        let mut following = Box::pin(chord.follow(3));
        let early = tokio::time::timeout(MOMENT, &mut following).await;
        assert!(early.is_err() && !chord.is_triggered().await, "{early:?}");
        if somebody_is_faster {
            chord.meta("theirs").await;
        }
        let released: i64 = release.key(CHORD_LOCK).arg(&token).invoke_async(&mut redis).await.unwrap();
        assert_eq!(released, 1);
        let callbacks = if somebody_is_faster { vec![] } else { vec![json!([100, 1, 2, 3])] };
        assert_eq!(following.await, Some(callbacks));
        assert!(chord.is_triggered().await);
    }
}

#[tokio::test]
async fn a_retry_is_shown_before_the_task_waits_again() {
    let Some(chord) = Chord::new().await else { return };
    chord.member(0, "STARTED").await;
    let id = chord.members[0].as_str();
    let client = redis::Client::open(service_url("MACHINIST_TEST_REDIS_URL").unwrap()).unwrap();
    let lines = client.get_async_monitor().await.unwrap().into_on_message::<String>();
    let task = id.try_into().unwrap();
    let message = Arc::new(Message { body: signature("add", &[]).to_string().into(), ..Message::default() });
    let task = MirroredTask::new(task, "add".try_into().unwrap(), message, wall());
    let followed = chord.mirror.follow(&task, MirroredOutcome::Retry).await.unwrap();
    assert_eq!(followed, Followed::Owes(Vec::new()));
    let left: i64 = chord.redis.clone().pttl(id).await.unwrap();
    assert!((3_000_000..=3_600_000).contains(&left), "{left}");
    let states = lines.filter_map(|line| {
        // What a script writes.
        let of_task = line.contains(" lua] \"SET\"") && line.contains(id);
        let state = ["RETRY", "PENDING"].into_iter().find(|state| line.contains(state));
        std::future::ready(state.filter(|_| of_task))
    });
    let states: Vec<_> =
        tokio::time::timeout(Duration::from_secs(60), states.take(2).collect()).await.unwrap();
    assert_eq!(states, ["RETRY", "PENDING"]);
}
