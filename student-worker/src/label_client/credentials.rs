//! What a student shows its teachers, and what it asks of theirs.
//!
//! Files are read for every connection, so that a run goes on with the next token and certificate when
//! the last expire.

use std::path::{Path, PathBuf};

use stillhouse_runtime::{config::ConfigError, watched::read_bounded};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Endpoint, Identity},
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

    /// Checks that they can be used at all.
    pub(super) fn check(&self) -> Result<(), ClientError> {
        self.bearer()?;
        self.apply(&Endpoint::from_static("https://teacher"), "teacher").map(drop)
    }

    /// As they are now, for a connection to an endpoint that is asked as `host`.
    pub(super) fn apply(&self, endpoint: &Endpoint, host: &str) -> Result<Endpoint, ClientError> {
        if endpoint.uri().scheme_str() != Some("https") {
            return Ok(endpoint.clone());
        }
        let mut config = ClientTlsConfig::new().domain_name(host);
        match &self.tls {
            Some(TeacherTls { ca: Some(ca), .. }) => {
                let pem = read("teacher.tls.ca", ca)?;
                if !contains(&pem, b"-----BEGIN CERTIFICATE-----") {
                    return Err(unusable("teacher.tls.ca", ca, "it holds no certificate in PEM"));
                }
                config = config.ca_certificate(Certificate::from_pem(pem));
            }
            _ => config = config.with_native_roots(),
        }
        let named = |tls: &TeacherTls| tls.server_name.clone();
        if let Some(name) = self.tls.as_ref().and_then(named) {
            config = config.domain_name(name);
        }
        let mut culprit = ("teacher.tls", Path::new(""));
        if let Some(TeacherTls { cert: Some(cert), key: Some(key), .. }) = &self.tls {
            let (chain, private) = (read("teacher.tls.cert", cert)?, read("teacher.tls.key", key)?);
            config = config.identity(Identity::from_pem(chain, private));
            culprit = ("teacher.tls.cert and key", cert);
        }
        endpoint.clone().tls_config(config).map_err(|error| {
            let words = super::status::with_causes(error.to_string(), &error);
            unusable(culprit.0, culprit.1, &words)
        })
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
            let error = credentials.check().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        Credentials::default().check().unwrap();
    }
}
