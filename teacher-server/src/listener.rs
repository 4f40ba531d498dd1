//! Connections: accepted, encrypted, and bounded in number.
//!
//! A peer that has not finished its handshakes, TLS's and the first words of HTTP/2, has no place among the
//! connections yet: with client certificates required, strangers never do. Of too many handshakes the oldest is
//! given up, so that peers that begin them and say no more keep nobody out. One host has so many places at most;
//! a port for probes, which come and go, gives the places of the oldest to the newest.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use stillhouse_runtime::{
    tls::{self, Handshakes},
    watched::Watched,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::AbortHandle,
    time::{Sleep, sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tracing::{debug, warn};

use crate::metrics as names;

/// Handshakes under way at the same time.
const HANDSHAKES: usize = 512;
/// For a TLS handshake, and for the preface after it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// What every HTTP/2 connection begins with (RFC 9113, section 3.4). It is read before the connection has a
/// place: behind it pings find out who is gone, and before it nothing would.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the newest connection waits for the place of the oldest.
const PLACE_TIMEOUT: Duration = Duration::from_secs(5);
/// After a failure to accept, which may be for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end of a connection, as far as the connection itself tells.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its address without the port, so that one host is one client however many connections it
    /// opens.
    pub(crate) host: Arc<str>,
    /// The certificate that it has shown.
    pub(crate) certificate: Option<Arc<Certificate>>,
}

/// A client's certificate, verified.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// DNS names, in lower case.
    pub(crate) dns: Vec<String>,
    pub(crate) uris: Vec<String>,
    /// Of its DER.
    pub(crate) sha256: [u8; 32],
}

/// An accepted connection.
pub(crate) struct Connection {
    stream: Stream,
    /// What was read before it had its place.
    first: Vec<u8>,
    peer: Peer,
    /// Told when the connection has to give its place to a newer one.
    cut: Option<oneshot::Receiver<()>>,
    /// When it has lasted as long as any may.
    longest: Option<Pin<Box<Sleep>>>,
    /// Why it is over, once it is.
    over: Option<io::ErrorKind>,
    _place: Place,
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// One of the connections that there may be.
struct Place {
    terms: Arc<Terms>,
    host: Arc<str>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// None where the host has as many as it may have.
    fn take(terms: &Arc<Terms>, host: &Arc<str>, permit: OwnedSemaphorePermit) -> Option<Self> {
        {
            let mut hosts = terms.hosts();
            let own = hosts.entry(Arc::clone(host)).or_default();
            if *own >= terms.bounds.of_host {
                return None;
            }
            *own += 1;
        }
        metrics::gauge!(names::CONNECTIONS, "port" => terms.bounds.port).increment(1.0);
        Some(Self { terms: Arc::clone(terms), host: Arc::clone(host), _permit: permit })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!(names::CONNECTIONS, "port" => self.terms.bounds.port).decrement(1.0);
        let mut hosts = self.terms.hosts();
        if let Some(own) = hosts.get_mut(&self.host) {
            *own -= 1;
            if *own == 0 {
                hosts.remove(&self.host);
            }
        }
    }
}

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// What the port is called.
    pub(crate) port: &'static str,
    pub(crate) most: usize,
    /// Of one host.
    pub(crate) of_host: usize,
    /// Whether a new one takes the place of the oldest when there are too many.
    pub(crate) newest_wins: bool,
    /// How long any of them may last; none: for ever.
    pub(crate) longest: Option<Duration>,
}

/// What every connection of a listener goes by.
struct Terms {
    bounds: Bounds,
    tls: Option<Arc<Watched<Handshakes>>>,
    places: Arc<Semaphore>,
    /// Connections of each host that has any.
    hosts: Mutex<HashMap<Arc<str>, usize>>,
    /// Where the newest wins: those that are there, or were, the oldest first.
    open: Mutex<VecDeque<oneshot::Sender<()>>>,
}

/// Accepts connections to a port until the first stream is dropped. Each is given to one of so many streams, at
/// random.
pub(crate) fn incoming(
    bounds: Bounds,
    listener: TcpListener,
    tls: Option<Arc<Watched<Handshakes>>>,
    streams: usize,
) -> Vec<ReceiverStream<io::Result<Connection>>> {
    let (out, connections): (Vec<_>, Vec<_>) = (0..streams)
        .map(|_| {
            let (out, connections) = mpsc::channel(1);
            (out, ReceiverStream::new(connections))
        })
        .unzip();
    let terms = Arc::new(Terms {
        places: Arc::new(Semaphore::new(bounds.most)),
        bounds,
        tls,
        hosts: Mutex::default(),
        open: Mutex::default(),
    });
    tokio::spawn(accept(listener, terms, out));
    connections
}

async fn accept(
    listener: TcpListener,
    terms: Arc<Terms>,
    outs: Vec<mpsc::Sender<io::Result<Connection>>>,
) {
    let Some(first) = outs.first() else { return };
    let (random, mut number) = (RandomState::new(), 0_u64);
    let mut handshakes: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        let accepted = tokio::select! {
            () = first.closed() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                number += 1;
                let out = &outs[(random.hash_one(number) % outs.len() as u64) as usize];
                let (terms, out, port) = (Arc::clone(&terms), out.clone(), terms.bounds.port);
                let greeting = tokio::spawn(async move {
                    if let Some(connection) = terms.greet(stream, address).await {
                        // Otherwise the server has ended.
                        drop(out.send(Ok(connection)).await);
                    }
                });
                if handshakes.len() >= HANDSHAKES {
                    handshakes.retain(|handshake| !handshake.is_finished());
                }
                if handshakes.len() >= HANDSHAKES
                    && let Some(oldest) = handshakes.pop_front()
                {
                    oldest.abort();
                    metrics::counter!(names::CONNECTIONS_REFUSED, "port" => port, "reason" => "crowd")
                        .increment(1);
                }
                handshakes.push_back(greeting.abort_handle());
            }
            Err(error) => {
                warn!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Terms {
    /// The handshakes, and a place; none if any of them is refused.
    async fn greet(self: &Arc<Self>, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        // It only costs time where it cannot be set.
        drop(stream.set_nodelay(true));
        let host = Arc::from(address.ip().to_string());
        let (mut stream, certificate) = match &self.tls {
            None => (Stream::Plain(stream), None),
            Some(tls) => {
                let handshake = TlsAcceptor::from(Arc::clone(&tls.current().config)).accept(stream);
                match timeout(HANDSHAKE_TIMEOUT, handshake).await {
                    Ok(Ok(stream)) => {
                        let shown = stream.get_ref().1.peer_certificates();
                        let certificate = shown.and_then(<[_]>::first).map(|der| {
                            let (dns, uris) = tls::names(der);
                            Arc::new(Certificate { dns, uris, sha256: Sha256::digest(der).into() })
                        });
                        (Stream::Tls(Box::new(stream)), certificate)
                    }
                    Ok(Err(error)) => {
                        return self.refused("handshake", &host, &error.to_string());
                    }
                    Err(_) => return self.refused("timeout", &host, "the handshake took too long"),
                }
            }
        };
        let mut first = vec![0; PREFACE.len()];
        let read = match &mut stream {
            Stream::Plain(stream) => {
                timeout(HANDSHAKE_TIMEOUT, stream.read_exact(&mut first)).await
            }
            Stream::Tls(stream) => timeout(HANDSHAKE_TIMEOUT, stream.read_exact(&mut first)).await,
        };
        match read {
            Ok(Ok(_)) if first == PREFACE => {}
            Ok(Ok(_)) => return self.refused("handshake", &host, "it does not speak HTTP/2"),
            Ok(Err(error)) => return self.refused("handshake", &host, &error.to_string()),
            Err(_) => return self.refused("timeout", &host, "it says nothing"),
        }
        let Bounds { most, of_host, newest_wins, longest, .. } = self.bounds;
        let Some(permit) = self.permit().await else {
            let reason = format!("{most} connections are open, the most of this port");
            return self.refused("limit", &host, &reason);
        };
        let Some(place) = Place::take(self, &host, permit) else {
            let reason = format!("{of_host} connections are open, the most of a host");
            return self.refused("host", &host, &reason);
        };
        let cut = newest_wins.then(|| {
            let (tell, cut) = oneshot::channel();
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.retain(|other| !other.is_closed());
            open.push_back(tell);
            cut
        });
        let longest = longest.map(|longest| Box::pin(sleep(longest)));
        let peer = Peer { host, certificate };
        Some(Connection { stream, first, peer, cut, longest, over: None, _place: place })
    }

    /// A place among all of the port's; where the newest wins, the oldest connection's.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        let places = Arc::clone(&self.places);
        if let Ok(permit) = Arc::clone(&places).try_acquire_owned() {
            return Some(permit);
        }
        if !self.bounds.newest_wins {
            return None;
        }
        {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            // One that is gone does not hear it.
            while open.pop_front().is_some_and(|oldest| oldest.send(()).is_err()) {}
        }
        let port = self.bounds.port;
        metrics::counter!(names::CONNECTIONS_REFUSED, "port" => port, "reason" => "crowd")
            .increment(1);
        timeout(PLACE_TIMEOUT, places.acquire_owned()).await.ok()?.ok()
    }

    fn hosts(&self) -> MutexGuard<'_, HashMap<Arc<str>, usize>> {
        // Sums that one statement each keeps right.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn refused(&self, label: &'static str, host: &str, reason: &str) -> Option<Connection> {
        let port = self.bounds.port;
        debug!(port, host, reason, "a connection is refused");
        metrics::counter!(names::CONNECTIONS_REFUSED, "port" => port, "reason" => label)
            .increment(1);
        None
    }
}

impl Connection {
    /// An error once it has to give its place to another, or has lasted for long enough. Asked before whatever
    /// is done with it: who does not read keeps HTTP/2 from reading, too.
    fn goes_on(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if let Some(longest) = &mut self.longest
            && longest.as_mut().poll(context).is_ready()
        {
            self.over.get_or_insert(io::ErrorKind::TimedOut);
        }
        if let Some(cut) = &mut self.cut
            && let Poll::Ready(told) = Pin::new(cut).poll(context)
        {
            // An error means that nobody accepts any more, and nobody needs the place.
            self.cut = None;
            if told.is_ok() {
                self.over = Some(io::ErrorKind::ConnectionAborted);
            }
        }
        self.over.map_or(Ok(()), |over| Err(over.into()))
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.goes_on(context)?;
        if !self.first.is_empty() && buffer.remaining() > 0 {
            let count = self.first.len().min(buffer.remaining());
            buffer.put_slice(&self.first[..count]);
            self.first.drain(..count);
            return Poll::Ready(Ok(()));
        }
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Stream::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.goes_on(context)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.goes_on(context)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Stream::Tls(stream) => Pin::new(stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.stream {
            Stream::Plain(stream) => stream.is_write_vectored(),
            Stream::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.goes_on(context)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(context),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.goes_on(context)?;
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio_stream::StreamExt as _;

    use super::*;

    /// A peer that does not read, so that nothing is read of it, either.
    #[tokio::test]
    async fn the_oldest_goes_and_none_outlasts_its_time_although_they_only_write() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let longest = Some(Duration::from_secs(4));
        let bounds = Bounds { port: "health", most: 1, of_host: 1, newest_wins: true, longest };
        let mut connections = incoming(bounds, listener, None, 1).swap_remove(0);
        let connected = async || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(PREFACE).await.unwrap();
            stream
        };
        let _one = connected().await;
        let mut first = connections.next().await.unwrap().unwrap();
        first.write_all(b"a").await.unwrap();
        let _two = connected().await;
        // It goes when it hears that it has to, as a server drops it.
        let ended = loop {
            if let Err(error) = first.write_all(b"a").await {
                break error.kind();
            }
            sleep(Duration::from_millis(1)).await;
        };
        assert_eq!(ended, io::ErrorKind::ConnectionAborted);
        drop(first);
        let mut second = connections.next().await.unwrap().unwrap();
        second.write_all(b"a").await.unwrap();
        sleep(Duration::from_millis(4100)).await;
        assert_eq!(second.write_all(b"a").await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(second.shutdown().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
