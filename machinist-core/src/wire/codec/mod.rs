//! Codecs, which turn the body of a message into bytes and back.
//!
//! The content type of a message names its codec. Both codecs are always accepted; one is used for writing.

mod json;
mod message_pack;

use bytes::Bytes;

use crate::{error::BoxError, wire::body::Body};

/// Format in which bodies are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Codec {
    /// `application/msgpack`: compact and fast, with named fields.
    #[default]
    MessagePack,
    /// `application/json`: readable in every management console.
    Json,
}

impl Codec {
    /// Returns the media type that names the codec.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::MessagePack => "application/msgpack",
            Self::Json => "application/json",
        }
    }

    /// Returns the codec that a content type names.
    pub fn of(content_type: &str) -> Option<Self> {
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        [Self::MessagePack, Self::Json].into_iter().find(|c| c.content_type().eq_ignore_ascii_case(essence))
    }

    pub(crate) fn encode(self, body: &Body) -> Result<Bytes, BoxError> {
        match self {
            Self::MessagePack => message_pack::encode(body),
            Self::Json => json::encode(body),
        }
    }

    pub(crate) fn decode(self, bytes: &[u8]) -> Result<Body, BoxError> {
        match self {
            Self::MessagePack => message_pack::decode(bytes),
            Self::Json => json::decode(bytes),
        }
    }
}
