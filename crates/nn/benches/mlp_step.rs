//! Milliseconds of one training step of a 784-1200-1200-10 perceptron, batch 128, two threads.
//!
//! ```text
//! cargo bench -p stillhouse-nn --bench mlp_step -- [--python PATH] [--blocks N]
//! ```
//!
//! With `--python`, an interpreter that has torch runs `mlp_step.py` in between, block by block, so
//! that both see the same machine; the ratio is then printed too.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use stillhouse_nn::{
    Batch, LossConfig, MlpConfig, ModelConfig, OptimizerConfig, Philox, SoftTarget, Trainer,
    TrainerConfig,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
const ROWS: usize = 128;
/// Steps of one side before the other has its turn.
const BLOCK: usize = 25;
const SIZES: [usize; 2] = [1200, 1200];

fn main() {
    // SAFETY: sets a number that the allocator reads when it considers giving pages back.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    let mut args = std::env::args().skip(1);
    let (mut python, mut blocks) = (None, 8);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--python" => python = args.next(),
            "--blocks" => blocks = args.next().unwrap().parse().unwrap(),
            // What cargo adds.
            "--bench" => {}
            other => panic!("unknown argument {other}; expected --python or --blocks"),
        }
    }
    let mut torch = python.map(|python| Torch::start(&python));
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    for (name, optimizer) in [("sgd", sgd), ("adamw", OptimizerConfig::default())] {
        let mut ours = Ours::new(optimizer);
        let (mut own, mut other) = (vec![], vec![]);
        // The first block warms both up.
        for block in 0..=blocks {
            let times = ours.run(BLOCK);
            let theirs = torch.as_mut().map(|torch| torch.run(name, BLOCK));
            if block > 0 {
                own.extend(times);
                other.extend(theirs.into_iter().flatten());
            }
        }
        let torch = torch.as_ref().map(|torch| (torch.version.as_str(), other.as_slice()));
        report(name, &own, torch);
    }
    inference();
}

/// Medians, and the fastest tenth, which other work on the machine disturbs least.
fn report(name: &str, own: &[f64], torch: Option<(&str, &[f64])>) {
    for (label, share) in [("median", 0.5), ("fastest tenth", 0.1)] {
        let ours = quantile(own.to_vec(), share);
        print!("{name}, {label}: {ours:.2} ms");
        if let Some((version, other)) = torch {
            let theirs = quantile(other.to_vec(), share);
            print!(", PyTorch {version} {theirs:.2} ms, {:.2}x", theirs / ours);
        }
        println!();
    }
}

fn quantile(mut times: Vec<f64>, share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[(times.len() as f64 * share) as usize]
}

fn milliseconds(body: impl FnOnce()) -> f64 {
    let start = Instant::now();
    body();
    1e3 * start.elapsed().as_secs_f64()
}

fn uniform(rng: &mut Philox, count: usize) -> Vec<f32> {
    (0..count).map(|_| rng.next_f32()).collect()
}

fn trainer(optimizer: OptimizerConfig) -> Trainer {
    let model = ModelConfig::Mlp(MlpConfig::new(784, SIZES.to_vec(), 10));
    Trainer::new(TrainerConfig { optimizer, ..TrainerConfig::new(model, 1_000) }).unwrap()
}

/// This crate's side.
struct Ours {
    trainer: Trainer,
    input: Vec<f32>,
    hard: Vec<u32>,
    soft: SoftTarget,
}

impl Ours {
    fn new(optimizer: OptimizerConfig) -> Self {
        let mut rng = Philox::new(0, 16);
        let input = uniform(&mut rng, ROWS * 784);
        let hard = (0..ROWS).map(|_| rng.below(10)).collect();
        let soft = SoftTarget::Logits((0..ROWS * 10).map(|_| rng.normal() as f32).collect());
        Self { trainer: trainer(optimizer), input, hard, soft }
    }

    fn run(&mut self, steps: usize) -> Vec<f64> {
        let batch = Batch {
            input: &self.input,
            rows: ROWS,
            hard: Some(&self.hard),
            soft: Some(&self.soft),
        };
        let config = LossConfig::default();
        let trainer = &mut self.trainer;
        (0..steps)
            .map(|_| milliseconds(|| assert!(trainer.step(&batch, &config).is_ok())))
            .collect()
    }
}

/// PyTorch's side, in a process of its own.
struct Torch {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    version: String,
}

impl Torch {
    fn start(python: &str) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/mlp_step.py");
        let mut process = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter of --python starts");
        let input = process.stdin.take().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let version = serde_json::from_str(&line).expect("mlp_step.py prints torch's version");
        Self { process, input, output, version }
    }

    fn run(&mut self, optimizer: &str, steps: usize) -> Vec<f64> {
        writeln!(self.input, "{optimizer} {steps}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        // Only to leave nothing behind: the figures are out by now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Rows per second of the same model's batch-invariant inference, by rows in a batch.
fn inference() {
    let dir = tempfile::tempdir().unwrap();
    trainer(OptimizerConfig::default()).save_model(dir.path()).unwrap();
    let teacher = stillhouse_nn::Classifier::load(dir.path()).unwrap();
    let input = uniform(&mut Philox::new(1, 16), 512 * 784);
    for rows in [1, 8, 32, 128, 512] {
        let batch = &input[..rows * 784];
        let times = (0..40).map(|_| milliseconds(|| drop(teacher.infer(batch, rows).unwrap())));
        let time = quantile(times.collect(), 0.5);
        println!("inference of {rows} rows: {time:.2} ms, {:.0} rows/s", 1e3 * rows as f64 / time);
    }
}
