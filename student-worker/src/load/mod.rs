//! `student-worker load`: how a teacher answers at a given rate.
//!
//! The load is open: each request is due at a time that is drawn beforehand, whatever became of those
//! before it, and its latency counts from then. A teacher that stops for a second therefore shows a second
//! for everything that was due meanwhile; a client that waits for an answer before it asks again would show
//! one slow request (G. Tene, "How NOT to Measure Latency": coordinated omission).

mod client;
mod figures;

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
pub(crate) use client::{Asks, Client, Shape};
use figures::{Answers, Figures};
use stillhouse_proto::v1::{
    DType, DenseEncoding, DenseKind, HiddenEncoding, SampledEncoding, TopKEncoding, encoding::Kind,
};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    flags::number,
    label_client::{ClientError, Credentials},
    recipe::teacher::{EncodingName, TeacherTls},
};

/// What to ask, of whom, and how fast.
#[derive(Debug, Args)]
pub(crate) struct LoadArguments {
    /// Teachers, such as http://127.0.0.1:7070; clients take them in turn.
    #[arg(required = true)]
    teacher: Vec<String>,
    /// Requests a second, of all clients together.
    #[arg(long, default_value_t = 100.0, value_parser = number(0.01..=1e6))]
    rate: f64,
    /// Clients, each with a connection and a name of its own: load-0, load-1, ... A teacher takes
    /// limits.max_host_connections of one host, 1024 by default.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    clients: u32,
    /// Rows, or sequences, of a request.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    rows: u32,
    /// Tokens of a sequence, for a text model.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    tokens: u32,
    /// Requests that differ, after which they come again and may be answered from the cache; 0: all
    /// differ.
    #[arg(long, default_value_t = 0)]
    distinct: u64,
    /// Time that is measured, in seconds.
    #[arg(long, default_value_t = 10.0, value_parser = number(0.0..=86_400.0))]
    seconds: f64,
    /// Time before that, in seconds.
    #[arg(long, default_value_t = 2.0, value_parser = number(0.0..=86_400.0))]
    warmup: f64,
    /// What the labels travel as.
    #[arg(long, value_enum, default_value_t)]
    encoding: EncodingName,
    /// Classes of a row, of top_k.
    #[arg(long, default_value_t = 10)]
    k: u32,
    /// Draws of a row, of sampled.
    #[arg(long, default_value_t = 50)]
    draws: u32,
    /// Temperature of the labels.
    #[arg(long, default_value_t = 4.0)]
    temperature: f32,
    /// How long a request may take, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    timeout_ms: u32,
    /// Seed of the times and the rows.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// File with a token, as teacher.token_file of a recipe.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Authorities of the teachers' certificates, as teacher.tls.ca.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Certificate to show, as teacher.tls.cert.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Process of a teacher on this machine, whose CPU time is told, too.
    #[arg(long, value_name = "PID")]
    teacher_pid: Option<u32>,
    /// Print the figures as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

impl LoadArguments {
    fn credentials(&self) -> Credentials {
        let named = self.tls_ca.is_some() || self.tls_cert.is_some();
        let tls = named.then(|| TeacherTls {
            ca: self.tls_ca.clone(),
            cert: self.tls_cert.clone(),
            key: self.tls_key.clone(),
            ..TeacherTls::default()
        });
        Credentials { token_file: self.token_file.clone(), tls }
    }

    fn kind(&self) -> Kind {
        let dtype = DType::F32.into();
        match self.encoding {
            EncodingName::Dense => {
                Kind::Dense(DenseEncoding { kind: DenseKind::LogProbabilities.into(), dtype })
            }
            EncodingName::TopK => Kind::TopK(TopKEncoding { k: self.k, dtype }),
            EncodingName::Sampled => {
                Kind::Sampled(SampledEncoding { draws: self.draws, seed: self.seed })
            }
            EncodingName::Hidden => Kind::Hidden(HiddenEncoding { dtype }),
        }
    }
}

/// Loads the teachers for as long as asked, or until told to stop.
///
/// # Errors
/// If a teacher cannot be connected to, or refuses what is asked for.
pub(crate) async fn run(
    arguments: &LoadArguments,
    mut stop: watch::Receiver<bool>,
) -> Result<Figures, ClientError> {
    let credentials = arguments.credentials();
    let mut clients = Vec::new();
    for number in 0..arguments.clients {
        let teacher = &arguments.teacher[number as usize % arguments.teacher.len()];
        let asks = Asks {
            name: format!("load-{number}"),
            rows: arguments.rows,
            tokens: arguments.tokens,
            distinct: arguments.distinct,
            kind: arguments.kind(),
            temperature: arguments.temperature,
            timeout: Duration::from_millis(arguments.timeout_ms.into()),
            rate: arguments.rate / f64::from(arguments.clients),
            // Clients that come again ask for each other's rows.
            rows_seed: if arguments.distinct > 0 { 0 } else { u64::from(number) + 1 },
            seed: arguments.seed << 20 | u64::from(number),
            number: number as usize,
        };
        if *stop.borrow() {
            break;
        }
        clients.push(Client::connect(teacher, &credentials, asks).await?);
    }

    let labels = clients.first().map_or(1, |client| client.shape.labels_per_row);
    let begin = Instant::now() + Duration::from_millis(100);
    let from = begin + Duration::from_secs_f64(arguments.warmup);
    let until = from + Duration::from_secs_f64(arguments.seconds.max(0.1));
    let mut running = JoinSet::new();
    for client in clients {
        running.spawn(client.run((begin, from, until), stop.clone()));
    }
    wait(from, &mut stop).await;
    let teacher_time = || arguments.teacher_pid.and_then(|pid| cpu_time(Some(pid)));
    let (own, teacher) = (cpu_time(None), teacher_time());
    wait(until, &mut stop).await;
    let since = |then: Option<Duration>, now: Option<Duration>| Some(now?.saturating_sub(then?));
    let (own, teacher) = (since(own, cpu_time(None)), since(teacher, teacher_time()));
    let took = Instant::now().min(until).saturating_duration_since(from);
    let mut all = Answers::default();
    while let Some(answers) = running.join_next().await {
        // A task that panicked has nothing to add; none does.
        if let Ok(answers) = answers {
            all.add(answers);
        }
    }
    // Told to stop before it began, there is nothing; no more than a moment of it.
    let took = took.max(Duration::from_millis(1));
    Ok(Figures::new(all, arguments.rate, (arguments.rows, labels), took, (own, teacher)))
}

/// Waits for a time, or until told to stop.
async fn wait(time: Instant, stop: &mut watch::Receiver<bool>) {
    tokio::select! {
        () = tokio::time::sleep_until(time) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

/// CPU time of a process so far, or of this one: user and system, as `/proc` has it.
fn cpu_time(pid: Option<u32>) -> Option<Duration> {
    /// Clock ticks per second of `/proc`, fixed on Linux.
    const TICKS: f64 = 100.0;
    let process = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Fields 14 and 15; counted from behind the command's name, which may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    Some(Duration::from_secs_f64((ticks()? + ticks()?) / TICKS))
}
