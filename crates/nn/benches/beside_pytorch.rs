//! Milliseconds of a training step, or of inference, at batch 128 on two threads, beside PyTorch.
//!
//! ```text
//! cargo bench -p stillhouse-nn --bench beside_pytorch -- [--python PATH] [--blocks N] [CASE...]
//! ```
//!
//! With `--python`, an interpreter that has torch runs `beside_pytorch.py` in between, block by block, so
//! that both see the same machine; the ratio is then printed too. Without names, every case is run.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use stillhouse_nn::{
    Batch, Classifier, LeNetConfig, LossConfig, MlpConfig, ModelConfig, OptimizerConfig, Philox,
    ResNetConfig, SoftTarget, Trainer, TrainerConfig,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
const ROWS: usize = 128;

/// What is compared.
struct Case {
    name: &'static str,
    model: ModelConfig,
    /// None: inference.
    optimizer: Option<OptimizerConfig>,
    /// Steps of one side before the other has its turn.
    block: usize,
    /// Memory layouts that PyTorch is asked for.
    layouts: &'static [&'static str],
}

fn cases() -> [Case; 6] {
    let sgd = OptimizerConfig::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
    let adamw = OptimizerConfig::default();
    let mlp = |width| ModelConfig::Mlp(MlpConfig::new(784, vec![width, width], 10));
    let resnet = |blocks| ModelConfig::ResNet(ResNetConfig::new(vec![blocks; 3], 10));
    let case =
        |name, model, optimizer, block| Case { name, model, optimizer, block, layouts: &[""] };
    let layouts: &[&str] = &["", "-channels_last"];
    [
        case("mlp-1200-sgd", mlp(1200), Some(sgd), 25),
        case("mlp-1200-adamw", mlp(1200), Some(adamw), 25),
        case("mlp-800-adamw", mlp(800), Some(adamw), 25),
        case("lenet-adamw", ModelConfig::LeNet(LeNetConfig::new(10)), Some(adamw), 25),
        Case { layouts, ..case("resnet20-sgd", resnet(3), Some(sgd), 3) },
        Case { layouts, ..case("resnet56-inference", resnet(9), None, 4) },
    ]
}

fn main() {
    // SAFETY: sets a number that the allocator reads when it considers giving pages back.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    let mut args = std::env::args().skip(1);
    let (mut python, mut blocks, mut names) = (None, 8, vec![]);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--python" => python = args.next(),
            "--blocks" => blocks = args.next().unwrap().parse().unwrap(),
            // What cargo adds.
            "--bench" => {}
            name => names.push(name.to_owned()),
        }
    }
    let unknown = names.iter().find(|name| cases().iter().all(|case| case.name != **name));
    if let Some(name) = unknown {
        let names: Vec<&str> = cases().iter().map(|case| case.name).collect();
        panic!("unknown case {name}; expected --python, --blocks or of {names:?}");
    }
    let mut torch = python.map(|python| Torch::start(&python));
    for case in cases() {
        if names.is_empty() || names.iter().any(|name| name == case.name) {
            compare(&case, torch.as_mut(), blocks);
        }
    }
}

/// Runs one case on both sides in turn; the first block warms both up.
fn compare(case: &Case, mut torch: Option<&mut Torch>, blocks: usize) {
    let mut ours = Ours::new(case);
    let mut own = vec![];
    let mut others = vec![vec![]; case.layouts.len()];
    for block in 0..=blocks {
        let times = ours.run(case.block);
        if block > 0 {
            own.extend(times);
        }
        for (layout, other) in case.layouts.iter().zip(&mut others) {
            if let Some(torch) = &mut torch {
                let times = torch.run(&format!("{}{layout}", case.name), case.block);
                if block > 0 {
                    other.extend(times);
                }
            }
        }
    }
    // The fastest tenth is what other work on the machine disturbs least.
    for (label, share) in [("median", 0.5), ("fastest tenth", 0.1)] {
        let ours = quantile(own.clone(), share);
        let rate = 1e3 * ROWS as f64 / ours;
        print!("{}, {label}: {ours:.2} ms, {rate:.0} examples/s", case.name);
        if let Some(torch) = &torch {
            for (layout, other) in case.layouts.iter().zip(&others) {
                let theirs = quantile(other.clone(), share);
                let ratio = theirs / ours;
                print!("; PyTorch {}{layout} {theirs:.2} ms, {ratio:.2}x", torch.version);
            }
        }
        println!();
    }
}

fn quantile(mut times: Vec<f64>, share: f64) -> f64 {
    times.sort_by(f64::total_cmp);
    times[(times.len() as f64 * share) as usize]
}

/// This crate's side.
struct Ours {
    input: Vec<f32>,
    work: Work,
}

enum Work {
    Train { trainer: Box<Trainer>, hard: Vec<u32>, soft: SoftTarget },
    Infer(Box<Classifier>),
}

impl Ours {
    fn new(case: &Case) -> Self {
        let mut rng = Philox::new(0, 16);
        let width = case.model.input_width();
        let input = (0..ROWS * width).map(|_| rng.next_f32()).collect();
        let config = TrainerConfig {
            optimizer: case.optimizer.unwrap_or_default(),
            ..TrainerConfig::new(case.model.clone(), 1_000_000)
        };
        let trainer = Trainer::new(config).unwrap();
        let work = if case.optimizer.is_some() {
            let hard = (0..ROWS).map(|_| rng.below(10)).collect();
            let soft = SoftTarget::Logits((0..ROWS * 10).map(|_| rng.normal() as f32).collect());
            Work::Train { trainer: Box::new(trainer), hard, soft }
        } else {
            let dir = tempfile::tempdir().unwrap();
            trainer.save_model(dir.path()).unwrap();
            Work::Infer(Box::new(Classifier::load(dir.path()).unwrap()))
        };
        Self { input, work }
    }

    fn run(&mut self, steps: usize) -> Vec<f64> {
        let config = LossConfig::default();
        let mut step = || match &mut self.work {
            Work::Train { trainer, hard, soft } => {
                let (hard, soft) = (Some(&hard[..]), Some(&*soft));
                let batch = Batch { input: &self.input, rows: ROWS, hard, soft };
                assert!(trainer.step(&batch, &config).is_ok());
            }
            Work::Infer(model) => drop(model.infer(&self.input, ROWS).unwrap()),
        };
        let mut time = || {
            let start = Instant::now();
            step();
            1e3 * start.elapsed().as_secs_f64()
        };
        (0..steps).map(|_| time()).collect()
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
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/beside_pytorch.py");
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
        let version = serde_json::from_str(&line).expect("the script prints torch's version");
        Self { process, input, output, version }
    }

    fn run(&mut self, case: &str, steps: usize) -> Vec<f64> {
        writeln!(self.input, "{case} {steps}").unwrap();
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
