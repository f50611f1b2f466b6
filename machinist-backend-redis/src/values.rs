//! Values of another program in the same kind of server: texts under keys of its choice.
//!
//! They are no records. A caller reads a value, decides, and replaces it if it is still as it was read.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use machinist_adapter::backend::BackendError;
use redis::{Cmd, RedisError, RedisResult, Script, Value};

use crate::{
    RedisBackend,
    batcher::{BatchRequest, Batcher},
    error::{backend_error, is_missing_right, key_error, script_is_unknown, unexpected},
    link::RedisLinks,
};

/// Replaces values that are as expected, or absent. Arguments for each key: what is expected, the value, and its expiry.
///
/// A value that is there already was written by this very call, whose reply was lost: a client of a cluster repeats calls by
/// itself. So that counts as replaced. Answers for each key 1, 0 if it was not replaced, or -1 if it holds something else.
static REPLACE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local done = {}\n\
         for k = 1, #KEYS do\n\
           local key, expected, value = KEYS[k], ARGV[3 * k - 2], ARGV[3 * k - 1]\n\
           local found = redis.pcall('GET', key)\n\
           if type(found) == 'table' then\n\
             done[k] = -1\n\
           elseif found == value or (found or '') == expected then\n\
             redis.call('SET', key, value, 'PX', ARGV[3 * k])\n\
             done[k] = 1\n\
           else\n\
             done[k] = 0\n\
           end\n\
         end\n\
         return done",
    )
});

/// Deletes a value that is as expected.
static DELETE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end\n\
         return 0",
    )
});

/// Values of another program, over the connection of a [`RedisBackend`].
#[derive(Clone)]
pub struct RedisValues {
    links: Arc<RedisLinks>,
    batcher: Arc<Batcher<ValueRequest>>,
}

impl RedisBackend {
    /// Returns the values of the server, which other programs have written.
    pub fn values(&self) -> RedisValues {
        RedisValues { links: self.links(), batcher: Arc::new(Batcher::new(self.links())) }
    }
}

/// A request about one value, of those that every task of the other program makes.
#[derive(Debug)]
enum ValueRequest {
    Read { key: String },
    Replace { key: String, found: Bytes, value: Bytes, expiry: u64 },
}

/// Answer to such a request.
#[derive(Debug)]
enum ValueAnswer {
    Read(Option<Bytes>),
    Replaced(bool),
}

impl BatchRequest for ValueRequest {
    type Answer = ValueAnswer;

    fn size(&self) -> usize {
        match self {
            Self::Read { key } => key.len(),
            Self::Replace { key, found, value, .. } => key.len() + found.len() + value.len(),
        }
    }

    async fn make(links: &RedisLinks, requests: Vec<Self>) -> Vec<Result<ValueAnswer, BackendError>> {
        let replaced: Vec<&Self> =
            requests.iter().filter(|request| matches!(request, Self::Replace { .. })).collect();
        let read = |request: &Self| match request {
            Self::Read { key } => Some(get(key)),
            Self::Replace { .. } => None,
        };
        let mut cmds: Vec<Cmd> = requests.iter().filter_map(read).collect();
        if !replaced.is_empty() {
            cmds.push(replace(&replaced));
        }
        let mut found = match links.try_all(cmds).await {
            Ok(answers) => answers,
            Err(error) => return requests.iter().map(|_| Err(backend_error(&error))).collect(),
        };
        let mut done = Ok(Vec::new());
        if !replaced.is_empty() {
            done = replacements(links, &replaced, found.pop()).await;
        }
        let (mut found, mut at) = (found.into_iter(), 0..);
        let mut answers = Vec::with_capacity(requests.len());
        for request in &requests {
            answers.push(match request {
                Self::Read { key } => match found.next() {
                    Some(found) => read_answer(found, key).map(ValueAnswer::Read),
                    None => Err(unexpected("a value", &Value::Nil)),
                },
                Self::Replace { key, .. } => match (&done, at.next()) {
                    (Err(error), _) => Err(key_error(error, key)),
                    (Ok(done), Some(at)) if matches!(done.get(at), Some(Value::Int(0 | 1))) => {
                        Ok(ValueAnswer::Replaced(done[at] == Value::Int(1)))
                    }
                    // Alone, for its own error.
                    _ => Box::pin(replace_alone(links, request, key)).await.map(ValueAnswer::Replaced),
                },
            });
        }
        answers
    }
}

/// Returns the answers to replacements that were made together; none if each has to be made alone.
///
/// # Errors
/// What is wrong with all of them.
async fn replacements(
    links: &RedisLinks,
    replaced: &[&ValueRequest],
    answer: Option<RedisResult<Value>>,
) -> RedisResult<Vec<Value>> {
    let mut answer = answer.unwrap_or(Ok(Value::Nil));
    if answer.as_ref().is_err_and(script_is_unknown) {
        links.load([&REPLACE]).await?;
        answer = links.try_one(replace(replaced)).await;
    }
    match answer {
        Ok(Value::Array(done)) if done.len() == replaced.len() => Ok(done),
        Ok(_) => Ok(Vec::new()),
        // The user may lack a right to one of the keys only, or somebody empties the script cache all the time.
        Err(error) if is_missing_right(&error) || script_is_unknown(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn get(key: &str) -> Cmd {
    let mut get = redis::cmd("GET");
    get.arg(key);
    get
}

/// Returns the call that replaces values; other requests count for nothing.
fn replace(requests: &[&ValueRequest]) -> Cmd {
    let parts = requests.iter().filter_map(|request| match request {
        ValueRequest::Replace { key, found, value, expiry } => Some((key, found, value, expiry)),
        ValueRequest::Read { .. } => None,
    });
    let mut cmd = redis::cmd("EVALSHA");
    cmd.arg(REPLACE.get_hash()).arg(requests.len());
    for (key, ..) in parts.clone() {
        cmd.arg(key);
    }
    for (_, found, value, expiry) in parts {
        cmd.arg(&found[..]).arg(&value[..]).arg(*expiry);
    }
    cmd
}

/// Replaces one value.
async fn replace_alone(links: &RedisLinks, request: &ValueRequest, key: &str) -> Result<bool, BackendError> {
    let answer = call(links, &REPLACE, replace(&[request]), key).await?;
    match &answer {
        Value::Array(done) if matches!(done[..], [Value::Int(0 | 1)]) => Ok(done[0] == Value::Int(1)),
        // The server says best what it holds.
        Value::Array(done) if matches!(done[..], [Value::Int(-1)]) => {
            read_answer(links.try_one(get(key)).await, key)?;
            Err(unexpected("a number", &answer))
        }
        other => Err(unexpected("a number", other)),
    }
}

fn read_answer(answer: RedisResult<Value>, key: &str) -> Result<Option<Bytes>, BackendError> {
    match answer.map_err(|error| key_error(&error, key))? {
        Value::Nil => Ok(None),
        Value::BulkString(value) => Ok(Some(value.into())),
        Value::SimpleString(value) => Ok(Some(value.into())),
        other => Err(unexpected("a value", &other)),
    }
}

/// Calls a script about one key.
async fn call(links: &RedisLinks, script: &Script, cmd: Cmd, key: &str) -> Result<Value, BackendError> {
    let failed = |error: RedisError| key_error(&error, key);
    let mut answer = links.try_one(cmd.clone()).await;
    // Twice, because somebody may empty the script cache between loading and calling.
    for _ in 0..2 {
        if !answer.as_ref().is_err_and(script_is_unknown) {
            break;
        }
        links.load([script]).await.map_err(failed)?;
        answer = links.try_one(cmd.clone()).await;
    }
    answer.map_err(failed)
}

impl RedisValues {
    /// Reads values; `None` where there is none.
    ///
    /// # Errors
    /// [`BackendError::Record`] if a key holds something else than a text.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn read(&self, keys: &[&str]) -> Result<Vec<Option<Bytes>>, BackendError> {
        try_join_all(keys.iter().map(|key| self.read_one(key))).await
    }

    async fn read_one(&self, key: &str) -> Result<Option<Bytes>, BackendError> {
        if !self.links.can_batch() {
            return read_answer(self.links.try_one(get(key)).await, key);
        }
        match self.batcher.make(ValueRequest::Read { key: key.to_owned() }).await? {
            ValueAnswer::Read(found) => Ok(found),
            ValueAnswer::Replaced(_) => Err(unexpected("a value", &Value::Nil)),
        }
    }

    /// Writes a value, in place of anything.
    ///
    /// # Errors
    /// [`BackendError`] of the server.
    ///
    /// # Cancel safety
    /// A dropped future leaves the value written or not.
    pub async fn write(&self, key: &str, value: &[u8], expiry: Duration) -> Result<(), BackendError> {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(value).arg("PX").arg(millis(expiry));
        self.links.try_one(set).await.map(drop).map_err(|error| key_error(&error, key))
    }

    /// Writes a value if there is this one, or none. Returns `true` if it was written, or was there already: a repetition
    /// whose first reply was lost succeeds.
    ///
    /// # Errors
    /// [`BackendError::Record`] if the key holds something else than a text.
    ///
    /// # Cancel safety
    /// A dropped future leaves the value written or not.
    pub async fn replace(
        &self,
        key: &str,
        found: Option<&[u8]>,
        value: &[u8],
        expiry: Duration,
    ) -> Result<bool, BackendError> {
        let copy = Bytes::copy_from_slice;
        let (found, value) = (copy(found.unwrap_or_default()), copy(value));
        let request = ValueRequest::Replace { key: key.to_owned(), found, value, expiry: millis(expiry) };
        if !self.links.can_batch() {
            return replace_alone(&self.links, &request, key).await;
        }
        match self.batcher.make(request).await? {
            ValueAnswer::Replaced(replaced) => Ok(replaced),
            ValueAnswer::Read(_) => Err(unexpected("a number", &Value::Nil)),
        }
    }

    /// Writes a value if there is none. Returns `true` if it was written.
    ///
    /// # Errors
    /// [`BackendError`] of the server.
    ///
    /// # Cancel safety
    /// A dropped future leaves the value written or not.
    pub async fn write_absent(
        &self,
        key: &str,
        value: &[u8],
        expiry: Duration,
    ) -> Result<bool, BackendError> {
        let mut set = redis::cmd("SET");
        set.arg(key).arg(value).arg("NX").arg("PX").arg(millis(expiry));
        let answer = self.links.try_one(set).await.map_err(|error| key_error(&error, key))?;
        Ok(answer != Value::Nil)
    }

    /// Writes values for which there is none yet: key, value and expiry of each.
    ///
    /// # Errors
    /// [`BackendError`] of the server.
    ///
    /// # Cancel safety
    /// A dropped future leaves each value written or not.
    pub async fn write_all_absent(
        &self,
        values: Vec<(String, String, Duration)>,
    ) -> Result<(), BackendError> {
        let write = |(key, value, expiry): &(String, String, Duration)| {
            let (key, value, expiry) = (key.clone(), value.clone(), *expiry);
            async move { self.write_absent(&key, value.as_bytes(), expiry).await }
        };
        try_join_all(values.iter().map(write)).await.map(drop)
    }

    /// Deletes a value if it is this one. Returns `true` if it was deleted.
    ///
    /// # Errors
    /// [`BackendError`] of the server.
    ///
    /// # Cancel safety
    /// A dropped future leaves the value deleted or not.
    pub async fn delete(&self, key: &str, found: &[u8]) -> Result<bool, BackendError> {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(DELETE.get_hash()).arg(1).arg(key).arg(found);
        match call(&self.links, &DELETE, cmd, key).await? {
            Value::Int(deleted) => Ok(deleted == 1),
            other => Err(unexpected("a number", &other)),
        }
    }
}

fn millis(expiry: Duration) -> u64 {
    u64::try_from(expiry.as_millis()).unwrap_or(u64::MAX).max(1)
}

impl fmt::Debug for RedisValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisValues").finish_non_exhaustive()
    }
}
