//! The installation for which something is signed.
//!
//! One key may serve several installations: two namespaces on one server, or two vhosts. Without this, a message that
//! was captured in one of them would run again in the other, whose records do not know it.

/// Namespace of an application and realm of its broker. Both are under every signature and in no message: each side
/// knows its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SigningScope {
    pub(crate) namespace: String,
    pub(crate) realm: String,
}

impl SigningScope {
    /// Describes the scope to a person whose signature does not fit.
    pub(crate) fn doubt(&self) -> String {
        let Self { namespace, realm } = self;
        format!(
            "it was changed, or signed for another namespace than {namespace:?} or another vhost than {realm:?}"
        )
    }
}
