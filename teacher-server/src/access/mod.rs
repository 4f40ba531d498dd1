//! Who may ask, and for what.
//!
//! Without a list everybody may ask for everything, and is called what it calls itself. With one, every
//! call on the gRPC port must come with a token or a certificate of a client in the list; its name there
//! is what shares and quotas go by. The list is read again when it changes, and each request is held
//! against the list as it is then: who is taken off it gets no further label.

mod list;
mod token;

use std::{path::PathBuf, sync::Arc};

use stillhouse_runtime::{config::ConfigError, watched::Watched};
use tonic::{Request, Status, metadata::MetadataMap, service::Interceptor};

use crate::{
    error::ServeError,
    listener::{Certificate, Peer},
    metrics as names,
};

pub(crate) use list::{Client, EncodingName, List};
use token::TokenHash;
pub use token::new_token;

/// The header that a token comes in.
const AUTHORIZATION: &str = "authorization";

/// Who may ask this teacher.
#[derive(Debug)]
pub(crate) struct Access {
    /// None: everybody.
    list: Option<Arc<Watched<List>>>,
    /// The teacher's own name.
    teacher: String,
}

/// Who makes a call.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    host: Arc<str>,
    proof: Proof,
}

/// What it has shown of who it is.
#[derive(Clone, Debug, Default)]
struct Proof {
    token: Token,
    certificate: Option<Arc<Certificate>>,
}

/// What a call's headers hold of a token.
#[derive(Clone, Debug, Default)]
enum Token {
    #[default]
    Absent,
    /// A header that holds none: a wrong token, and not the lack of one.
    Malformed,
    Sent(TokenHash),
}

/// Reads a list of clients.
///
/// # Errors
/// If the file cannot be read or is not such a list.
pub(crate) fn open_list(file: PathBuf) -> Result<Watched<List>, ConfigError> {
    let name = file.display().to_string();
    Watched::open(vec![file], move |contents| {
        let list = List::parse(&name, &contents[0])?;
        metrics::gauge!(names::ACCESS_CLIENTS).set(list.len() as f64);
        Ok(list)
    })
}

impl Access {
    pub(crate) fn new(list: Option<Arc<Watched<List>>>, teacher: String) -> Self {
        Self { list, teacher }
    }

    /// Whether clients are those of a list.
    pub(crate) fn is_listed(&self) -> bool {
        self.list.is_some()
    }

    /// Who the caller is in the list as it stands now; none where there is no list.
    ///
    /// # Errors
    /// If it is not in the list, or may not ask this teacher.
    pub(crate) fn identify(&self, caller: &Caller) -> Result<Option<Arc<Client>>, ServeError> {
        let Some(list) = &self.list else { return Ok(None) };
        let list = list.current();
        let found = match &caller.proof {
            // One that is wrong is not made up for by a certificate.
            Proof { token: Token::Sent(token), .. } => list.by_token(token),
            Proof { token: Token::Malformed, .. } => None,
            Proof { certificate: Some(certificate), .. } => list.by_certificate(certificate),
            Proof { .. } => return Err(ServeError::Unauthenticated { shown: false }),
        };
        let client = found.ok_or(ServeError::Unauthenticated { shown: true })?;
        client.may_ask(&self.teacher)?;
        Ok(Some(Arc::clone(client)))
    }
}

impl Caller {
    /// A caller at a connection, by what the call's headers hold.
    fn new(peer: Option<&Peer>, metadata: &MetadataMap) -> Self {
        let token = match metadata.get(AUTHORIZATION) {
            None => Token::Absent,
            Some(value) => bearer(value.as_encoded_bytes()).map_or(Token::Malformed, Token::Sent),
        };
        Self {
            host: peer.map_or_else(|| Arc::from("unknown"), |peer| Arc::clone(&peer.host)),
            proof: Proof { token, certificate: peer.and_then(|peer| peer.certificate.clone()) },
        }
    }

    /// Of a call that did not come through the guard.
    fn stranger() -> Self {
        Self { host: Arc::from("unknown"), proof: Proof::default() }
    }

    /// Who has made a call.
    pub(crate) fn of<T>(request: &Request<T>) -> Self {
        request.extensions().get::<Self>().cloned().unwrap_or_else(Self::stranger)
    }

    /// What shares and quotas go by: the name in the list, or else the one that the request gives, or
    /// else the host.
    pub(crate) fn name(&self, client: Option<&Client>, given: String) -> Arc<str> {
        match client {
            Some(client) => Arc::clone(&client.name),
            None if given.is_empty() => Arc::clone(&self.host),
            None => Arc::from(given),
        }
    }
}

/// The token in the value of a header, `Bearer TOKEN` (RFC 6750, section 2.1).
fn bearer(value: &[u8]) -> Option<TokenHash> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| TokenHash::of(token.trim_ascii()))?
}

/// Stands before every service of the gRPC port.
#[derive(Clone, Debug)]
pub(crate) struct Guard(pub(crate) Arc<Access>);

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let caller = Caller::new(request.extensions().get::<Peer>(), request.metadata());
        self.0.identify(&caller).inspect_err(count_denial)?;
        // Nothing behind has a use for it.
        request.metadata_mut().remove(AUTHORIZATION);
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

/// Counts what a caller is denied.
pub(crate) fn count_denial(error: &ServeError) {
    let reason = match error {
        ServeError::Unauthenticated { .. } => "unauthenticated",
        ServeError::Denied { reason, .. } => *reason,
        _ => return,
    };
    metrics::counter!(names::DENIED, "reason" => reason).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(headers: &[&str], certificate: Option<&str>) -> Caller {
        let mut metadata = MetadataMap::new();
        for header in headers {
            metadata.append(AUTHORIZATION, header.parse().unwrap());
        }
        let certificate = certificate.map(|name| {
            let (dns, uris) = (vec![name.to_owned()], vec![]);
            Arc::new(Certificate { dns, uris, sha256: [0; 32] })
        });
        Caller::new(Some(&Peer { host: Arc::from("10.0.0.1"), certificate }), &metadata)
    }

    /// Who a caller is: its name, or whether it has shown anything.
    fn who(access: &Access, caller: &Caller) -> Result<String, bool> {
        match access.identify(caller) {
            Ok(client) => Ok(caller.name(client.as_deref(), "own".to_owned()).to_string()),
            Err(ServeError::Unauthenticated { shown }) => Err(shown),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_caller_is_who_its_token_or_certificate_says() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("clients.toml");
        let (token, hash) = new_token().unwrap();
        let list = format!(
            "[clients.a]\ntokens = ['{hash}']\n[clients.b]\ncertificates = ['b.students']\n"
        );
        std::fs::write(&file, list).unwrap();
        let list = Arc::new(open_list(file.clone()).unwrap());
        let access = Access::new(Some(Arc::clone(&list)), "t".to_owned());
        let bearer = format!("Bearer {token}");
        let ok = |name: &str| Ok(name.to_owned());
        assert_eq!(who(&access, &caller(&[&bearer], None)), ok("a"));
        assert_eq!(who(&access, &caller(&[&format!("bearer  {token}")], None)), ok("a"));
        assert_eq!(who(&access, &caller(&[], Some("b.students"))), ok("b"));
        // A token comes first, and a wrong one is wrong.
        assert_eq!(who(&access, &caller(&[&bearer], Some("b.students"))), ok("a"));
        assert_eq!(who(&access, &caller(&["Bearer x"], Some("b.students"))), Err(true));
        assert_eq!(who(&access, &caller(&["Bearer"], Some("b.students"))), Err(true));
        assert_eq!(who(&access, &caller(&[&token], Some("b.students"))), Err(true));
        assert_eq!(who(&access, &caller(&[], Some("c.students"))), Err(true));
        assert_eq!(who(&access, &caller(&[], None)), Err(false));
        assert_eq!(who(&access, &Caller::stranger()), Err(false));

        // Off the list, it is nobody from then on.
        std::fs::write(&file, "[clients.b]\ncertificates = ['b.students']\n").unwrap();
        list.look();
        list.look();
        assert_eq!(who(&access, &caller(&[&bearer], None)), Err(true));
        assert_eq!(who(&access, &caller(&[], Some("b.students"))), ok("b"));
    }

    #[test]
    fn without_a_list_everybody_is_who_it_says_it_is() {
        let access = Access::new(None, "t".to_owned());
        let stranger = caller(&["Bearer x"], None);
        assert_eq!(who(&access, &stranger), Ok("own".to_owned()));
        assert_eq!(&*stranger.name(None, String::new()), "10.0.0.1");
    }
}
