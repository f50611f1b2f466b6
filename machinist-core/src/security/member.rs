//! Members of joins, each signed for its join and its index: write access to the backend alone invents no argument.

use bytes::Bytes;

use super::{
    Trust,
    statement::{Consequence, Statement},
    trust::ended_at,
};
use crate::{
    id::RecordId,
    record::{JoinedMember, json},
};

/// Kind of the statement.
const KIND: &str = "machinist.member";

impl Trust {
    /// Returns the fact by which a task with this end joins, signed for its join and its index. Without a key it is not
    /// signed, as all that is stored.
    pub(crate) fn signed_member(&self, join: &RecordId, index: u32, member: &JoinedMember) -> Bytes {
        let (fact, subject) = (json(member), subject(join, index));
        let statement = Statement { kind: KIND, subject: &subject };
        self.sign_statement(statement, fact.clone()).unwrap_or(fact)
    }

    /// Reads the fact by which a task has joined.
    ///
    /// # Errors
    /// It cannot be read, or no trusted key has signed it for this join and this index.
    pub(crate) fn check_member(
        &self,
        join: &RecordId,
        index: u32,
        fact: &Bytes,
    ) -> Result<JoinedMember, String> {
        let member: JoinedMember = serde_json::from_slice(fact).map_err(|error| error.to_string())?;
        let statement = Statement { kind: KIND, subject: &subject(join, index) };
        self.check_statement(statement, fact, ended_at(member.end.as_bytes())?, Consequence::State)?;
        Ok(member)
    }
}

/// Returns the name of a member as it is signed.
fn subject(join: &RecordId, index: u32) -> String {
    format!("{index} {}", join.id())
}
