//! Certificates for servers and clients of a test, good and bad ones.
//!
//! Each test makes them, so that none expires in the repository and no key is stored there.

use std::{
    io,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, Error, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate authority for tests.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

/// A certificate and its key, as PEM.
#[derive(Debug)]
pub struct Papers {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// The cryptography fails.
    pub fn new(name: &str) -> Result<Self, Error> {
        let mut params = named(name, &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { issuer: Issuer::new(params, key), certificate })
    }

    /// Its certificate, as PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// For a server that is reached by this name or address.
    ///
    /// # Errors
    /// It is no name.
    pub fn server(&self, name: &str) -> Result<Papers, Error> {
        let mut params = named(name, &[name])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(&params)
    }

    /// Issues a server certificate that has expired long ago.
    ///
    /// # Errors
    /// It is no name.
    pub fn expired(&self, name: &str) -> Result<Papers, Error> {
        let mut params = named(name, &[name])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        self.issue(&params)
    }

    /// For a client of this name.
    ///
    /// # Errors
    /// The cryptography fails.
    pub fn client(&self, name: &str) -> Result<Papers, Error> {
        let mut params = named(name, &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&params)
    }

    fn issue(&self, params: &CertificateParams) -> Result<Papers, Error> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Papers { certificate, key: key.serialize_pem() })
    }
}

impl Papers {
    /// Writes `STEM.pem` and `STEM.key`; their paths.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, folder: &Path, stem: &str) -> io::Result<(PathBuf, PathBuf)> {
        let certificate = folder.join(format!("{stem}.pem"));
        let key = folder.join(format!("{stem}.key"));
        std::fs::write(&certificate, &self.certificate)?;
        std::fs::write(&key, &self.key)?;
        Ok((certificate, key))
    }
}

fn named(name: &str, reached_by: &[&str]) -> Result<CertificateParams, Error> {
    let mut params =
        CertificateParams::new(reached_by.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    Ok(params)
}
