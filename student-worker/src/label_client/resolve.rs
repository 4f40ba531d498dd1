//! Addresses of replicas: as they were given, or what their names stand for now.
//!
//! A name may stand for several replicas (a headless Service of Kubernetes, say) and for others
//! later; each of its addresses is an endpoint of its own.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use tokio::net::lookup_host;
use tonic::transport::{Endpoint, Uri};

use super::{
    ClientError, Credentials,
    gate::{Address, Closed, Line},
};

/// Between two looks at what names stand for.
const RESOLVE_EVERY: Duration = Duration::from_secs(5);
/// For one look.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The addresses of a host and a port.
type Lookup = dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// What names stand for.
#[derive(Clone)]
pub struct Names {
    lookup: Arc<Lookup>,
    /// How often it is looked up again while a run lasts.
    pub(super) every: Duration,
}

impl Names {
    /// Asks `lookup` for the addresses of a host and a port, and again after `every`.
    pub fn new<F>(
        lookup: impl Fn(String, u16) -> F + Send + Sync + 'static,
        every: Duration,
    ) -> Self
    where
        F: Future<Output = io::Result<Vec<SocketAddr>>> + Send + 'static,
    {
        let lookup = move |host, port| -> BoxFuture<'static, _> { Box::pin(lookup(host, port)) };
        Self { lookup: Arc::new(lookup), every }
    }

    /// As the system resolves them, every five seconds.
    pub fn of_system() -> Self {
        let lookup = |host: String, port| async move {
            lookup_host((host, port)).await.map(Iterator::collect)
        };
        Self::new(lookup, RESOLVE_EVERY)
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Names").field("every", &self.every).finish_non_exhaustive()
    }
}

/// The endpoints of a recipe.
#[derive(Clone, Debug)]
pub(super) struct Endpoints {
    given: Vec<Given>,
    /// What each of them stood for when it was last found out.
    last: Vec<Vec<Address>>,
    pub(super) names: Names,
}

#[derive(Clone, Debug)]
struct Given {
    text: String,
    endpoint: Endpoint,
    /// What it is called, and its certificate must name.
    host: String,
    /// Host and port, where the host is a name that may stand for several addresses.
    name: Option<(String, u16)>,
}

impl Endpoints {
    pub(super) fn parse(endpoints: &[String], names: Names) -> Result<Self, ClientError> {
        let given: Vec<Given> =
            endpoints.iter().map(|text| Given::parse(text)).collect::<Result<_, _>>()?;
        let last = vec![Vec::new(); given.len()];
        Ok(Self { given, last, names })
    }

    /// A connection to one of the addresses that they stand for, in turn by a number.
    pub(super) async fn connect_one(
        mut self,
        credentials: &Credentials,
        number: usize,
    ) -> Result<Line, String> {
        match self.resolve().await {
            (addresses, _) if !addresses.is_empty() => {
                addresses[number % addresses.len()].connect(credentials).await
            }
            (_, Some(Closed::ForNow { reason, .. })) => Err(reason),
            (_, Some(Closed::ForGood(error))) => Err(error.to_string()),
            (_, None) => Err("no address".to_owned()),
        }
    }

    /// Whether any of them may stand for something else later.
    pub(super) fn may_change(&self) -> bool {
        self.given.iter().any(|given| given.name.is_some())
    }

    /// What they stand for now, each once, and the last failure to find that out: who cannot be
    /// resolved is where it was.
    pub(super) async fn resolve(&mut self) -> (Vec<Address>, Option<Closed>) {
        let mut failure = None;
        let found = join_all(self.given.iter().map(|given| given.resolve(&self.names))).await;
        for (found, last) in found.into_iter().zip(&mut self.last) {
            match found {
                Ok(found) => *last = found,
                Err(closed) => failure = Some(closed),
            }
        }
        let mut addresses: Vec<Address> = Vec::new();
        for address in self.last.iter().flatten() {
            if addresses.iter().all(|other| other.name != address.name) {
                addresses.push(address.clone());
            }
        }
        (addresses, failure)
    }
}

impl Given {
    fn parse(text: &str) -> Result<Self, ClientError> {
        let refused = |reason: String| ClientError::Address { address: text.to_owned(), reason };
        let endpoint =
            Endpoint::from_shared(text.to_owned()).map_err(|error| refused(error.to_string()))?;
        let uri = endpoint.uri();
        let host = uri.host().unwrap_or_default();
        if host.is_empty() {
            return Err(refused("it names no host".to_owned()));
        }
        let bare = host.trim_matches(['[', ']']);
        let literal = bare.parse::<IpAddr>().is_ok();
        let secure = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let name = (!literal && host != "localhost").then(|| (host.to_owned(), port));
        let host = bare.to_owned();
        Ok(Self { text: text.to_owned(), endpoint, host, name })
    }

    async fn resolve(&self, names: &Names) -> Result<Vec<Address>, Closed> {
        let Some((host, port)) = &self.name else {
            return Ok(vec![Address::new(
                self.text.clone(),
                self.host.clone(),
                self.endpoint.clone(),
            )]);
        };
        let failed = |reason: String| Closed::for_now(format!("{}: {reason}", self.text));
        let found = tokio::time::timeout(RESOLVE_TIMEOUT, (names.lookup)(host.clone(), *port))
            .await
            .map_err(|_| failed(format!("{host} is not resolved within {RESOLVE_TIMEOUT:?}")))?
            .map_err(|error| failed(format!("{host} cannot be resolved: {error}")))?;
        // Of a replica with addresses of both families, those of the one that the system prefers.
        let family = found.first().map(SocketAddr::is_ipv4);
        let own = found.into_iter().filter(|address| Some(address.is_ipv4()) == family);
        let address = |address| {
            let uri = self.endpoint.uri();
            let scheme = uri.scheme_str().unwrap_or("http");
            let name = format!("{scheme}://{address}");
            let at: Uri = name.parse().map_err(|error| failed(format!("{name}: {error}")))?;
            // Whoever answers there is still asked as the name.
            Ok(Address::new(name, self.host.clone(), Endpoint::from(at).origin(uri.clone())))
        };
        let mut own: Vec<Address> = own.map(address).collect::<Result<_, _>>()?;
        if let [only] = &mut own[..] {
            only.known_as.clone_from(&self.text);
        }
        Ok(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Endpoints, ClientError> {
        Endpoints::parse(&[text.to_owned()], Names::of_system())
    }

    #[tokio::test]
    async fn an_address_stands_for_itself_and_a_name_may_change() {
        for (text, changes) in [
            ("http://127.0.0.1:7070", false),
            ("http://[::1]:7070", false),
            ("http://localhost:7070", false),
            ("http://teacher:7070", true),
            ("http://teacher.example", true),
        ] {
            let mut endpoints = parse(text).unwrap();
            assert_eq!(endpoints.may_change(), changes, "{text}");
            if !changes {
                let (found, failure) = endpoints.resolve().await;
                assert_eq!((found[0].name.as_str(), found.len()), (text, 1));
                assert!(failure.is_none());
            }
        }
        let error = parse("not an address").unwrap_err().to_string();
        assert!(error.contains("\"not an address\" is not an address such as"), "{error}");
    }

    #[tokio::test]
    async fn a_name_that_stands_for_nothing_is_a_failure_that_may_pass() {
        let mut endpoints = parse("http://no-such-teacher.invalid:7070").unwrap();
        let (found, failure) = endpoints.resolve().await;
        assert!(found.is_empty());
        let Some(Closed::ForNow { reason, .. }) = failure else { panic!("{failure:?}") };
        assert!(reason.contains("no-such-teacher.invalid"), "{reason}");
    }

    /// Of two names, one cannot be resolved any more and the other stands for something else.
    #[tokio::test]
    async fn a_name_that_fails_keeps_its_addresses_and_the_others_follow_theirs() {
        let round = std::sync::atomic::AtomicU8::new(0);
        let lookup = move |host: String, port| {
            let round = round.fetch_add(1, std::sync::atomic::Ordering::Relaxed) / 2;
            std::future::ready(match (host.as_str(), round) {
                ("b", 1) => Err(io::Error::other("gone")),
                (host, round) => {
                    let last = host.as_bytes()[0] - b'a' + 1;
                    Ok(vec![SocketAddr::from(([10, 0, round, last], port))])
                }
            })
        };
        let names = Names::new(lookup, RESOLVE_EVERY);
        let endpoints = ["http://a:7070".to_owned(), "http://b:7070".to_owned()];
        let mut endpoints = Endpoints::parse(&endpoints, names).unwrap();
        let names = |found: Vec<Address>| found.into_iter().map(|at| at.name).collect::<Vec<_>>();
        let (found, failure) = endpoints.resolve().await;
        assert!(failure.is_none());
        assert_eq!(found[0].known_as, "http://a:7070");
        assert_eq!(names(found), ["http://10.0.0.1:7070", "http://10.0.0.2:7070"]);
        let (found, failure) = endpoints.resolve().await;
        assert!(matches!(failure, Some(Closed::ForNow { reason, .. }) if reason.contains("gone")));
        assert_eq!(names(found), ["http://10.0.1.1:7070", "http://10.0.0.2:7070"]);
    }
}
