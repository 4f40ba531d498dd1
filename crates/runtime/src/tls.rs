//! TLS for servers, from PEM files that are read again when they change.
//!
//! TLS 1.2 and 1.3 by rustls with ring. Sessions are not resumed: connections here last for hours, and
//! a certificate that is not accepted any more must not come back by an old session.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde::{Deserialize, Serialize};
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    server::{NoServerSessionStorage, WebPkiClientVerifier},
};
use webpki::EndEntityCert;
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};

use crate::{config::ConfigError, watched::Watched};

/// The files of a server, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerTls {
    /// The server's certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its private key: PKCS #8, PKCS #1 or SEC 1.
    pub key: PathBuf,
    /// Certificates of the authorities whose clients are let in; none: clients show no certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// Of a server with `client_ca`: whether every client must show a certificate; absent: `required`.
    /// `optional` is for a server with a list of clients (`access_file`), where tokens do as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<ClientCert>,
}

/// What a server's handshakes go by.
#[derive(Debug)]
pub struct Handshakes {
    /// How they are made.
    pub config: Arc<ServerConfig>,
    /// When the first of the server's certificate and those between it and its authority expires (RFC
    /// 5280, section 4.1.2.5), in seconds since 1970; none if they do not tell.
    pub expires: Option<i64>,
}

/// Whether clients must show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCert {
    /// No connection without one.
    #[default]
    Required,
    /// One that is shown must be good; who shows none may be known by a token.
    Optional,
}

impl ServerTls {
    /// Reads the files into what a server's handshakes go by.
    ///
    /// # Errors
    /// If a file cannot be read, holds no certificate or key, or they do not belong together; the
    /// setting is named.
    pub fn open(&self) -> Result<Watched<Handshakes>, ConfigError> {
        if self.client_cert.is_some() && self.client_ca.is_none() {
            let reason = "is set, but no tls.client_ca says whose certificates are good".to_owned();
            return Err(ConfigError::Value { key: "tls.client_cert".to_owned(), reason });
        }
        let files = [&self.cert, &self.key].into_iter().chain(&self.client_ca);
        let own = self.clone();
        Watched::open(files.cloned().collect(), move |contents| own.handshakes(contents))
    }

    fn handshakes(&self, contents: &[Vec<u8>]) -> Result<Handshakes, ConfigError> {
        let chain = certificates("tls.cert", &self.cert, &contents[0])?;
        let expires = chain.iter().filter_map(|certificate| expires(certificate)).min();
        let key = PrivateKeyDer::from_pem_slice(&contents[1])
            .map_err(|error| fault("tls.key", &self.key, format!("no private key: {error}")))?;
        let builder = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| fault("tls", &self.cert, error))?;
        let builder = match (&self.client_ca, contents.get(2)) {
            (Some(file), Some(contents)) => {
                let refused = |error: String| fault("tls.client_ca", file, error);
                let mut roots = RootCertStore::empty();
                for authority in certificates("tls.client_ca", file, contents)? {
                    roots.add(authority).map_err(|error| refused(error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                let verifier = match self.client_cert.unwrap_or_default() {
                    ClientCert::Required => verifier,
                    ClientCert::Optional => verifier.allow_unauthenticated(),
                };
                builder.with_client_cert_verifier(
                    verifier.build().map_err(|error| refused(error.to_string()))?,
                )
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config = builder
            .with_single_cert(chain, key)
            .map_err(|error| fault("tls.key", &self.key, format!("with tls.cert: {error}")))?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Handshakes { config: Arc::new(config), expires })
    }
}

/// The names in a certificate that was verified: its subject alternative names, DNS and URI.
///
/// The certificate's common name is no identity (RFC 9525, section 2).
pub fn names(certificate: &[u8]) -> (Vec<String>, Vec<String>) {
    let der = CertificateDer::from(certificate);
    match EndEntityCert::try_from(&der) {
        Ok(parsed) => (
            parsed.valid_dns_names().map(str::to_ascii_lowercase).collect(),
            parsed.valid_uri_names().map(str::to_owned).collect(),
        ),
        Err(_) => (Vec::new(), Vec::new()),
    }
}

fn expires(certificate: &[u8]) -> Option<i64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

/// Bytes that nobody can guess; none if the system has none to give.
pub fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    provider().secure_random.fill(&mut bytes).ok().map(|()| bytes)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The certificates in a PEM file, one or more.
pub(crate) fn certificates(
    key: &str,
    file: &Path,
    contents: &[u8],
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(contents).collect();
    let found = found.map_err(|error| fault(key, file, format!("not PEM: {error}")))?;
    match found.is_empty() {
        true => Err(fault(key, file, "it holds no certificate in PEM")),
        false => Ok(found),
    }
}

/// What is wrong with a file. Never what is in it.
fn fault(key: &str, file: &Path, reason: impl Display) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), reason: format!("{}: {reason}", file.display()) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{CertificateParams, KeyPair, SanType, date_time_ymd};

    use super::*;
    use crate::watched::Look;

    fn made(names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    #[test]
    fn faults_name_the_setting_and_the_file_and_no_contents() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let (certificate, key) = made(&["a"]);
        let (_, other_key) = made(&["b"]);
        for (name, text) in [
            ("cert", &certificate),
            ("key", &key),
            ("other", &other_key),
            ("empty", &String::new()),
        ] {
            fs::write(at(name), text).unwrap();
        }
        let open = |cert: &str, key: &str, ca: Option<&str>| {
            ServerTls { cert: at(cert), key: at(key), client_ca: ca.map(at), client_cert: None }
                .open()
        };
        open("cert", "key", None).unwrap();
        open("cert", "key", Some("cert")).unwrap();
        for (cert, key, ca, expected) in [
            ("none", "key", None, "none: cannot be read"),
            ("empty", "key", None, "it holds no certificate"),
            ("cert", "empty", None, "tls.key: "),
            ("cert", "cert", None, "no private key"),
            ("cert", "other", None, "with tls.cert: "),
            ("cert", "key", Some("empty"), "tls.client_ca: "),
            ("cert", "key", Some("key"), "tls.client_ca: "),
        ] {
            let error = open(cert, key, ca).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("-----"), "{error}");
        }
    }

    /// The certificate is there before its key, as files are written one after the other.
    #[test]
    fn a_pair_is_taken_when_both_of_it_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let (cert, key) = (folder.path().join("cert"), folder.path().join("key"));
        let (first, second) = (made(&["a"]), made(&["b"]));
        fs::write(&cert, first.0).unwrap();
        fs::write(&key, first.1).unwrap();
        let files =
            ServerTls { cert: cert.clone(), key: key.clone(), client_ca: None, client_cert: None };
        let watched = files.open().unwrap();
        fs::write(&cert, second.0).unwrap();
        let before = watched.current();
        assert!(matches!(watched.look(), Look::Same));
        assert!(matches!(watched.look(), Look::Refused(_)));
        assert!(Arc::ptr_eq(&before, &watched.current()));
        fs::write(&key, second.1).unwrap();
        assert!(matches!(watched.look(), Look::Same));
        assert!(matches!(watched.look(), Look::Changed));
        assert!(!Arc::ptr_eq(&before, &watched.current()));
    }

    #[test]
    fn a_certificate_is_known_by_its_alternative_names() {
        let mut params = CertificateParams::new(vec!["Team-A.students".to_owned()]).unwrap();
        let uri = "spiffe://cluster/ns/a/sa/student";
        params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (dns, uris) = names(certificate.der());
        assert_eq!((dns, uris), (vec!["team-a.students".to_owned()], vec![uri.to_owned()]));
        assert_eq!(names(b"none"), (vec![], vec![]));
    }

    #[test]
    fn the_end_of_a_certificate_is_read_in_both_of_its_forms() {
        // Until 2049 it is a UTCTime, then a GeneralizedTime.
        for (year, expected) in [(2030, 1_893_456_000), (2100, 4_102_444_800)] {
            let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
            params.not_after = date_time_ymd(year, 1, 1);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            assert_eq!(expires(certificate.der()), Some(expected));
        }
        assert_eq!(expires(b"none"), None);
    }

    #[test]
    fn random_bytes_differ() {
        assert_ne!(random::<32>().unwrap(), random::<32>().unwrap());
    }
}
