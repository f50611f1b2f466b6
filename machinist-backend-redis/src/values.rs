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
use redis::{RedisError, Script, Value};

use crate::{
    RedisBackend,
    error::{key_error, script_is_unknown, unexpected},
    link::RedisLinks,
};

/// Replaces a value that is as expected, or absent.
static REPLACE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found = redis.call('GET', KEYS[1])\n\
         if ARGV[1] == '' and found or ARGV[1] ~= '' and found ~= ARGV[1] then return 0 end\n\
         redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])\n\
         return 1",
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
pub struct RedisValues(Arc<RedisLinks>);

impl RedisBackend {
    /// Returns the values of the server, which other programs have written.
    pub fn values(&self) -> RedisValues {
        RedisValues(self.links())
    }
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
        let mut get = redis::cmd("GET");
        get.arg(key);
        match self.0.try_one(get).await.map_err(|error| key_error(&error, key))? {
            Value::Nil => Ok(None),
            Value::BulkString(value) => Ok(Some(value.into())),
            Value::SimpleString(value) => Ok(Some(value.into())),
            other => Err(unexpected("a value", &other)),
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
        self.0.try_one(set).await.map(drop).map_err(|error| key_error(&error, key))
    }

    /// Writes a value if there is this one, or none. Returns `true` if it was written.
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
        let expiry = millis(expiry).to_string();
        self.call(&REPLACE, key, &[found.unwrap_or_default(), value, expiry.as_bytes()]).await
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
        let answer = self.0.try_one(set).await.map_err(|error| key_error(&error, key))?;
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
        self.call(&DELETE, key, &[found]).await
    }

    async fn call(&self, script: &Script, key: &str, args: &[&[u8]]) -> Result<bool, BackendError> {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(script.get_hash()).arg(1).arg(key);
        args.iter().for_each(|arg| {
            cmd.arg(*arg);
        });
        let failed = |error: RedisError| key_error(&error, key);
        let mut answer = self.0.try_one(cmd.clone()).await;
        // Twice, because somebody may empty the script cache between loading and calling.
        for _ in 0..2 {
            if !answer.as_ref().is_err_and(script_is_unknown) {
                break;
            }
            self.0.load([script]).await.map_err(failed)?;
            answer = self.0.try_one(cmd.clone()).await;
        }
        match answer.map_err(failed)? {
            Value::Int(changed) => Ok(changed == 1),
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
