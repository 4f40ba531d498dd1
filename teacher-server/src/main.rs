//! The `teacher-server` binary.

use std::{
    io::Write as _,
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::Duration,
};

use clap::{Parser, Subcommand};
use stillhouse_runtime::{
    config::{self, ConfigError},
    exit,
    metrics_server::{MetricsServer, Page},
    shutdown::Signals,
    telemetry::{self, Metrics},
    traces, tuning,
};
use teacher_server::{DiskError, Server, Settings, StartError, metrics};
use toml::{Table, Value};
use tracing::info;

/// Long enough to serve the next batch from the pages of the last.
const FREED_PAGES_KEPT: Duration = Duration::from_secs(1);

/// Threads for blocking work, at least: twice as many as may wait for the disk.
const LEAST_BLOCKING_THREADS: usize = 8;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Serve a trained model's soft labels over gRPC.
///
/// Settings: defaults, then --config FILE, then the environment, then flags; later ones win.
/// Exit codes: 0 stopped by a signal, 64 wrong configuration or model, 75 the port is taken or
/// another server has the cache's folder.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Folder with config.json and model.safetensors. Given several times, up to 64, the models
    /// answer as one teacher; in the environment, a list such as ["A", "B"] does the same.
    #[arg(long, value_name = "DIR", env = "STILLHOUSE_MODEL")]
    model: Vec<PathBuf>,
    /// How several models' distributions become one, for requests that do not say: arithmetic (the
    /// mean of probabilities) or geometric (the mean of logits) [default: arithmetic].
    #[arg(long, value_name = "RULE", env = "STILLHOUSE_ENSEMBLE")]
    ensemble: Option<String>,
    /// Address of the gRPC service [default: 127.0.0.1:7070].
    #[arg(long, value_name = "ADDR", env = "STILLHOUSE_LISTEN")]
    listen: Option<SocketAddr>,
    /// Address that Prometheus scrapes, at /metrics, and of the status page, at / [default: none].
    #[arg(long, value_name = "ADDR", env = "STILLHOUSE_METRICS_LISTEN")]
    metrics_listen: Option<SocketAddr>,
    /// Folder that keeps what the model computed across restarts; one of its own for each server
    /// [default: none].
    #[arg(long, value_name = "DIR", env = "STILLHOUSE_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Certificate of the gRPC service and those up to its authority, in PEM [default: plaintext].
    #[arg(long, value_name = "FILE", env = "STILLHOUSE_TLS_CERT")]
    tls_cert: Option<PathBuf>,
    /// Private key of that certificate, in PEM.
    #[arg(long, value_name = "FILE", env = "STILLHOUSE_TLS_KEY")]
    tls_key: Option<PathBuf>,
    /// Authorities whose clients are let in, in PEM: every client must show a certificate.
    #[arg(long, value_name = "FILE", env = "STILLHOUSE_TLS_CLIENT_CA")]
    tls_client_ca: Option<PathBuf>,
    /// List of the clients that may ask, and for what [default: everybody].
    #[arg(long, value_name = "FILE", env = "STILLHOUSE_ACCESS_FILE")]
    access_file: Option<PathBuf>,
    /// Address of a plaintext listener for health probes alone [default: none].
    #[arg(long, value_name = "ADDR", env = "STILLHOUSE_HEALTH_LISTEN")]
    health_listen: Option<SocketAddr>,
    /// OpenTelemetry collector that traces go to, over gRPC, such as http://collector:4317; of binaries
    /// that were built with the feature `otlp` [default: none].
    #[arg(long, value_name = "URL", env = "STILLHOUSE_TRACES_ENDPOINT")]
    traces_endpoint: Option<String>,
    /// What computes the labels: cpu.
    #[arg(long, value_name = "DEVICE", env = "STILLHOUSE_DEVICE")]
    device: Option<String>,
    /// Log lines as `text` or `json`.
    #[arg(long, value_name = "FORMAT", env = "STILLHOUSE_LOG_FORMAT")]
    log_format: Option<String>,
    /// TOML file with any of the settings, which docs/settings.md lists.
    #[arg(long, value_name = "FILE", env = "STILLHOUSE_CONFIG")]
    config: Option<PathBuf>,
    /// Any setting, by its path: --set limits.max_rows=256. Can be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print a new token for a client, and its hash for the list of clients.
    NewToken,
}

impl Arguments {
    /// `model`: one folder, or a list of them.
    fn models(&self) -> Option<Value> {
        let mut folders: Vec<Value> =
            self.model.iter().map(|folder| folder.display().to_string().into()).collect();
        match folders.pop() {
            Some(last) if !folders.is_empty() => {
                folders.push(last);
                Some(Value::Array(folders))
            }
            // A list is one value in the environment.
            Some(Value::String(text)) if text.starts_with('[') => Some(list(text)),
            only => only,
        }
    }

    fn settings(&self) -> Result<Settings, ConfigError> {
        let mut table = match &self.config {
            Some(file) => config::read_file(file)?,
            None => Table::new(),
        };
        let flags = [
            ("ensemble", self.ensemble.clone()),
            ("listen", self.listen.map(|address| address.to_string())),
            ("metrics_listen", self.metrics_listen.map(|address| address.to_string())),
            ("health_listen", self.health_listen.map(|address| address.to_string())),
            ("access_file", self.access_file.as_ref().map(|file| file.display().to_string())),
            ("device", self.device.clone()),
        ];
        for (key, value) in flags {
            if let Some(value) = value {
                table.insert(key.to_owned(), value.into());
            }
        }
        if let Some(model) = self.models() {
            table.insert("model".to_owned(), model);
        }
        let shown = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        for (section, key, value) in [
            ("cache", "disk_dir", shown(&self.cache_dir)),
            ("tls", "cert", shown(&self.tls_cert)),
            ("tls", "key", shown(&self.tls_key)),
            ("tls", "client_ca", shown(&self.tls_client_ca)),
            ("traces", "endpoint", self.traces_endpoint.clone()),
        ] {
            let Some(value) = value else { continue };
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(section) = section {
                section.insert(key.to_owned(), value.into());
            }
        }
        if let Some(format) = &self.log_format {
            config::assign(&mut table, &format!("log.format={format}"))?;
        }
        for assignment in &self.set {
            config::assign(&mut table, assignment)?;
        }
        let settings: Settings = config::read(table)?;
        settings.validate()?;
        Ok(settings)
    }
}

/// The TOML list that a text is, or else the text: the name of a folder may start with a bracket.
fn list(text: String) -> Value {
    let mut table = Table::new();
    // A key without dots: what it is given is never refused.
    drop(config::assign(&mut table, &format!("model={text}")));
    match table.remove("model") {
        Some(Value::Array(folders)) => Value::Array(folders),
        _ => Value::String(text),
    }
}

/// What ends the process early.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Settings(#[from] ConfigError),
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
    #[error("metrics_listen: {0} cannot be bound: {1}")]
    MetricsPort(SocketAddr, std::io::Error),
    #[error("the system has no random numbers")]
    Random,
    #[error("the output cannot be written: {0}")]
    Output(std::io::Error),
    #[error("signals cannot be handled: {0}")]
    Signals(std::io::Error),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Start(StartError::Bind { .. }) | Self::MetricsPort(..) => exit::TEMPORARY,
            Self::Start(StartError::Cache(DiskError::Busy { .. })) => exit::TEMPORARY,
            Self::Start(
                StartError::Settings(_) | StartError::Model { .. } | StartError::Cache(_),
            )
            | Self::Settings(_)
            | Self::Telemetry(_) => exit::CONFIGURATION,
            _ => exit::FAILED,
        }
    }
}

fn main() -> ExitCode {
    tuning::keep_freed_pages(Some(FREED_PAGES_KEPT));
    tuning::no_huge_pages();
    tuning::quiet_candle_threads();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return exit::usage(&error),
    };
    // Under load tokio starts another thread for blocking work whenever none is idle at that moment, up to
    // 512, and each keeps memory of its own. Lookups on the disk are few at a time, and encoding is work for
    // the cores that there are.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads((2 * cores).max(LEAST_BLOCKING_THREADS))
        .build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(&arguments));
            traces::stop();
            // Work that the drain limit left behind does not hold the exit up.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(Failure::Start(StartError::Thread(error))),
    };
    match result {
        Ok(()) => ExitCode::from(exit::DONE),
        Err(failure) => exit::fail("teacher-server", &failure, failure.exit_code()),
    }
}

/// Prints a new token to give away, and its hash to keep.
fn print_token() -> Result<(), Failure> {
    let (token, hash) = teacher_server::new_token().ok_or(Failure::Random)?;
    writeln!(std::io::stdout(), "token:  {token}\nhash:   {hash}").map_err(Failure::Output)
}

/// Makes the status page's JSON.
type Json = Box<dyn Fn() -> String + Send + Sync>;

fn page(
    path: &'static str,
    content_type: &'static str,
    body: impl Fn() -> String + Send + Sync + 'static,
) -> Page {
    // Other replicas' pages read the figures.
    let shared = content_type == "application/json";
    Page { path, content_type, shared, body: Arc::new(body) }
}

async fn run(arguments: &Arguments) -> Result<(), Failure> {
    if let Some(Command::NewToken) = arguments.command {
        return print_token();
    }
    let settings = arguments.settings()?;
    telemetry::start_logs(&settings.log.level, settings.log.format)?;
    traces::start(&settings.traces, "teacher-server")?;
    let mut signals = Signals::install().map_err(Failure::Signals)?;
    let metrics = Metrics::install(metrics::CATALOGUE)?;
    tokio::spawn(metrics.clone().upkeep());
    // There once the models are loaded.
    let status: Arc<OnceLock<Json>> = Arc::default();
    if let Some(address) = settings.metrics_listen {
        let server = MetricsServer::bind(address)
            .await
            .map_err(|error| Failure::MetricsPort(address, error))?;
        info!(address = %server.address(), "metrics");
        let status = Arc::clone(&status);
        let json = move || status.get().map_or_else(|| "{}".to_owned(), |json| json());
        let pages = vec![
            page("/", "text/html; charset=utf-8", || teacher_server::STATUS_PAGE.to_owned()),
            page("/status.json", "application/json", json),
        ];
        tokio::spawn(server.serve(metrics, pages));
    }
    for folder in &settings.model {
        info!(model = %folder.display(), "loading");
    }
    let server = Server::bind(settings).await?;
    // Set here alone.
    drop(status.set(Box::new(server.status())));
    info!(address = %server.address(), fingerprint = server.fingerprint(), "serving");
    server
        .serve(async move {
            let signal = signals.next().await;
            info!(signal, "stopping; another signal ends it at once");
            signals.end_at_next();
        })
        .await?;
    Ok(())
}
