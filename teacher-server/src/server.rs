//! Binding, serving and draining.

mod guarded;
mod parts;

use std::{
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use futures_util::future::try_join_all;
use stillhouse_nn::{AnyConfig, ModelError, TokenizerInfo};
use stillhouse_proto::v1::{FILE_DESCRIPTOR_SET, teacher_service_server::TeacherServiceServer};
use stillhouse_runtime::config::ConfigError;
use tokio::{net::TcpListener, sync::watch, task, time::Instant};
use tonic::server::NamedService as _;
use tonic_health::{ServingStatus, server::HealthReporter};
use tracing::{info, warn};

use guarded::Guarded;
pub(crate) use parts::{Parts, router};

use crate::{
    access::Access,
    cache::{DiskError, RowCache},
    device,
    ensemble::{self, Ensemble, Rule, Signature},
    hex::hex,
    listener::{self, Bounds},
    metrics as names, model,
    output::Layout,
    service::Teacher,
    settings::Settings,
    status,
};

/// How often a draining server looks whether every answer has been handed over.
const ANSWERED_POLL: Duration = Duration::from_millis(5);
/// Servers that a port's connections are spread over where they have an age, each with an age of its own: they
/// come of age one after another.
const AGES: u32 = 8;
/// Connections of probes, calls on one, and how long one that does not answer a ping may be there.
const PROBES: usize = 64;
const PROBE_STREAMS: u32 = 8;
const PROBE_KEEPALIVE: Duration = Duration::from_secs(10);
/// Once the connections have taken every answer, they get this long to deliver what they buffer.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Why a server could not start or ended early.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is out of its range.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// The model cannot be served.
    #[error("model {folder}: {source}")]
    Model {
        /// Its folder.
        folder: String,
        /// Why.
        source: Box<ModelError>,
    },
    /// The address cannot be listened on.
    #[error("{key}: {address} cannot be bound: {source}")]
    Bind {
        /// The setting.
        key: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why: another process has the port, the address is not this machine's, ...
        source: io::Error,
    },
    /// The cache's disk tier cannot be used.
    #[error(transparent)]
    Cache(#[from] DiskError),
    /// A thread could not be started.
    #[error("the device thread cannot be started: {0}")]
    Thread(io::Error),
    /// The connection handling failed.
    #[error("serving failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// A server that holds its port and its models, and does not serve yet.
pub struct Server {
    settings: Settings,
    listener: TcpListener,
    address: SocketAddr,
    guarded: Guarded,
    parts: Parts,
    device: JoinHandle<()>,
    device_lost: watch::Receiver<bool>,
}

impl Server {
    /// Checks that the models go together, takes the port, loads them and starts the device thread.
    ///
    /// # Errors
    /// If a setting is out of range, models do not agree on what a row or a label is, the port is
    /// taken, or a model cannot be loaded.
    pub async fn bind(settings: Settings) -> Result<Self, StartError> {
        settings.validate()?;
        if settings.model.len() > 1 {
            blocking(&settings.model, |folders| check_agreement(&folders)).await?;
        }
        let guarded = Guarded::open(&settings).await?;
        let listener = listen("listen", settings.listen).await?;
        let ensemble = blocking(&settings.model, load).await?;
        Self::with_ensemble(settings, (listener, guarded), ensemble).await
    }

    /// Serves models that are loaded already, in place of those in `settings.model`.
    ///
    /// # Errors
    /// As [`Server::bind`].
    pub async fn bind_ensemble(settings: Settings, ensemble: Ensemble) -> Result<Self, StartError> {
        settings.validate()?;
        let guarded = Guarded::open(&settings).await?;
        let listener = listen("listen", settings.listen).await?;
        Self::with_ensemble(settings, (listener, guarded), ensemble).await
    }

    async fn with_ensemble(
        settings: Settings,
        (listener, guarded): (TcpListener, Guarded),
        ensemble: Ensemble,
    ) -> Result<Self, StartError> {
        let ensemble = Arc::new(ensemble);
        metrics::gauge!(names::MEMBERS).set(ensemble.len() as f64);
        let (key, asked) = ("listen", settings.listen);
        let address = listener.local_addr().map_err(|source| StartError::Bind {
            key,
            address: asked,
            source,
        })?;
        let cache = open_cache(&settings, &ensemble).await?;
        let name = match settings.name.as_str() {
            "" => ensemble.name(),
            name => name.to_owned(),
        };
        let access = Arc::new(Access::new(guarded.list.clone(), name.clone()));
        let parts = Parts::new(&settings, (name, Arc::clone(&ensemble)), cache, access)?;
        let (lost, device_lost) = watch::channel(false);
        let core = &parts.core;
        let shared =
            (Arc::clone(&core.cache), Arc::clone(&parts.scheduler), Arc::clone(&core.status));
        let device = device::spawn(ensemble, shared, lost).map_err(StartError::Thread)?;
        Ok(Self { settings, listener, address, guarded, parts, device, device_lost })
    }

    /// The address, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What its status page shows, as JSON, whenever it is asked.
    pub fn status(&self) -> impl Fn() -> String + Send + Sync + use<> {
        let (core, peers) = (Arc::clone(&self.parts.core), self.settings.status_peers.clone());
        move || status::json(&core, &peers)
    }

    /// The teacher's fingerprint for requests that set no rule, as hexadecimal digits.
    pub fn fingerprint(&self) -> String {
        hex(&self.parts.core.fingerprint(self.settings.ensemble))
    }

    /// Serves until `stop` is ready, then drains: health turns NOT_SERVING, what was admitted is
    /// finished, streams and connections are closed. Returns within `drain.limit_seconds` of
    /// `stop`, even if a client holds an idle stream open.
    ///
    /// # Errors
    /// If the transport fails while serving.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send) -> Result<(), StartError> {
        let limit = self.settings.drain_limit();
        let (health, health_service) = tonic_health::server::health_reporter();
        report(&health, ServingStatus::Serving).await;
        // Descriptors that were compiled into the binary decode; without them only reflection is gone.
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()
            .ok();

        let (close, closing) = watch::channel(false);
        let mut background = self.guarded.watch(self.settings.reload_every());
        let core = Arc::clone(&self.parts.core);
        background.spawn(async move { core.status.gauge_device().await });
        let probes = self.guarded.health.map(|listener| {
            let router = tonic::transport::Server::builder()
                .http2_keepalive_interval(Some(PROBE_KEEPALIVE))
                .http2_keepalive_timeout(Some(PROBE_KEEPALIVE))
                .max_concurrent_streams(PROBE_STREAMS)
                .add_service(health_service.clone());
            let bounds = Bounds {
                port: "health",
                most: PROBES,
                of_host: PROBES,
                newest_wins: true,
                longest: None,
            };
            let incoming = listener::incoming(bounds, listener, None, 1).swap_remove(0);
            let mut closing = closing.clone();
            task::spawn(router.serve_with_incoming_shutdown(incoming, async move {
                drop(closing.wait_for(|closing| *closing).await);
            }))
        });
        let (limits, age) = (&self.settings.limits, self.settings.connection_age());
        let bounds = Bounds {
            port: "grpc",
            most: limits.max_connections as usize,
            of_host: limits.max_host_connections as usize,
            newest_wins: false,
            // A label stream that begins just before its connection is told to go has an age, and a grace to
            // answer and one to end, of its own.
            longest: age.map(|age| 2 * (age + self.settings.connection_grace())),
        };
        let ages = if age.is_some() { AGES } else { 1 };
        let incoming = listener::incoming(bounds, self.listener, self.guarded.tls, ages as usize);
        let servers = (1..).zip(incoming).map(|(number, incoming)| {
            // Between eight and nine tenths of the age, so that label streams end after their connections
            // have been told to go.
            let part = 0.8 + 0.1 * f64::from(number) / f64::from(ages);
            let router = router(&self.parts.core, &self.settings, part)
                .add_service(health_service.clone())
                .add_optional_service(reflection.clone());
            let mut closing = closing.clone();
            router.serve_with_incoming_shutdown(incoming, async move {
                // An error means that the sender is gone, and so is the server.
                drop(closing.wait_for(|closing| *closing).await);
            })
        });
        let servers = try_join_all(servers.collect::<Vec<_>>());
        let mut serving = task::spawn(async move { servers.await.map(|_| ()) });

        let mut lost = self.device_lost.clone();
        tokio::pin!(stop);
        tokio::select! {
            () = &mut stop => {},
            () = device_lost(&mut lost) => {
                report(&health, ServingStatus::NotServing).await;
                warn!("the device is lost; health is NOT_SERVING");
                stop.as_mut().await;
            }
            ended = &mut serving => return flatten(ended),
        }

        let deadline = Instant::now() + limit;
        info!(limit_seconds = limit.as_secs_f64(), "draining");
        report(&health, ServingStatus::NotServing).await;
        self.parts.scheduler.drain();
        self.parts.drain.send_replace(true);
        self.parts.scheduler.close();
        // The device thread ends when everything that was admitted has been answered.
        let device = self.device;
        let finished = task::spawn_blocking(move || device.join().is_ok());
        let open = &self.parts.core.open;
        let answered = async {
            drop(finished.await);
            // Streams end by themselves when they have been told and everything is sent.
            while Arc::strong_count(open) > 1 {
                tokio::time::sleep(ANSWERED_POLL).await;
            }
        };
        if tokio::time::timeout_at(deadline, answered).await.is_err() {
            warn!("the drain limit passed with work left; it is dropped");
        }
        close.send_replace(true);
        drop(background);
        let cache = Arc::clone(&self.parts.core.cache);
        let written = task::spawn_blocking(move || cache.close());
        let grace = (Instant::now() + CLOSE_GRACE).min(deadline);
        match tokio::time::timeout_at(grace, &mut serving).await {
            Ok(ended) => flatten(ended)?,
            // A client holds a stream open that has nothing to say, such as a health watch.
            Err(_) => serving.abort(),
        }
        if let Some(probes) = probes {
            probes.abort();
        }
        if tokio::time::timeout_at(deadline, written).await.is_err() {
            warn!("the drain limit passed before the cache was written; the rest is dropped");
        }
        info!("stopped");
        Ok(())
    }

    /// Serves in the background until [`Running::shutdown`].
    pub fn spawn(self) -> Running {
        let address = self.address;
        let (stop, stopping) = tokio::sync::oneshot::channel::<()>();
        let task = task::spawn(self.serve(async move { drop(stopping.await) }));
        Running { address, stop, task }
    }
}

/// A server in the background of this process. Dropped, it drains by itself.
pub struct Running {
    address: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    task: task::JoinHandle<Result<(), StartError>>,
}

impl Running {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Drains and waits for the end.
    ///
    /// # Errors
    /// If the transport failed while serving.
    pub async fn shutdown(self) -> Result<(), StartError> {
        drop(self.stop);
        self.task.await.map_err(|error| StartError::Thread(error.into()))?
    }
}

async fn open_cache(
    settings: &Settings,
    ensemble: &Arc<Ensemble>,
) -> Result<Arc<RowCache>, StartError> {
    let (cache, ensemble) = (settings.cache.clone(), Arc::clone(ensemble));
    let opened = task::spawn_blocking(move || {
        // What the members compute does not depend on the rule.
        RowCache::open(&cache, ensemble.fingerprint(Rule::Arithmetic), Layout::of(&ensemble))
    });
    let opened = opened.await.map_err(|error| StartError::Thread(error.into()))?;
    Ok(Arc::new(opened?))
}

async fn listen(key: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { key, address, source })
}

/// Waits until the device thread says that its device is lost; for ever if it ends in good health.
async fn device_lost(lost: &mut watch::Receiver<bool>) {
    if lost.wait_for(|lost| *lost).await.is_err() {
        std::future::pending::<()>().await;
    }
}

async fn report(health: &HealthReporter, status: ServingStatus) {
    health.set_service_status("", status).await;
    let service = TeacherServiceServer::<Teacher>::NAME;
    health.set_service_status(service, status).await;
    let serving = if status == ServingStatus::Serving { 1.0 } else { 0.0 };
    metrics::gauge!(names::SERVING).set(serving);
}

/// Does what may take long with the models' folders on a thread of its own.
async fn blocking<T: Send + 'static>(
    folders: &[PathBuf],
    work: impl FnOnce(Vec<PathBuf>) -> Result<T, StartError> + Send + 'static,
) -> Result<T, StartError> {
    let folders = folders.to_vec();
    let done = task::spawn_blocking(move || work(folders)).await;
    done.map_err(|error| StartError::Thread(error.into()))?
}

/// Refuses models that do not go together by their configurations alone, before anything large is
/// read.
fn check_agreement(folders: &[PathBuf]) -> Result<(), StartError> {
    let read = |folder: &PathBuf| {
        let config = model::read_config(folder)?;
        let tokenizer = match &config {
            AnyConfig::Text(_) => TokenizerInfo::load(folder)?,
            AnyConfig::Features(_) => None,
        };
        Ok(Signature::expected(&config, tokenizer))
    };
    let signatures = folders
        .iter()
        .map(|folder| read(folder).map_err(|source| not_served(folder, source)))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(ensemble::agree(folders.iter().map(PathBuf::as_path).zip(signatures))?)
}

fn load(folders: Vec<PathBuf>) -> Result<Ensemble, StartError> {
    let load = |folder: PathBuf| match model::load(&folder) {
        Ok(model) => Ok((folder, model)),
        Err(source) => Err(not_served(&folder, source)),
    };
    let models = folders.into_iter().map(load).collect::<Result<Vec<_>, _>>()?;
    Ok(Ensemble::new(models)?)
}

fn not_served(folder: &Path, source: ModelError) -> StartError {
    StartError::Model { folder: folder.display().to_string(), source: Box::new(source) }
}

fn flatten(
    ended: Result<Result<(), tonic::transport::Error>, task::JoinError>,
) -> Result<(), StartError> {
    ended.map_err(|error| StartError::Thread(error.into()))?.map_err(StartError::Transport)
}
