//! Bodies as MessagePack with named fields, so that a reader in another language finds them by name.

use bytes::Bytes;
use serde::Deserialize;

use super::super::sizes::MAX_DEPTH;
use crate::{error::BoxError, wire::body::Body};

pub(super) fn encode(body: &Body) -> Result<Bytes, BoxError> {
    Ok(rmp_serde::to_vec_named(body)?.into())
}

pub(super) fn decode(bytes: &[u8]) -> Result<Body, BoxError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    deserializer.set_max_depth(MAX_DEPTH);
    let body = Body::deserialize(&mut deserializer)?;
    Ok(body)
}
