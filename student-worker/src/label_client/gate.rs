//! Who may give labels: every connection passes the same gate, the first and each later one.
//!
//! A teacher must suit the run, have the fingerprint of the run's labels, and answer a probe batch
//! as the others did.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use stillhouse_proto::{
    checksum::RequestSum,
    limits::MAX_DESCRIBE_BYTES,
    v1::{DescribeRequest, label_request::Inputs, teacher_service_client::TeacherServiceClient},
};
use tonic::{
    Request, Response, Status,
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

use super::{
    ClientError, Credentials, Teacher, Wanted,
    credentials::Bearer,
    dial::Dial,
    probe::{Apart, Seen},
    status::{Verdict, judge, with_causes, words},
};

/// Rows in the probe that every teacher answers, at most.
pub const PROBE_ROWS: u32 = 8;
/// Time for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of answers on their way, of a stream and of a connection. Given, not found out by pings, which
/// would cost both sides two messages more an answer.
const STREAM_WINDOW: u32 = 16 << 20;
const CONNECTION_WINDOW: u32 = 32 << 20;
/// Of an answer: as large as the pieces that teachers send.
const FRAME: u32 = 1 << 16;
/// A peer that does not answer a ping for this long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// A client of one connection.
pub(super) type Client = TeacherServiceClient<Line>;
/// A connection whose calls carry the run's token.
pub(crate) type Line = InterceptedService<Channel, Bearer>;

/// A connection that has passed.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub(super) client: Client,
    pub(super) teacher: Teacher,
    /// For the other services of the same server.
    pub(super) line: Line,
    /// Whether its answers come with checksums, so that one without was changed on the way.
    pub(super) has_checksums: bool,
}

/// One replica's address.
#[derive(Clone, Debug)]
pub(super) struct Address {
    pub(super) name: String,
    /// What rows are shared out by: the address, or its name where that is its only one, so that a
    /// replica that comes back at another address is asked for the same rows.
    pub(super) known_as: String,
    /// The host that its certificate must name.
    host: String,
    endpoint: Endpoint,
}

impl Address {
    pub(super) fn new(name: String, host: String, endpoint: Endpoint) -> Self {
        let endpoint = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        Self { known_as: name.clone(), name, host, endpoint }
    }
}

impl Address {
    /// A connection to it, whoever is there.
    pub(super) async fn connect(&self, credentials: &Credentials) -> Result<Line, String> {
        let endpoint = credentials.apply(&self.endpoint, &self.host);
        let endpoint = endpoint.map_err(|error| error.to_string())?;
        let bearer = credentials.bearer().map_err(|error| error.to_string())?;
        let connected = endpoint.connect().await;
        let channel =
            connected.map_err(|error| with_causes(format!("{}: {error}", self.name), &error))?;
        Ok(InterceptedService::new(channel, bearer))
    }
}

/// Why a connection did not pass.
#[derive(Debug)]
pub(super) enum Closed {
    /// It may pass later.
    ForNow {
        /// What failed.
        reason: String,
        /// How long the teacher asks to stay away.
        after: Duration,
    },
    /// It never will.
    ForGood(ClientError),
}

impl Closed {
    /// A failure that may pass at any time.
    pub(super) fn for_now(reason: String) -> Self {
        Self::ForNow { reason, after: Duration::ZERO }
    }
}

/// What every connection of a run must be like.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) wanted: Wanted,
    credentials: Credentials,
    dial: Option<Dial>,
    /// Rows that every teacher labels when it is connected, as bytes and rescaled.
    probe: Probe,
    /// What the first teacher was, and how it answered.
    reference: Mutex<Option<Reference>>,
}

/// What every teacher is probed with.
#[derive(Clone, Debug)]
pub struct Probe {
    /// As bytes, or sequences.
    pub inputs: Inputs,
    /// As f32, rescaled, for a teacher that takes no bytes.
    pub floats: Option<Inputs>,
    /// Labels that it asks for.
    pub rows: usize,
}

#[derive(Clone, Debug)]
struct Reference {
    fingerprint: Vec<u8>,
    /// The first answer of each kind to the probe, and whose it was.
    probes: Vec<(String, Seen)>,
}

impl Gate {
    pub(super) fn new(
        wanted: Wanted,
        (credentials, dial): (Credentials, Option<Dial>),
        probe: Probe,
    ) -> Self {
        Self { wanted, credentials, dial, probe, reference: Mutex::new(None) }
    }

    /// Connects, and checks who answers. A refusal is believed when it is repeated: one that is not may
    /// be of what became of the answers on the way.
    pub(super) async fn open(&self, address: &Address) -> Result<Opened, Closed> {
        let first = match self.try_open(address).await {
            Err(Closed::ForGood(error)) => error,
            other => return other,
        };
        match self.try_open(address).await {
            Err(Closed::ForGood(again)) if again.to_string() == first.to_string() => {
                Err(Closed::ForGood(again))
            }
            Err(Closed::ForGood(again)) => Err(Closed::for_now(again.to_string())),
            other => other,
        }
    }

    async fn try_open(&self, address: &Address) -> Result<Opened, Closed> {
        let name = &address.name;
        let (endpoint, bearer) = self.with_credentials(address).await?;
        let connected = match &self.dial {
            None => endpoint.connect().await,
            Some(dial) => endpoint.connect_with_connector(dial.connector()).await,
        };
        let channel = connected
            .map_err(|error| Closed::for_now(with_causes(format!("{name}: {error}"), &error)))?;
        let line = InterceptedService::new(channel, bearer);
        let mut client =
            Client::new(line.clone()).max_decoding_message_size(MAX_DESCRIBE_BYTES as usize);
        let description =
            self.call(name, "Describe", client.describe(self.request(DescribeRequest {}))).await?;
        let teacher = Teacher::suited(name, description, &self.wanted).map_err(Closed::ForGood)?;
        let mut client = client
            .max_decoding_message_size(teacher.max_answer_bytes)
            .max_encoding_message_size(teacher.max_message_bytes);
        self.same_fingerprint(name, &teacher.fingerprint).map_err(Closed::ForGood)?;
        let (probe, has_checksums) = self.ask_probe(name, &mut client, &teacher).await?;
        self.admit(name, &teacher, probe).map_err(Closed::ForGood)?;
        Ok(Opened { client, teacher, line, has_checksums })
    }

    /// An address and a token for its calls, with the files as they are now: one that is being
    /// replaced may be fit later.
    async fn with_credentials(&self, address: &Address) -> Result<(Endpoint, Bearer), Closed> {
        if self.credentials.are_none(&address.endpoint) {
            return Ok((address.endpoint.clone(), Bearer::default()));
        }
        let (credentials, own) = (self.credentials.clone(), address.clone());
        let read = tokio::task::spawn_blocking(move || {
            Ok((credentials.apply(&own.endpoint, &own.host)?, credentials.bearer()?))
        });
        let unread = |error: String| Closed::for_now(format!("{}: {error}", address.name));
        let read = read.await.map_err(|error| unread(error.to_string()))?;
        read.map_err(|error: ClientError| unread(error.to_string()))
    }

    /// Refuses labels of another teacher.
    pub(super) fn same_fingerprint(&self, endpoint: &str, found: &[u8]) -> Result<(), ClientError> {
        match &*self.reference.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(reference) if reference.fingerprint != found => Err(ClientError::Fingerprint {
                endpoint: endpoint.to_owned(),
                found: found.to_vec(),
                expected: reference.fingerprint.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// A unary request with the run's deadline, which the server reads.
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.wanted.timeout);
        request
    }

    /// Waits for a unary call, no longer than its deadline, and judges its failure.
    async fn call<T>(
        &self,
        endpoint: &str,
        request: &str,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Closed> {
        Ok(self.within(endpoint, request, call).await?.into_inner())
    }

    /// Waits for a teacher, no longer than a request may take, and judges its failure.
    pub(super) async fn within<T>(
        &self,
        endpoint: &str,
        request: &str,
        answer: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Closed> {
        let timeout = self.wanted.timeout;
        match tokio::time::timeout(timeout, answer).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(closed(endpoint, request, &status)),
            Err(_) => {
                let words = format!("{endpoint}: {request}: no answer within {timeout:?}");
                Err(Closed::for_now(words))
            }
        }
    }

    async fn ask_probe(
        &self,
        name: &str,
        client: &mut Client,
        teacher: &Teacher,
    ) -> Result<(Seen, bool), Closed> {
        let probe = &self.probe;
        let floats = probe.floats.as_ref().filter(|_| !teacher.takes_bytes);
        let inputs = floats.unwrap_or(&probe.inputs).clone();
        // Without dense labels, what the run asks for is compared.
        let request = match teacher.offers_dense {
            true => self.wanted.dense_request(inputs),
            false => self.wanted.probe_request(inputs),
        };
        let sum = RequestSum::new(&request);
        let response = self.call(name, "the probe", client.label(self.request(request))).await?;
        let checked = sum.agrees(&response);
        // What the teacher has described itself as came without a checksum.
        if checked == Some(false) || response.fingerprint != teacher.fingerprint {
            let words = format!("{name}: the probe: the answer was changed on the way");
            return Err(Closed::for_now(words));
        }
        let found = Seen::of(&response).filter(|seen| {
            let expected = !teacher.offers_dense || matches!(seen, Seen::Dense(_));
            expected && seen.rows(self.wanted.classes) == probe.rows
        });
        found.map(|found| (found, checked.is_some())).ok_or_else(|| {
            Closed::ForGood(ClientError::Answer {
                endpoint: name.to_owned(),
                request: "the probe".to_owned(),
                reason: "it is not a label of every row".to_owned(),
            })
        })
    }

    /// Compares with the first teacher, or makes this one the first.
    fn admit(&self, endpoint: &str, teacher: &Teacher, probe: Seen) -> Result<(), ClientError> {
        self.same_fingerprint(endpoint, &teacher.fingerprint)?;
        let mut first = self.reference.lock().unwrap_or_else(PoisonError::into_inner);
        let Reference { probes, .. } = first.get_or_insert_with(|| Reference {
            fingerprint: teacher.fingerprint.clone(),
            probes: Vec::new(),
        });
        let Some((other, seen)) = probes.iter().find(|(_, seen)| seen.is_like(&probe)) else {
            probes.push((endpoint.to_owned(), probe));
            return Ok(());
        };
        let Apart { difference, of, allowed } = seen.apart(&probe);
        if difference <= allowed {
            return Ok(());
        }
        Err(ClientError::Disagrees {
            endpoint: endpoint.to_owned(),
            other: other.clone(),
            difference,
            of,
            allowed,
        })
    }
}

/// Judges a failed call.
pub(super) fn closed(endpoint: &str, request: &str, status: &Status) -> Closed {
    match judge(status) {
        Verdict::Retry(after) => {
            Closed::ForNow { reason: format!("{endpoint}: {request}: {}", words(status)), after }
        }
        Verdict::Final => Closed::ForGood(ClientError::Refused {
            endpoint: endpoint.to_owned(),
            request: request.to_owned(),
            code: super::status::name(status.code()),
            message: status.message().to_owned(),
        }),
    }
}
