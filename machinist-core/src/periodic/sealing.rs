//! Signing, encrypting and believing orders: who can only write to the backend schedules nothing.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;

use super::order::{PeriodicDefinition, PeriodicOrder, PeriodicOutline, StoredCall, TickCall};
use crate::{
    app::App,
    flow::Flow,
    record::json,
    security::{Consequence, Statement},
};

/// Kind of a signed order.
const ORDER: &str = "machinist.periodic";
/// Kind of an encrypted call.
const CALL: &str = "machinist.periodic.call";

/// Returns an order as it is stored: signed, if this application has keys.
///
/// # Errors
/// The reason that it cannot be signed.
pub(super) fn signed_order(app: &App, name: &str, order: &PeriodicOrder) -> Result<Bytes, String> {
    app.0.trust.sign_statement(Statement { kind: ORDER, subject: name }, json(order))
}

/// Reads a stored order, whether it is believed or not.
///
/// # Errors
/// A sentence for an order that this program cannot read.
pub(crate) fn read_order(stored: &Bytes) -> Result<PeriodicOrder, String> {
    serde_json::from_slice(stored).map_err(|error| format!("its order cannot be read: {error}"))
}

/// Reads a stored order, if a trusted key signed it that may send its task. `own` is the definition from a file or from
/// code, which it may be about.
///
/// # Errors
/// The reason against it.
pub(crate) fn trusted_order(
    app: &App,
    name: &str,
    stored: &Bytes,
    own: Option<&PeriodicOutline>,
) -> Result<PeriodicOrder, String> {
    let order = read_order(stored)?;
    let about = order.definition.as_ref().map(|definition| &definition.outline).or(own);
    let consequence =
        about.map_or(Consequence::State, |outline| Consequence::Call(&outline.task, &outline.queue));
    let statement = Statement { kind: ORDER, subject: name };
    app.0.trust.check_statement(statement, stored, order.at, consequence)?;
    Ok(order)
}

/// Checks that the key which signed a believed order may send all steps of its workflow.
///
/// # Errors
/// The step, and the reason against it.
pub(crate) fn check_steps(app: &App, stored: &Bytes, flow: &Flow) -> Result<(), String> {
    flow.check_targets(|task, queue| app.0.trust.check_consequence(stored, Consequence::Call(task, queue)))
}

/// Makes a definition of an outline and a call, which is encrypted where the application encrypts.
pub(super) fn sealed(app: &App, name: &str, outline: PeriodicOutline, call: TickCall) -> PeriodicDefinition {
    let statement = Statement { kind: CALL, subject: name };
    let call = match app.0.trust.encrypt_statement(statement, &json(&call)) {
        Some((key, text)) => StoredCall::Sealed { key, text: BASE64.encode(text) },
        None => StoredCall::Call(Box::new(call)),
    };
    PeriodicDefinition { outline, call }
}

impl PeriodicDefinition {
    /// Returns the call, decrypted where it is encrypted.
    ///
    /// # Errors
    /// The reason that it cannot be decrypted.
    pub(crate) fn open(&self, app: &App, name: &str) -> Result<TickCall, String> {
        match &self.call {
            StoredCall::Call(call) => Ok((**call).clone()),
            StoredCall::Sealed { key, text } => {
                let sealed = BASE64.decode(text).map_err(|error| error.to_string())?;
                let statement = Statement { kind: CALL, subject: name };
                let text = app.0.trust.decrypt_statement(statement, key, &sealed)?;
                serde_json::from_slice(&text).map_err(|error| format!("its call cannot be read: {error}"))
            }
        }
    }
}
