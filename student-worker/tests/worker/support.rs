//! A small task, a small teacher, and runs of the student over them.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use stillhouse_nn::{MlpConfig, ModelConfig, Philox, Trainer, TrainerConfig};
use student_worker::{
    progress::{Event, Observer, Silent},
    recipe::{self, Recipe},
    run_folder::{
        Existing,
        metrics::{self, Record, StepRecord, ValidationRecord},
    },
    text::{self, TextOutcome, recipe::TextRecipe},
    train::{self, Error, Outcome},
};
use teacher_server::{Running, Server, Settings};
use tempfile::TempDir;
use tokio::{net::TcpSocket, sync::watch};

pub(crate) const SIDE: u32 = 4;
pub(crate) const CLASSES: u32 = 3;
const ROWS: u32 = 120;

/// A folder with data, two teachers and room for runs.
pub(crate) struct Bench {
    folder: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        write_split(folder.path(), "train", ROWS, 1);
        write_split(folder.path(), "t10k", 60, 2);
        for seed in [1, 2] {
            let width = (SIDE * SIDE) as usize;
            let model = ModelConfig::Mlp(MlpConfig::new(width, vec![12], CLASSES as usize));
            let config = TrainerConfig { seed, ..TrainerConfig::new(model, 1) };
            let teacher = folder.path().join(format!("teacher-{seed}"));
            Trainer::new(config).unwrap().save_model(&teacher).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The model directory of one of the two teachers.
    pub(crate) fn teacher(&self, seed: u64) -> PathBuf {
        self.path().join(format!("teacher-{seed}"))
    }

    /// Writes a recipe whose results go to a folder of that name.
    pub(crate) fn write_recipe(&self, name: &str, teacher: &str) -> PathBuf {
        let alpha = if teacher.is_empty() { 0.0 } else { 0.9 };
        let text = format!(
            "name = \"{name}\"\nseed = 7\n[data]\ndir = \".\"\n\
             [student]\nmodel_type = \"mlp\"\ninput_size = 16\nhidden_sizes = [8]\nnum_labels = 3\n\
             dropout = 0.1\n[loss]\nalpha = {alpha}\n[schedule]\nlearning_rate = 0.01\n\
             [train]\nepochs = 4\nbatch_size = 16\ncheckpoint_every_steps = 5\n\
             [output]\ndir = \"runs/{name}\"\n{teacher}\n"
        );
        let file = self.path().join(format!("{name}.toml"));
        fs::write(&file, text).unwrap();
        file
    }

    pub(crate) fn recipe(&self, name: &str, teacher: &str) -> Recipe {
        recipe::load(&self.write_recipe(name, teacher), &[]).unwrap()
    }

    /// Bytes of the student that a run ended with.
    pub(crate) fn weights(&self, name: &str) -> Vec<u8> {
        fs::read(self.path().join("runs").join(name).join("model.safetensors")).unwrap()
    }
}

/// The `[teacher]` section for endpoints, with short pauses. The student keeps no labels, and asks in
/// every epoch.
pub(crate) fn endpoints(addresses: &[SocketAddr], more: &str) -> String {
    keeping(0, addresses, more)
}

/// As [`endpoints`], for a student that keeps labels.
pub(crate) fn keeping(kept_bytes: usize, addresses: &[SocketAddr], more: &str) -> String {
    let list: Vec<String> = addresses.iter().map(|at| format!("\"http://{at}\"")).collect();
    format!(
        "[teacher]\nkind = \"endpoints\"\nendpoints = [{}]\n{more}\nkept_bytes = {kept_bytes}\n\
         retry = {{ max_elapsed_seconds = 20, initial_ms = 5, max_ms = 50 }}",
        list.join(", ")
    )
}

/// An address with a port that no other test is given for as long as the socket is held. Nobody listens
/// there, so connecting is refused, until the test serves on that port, as often as it likes.
pub(crate) fn own_port() -> (TcpSocket, SocketAddr) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// Serves a model; port 0 picks a free one.
pub(crate) async fn serve(model: PathBuf, port: u16) -> Running {
    let mut settings = Settings::embedded(model);
    settings.listen.set_port(port);
    settings.drain.limit_seconds = 2.0;
    // The port of a server that has just gone may still be in use for a moment.
    for _ in 0..200 {
        match Server::bind(settings.clone()).await {
            Ok(server) => return server.spawn(),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
        }
    }
    panic!("port {port} does not become free");
}

pub(crate) async fn run(recipe: Recipe, existing: Existing) -> Result<Outcome, Error> {
    let (_running, stop) = watch::channel(false);
    train::run(recipe, existing, Box::new(Silent), stop).await
}

/// Runs, and calls `at` with the number of steps done after each.
pub(crate) async fn run_watched(
    recipe: Recipe,
    existing: Existing,
    stop: watch::Receiver<bool>,
    at: impl FnMut(u64) + Send + 'static,
) -> Result<Outcome, Error> {
    train::run(recipe, existing, Box::new(AtStep(at)), stop).await
}

/// Makes a step take time, so that something else can happen before the run is over. Called on the
/// training thread only.
#[expect(clippy::disallowed_methods, reason = "the training thread serves no other task")]
pub(crate) fn slow_step() {
    std::thread::sleep(std::time::Duration::from_millis(10));
}

struct AtStep<F>(F);

impl<F: FnMut(u64) + Send> Observer for AtStep<F> {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Step(step) = event {
            (self.0)(step.step);
        }
    }
}

/// Images whose brightest row of pixels tells the class, with noise.
fn write_split(folder: &Path, prefix: &str, rows: u32, seed: u64) {
    let mut rng = Philox::new(seed, 0);
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for row in 0..rows {
        let class = row % CLASSES;
        labels.push(class as u8);
        for pixel in 0..SIDE * SIDE {
            let base = if pixel / SIDE == class { 120 } else { 0 };
            pixels.push((base + rng.below(130)) as u8);
        }
    }
    let write = |name: String, shape: &[u32], elements: &[u8]| {
        let mut bytes = vec![0, 0, 8, shape.len() as u8];
        shape.iter().for_each(|size| bytes.extend(size.to_be_bytes()));
        bytes.extend(elements);
        fs::write(folder.join(name), bytes).unwrap();
    };
    write(format!("{prefix}-images-idx3-ubyte"), &[rows, SIDE, SIDE], &pixels);
    write(format!("{prefix}-labels-idx1-ubyte"), &[rows], &labels);
}

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_student-worker");

/// Runs the binary to its end.
pub(crate) fn worker(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

/// Runs the binary, which must end with this code and say so.
pub(crate) fn refused(arguments: &[&str], code: i32, words: &str) {
    let output = worker(arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
    assert!(errors.contains(words), "{arguments:?}: {errors}");
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Stops a run after a step.
pub(crate) struct StopAt(pub(crate) watch::Sender<bool>, pub(crate) u64);

impl Observer for StopAt {
    fn on(&mut self, event: &Event<'_>) {
        if let Event::Step(step) = event
            && step.step == self.1
        {
            self.0.send_replace(true);
        }
    }
}

/// Runs a recipe for text to its end.
pub(crate) async fn run_text(recipe: TextRecipe, existing: Existing) -> Result<TextOutcome, Error> {
    let (_running, stop) = watch::channel(false);
    text::run(recipe, existing, Box::new(Silent), stop).await
}

/// The steps that a run recorded.
pub(crate) fn step_records(folder: &Path) -> Vec<StepRecord> {
    let records = metrics::read(&folder.join("metrics.jsonl")).unwrap();
    let step = |record| match record {
        Record::Step(step) => Some(step),
        _ => None,
    };
    records.into_iter().filter_map(step).collect()
}

/// What a run for text measured.
pub(crate) fn text_records(folder: &Path) -> (Vec<StepRecord>, Vec<ValidationRecord>) {
    let (mut steps, mut validations) = (vec![], vec![]);
    for record in metrics::read(&folder.join("metrics.jsonl")).unwrap() {
        match record {
            Record::Step(step) => steps.push(step),
            Record::Validation(validation) => validations.push(validation),
            Record::Test(_) => panic!("a test"),
        }
    }
    (steps, validations)
}

/// The `[teacher]` section for endpoints, with an encoding.
pub(crate) fn section(addresses: &[SocketAddr], encoding: &str) -> String {
    endpoints(addresses, &format!("encoding = {{ {encoding} }}"))
}
