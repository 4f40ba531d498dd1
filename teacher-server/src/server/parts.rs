//! What answers requests, wherever they come from and whatever computes.

use std::{sync::Arc, time::Duration};

use stillhouse_runtime::config::ConfigError;
use tokio::sync::watch;
use tonic::{body::Body, service::InterceptorLayer, transport::server::Router};
use tower::{
    layer::util::{Identity, Stack},
    util::MapResponseLayer,
};

use crate::{
    access::{Access, Guard},
    cache::{LOOKUPS, RowCache},
    ensemble::{Accepts, Ensemble},
    held::Ledger,
    quota::Quotas,
    scheduler::Scheduler,
    service::{self, Core},
    settings::Settings,
    status::Board,
    turns::Turns,
    validate::Contract,
};

/// HTTP/2 flow-control windows: a few dense batches, so that one stream can fill a fast link.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// The largest HTTP/2 frame that clients may send: each is a system call of the client, and memory of a
/// connection before anybody knows whose it is. 128 images of 28 x 28 bytes go in one.
const FRAME: u32 = 128 << 10;
/// A peer that does not answer a ping for this long is gone, and its requests with it.
const KEEPALIVE: Duration = Duration::from_secs(20);

/// A service and its queue.
pub(crate) struct Parts {
    pub(crate) core: Arc<Core>,
    pub(crate) scheduler: Arc<Scheduler>,
    pub(super) drain: watch::Sender<bool>,
}

impl Parts {
    pub(crate) fn new(
        settings: &Settings,
        (name, ensemble): (String, Arc<Ensemble>),
        cache: Arc<RowCache>,
        access: Arc<Access>,
    ) -> Result<Self, ConfigError> {
        let accepts = ensemble.accepts();
        let tokens = matches!(accepts, Accepts::Sequences { .. });
        let bounds = settings.batching.bounds(tokens);
        let default = settings.default_client();
        let scheduler = Scheduler::new(&bounds, &default, &settings.clients);
        let scheduler = Arc::new(scheduler.map_err(|error| ConfigError::Value {
            key: "batching".to_owned(),
            reason: error.to_string(),
        })?);
        let turns = |places| {
            Turns::new(places, &default, &settings.clients).map_err(|error| ConfigError::Value {
                key: "clients".to_owned(),
                reason: error.to_string(),
            })
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (encoders, lookups) = (turns(cores)?, turns(LOOKUPS)?);
        let (drain, draining) = watch::channel(false);
        let core = Arc::new(Core {
            access,
            name,
            contract: Arc::new(Contract {
                accepts,
                classes: ensemble.classes(),
                hidden_size: ensemble.hidden_size(),
                state_width: ensemble.hidden_sizes().iter().sum(),
                members: ensemble.len(),
                default_rule: settings.ensemble,
                limits: settings.limits.clone(),
            }),
            ensemble,
            status: Arc::new(Board::new()),
            cache,
            scheduler: Arc::clone(&scheduler),
            encoders,
            lookups,
            age: settings.connection_age(),
            ledger: Ledger::new(settings.limits.held_bytes, settings.limits.client_held_bytes),
            quotas: Quotas::new(default, settings.clients.clone()),
            heads: service::Heads::default(),
            draining,
            open: Arc::new(()),
        });
        Ok(Self { core, scheduler, drain })
    }
}

type Slice = fn(http::Response<Body>) -> http::Response<Body>;
type Layers = Stack<MapResponseLayer<Slice>, Stack<InterceptorLayer<Guard>, Identity>>;

/// The service behind its layers. Connections are told to go when they have lasted for this part of their age.
pub(crate) fn router(core: &Arc<Core>, settings: &Settings, part: f64) -> Router<Layers> {
    let mut builder = tonic::transport::Server::builder();
    if let Some(age) = settings.connection_age() {
        // Told to go, a connection ends with its last call. Before its label streams end, so that
        // the next of them comes over another one. (tonic's own grace takes the place of telling it.)
        builder = builder.max_connection_age(age.mul_f64(part));
    }
    builder
        .layer(InterceptorLayer::new(Guard(Arc::clone(&core.access))))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_concurrent_streams(settings.limits.max_connection_streams)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .layer(MapResponseLayer::new(service::slice_body as Slice))
        .add_service(service::server(Arc::clone(core)))
}
