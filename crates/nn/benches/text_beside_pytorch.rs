//! Language models on two threads, beside PyTorch and Hugging Face transformers: the loss of a large
//! vocabulary, in time and memory, and training steps of a small Llama.
//!
//! ```text
//! cargo bench -p stillhouse-nn --bench text_beside_pytorch -- [--python PATH] [--blocks N] [CASE...]
//! ```
//!
//! Every side of a case is a process of its own, so that its peak memory is its own; they take turns,
//! block by block. With `--python`, an interpreter that has torch and transformers is one of them
//! (`text_beside_pytorch.py`). Without names, every case is run.
#![allow(clippy::print_stdout, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use candle_core::{Device, Tensor, Var};
use stillhouse_nn::loss::{OutputLayer, loss, output_loss};
use stillhouse_nn::{
    Head, LossConfig, OptimizerConfig, Philox, Precision, SoftLabels, SoftTarget, TextBatch,
    TextModel, TextTrainer, TextTrainerConfig, TokenBatch, TransformerConfig,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

/// The loss: tokens, words, and the width of either side's hidden states.
const TOKENS: usize = 8192;
const WORDS: usize = 32_000;
const WIDTH: usize = 512;

/// The model: sequences and their length.
const SEQUENCES: usize = 8;
const LENGTH: usize = 256;
const LLAMA: &str = r#"{"model_type": "llama", "hidden_size": 384, "intermediate_size": 1024,
    "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 6, "vocab_size": 8192,
    "max_position_embeddings": 256, "tie_word_embeddings": false}"#;

/// A case, and this project's sides of it; steps of a block.
const CASES: [(&str, &[&str], usize); 7] = [
    ("output-loss", &["fused", "unfused"], 1),
    ("output-loss-bf16", &["fused-bf16"], 1),
    ("llama-train", &["train"], 2),
    ("llama-train-bf16", &["train-bf16"], 2),
    ("llama-distil", &["distil"], 2),
    ("llama-distil-bf16", &["distil-bf16"], 2),
    ("llama-infer", &["infer"], 2),
];

fn main() {
    // SAFETY: sets a number that the allocator reads when it considers giving pages back.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
    rayon::ThreadPoolBuilder::new().num_threads(2).build_global().unwrap();
    let mut args = std::env::args().skip(1);
    let (mut python, mut blocks, mut names) = (None, 5, vec![]);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--side" => return serve(&args.next().unwrap()),
            "--python" => python = args.next(),
            "--blocks" => blocks = args.next().unwrap().parse().unwrap(),
            // What cargo adds.
            "--bench" => {}
            name => names.push(name.to_owned()),
        }
    }
    let known: Vec<&str> = CASES.iter().map(|case| case.0).collect();
    if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
        panic!("unknown case {name}; expected --python, --blocks or of {known:?}");
    }
    for (case, sides, steps) in CASES {
        if names.is_empty() || names.iter().any(|name| name == case) {
            compare(case, sides, python.as_deref(), blocks, steps);
        }
    }
}

/// Runs all sides of a case in turn; the first block warms them up.
fn compare(case: &str, sides: &[&str], python: Option<&str>, blocks: usize, steps: usize) {
    let own = std::env::current_exe().unwrap();
    let mut all: Vec<(String, Side)> = sides
        .iter()
        .map(|side| ((*side).to_owned(), Side::start(Command::new(&own).args(["--side", side]))))
        .collect();
    if let Some(python) = python {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/text_beside_pytorch.py");
        let name = format!("PyTorch {}", Side::version(python));
        all.push((name, Side::start(Command::new(python).args([script, case]))));
    }
    let mut times = vec![vec![]; all.len()];
    let mut peaks = vec![0.0; all.len()];
    for block in 0..=blocks {
        for (at, (_, side)) in all.iter_mut().enumerate() {
            let (own, peak) = side.run(steps);
            peaks[at] = peak;
            if block > 0 {
                times[at].extend(own);
            }
        }
    }
    let median = |times: &Vec<f64>| {
        let mut times = times.clone();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let first = median(&times[0]);
    for ((name, _), (times, peak)) in all.iter().zip(times.iter().zip(&peaks)) {
        let own = median(times);
        let (ratio, memory) = (own / first, peak / peaks[0]);
        println!(
            "{case}, {name}: median {own:.0} ms ({ratio:.2}x), peak {peak:.0} MiB ({memory:.2}x)"
        );
    }
}

/// One side, in a process of its own.
struct Side {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(command: &mut Command) -> Self {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a side of the benchmark starts");
        let input = process.stdin.take().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { process, input, output }
    }

    fn version(python: &str) -> String {
        let code = "import torch; print(torch.__version__.split('+')[0], end='')";
        let output = Command::new(python).args(["-c", code]).output();
        String::from_utf8(output.expect("the interpreter of --python starts").stdout).unwrap()
    }

    /// Milliseconds of each step, and the process's peak memory so far, in MiB.
    fn run(&mut self, steps: usize) -> (Vec<f64>, f64) {
        writeln!(self.input, "{steps}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).expect("a side prints times and peak memory")
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Only to leave nothing behind: the figures are out by now.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Answers lines with numbers of steps, as one side.
fn serve(side: &str) {
    let mut step: Box<dyn FnMut()> = match side {
        "fused" => fused(Precision::F32),
        "fused-bf16" => fused(Precision::Bf16),
        "unfused" => unfused(),
        "infer" => infer(),
        "train" => train(false, Precision::F32),
        "train-bf16" => train(false, Precision::Bf16),
        "distil" => train(true, Precision::F32),
        "distil-bf16" => train(true, Precision::Bf16),
        other => panic!("unknown side {other}"),
    };
    for line in std::io::stdin().lines() {
        let steps: usize = line.unwrap().parse().unwrap();
        let time = |_| {
            let start = Instant::now();
            step();
            1e3 * start.elapsed().as_secs_f64()
        };
        let times: Vec<f64> = (0..steps).map(time).collect();
        println!("[{times:?}, {}]", peak_mib());
    }
}

/// The most memory that this process has had, as the system counts it.
fn peak_mib() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib / 1024.0
}

fn draw(rng: &mut Philox, n: usize, std: f32) -> Vec<f32> {
    (0..n).map(|_| std * rng.normal() as f32).collect()
}

fn kl() -> LossConfig {
    LossConfig { alpha: 1.0, temperature: 2.0, ..LossConfig::default() }
}

/// Hidden states and weights of both sides.
fn operands() -> [Vec<f32>; 4] {
    let mut rng = Philox::new(0, 16);
    let mut pair = || [draw(&mut rng, TOKENS * WIDTH, 1.0), draw(&mut rng, WORDS * WIDTH, 0.05)];
    let ([hidden, weight], [states, head]) = (pair(), pair());
    [hidden, weight, states, head]
}

fn fused(precision: Precision) -> Box<dyn FnMut()> {
    let [hidden, weight, states, head] = operands();
    let head = Head { weight: head, bias: None, classes: WORDS, hidden_size: WIDTH, softcap: None };
    let head = head.pack().unwrap();
    Box::new(move || {
        let output = OutputLayer {
            weight: &weight,
            bias: None,
            softcap: None,
            width: WIDTH,
            classes: WORDS,
            precision,
        };
        let soft = SoftLabels::Hidden { states: &states, head: &head };
        let result = output_loss(&hidden, output, None, Some(&soft), &kl(), TOKENS as f64);
        assert!(result.unwrap().0.soft.unwrap() > 0.0);
    })
}

/// Both sides' logits whole, then the loss on them.
fn unfused() -> Box<dyn FnMut()> {
    let [hidden, weight, states, head] = operands();
    let tensor = |values: Vec<f32>, rows| Tensor::from_vec(values, (rows, WIDTH), &Device::Cpu);
    let hidden = Var::from_tensor(&tensor(hidden, TOKENS).unwrap()).unwrap();
    let weight = Var::from_tensor(&tensor(weight, WORDS).unwrap()).unwrap();
    let (states, head) = (tensor(states, TOKENS).unwrap(), tensor(head, WORDS).unwrap());
    Box::new(move || {
        let logits = states.matmul(&head.t().unwrap()).unwrap();
        let soft = SoftTarget::Logits(logits.flatten_all().unwrap().to_vec1().unwrap());
        drop(logits);
        let logits = hidden.matmul(&weight.t().unwrap()).unwrap();
        let (scalar, parts) = loss(&logits, None, Some(&soft), &kl()).unwrap();
        assert!(parts.soft.unwrap() > 0.0);
        drop(scalar.backward().unwrap());
    })
}

fn ids() -> (Vec<u32>, Vec<u32>, Vec<usize>, Vec<u32>) {
    let mut rng = Philox::new(0, 17);
    let tokens = SEQUENCES * LENGTH;
    let mut draw = || (0..tokens).map(|_| rng.below(8192)).collect::<Vec<u32>>();
    let (ids, hard) = (draw(), draw());
    (ids, vec![LENGTH as u32; SEQUENCES], (0..tokens).collect(), hard)
}

fn llama() -> TransformerConfig {
    TransformerConfig::from_json(serde_json::from_str(LLAMA).unwrap()).unwrap()
}

/// A step on hard labels, or on a teacher's logits too.
fn train(distil: bool, precision: Precision) -> Box<dyn FnMut()> {
    let mut config = TextTrainerConfig::new(llama(), 1_000_000);
    config.optimizer = OptimizerConfig::default();
    config.clip_norm = Some(1.0);
    config.precision = precision;
    let mut trainer = TextTrainer::new(config).unwrap();
    let (ids, lengths, labelled, hard) = ids();
    let rows = labelled.len();
    let logits = if distil { draw(&mut Philox::new(0, 18), rows * 8192, 1.0) } else { vec![] };
    let soft = SoftTarget::Logits(logits);
    let alpha = if distil { 0.9 } else { 0.0 };
    let loss = LossConfig { alpha, temperature: 2.0, ..LossConfig::default() };
    Box::new(move || {
        let batch = TextBatch {
            tokens: TokenBatch { ids: &ids, lengths: &lengths },
            labelled: &labelled,
            hard: Some(&hard),
            soft: distil.then_some(SoftLabels::Target(&soft)),
        };
        trainer.accumulate(&batch, &loss, rows as f64).unwrap();
        trainer.update().unwrap();
    })
}

/// Logits of every position, as a teacher computes them.
fn infer() -> Box<dyn FnMut()> {
    let dir = tempfile::tempdir().unwrap();
    let trainer = TextTrainer::new(TextTrainerConfig::new(llama(), 1)).unwrap();
    trainer.save_model(dir.path()).unwrap();
    let model = TextModel::load(dir.path()).unwrap();
    let (ids, lengths, ..) = ids();
    Box::new(move || {
        let hidden = model.hidden(&TokenBatch { ids: &ids, lengths: &lengths }, None).unwrap();
        drop(model.packed_head().logits(&hidden).unwrap());
    })
}
