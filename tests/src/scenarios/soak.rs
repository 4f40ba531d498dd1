//! `soak`: twenty minutes of everything that clients do, and whether a teacher or a student grows.
//!
//! Clients come and go, ask in every encoding, cancel, send what is refused, read slowly and leave in the
//! middle of answers; rows are ever new, so that both tiers of the cache are full early and turn over. A
//! student trains all the time, asking anew in every epoch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use stillhouse_proto::v1::{
    CancelRequest, DType, DenseEncoding, FetchHeadRequest, HiddenEncoding, IdsEncoding,
    LabelRequest, LabelStreamRequest, SampledEncoding, TopKEncoding, encoding::Kind,
    label_stream_request::Action,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Figures, median, progress};
use crate::{
    client::{self, encoding, on_stream, request},
    models,
    process::{Teacher, resident_bytes},
    proxy::Dice,
    student::Student,
};

const CLIENTS: u64 = 6;
const WIDTH: usize = 784;
const CLASSES: usize = 10;
const ROWS: usize = 32;
/// Part of the time after which nothing may grow: the first five minutes of twenty.
const SETTLED: f64 = 0.25;
/// What a process may grow by afterwards: what allocators and page caches do of themselves.
const GROWTH: f64 = 1.03;

pub(super) fn run(seconds: Option<f64>) -> Figures {
    let seconds = seconds.unwrap_or(1200.0);
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("teacher");
    std::fs::create_dir(&model).unwrap();
    models::write_mlp(&model, WIDTH, &[256], CLASSES, 1);
    let cache = folder.path().join("cache").display().to_string();
    let teacher = Teacher::start(
        &model,
        &[
            "--cache-dir",
            &cache,
            "--set",
            "cache.memory_bytes=16777216",
            "--set",
            "cache.disk_bytes=33554432",
            "--set",
            "limits.max_connection_age_seconds=30",
        ],
    );
    let sections = format!(
        "student = {{ model_type = \"mlp\", input_size = 784, hidden_sizes = [64], num_labels = 10 }}\n\
         loss = {{ alpha = 0.9, temperature = 4.0 }}\n{}\
         [train]\nepochs = 1000000\nbatch_size = 64\neval_every = 50\n",
        teacher.section()
    );
    let student = Student::new(folder.path(), "student", 12_800, &sections);
    let mut training = student.start(&[]);

    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let (stop, calls, address) = (Arc::clone(&stop), Arc::clone(&calls), teacher.address());
        clients.push(runtime.spawn(async move {
            let mut dice = Dice::new(number);
            while !stop.load(Ordering::Relaxed) {
                come_and_go(address, &mut dice, &calls).await;
            }
        }));
    }

    let begun = Instant::now();
    // Of teacher and student: (time, bytes).
    let mut resident: [Vec<(f64, u64)>; 2] = Default::default();
    while begun.elapsed().as_secs_f64() < seconds {
        crate::process::pause(Duration::from_secs_f64((seconds / 240.0).min(5.0)));
        let now = begun.elapsed().as_secs_f64();
        progress(&format!("soak: {now:.0} s of {seconds:.0}"));
        for (of, pid) in [teacher.pid(), training.id()].into_iter().enumerate() {
            resident[of].push((now, resident_bytes(pid)));
        }
    }
    let lost = clients.iter().filter(|client| client.is_finished()).count();
    stop.store(true, Ordering::Relaxed);
    progress("");
    let ended = training.try_wait().unwrap();
    let steps = student.last_step();
    drop((training.kill(), training.wait()));

    let mut figures = Figures::default();
    figures.require(lost == 0, format!("{lost} clients ended before their time"));
    figures.add("seconds", seconds);
    figures.add("calls", calls.load(Ordering::Relaxed));
    figures.add("student_steps", steps);
    figures.add("teacher_rows", teacher.metric("stillhouse_teacher_forward_rows_total"));
    figures.add("cache_entries", teacher.metric("stillhouse_teacher_cache_entries"));
    for (name, samples) in ["teacher", "student"].into_iter().zip(resident) {
        let mib = |part: &dyn Fn(f64) -> bool| -> Vec<f64> {
            let own = samples.iter().filter(|(at, _)| part(*at / seconds));
            own.map(|(_, bytes)| *bytes as f64 / f64::from(1 << 20)).collect()
        };
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        let first = mib(&|at| at < SETTLED);
        let (middle, last) = (mib(&|at| (SETTLED..0.6).contains(&at)), mib(&|at| at >= 0.6));
        let after = most(&middle).max(most(&last));
        figures.add(format!("{name}_first_quarter_most_mib"), most(&first));
        figures.add(format!("{name}_later_most_mib"), after);
        figures.add(format!("{name}_middle_median_mib"), median(&middle));
        figures.add(format!("{name}_last_median_mib"), median(&last));
        figures.require(
            after <= GROWTH * most(&first) && median(&last) <= GROWTH * median(&middle),
            format!("the {name} has grown"),
        );
    }
    figures.require(ended.is_none(), format!("the student has ended: {ended:?}"));
    figures.require(teacher.metric("stillhouse_teacher_device_panics_total") == 0.0, "a panic");
    figures.require(calls.load(Ordering::Relaxed) > 0, "nobody has called");
    // Nothing is left of those who are gone.
    runtime.shutdown_background();
    let begun = Instant::now();
    let held = || teacher.metric("stillhouse_teacher_held_bytes");
    while held() > 0.0 && begun.elapsed() < Duration::from_secs(60) {
        crate::process::pause(Duration::from_millis(100));
    }
    figures.require(held() == 0.0, "requests of clients that are gone are still held");
    figures
}

/// One connection and what is done with it.
async fn come_and_go(address: std::net::SocketAddr, dice: &mut Dice, calls: &AtomicU64) {
    let mut client = client::connect(address).await;
    for _ in 0..1 + dice.below(20) {
        calls.fetch_add(1, Ordering::Relaxed);
        match dice.below(6) {
            // What is refused: another width, no rows.
            0 => drop(client.label(request(1, &[0.0; 3], 3)).await),
            1 => {
                if let Ok(mut head) = client.fetch_head(FetchHeadRequest { dtype: 0 }).await {
                    drop(head.get_mut().message().await);
                }
            }
            2 => {
                // Leaves in the middle.
                let asked = client.label(asks(dice));
                drop(tokio::time::timeout(Duration::from_micros(dice.below(2000)), asked).await);
            }
            3 => drop(client.label(asks(dice)).await),
            _ => {
                let (requests, outbound) = mpsc::channel(64);
                let stream = client.label_stream(ReceiverStream::new(outbound)).await;
                let Ok(stream) = stream else { continue };
                let mut answers = stream.into_inner();
                for id in 0..dice.below(40) {
                    let request = LabelRequest { id, ..asks(dice) };
                    drop(requests.send(on_stream(request)).await);
                    if dice.below(4) == 0 {
                        let action = Some(Action::Cancel(CancelRequest { id }));
                        drop(requests.send(LabelStreamRequest { action }).await);
                    }
                    if dice.below(3) > 0 {
                        drop(answers.message().await);
                    }
                }
                if dice.below(2) == 0 {
                    drop(requests);
                    while let Ok(Some(_)) = answers.message().await {}
                }
            }
        }
    }
}

/// A request for rows that nobody has asked for, in any encoding.
fn asks(dice: &mut Dice) -> LabelRequest {
    let rows = 1 + dice.below(ROWS as u64) as usize;
    let values: Vec<f32> =
        (0..rows * WIDTH).map(|_| dice.below(1 << 20) as f32 / (1 << 20) as f32).collect();
    let dtype = DType::F16.into();
    let kind = match dice.below(5) {
        0 => Kind::Dense(DenseEncoding { kind: 0, dtype }),
        1 => Kind::TopK(TopKEncoding { k: 3, dtype }),
        2 => {
            let ids = (0..rows).flat_map(|_| 2_u32.to_le_bytes()).collect::<Vec<u8>>().into();
            Kind::Ids(IdsEncoding { ids_per_row: 1, ids, dtype })
        }
        3 => Kind::Sampled(SampledEncoding { draws: 20, seed: dice.below(99) }),
        _ => Kind::Hidden(HiddenEncoding { dtype }),
    };
    let client = format!("soak-{}", dice.below(50));
    let temperatures = vec![1.0; 1 + dice.below(3) as usize];
    let asked = request(1, &values, WIDTH);
    LabelRequest { client, temperatures, encoding: encoding(kind), ..asked }
}
