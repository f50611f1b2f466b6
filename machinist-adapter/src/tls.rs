//! Settings of TLS connections to a server: the trusted certificates, and the client's identity.
//!
//! Both network adapters use the same TLS library. Therefore its files are read, its provider is chosen and its errors
//! are explained in this one place. The check of a certificate against the host's name cannot be switched off.

use std::{
    error::Error,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
};

/// Settings of a TLS connection. The default trusts the certificates of the system and presents none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tls {
    ca: Option<Vec<u8>>,
    identity: Option<Identity>,
}

/// A client's certificate and its key, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate, and those between it and its authority.
    pub certificates: Vec<u8>,
    /// Its private key.
    pub key: Vec<u8>,
}

/// Error of a certificate or a key that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// A file does not hold the expected content.
    #[error("{what}")]
    Content {
        /// Description of the problem and of the expected content.
        what: String,
    },
}

impl Tls {
    /// Reads PEM files: `ca` holds the certificates to trust instead of the system's; `identity` names the client's
    /// certificate and its key.
    ///
    /// # Errors
    /// [`TlsError`] names the file and the expected content.
    pub fn read(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let file =
            |path: &Path| read_file(path).map_err(|source| TlsError::Read { path: path.to_owned(), source });
        let mut tls = Self::default();
        if let Some(path) = ca {
            let pem = file(path)?;
            check_roots(&pem).map_err(|what| content_error(path, &what))?;
            tls.ca = Some(pem);
        }
        if let Some((certificates, key)) = identity {
            let pem = Identity { certificates: file(certificates)?, key: file(key)? };
            let chain = chain(&pem.certificates).map_err(|what| content_error(certificates, &what))?;
            let secret = self::key(&pem.key).map_err(|_| {
                content_error(key, "holds no private key in PEM (unencrypted PKCS#8, PKCS#1 or SEC1)")
            })?;
            // Checks that the certificate and the key belong together.
            ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|builder| {
                    builder
                        .with_root_certificates(RootCertStore::empty())
                        .with_client_auth_cert(chain, secret)
                })
                .map_err(|error| {
                    content_error(
                        key,
                        &format!("does not match the certificate in {} ({error})", certificates.display()),
                    )
                })?;
            tls.identity = Some(pem);
        }
        Ok(tls)
    }

    /// Returns the certificates that are trusted instead of the system's, as PEM.
    pub fn ca(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }

    /// Returns the certificate and key that are presented to a server that asks for them.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// Explains an error of TLS between this process and a server, with the remedy, as a predicate to the server's
    /// name. Returns `None` for any other error.
    pub fn explain(&self, error: &(dyn Error + 'static)) -> Option<String> {
        Some(match find_tls_error(error)? {
            rustls::Error::InvalidCertificate(problem) => explain_certificate(problem),
            rustls::Error::AlertReceived(alert) => self.explain_alert(*alert),
            rustls::Error::InvalidMessage(_) => "does not speak TLS on this port".to_owned(),
            other => format!("speaks TLS in an unsupported way ({other})"),
        })
    }

    fn explain_alert(&self, alert: AlertDescription) -> String {
        let presented = self.identity.is_some();
        match alert {
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure if !presented => {
                format!("requires a client certificate, and none is configured; {IDENTITY_REMEDY}")
            }
            AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
                if presented =>
            {
                format!(
                    "does not accept our certificate ({alert:?}): it has expired, or its authority is not trusted \
                     there; {IDENTITY_REMEDY}"
                )
            }
            alert => format!("ended the TLS handshake ({alert:?}); see its log for the reason"),
        }
    }
}

const IDENTITY_REMEDY: &str = "name a certificate issued by its authority with cert_file and key_file under [tls], \
                        MACHINIST_TLS_CERT_FILE and MACHINIST_TLS_KEY_FILE, or --tls-cert-file and --tls-key-file";

/// Never shows a key.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ca, identity } = self;
        f.debug_struct("Tls").field("ca", &ca.is_some()).field("identity", &identity.is_some()).finish()
    }
}

/// Never shows the key.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

/// Parses the certificates in a PEM text, in the form that some libraries need.
///
/// # Errors
/// A description of the problem.
#[doc(hidden)]
pub fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    chain(pem).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
}

/// Parses the private key in a PEM text, in the form that some libraries need.
///
/// # Errors
/// A description of the problem.
#[doc(hidden)]
pub fn key(pem: &[u8]) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Creates a configuration that refuses every certificate, to find out whether a server speaks TLS.
///
/// # Errors
/// The provider lacks something that the library needs.
#[doc(hidden)]
pub fn trusting_nobody() -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// Installs one TLS provider for the whole process, whichever adapter comes first. rustls panics if two providers are
/// compiled in and none is chosen, and if there is none.
pub fn install_provider() {
    // Refused if the application has already chosen a provider: its choice stands.
    let _ = ring::default_provider().install_default();
}

/// Returns `true` if an error comes from TLS itself and not from the network, which means that the server speaks TLS.
pub fn is_spoken(error: &(dyn Error + 'static)) -> bool {
    find_tls_error(error).is_some_and(|error| !matches!(error, rustls::Error::InvalidMessage(_)))
}

/// Reads a file. A pipe would keep its reader waiting.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    if std::fs::metadata(path)?.is_file() {
        return std::fs::read(path);
    }
    Err(io::Error::other("it is not a file"))
}

fn check_roots(pem: &[u8]) -> Result<(), String> {
    let mut store = RootCertStore::empty();
    for certificate in chain(pem)? {
        store
            .add(certificate)
            .map_err(|error| format!("holds a certificate that cannot be used ({error})"))?;
    }
    Ok(())
}

fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("holds no certificate in PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("holds no readable PEM ({error})")),
    }
}

fn content_error(path: &Path, what: &str) -> TlsError {
    TlsError::Content { what: format!("{} {what}", path.display()) }
}

fn explain_certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::UnknownIssuer => {
            "has a certificate from an authority that is not trusted here; name the file with the authority's \
             certificate with ca_file under [tls], MACHINIST_TLS_CA_FILE or --tls-ca-file"
                .to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("has a certificate that expired at {}; have it renewed", format_time(*not_after))
        }
        CertificateError::Expired => "has a certificate that has expired; have it renewed".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("has a certificate that is not valid before {}; check this host's clock", format_time(*not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            // Each has the form `DnsName("localhost")`.
            let names: Vec<&str> =
                presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
            format!(
                "has a certificate for {:?}, and not for {:?}; use a name that it covers in the URL, or have \
                 one issued for this name",
                names.join(", "),
                expected.to_str()
            )
        }
        CertificateError::NotValidForName => {
            "has a certificate for another host name; use the name that it covers in the URL".to_owned()
        }
        other => format!("has a certificate that cannot be accepted ({other})"),
    }
}

fn format_time(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_string())
}

/// Finds the TLS error in a chain of errors. An [`io::Error`] does not list its inner error among its sources, and a
/// shared error is a different type from the error that it shares.
fn find_tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let shared = error.downcast_ref::<Arc<dyn Error + Send + Sync>>().map(|shared| &**shared);
        if let Some(found) =
            inner.or(shared).and_then(|inner| find_tls_error(inner as &(dyn Error + 'static)))
        {
            return Some(found);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tls_error_is_found_inside_other_errors() {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, unknown()));
        let said = Tls::default().explain(&wrapped).unwrap();
        assert!(said.contains("--tls-ca-file"), "{said}");
        assert!(Tls::default().explain(&io::Error::other("not about TLS")).is_none());
        assert!(is_spoken(&wrapped) && !is_spoken(&io::Error::from(io::ErrorKind::TimedOut)));
    }

    #[test]
    fn errors_name_the_file_and_the_expected_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let missing = Tls::read(Some(&path), None).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read ") && missing.ends_with("ca.pem"), "{missing}");
        let folder = Tls::read(Some(dir.path()), None).unwrap_err();
        assert!(folder.source().is_some_and(|why| why.to_string() == "it is not a file"), "{folder:?}");
        std::fs::write(&path, "-----BEGIN NOTHING-----").unwrap();
        let empty = Tls::read(Some(&path), None).unwrap_err().to_string();
        assert!(empty.contains("ca.pem holds no"), "{empty}");
    }
}
