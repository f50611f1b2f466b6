//! What TLS to a server is told: whose certificates are trusted, and who we are.
//!
//! Both network adapters speak TLS by the same library, so its files are read, its provider is chosen and its errors
//! are put into words here, once. That a certificate is checked against the host's name cannot be switched off.

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

/// How TLS is spoken. The default trusts the certificates of the system and shows none.
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

/// Why a certificate or a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// What was given is not what it should be.
    #[error("{what}")]
    Content {
        /// What is wrong, and what was expected.
        what: String,
    },
}

impl Tls {
    /// Reads PEM files: `ca` the certificates that are trusted, in place of the system's; `identity` a client's
    /// certificate and its key.
    ///
    /// # Errors
    /// [`TlsError`] names the file, and what was expected in it.
    pub fn read(ca: Option<&Path>, identity: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let file = |path: &Path| {
            std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
        };
        let mut tls = Self::default();
        if let Some(path) = ca {
            let pem = file(path)?;
            roots(&pem).map_err(|what| wrong(path, &what))?;
            tls.ca = Some(pem);
        }
        if let Some((certificates, key)) = identity {
            let pem = Identity { certificates: file(certificates)?, key: file(key)? };
            let chain = chain(&pem.certificates).map_err(|what| wrong(certificates, &what))?;
            let secret = self::key(&pem.key).map_err(|_| {
                wrong(key, "holds no private key in PEM (unencrypted PKCS#8, PKCS#1 or SEC1)")
            })?;
            // Finds out whether the two belong together.
            ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                .with_safe_default_protocol_versions()
                .and_then(|builder| {
                    builder
                        .with_root_certificates(RootCertStore::empty())
                        .with_client_auth_cert(chain, secret)
                })
                .map_err(|error| {
                    wrong(
                        key,
                        &format!("does not fit the certificate in {} ({error})", certificates.display()),
                    )
                })?;
            tls.identity = Some(pem);
        }
        Ok(tls)
    }

    /// The certificates that are trusted in place of the system's, as PEM.
    pub fn ca(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }

    /// What we show to a server that asks who we are.
    pub fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// What is wrong between a server and us, with the remedy, where an error is one of TLS: a predicate to the
    /// server's name.
    pub fn explain(&self, error: &(dyn Error + 'static)) -> Option<String> {
        Some(match cause(error)? {
            rustls::Error::InvalidCertificate(problem) => of_certificate(problem),
            rustls::Error::AlertReceived(alert) => self.of_alert(*alert),
            rustls::Error::InvalidMessage(_) => "does not speak TLS on this port".to_owned(),
            other => format!("speaks TLS in a way that cannot be used ({other})"),
        })
    }

    fn of_alert(&self, alert: AlertDescription) -> String {
        let given = self.identity.is_some();
        match alert {
            AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure if !given => {
                format!("lets nobody in without a certificate, and none is configured; {IDENTITY_TYPE}")
            }
            AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
                if given =>
            {
                format!(
                    "does not accept our certificate ({alert:?}): it has expired, or its authority is not trusted \
                     there; {IDENTITY_TYPE}"
                )
            }
            alert => format!("ended the TLS handshake ({alert:?}); its log tells why"),
        }
    }
}

const IDENTITY_TYPE: &str = "name one that its authority has issued by cert_file and key_file under [tls], \
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

/// The certificates in a PEM text, for a library that wants them so.
///
/// # Errors
/// What is wrong with the text.
#[doc(hidden)]
pub fn certificates(pem: &[u8]) -> io::Result<Vec<CertificateDer<'static>>> {
    chain(pem).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))
}

/// The private key in a PEM text, for a library that wants it so.
///
/// # Errors
/// What is wrong with the text.
#[doc(hidden)]
pub fn key(pem: &[u8]) -> io::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// For finding out whether somebody speaks TLS: every certificate is refused.
///
/// # Errors
/// The provider lacks what the library needs.
#[doc(hidden)]
pub fn trusting_nobody() -> io::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// One TLS provider for the whole process, whichever adapter comes first: rustls panics where it finds two compiled
/// in and none chosen, and where it finds none.
pub fn install_provider() {
    // Refused where the application has chosen one already: its choice stands.
    let _ = ring::default_provider().install_default();
}

/// Whether an error comes from TLS itself and not from the network: whatever answered speaks it.
pub fn is_spoken(error: &(dyn Error + 'static)) -> bool {
    cause(error).is_some_and(|error| !matches!(error, rustls::Error::InvalidMessage(_)))
}

fn roots(pem: &[u8]) -> Result<(), String> {
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

fn wrong(path: &Path, what: &str) -> TlsError {
    TlsError::Content { what: format!("{} {what}", path.display()) }
}

fn of_certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::UnknownIssuer => {
            "has a certificate from an authority that is not trusted here; name the file with the authority's \
             certificate by ca_file under [tls], MACHINIST_TLS_CA_FILE or --tls-ca-file"
                .to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("has a certificate that expired at {}; have it renewed", moment(*not_after))
        }
        CertificateError::Expired => "has a certificate that has expired; have it renewed".to_owned(),
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("has a certificate that is not valid before {}; is this host's clock right?", moment(*not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            // Each as `DnsName("localhost")`.
            let names: Vec<&str> =
                presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name)).collect();
            format!(
                "has a certificate for {:?}, and not for {:?}; put a name that it is for into the URL, or have one \
                 issued for this one",
                names.join(", "),
                expected.to_str()
            )
        }
        CertificateError::NotValidForName => {
            "has a certificate for another host name; put the name that it is for into the URL".to_owned()
        }
        other => format!("has a certificate that cannot be accepted ({other})"),
    }
}

fn moment(time: UnixTime) -> String {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    jiff::Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), |time| time.to_string())
}

/// The error of TLS in a chain of errors. An [`io::Error`] does not name what it holds among its sources, and a shared
/// error is not what it shares.
fn cause<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let shared = error.downcast_ref::<Arc<dyn Error + Send + Sync>>().map(|shared| &**shared);
        if let Some(found) = held.or(shared).and_then(|held| cause(held as &(dyn Error + 'static))) {
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
    fn the_error_of_tls_is_found_inside_of_others() {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, unknown()));
        let said = Tls::default().explain(&wrapped).unwrap();
        assert!(said.contains("--tls-ca-file"), "{said}");
        assert!(Tls::default().explain(&io::Error::other("nothing of TLS")).is_none());
        assert!(is_spoken(&wrapped) && !is_spoken(&io::Error::from(io::ErrorKind::TimedOut)));
    }

    #[test]
    fn files_are_named_with_what_was_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let missing = Tls::read(Some(&path), None).unwrap_err().to_string();
        assert!(missing.starts_with("cannot read ") && missing.ends_with("ca.pem"), "{missing}");
        std::fs::write(&path, "-----BEGIN NOTHING-----").unwrap();
        let empty = Tls::read(Some(&path), None).unwrap_err().to_string();
        assert!(empty.contains("ca.pem holds no"), "{empty}");
    }
}
