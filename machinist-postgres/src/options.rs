//! Options of a store beyond its URL.

use machinist_adapter::tls::Tls;

/// Treatment of a schema that is missing or old.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SchemaMode {
    /// Creates it, or brings it to the version of this program.
    #[default]
    Declare,
    /// Refuses it: for users who may not create tables.
    Verify,
}

/// Options of a store beyond its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresOptions {
    /// Name of the schema, unless the URL names one with `?schema=`. Default: `machinist`.
    pub namespace: String,
    /// Treatment of a schema that is missing or old. Default: it is created.
    pub schema_mode: SchemaMode,
    /// Certificates of TLS connections: the trusted ones and the client's. Default: the system's, and none.
    pub tls: Tls,
}

impl Default for PostgresOptions {
    fn default() -> Self {
        Self { namespace: "machinist".to_owned(), schema_mode: SchemaMode::Declare, tls: Tls::default() }
    }
}
