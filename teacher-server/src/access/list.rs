//! The list of clients: by what each is known, and what it may ask for.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use stillhouse_runtime::config::{self, ConfigError};

use super::token::{self, TokenHash};
use crate::{encode::Encoding, error::ServeError, listener::Certificate};

/// Bytes of the longest name.
const MAX_NAME_BYTES: usize = 128;

/// The file, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    clients: BTreeMap<String, WrittenClient>,
}

/// A client, as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenClient {
    /// SHA-256 of its tokens.
    #[serde(default, deserialize_with = "hashes")]
    tokens: Vec<String>,
    /// Names in its certificates, or `sha256:` and the digest of one.
    #[serde(default)]
    certificates: Vec<String>,
    /// Names of the teachers that it may ask; absent: every one.
    teachers: Option<BTreeSet<String>>,
    /// Encodings that it may ask for; absent: all.
    encodings: Option<BTreeSet<EncodingName>>,
    /// Classes of a row that a sparse label may tell it of; absent: all.
    max_classes: Option<u32>,
}

/// Reads a list of texts. Serde's own words would repeat what is none, which may be a secret.
fn hashes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let refused =
        || D::Error::custom("must be a list of hashes, as `teacher-server new-token` prints them");
    let value = toml::Value::deserialize(from).map_err(|_| refused())?;
    let list = value.as_array().ok_or_else(refused)?;
    let text = |item: &toml::Value| item.as_str().map(str::to_owned).ok_or_else(refused);
    list.iter().map(text).collect()
}

/// An encoding in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EncodingName {
    Dense,
    TopK,
    Ids,
    Sampled,
    Hidden,
}

impl EncodingName {
    fn text(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::TopK => "top_k",
            Self::Ids => "ids",
            Self::Sampled => "sampled",
            Self::Hidden => "hidden",
        }
    }
}

/// Who may come, and what each may ask for.
#[derive(Debug, Default)]
pub(crate) struct List {
    clients: Vec<Arc<Client>>,
}

/// A client of the list.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) name: Arc<str>,
    tokens: Vec<TokenHash>,
    certificates: Vec<Shown>,
    teachers: Option<BTreeSet<String>>,
    encodings: Option<BTreeSet<EncodingName>>,
    max_classes: Option<u32>,
}

/// What a certificate is known by.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    /// In lower case.
    Dns(String),
    Uri(String),
    Sha256([u8; 32]),
}

impl Shown {
    fn parse(text: &str) -> Option<Self> {
        if let Some(digits) = text.strip_prefix("sha256:") {
            return token::digest(digits).map(Self::Sha256);
        }
        if text.contains("://") {
            return Some(Self::Uri(text.to_owned()));
        }
        let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
        let fits = !text.is_empty() && text.chars().all(plain);
        fits.then(|| Self::Dns(text.to_ascii_lowercase()))
    }

    fn is(&self, certificate: &Certificate) -> bool {
        match self {
            Self::Dns(name) => certificate.dns.contains(name),
            Self::Uri(name) => certificate.uris.contains(name),
            Self::Sha256(digest) => certificate.sha256 == *digest,
        }
    }
}

impl List {
    /// Reads the file's TOML.
    ///
    /// # Errors
    /// Names the key that is not as it must be; hashes of tokens are not repeated.
    pub(super) fn parse(file: &str, contents: &[u8]) -> Result<Self, ConfigError> {
        let syntax = |reason: &str| ConfigError::Syntax {
            file: file.to_owned(),
            // Serde's own words quote the line, and so what is secret in it.
            reason: reason.to_owned(),
        };
        let text = std::str::from_utf8(contents).map_err(|_| syntax("it is not UTF-8"))?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            let before = text.get(..error.span().map_or(0, |span| span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            syntax(&format!("line {line}: {}", error.message()))
        })?;
        let written: Written = config::read(table)?;
        let (mut tokens, mut shown): (Vec<TokenHash>, BTreeSet<Shown>) = Default::default();
        let mut clients = Vec::new();
        for (name, client) in written.clients {
            let key = |field: &str| format!("clients.{name}.{field}");
            let fault = |key: String, reason: String| ConfigError::Value { key, reason };
            if name.is_empty() || name.len() > MAX_NAME_BYTES {
                let reason = format!("is {} bytes long; must be 1 to {MAX_NAME_BYTES}", name.len());
                return Err(fault("clients".to_owned(), reason));
            }
            if client.tokens.is_empty() && client.certificates.is_empty() {
                let reason = "has neither tokens nor certificates: nobody could be it".to_owned();
                return Err(fault(format!("clients.{name}"), reason));
            }
            let sparse = |own: &BTreeSet<EncodingName>| {
                !own.contains(&EncodingName::Dense)
                    && own.iter().any(|name| *name != EncodingName::Hidden)
            };
            if client.encodings.as_ref().is_some_and(sparse) && client.max_classes.is_none() {
                let reason = "is missing: encodings leaves out dense, and a sparse label of all classes \
                              would be one";
                return Err(fault(key("max_classes"), reason.to_owned()));
            }
            if client.max_classes == Some(0) {
                return Err(fault(key("max_classes"), "is 0; must be 1 or more".to_owned()));
            }
            let mut own = Vec::new();
            for (at, text) in client.tokens.iter().enumerate() {
                let key = key(&format!("tokens[{at}]"));
                let Some(hash) = TokenHash::parse(text) else {
                    let expected = "must be `sha256:` and 64 hexadecimal digits, as \
                                    `teacher-server new-token` prints them";
                    return Err(fault(key, expected.to_owned()));
                };
                if tokens.iter().any(|other| other.is(&hash)) {
                    return Err(fault(key, "is there twice".to_owned()));
                }
                tokens.push(hash);
                own.push(hash);
            }
            let mut certificates = Vec::new();
            for (at, text) in client.certificates.iter().enumerate() {
                let key = key(&format!("certificates[{at}]"));
                let parse = || Shown::parse(text);
                let (Some(name), Some(same)) = (parse(), parse()) else {
                    let expected = "a DNS name, a URI such as spiffe://cluster/ns/a/sa/student, or \
                                    `sha256:` and the 64 hexadecimal digits of a certificate's digest";
                    return Err(fault(key, format!("is {text:?}; must be {expected}")));
                };
                if !shown.insert(same) {
                    return Err(fault(key, format!("is {text:?}, which is there twice")));
                }
                certificates.push(name);
            }
            clients.push(Arc::new(Client {
                name: Arc::from(name),
                tokens: own,
                certificates,
                teachers: client.teachers,
                encodings: client.encodings,
                max_classes: client.max_classes,
            }));
        }
        if clients.is_empty() {
            // Rather a file that is not there yet than the wish to let nobody in.
            return Err(ConfigError::Value {
                key: "clients".to_owned(),
                reason: "is empty; must list one client or more".to_owned(),
            });
        }
        Ok(Self { clients })
    }

    /// Whether any client is known by a certificate.
    pub(crate) fn knows_certificates(&self) -> bool {
        self.clients.iter().any(|client| !client.certificates.is_empty())
    }

    /// Whose token it is.
    pub(super) fn by_token(&self, hash: &TokenHash) -> Option<&Arc<Client>> {
        // All of them are compared, whichever it is.
        let mut found = None;
        for client in &self.clients {
            for own in &client.tokens {
                if own.is(hash) {
                    found = Some(client);
                }
            }
        }
        found
    }

    /// Whose certificate it is: the first in the list's order that knows it, by name.
    pub(super) fn by_certificate(&self, certificate: &Certificate) -> Option<&Arc<Client>> {
        self.clients.iter().find(|client| client.certificates.iter().any(|own| own.is(certificate)))
    }

    /// Clients in the list.
    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }
}

impl Client {
    /// Whether it may ask a teacher.
    pub(super) fn may_ask(&self, teacher: &str) -> Result<(), ServeError> {
        match &self.teachers {
            Some(teachers) if !teachers.contains(teacher) => Err(ServeError::Denied {
                reason: "teacher",
                what: format!("client {:?} may not ask teacher {teacher:?}", self.name),
            }),
            _ => Ok(()),
        }
    }

    /// Whether it may have labels of an encoding, however many classes they tell of.
    pub(crate) fn may_have(&self, encoding: EncodingName) -> bool {
        let whole = matches!(encoding, EncodingName::Dense | EncodingName::Hidden);
        let named = self.encodings.as_ref().is_none_or(|own| own.contains(&encoding));
        named && !(whole && self.max_classes.is_some())
    }

    /// Whether it may have what a request asks for.
    pub(crate) fn may_label(&self, encoding: &Encoding) -> Result<(), ServeError> {
        let (name, field, classes) = match encoding {
            Encoding::Dense { .. } => (EncodingName::Dense, "", 0),
            Encoding::Hidden { .. } => (EncodingName::Hidden, "", 0),
            Encoding::TopK { k, .. } => (EncodingName::TopK, "top_k.k", *k),
            Encoding::Ids { ids_per_row, .. } => {
                (EncodingName::Ids, "ids.ids_per_row", *ids_per_row)
            }
            Encoding::Sampled { draws, .. } => {
                (EncodingName::Sampled, "sampled.draws", *draws as usize)
            }
        };
        let denied = |what| Err(ServeError::Denied { reason: "encoding", what });
        if !self.may_have(name) {
            let own: Vec<_> =
                EncodingName::ALL.into_iter().filter(|&name| self.may_have(name)).collect();
            let own: Vec<_> = own.into_iter().map(EncodingName::text).collect();
            return denied(format!(
                "encoding: is {}; client {:?} may have {}",
                name.text(),
                self.name,
                if own.is_empty() { "none".to_owned() } else { own.join(", ") }
            ));
        }
        match self.max_classes {
            Some(most) if classes > most as usize => denied(format!(
                "encoding.{field}: is {classes}; client {:?} may have at most {most}",
                self.name
            )),
            _ => Ok(()),
        }
    }
}

impl EncodingName {
    pub(crate) const ALL: [Self; 5] =
        [Self::Dense, Self::TopK, Self::Ids, Self::Sampled, Self::Hidden];
}

#[cfg(test)]
mod tests {
    use stillhouse_proto::v1::{DType, DenseKind};

    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn parse(text: &str) -> Result<List, ConfigError> {
        List::parse("clients.toml", text.as_bytes())
    }

    fn only(text: &str) -> Arc<Client> {
        Arc::clone(&parse(text).unwrap().clients[0])
    }

    #[test]
    fn faults_are_named_and_hashes_are_not_repeated() {
        let twice = format!("[clients.a]\ntokens = ['{A}']\n[clients.b]\ntokens = ['{A}']");
        let unclosed = format!("[clients.a]\ntokens = ['{A}'");
        for (text, expected) in [
            ("[clients.a]", "clients.a: has neither tokens nor certificates"),
            ("[clients.a]\ntokens = ['abc']", "clients.a.tokens[0]: must be `sha256:`"),
            (twice.as_str(), "clients.b.tokens[0]: is there twice"),
            (unclosed.as_str(), "clients.toml: not valid TOML: line "),
            ("[clients.a]\ncertificates = ['a b']", "clients.a.certificates[0]: is \"a b\"; must"),
            (
                "[clients.a]\ncertificates = ['x']\n[clients.b]\ncertificates = ['X']",
                "clients.b.certificates[0]: is \"X\", which is there twice",
            ),
            ("[clients.a]\ntoken = 'x'", "did you mean `clients.a.tokens`?"),
            ("[clients.a]\nencodings = ['topk']", "clients.a.encodings"),
            ("[clients.a]\ncertificates = ['x']\nmax_classes = 0", "max_classes: is 0; must be 1"),
            ("[clients.'']\ncertificates = ['x']", "clients: is 0 bytes long"),
            ("", "clients: is empty"),
            ("[clients.a]\ntokens = 'aaaaaaaa'", "clients.a.tokens: must be a list of hashes"),
            (
                "[clients.a]\ntokens = [{ aaaaaaaa = 1 }]",
                "clients.a.tokens: must be a list of hashes",
            ),
            (
                "[clients.a]\ncertificates = ['x']\nencodings = ['top_k']",
                "clients.a.max_classes: is missing: encodings leaves out dense",
            ),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
            assert!(!error.contains("aaaa"), "{error}");
        }
        assert!(List::parse("f", b"\xff").unwrap_err().to_string().contains("not UTF-8"));
    }

    #[test]
    fn certificates_are_known_by_dns_name_uri_or_digest() {
        let list = parse(&format!(
            "[clients.a]\ncertificates = ['A.students']\n[clients.b]\ncertificates = \
             ['spiffe://c/b']\n[clients.c]\ncertificates = ['{A}']"
        ))
        .unwrap();
        let who = |dns: &[&str], uris: &[&str], sha256| {
            let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
            let certificate = Certificate { dns: owned(dns), uris: owned(uris), sha256 };
            list.by_certificate(&certificate).map(|client| client.name.to_string())
        };
        assert_eq!(who(&["x", "a.students"], &[], [0; 32]).as_deref(), Some("a"));
        assert_eq!(who(&[], &["spiffe://c/b"], [0; 32]).as_deref(), Some("b"));
        assert_eq!(who(&[], &[], [0xaa; 32]).as_deref(), Some("c"));
        // A name of the other kind is none.
        assert_eq!(who(&["spiffe://c/b"], &["a.students"], [0; 32]), None);
    }

    #[test]
    fn a_client_gets_what_the_list_allows() {
        let dense = Encoding::Dense { kind: DenseKind::LogProbabilities, dtype: DType::F32 };
        let top = |k| Encoding::TopK { k, dtype: DType::F32 };
        let ids = |ids_per_row| Encoding::Ids { ids_per_row, ids: vec![], dtype: DType::F32 };
        let anything = only("[clients.a]\ncertificates = ['x']");
        for encoding in [&dense, &top(1000), &ids(1000), &Encoding::Hidden { dtype: DType::F32 }] {
            anything.may_label(encoding).unwrap();
        }
        anything.may_ask("t").unwrap();

        let sparse = only(
            "[clients.a]\ncertificates = ['x']\nencodings = ['top_k', 'sampled']\nmax_classes = 5\n\
             teachers = ['t']",
        );
        sparse.may_label(&top(5)).unwrap();
        sparse.may_label(&Encoding::Sampled { draws: 5, seed: 0 }).unwrap();
        sparse.may_ask("t").unwrap();
        let words = |result: Result<(), ServeError>| result.unwrap_err().to_string();
        let error = words(sparse.may_label(&dense));
        assert_eq!(error, "encoding: is dense; client \"a\" may have top_k, sampled");
        let error = words(sparse.may_label(&top(6)));
        assert_eq!(error, "encoding.top_k.k: is 6; client \"a\" may have at most 5");
        let error = words(sparse.may_label(&Encoding::Sampled { draws: 6, seed: 0 }));
        assert_eq!(error, "encoding.sampled.draws: is 6; client \"a\" may have at most 5");
        assert!(words(sparse.may_label(&ids(1))).starts_with("encoding: is ids;"));
        assert_eq!(words(sparse.may_ask("u")), "client \"a\" may not ask teacher \"u\"");

        // With a bound on classes, whole rows are out of the question even where nothing is said.
        let bounded = only("[clients.a]\ncertificates = ['x']\nmax_classes = 2");
        assert!(bounded.may_label(&dense).is_err() && !bounded.may_have(EncodingName::Hidden));
        assert!(words(bounded.may_label(&ids(3))).starts_with("encoding.ids.ids_per_row: is 3;"));
    }
}
