//! What a student shows its teachers, and what it asks of theirs.
//!
//! Files are read for every connection, so that a run goes on with the next token and certificate when
//! the last expire.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use stillhouse_runtime::{config::ConfigError, watched::read_bounded};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity, Uri},
};

use super::ClientError;
use crate::recipe::teacher::{TeacherSection, TeacherTls};

/// Where the files are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Holds a token for every call.
    pub token_file: Option<PathBuf>,
    /// For endpoints with `https`; none: the system's authorities, and no certificate.
    pub tls: Option<TeacherTls>,
}

/// Puts a token into every call.
#[derive(Clone, Default)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl std::fmt::Debug for Bearer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Bearer")
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

impl Credentials {
    /// Those of a recipe.
    pub fn of(section: &TeacherSection) -> Self {
        Self { token_file: section.token_file.clone(), tls: section.tls.clone() }
    }

    /// Whether nothing is shown to an endpoint, nor asked of it.
    pub(super) fn are_none(&self, endpoint: &Endpoint) -> bool {
        self.token_file.is_none() && endpoint.uri().scheme_str() != Some("https")
    }

    /// Checks that they can be used for some endpoints, and that no token leaves for one where anybody on
    /// the way could read it.
    pub(super) fn check(&self, endpoints: &[String]) -> Result<(), ClientError> {
        let tls = self.tls.clone().unwrap_or_default();
        for endpoint in endpoints.iter().filter(|endpoint| !endpoint.starts_with("https://")) {
            let refused = |key: &str, reason: &str| ClientError::Plaintext {
                key: key.to_owned(),
                endpoint: endpoint.clone(),
                reason: reason.to_owned(),
            };
            if self.token_file.is_some() && !tls.allow_plaintext_token && !is_here(endpoint) {
                let reason = "anybody on the way could read the token";
                return Err(refused("teacher.token_file", reason));
            }
            if tls.ca.is_some() || tls.cert.is_some() || tls.server_name.is_some() {
                return Err(refused("teacher.tls", "there are no certificates in plaintext"));
            }
        }
        self.bearer()?;
        if endpoints.iter().any(|endpoint| endpoint.starts_with("https://")) {
            self.apply(&Endpoint::from_static("https://teacher"), "teacher")?;
        }
        Ok(())
    }

    /// As they are now, for a connection to an endpoint that is asked as `host`.
    pub(super) fn apply(&self, endpoint: &Endpoint, host: &str) -> Result<Endpoint, ClientError> {
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint.clone());
        }
        let tls = self.tls.clone().unwrap_or_default();
        // Each part is tried by itself, so that a fault is put down to it.
        let with = |config: ClientTlsConfig, key: &str, file: &Path| {
            endpoint.clone().tls_config(config).map_err(|error| {
                unusable(key, file, &super::status::with_causes(error.to_string(), &error))
            })
        };
        let mut config = ClientTlsConfig::new().domain_name(host);
        let mut made = match &tls.ca {
            Some(ca) => {
                let pem = read("teacher.tls.ca", ca)?;
                if !contains(&pem, b"-----BEGIN CERTIFICATE-----") {
                    return Err(unusable("teacher.tls.ca", ca, "it holds no certificate in PEM"));
                }
                config = config.ca_certificate(Certificate::from_pem(pem));
                with(config.clone(), "teacher.tls.ca", ca)?
            }
            None => {
                config = config.with_native_roots();
                let whose = Path::new("the system's authorities");
                with(config.clone(), "teacher.tls.ca", whose)?
            }
        };
        if let Some(name) = &tls.server_name {
            config = config.domain_name(name.clone());
            made = with(config.clone(), "teacher.tls.server_name", Path::new(name))?;
        }
        if let (Some(cert), Some(key)) = (&tls.cert, &tls.key) {
            let (chain, private) = (read("teacher.tls.cert", cert)?, read("teacher.tls.key", key)?);
            config = config.identity(Identity::from_pem(chain, private));
            made = with(config, "teacher.tls.cert and key", cert)?;
        }
        Ok(made)
    }

    /// The token as it is now.
    pub(super) fn bearer(&self) -> Result<Bearer, ClientError> {
        let Some(file) = &self.token_file else { return Ok(Bearer::default()) };
        let key = "teacher.token_file";
        let contents = read(key, file)?;
        let token = contents.trim_ascii();
        // RFC 6750's b64token, and nothing of what was found.
        let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(byte);
        if token.is_empty() || token.len() > 4096 || !token.iter().all(fits) {
            let expected = "it does not hold one token: 1 to 4096 letters, digits and -._~+/=";
            return Err(unusable(key, file, expected));
        }
        let value = [b"Bearer ", token].concat();
        let mut value = MetadataValue::try_from(&value[..])
            .map_err(|_| unusable(key, file, "it does not fit into a header"))?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

/// Whether an address is this machine's own.
pub(crate) fn is_here(endpoint: &str) -> bool {
    let uri = endpoint.parse::<Uri>().ok();
    let host = uri.as_ref().and_then(Uri::host).unwrap_or_default();
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

fn read(key: &str, file: &Path) -> Result<Vec<u8>, ClientError> {
    read_bounded(file).map_err(|error| match error {
        ConfigError::Read { source, .. } => {
            unusable(key, file, &format!("cannot be read: {source}"))
        }
        other => unusable(key, file, &other.to_string()),
    })
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn unusable(key: &str, file: &Path, reason: &str) -> ClientError {
    ClientError::Credentials {
        key: key.to_owned(),
        file: file.display().to_string(),
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_is_read_for_every_connection_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let credentials = Credentials { token_file: Some(file.clone()), tls: None };
        let error = credentials.bearer().unwrap_err().to_string();
        assert!(error.contains("teacher.token_file: ") && error.contains("cannot be read"));
        for contents in ["", " \n", "two words", "line\nline", "secret\u{e9}"] {
            fs::write(&file, contents).unwrap();
            let error = credentials.bearer().unwrap_err().to_string();
            assert!(error.contains("one token") && !error.contains("secret"), "{error}");
        }
        for token in ["stillhouse_12ab", "next"] {
            fs::write(&file, format!("{token}\n")).unwrap();
            let mut bearer = credentials.bearer().unwrap();
            let request = bearer.call(Request::new(())).unwrap();
            let header = request.metadata().get("authorization").unwrap();
            assert_eq!(header.to_str().unwrap(), format!("Bearer {token}"));
            assert!(!format!("{bearer:?} {:?}", request.metadata()).contains(token));
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named_by_their_keys() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(folder.path().join(name));
        fs::write(folder.path().join("empty"), "").unwrap();
        let none = TeacherTls::default();
        for (tls, expected) in [
            (TeacherTls { ca: at("none"), ..none.clone() }, "teacher.tls.ca: "),
            (TeacherTls { ca: at("empty"), ..none.clone() }, "it holds no certificate in PEM"),
            (
                TeacherTls { cert: at("none"), key: at("empty"), ..none.clone() },
                "teacher.tls.cert: ",
            ),
            (
                TeacherTls { cert: at("empty"), key: at("none"), ..none.clone() },
                "teacher.tls.key: ",
            ),
            (
                TeacherTls { cert: at("empty"), key: at("empty"), ..none },
                "teacher.tls.cert and key: ",
            ),
        ] {
            let credentials = Credentials { token_file: None, tls: Some(tls) };
            let teachers = ["https://teacher:7070".to_owned()];
            let error = credentials.check(&teachers).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    /// Where there is no TLS, nothing of it is looked at: not the system's authorities either.
    #[test]
    fn a_token_does_not_leave_in_plaintext() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, "t").unwrap();
        let check = |credentials: &Credentials, endpoint: &str| {
            credentials.check(&[endpoint.to_owned()]).map_err(|error| error.to_string())
        };
        check(&Credentials::default(), "http://10.0.0.1:7070").unwrap();
        let mut own = Credentials { token_file: Some(file), tls: None };
        for here in ["http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1"] {
            check(&own, here).unwrap();
        }
        let error = check(&own, "http://10.0.0.1:7070").unwrap_err();
        assert!(error.starts_with("teacher.token_file: http://10.0.0.1:7070: "), "{error}");
        own.tls = Some(TeacherTls { allow_plaintext_token: true, ..TeacherTls::default() });
        check(&own, "http://10.0.0.1:7070").unwrap();
        own.tls = Some(TeacherTls { server_name: Some("t".into()), ..TeacherTls::default() });
        assert!(check(&own, "http://localhost:1").unwrap_err().starts_with("teacher.tls: "));
    }
}
