//! Bodies as JSON. `serde_json` itself bounds the nesting (128 levels).

use bytes::Bytes;

use crate::{error::BoxError, wire::body::Body};

pub(super) fn encode(body: &Body) -> Result<Bytes, BoxError> {
    Ok(serde_json::to_vec(body)?.into())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Body, BoxError> {
    Ok(serde_json::from_slice(bytes)?)
}
