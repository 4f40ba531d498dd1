//! `security`: who is let in, what each may ask for, and certificates that change under load.

mod names;
mod refusals;
mod rotation;

use std::{net::SocketAddr, path::Path, time::Duration};

use stillhouse_proto::v1::teacher_service_client::TeacherServiceClient;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Error, Identity},
};

use super::Figures;
use crate::{
    models,
    pki::{Authority, Pair, replace},
    process::Teacher,
};

/// What the server's certificate is for.
const SERVER: &str = "teacher.test";
const WIDTH: usize = 784;
const CLASSES: usize = 10;
/// How often the server looks at its files.
const RELOAD: &str = "reload_seconds=0.1";
/// Longer than that, on a busy machine.
const SEEN: Duration = Duration::from_millis(1500);

pub(super) fn run(seconds: Option<f64>) -> Figures {
    let mut figures = Figures::default();
    refusals(&mut figures);
    names(&mut figures);
    rotation(&mut figures, seconds.unwrap_or(60.0));
    figures
}

/// Who must be refused, and is.
pub fn refusals(figures: &mut Figures) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(refusals::run(figures));
}

/// Teachers behind one name, with certificates of that name.
pub fn names(figures: &mut Figures) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(names::run(figures));
}

/// Certificates, authorities and tokens that change while students and clients ask on.
pub fn rotation(figures: &mut Figures, seconds: f64) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(rotation::run(figures, seconds));
}

/// A client with what it shows.
#[derive(Clone, Default)]
struct Shows {
    ca: String,
    pair: Option<Pair>,
    token: Option<String>,
}

/// Puts the token into calls.
#[derive(Clone)]
struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

type Line = InterceptedService<Channel, Token>;
type Client = TeacherServiceClient<Line>;

impl Shows {
    async fn connect(&self, address: SocketAddr) -> Result<Line, Error> {
        self.connect_as(address, SERVER).await
    }

    async fn connect_as(&self, address: SocketAddr, name: &str) -> Result<Line, Error> {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name(name);
        let tls = match &self.pair {
            Some(pair) => tls.identity(Identity::from_pem(&pair.cert, &pair.key)),
            None => tls,
        };
        let endpoint = Endpoint::from_shared(format!("https://{address}")).unwrap();
        let channel = endpoint.tls_config(tls)?.connect().await?;
        let token = self.token.as_ref().map(|token| format!("Bearer {token}").parse().unwrap());
        Ok(InterceptedService::new(channel, Token(token)))
    }

    async fn client(&self, address: SocketAddr) -> Result<Client, Error> {
        Ok(Client::new(self.connect(address).await?))
    }
}

/// A folder with a model, the server's files, and a list of clients.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(authority: &Authority, list: &str) -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::create_dir(place.path().join("model")).unwrap();
        models::write_mlp(&place.path().join("model"), WIDTH, &[16], CLASSES, 1);
        authority.server(SERVER).write(place.path(), "server");
        place.authorities(&authority.pem);
        place.list(list);
        place
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whose clients are let in.
    fn authorities(&self, pem: &str) {
        replace(&self.path().join("clients.crt"), pem);
    }

    fn list(&self, text: &str) {
        replace(&self.path().join("clients.toml"), text);
    }

    /// Starts a teacher whose clients must show a certificate, or may.
    fn serve(&self, client_cert: &str, arguments: &[&str]) -> Teacher {
        let at = |name: &str| self.path().join(name).display().to_string();
        let client_cert = format!("tls.client_cert={client_cert}");
        let (cert, key) = (at("server.crt"), at("server.key"));
        let (clients, list) = (at("clients.crt"), at("clients.toml"));
        let mut all = vec!["--tls-cert", &cert, "--tls-key", &key, "--tls-client-ca", &clients];
        all.extend(["--access-file", &list, "--set", &client_cert, "--set", RELOAD]);
        all.extend(arguments);
        Teacher::start(&self.path().join("model"), &all)
    }
}
