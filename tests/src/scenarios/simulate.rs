//! `simulate`: students and teachers on a simulated network, each seed with faults of its own.
//!
//! Three teachers run what a server runs, from the connection to the batch; two students run what a
//! student runs to get its labels. A seed decides when teachers crash, come back, come back as another
//! model, and which links are cut or hold what is sent. Whatever happens, each student gets the labels of
//! each of its requests once, in order, with the bits that an undisturbed teacher gives. Time is
//! simulated: a run of half a minute takes a part of a second.

use std::{
    cell::RefCell,
    io,
    net::{IpAddr, Ipv4Addr},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use stillhouse_nn::{Classifier, Inference};
use stillhouse_proto::{
    SoftLabels,
    v1::{
        DType, DenseEncoding, DenseKind, EnsembleRule, Tensor, encoding::Kind,
        label_request::Inputs,
    },
};
use student_worker::{
    label_client::{Dial, Job, LabelClient, Patience, Probe, Teachers, Wanted, WantedInput, Wire},
    recipe::teacher::OnTeacherLoss,
};
use teacher_server::{Settings, ensemble::Ensemble, model::Model, simulated::Simulated};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use turmoil::net::{TcpListener, TcpStream};

use super::{Figures, progress};
use crate::{models, proxy::Dice};

const TEACHERS: usize = 3;
const STUDENTS: usize = 2;
const PORT: u16 = 7070;
const WIDTH: usize = 4;
const CLASSES: usize = 5;
/// Rows of the data, and of a request.
const DATA: usize = 48;
const ROWS: usize = 6;
/// Requests of a student: half a minute, with what happens to it.
const REQUESTS: u64 = 400;
/// What the client counts for a row that it keeps, beside its labels.
const KEPT_OVERHEAD: usize = 128;
/// Of the simulation's time, for a batch.
const FORWARD: Duration = Duration::from_millis(30);
/// Longest time of a seed.
const LONGEST: Duration = Duration::from_secs(600);
/// Seeds of the scenario.
const SEEDS: u64 = 1000;

pub(super) fn run(part: Option<&str>) -> Figures {
    let mut figures = Figures::default();
    let (first, seeds) = match part.map(str::parse::<u64>) {
        None => (0, SEEDS),
        // One alone, to see what it does.
        Some(Ok(seed)) => (seed, 1),
        Some(Err(error)) => {
            figures.require(false, format!("--part is {part:?}; must be a seed: {error}"));
            return figures;
        }
    };
    simulate(&mut figures, first, seeds);
    figures
}

/// What became of all seeds.
#[derive(Default)]
struct Seen {
    labels: AtomicU64,
    faults: AtomicU64,
    impostors: AtomicU64,
    panics: AtomicU64,
    simulated_ms: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Simulates some seeds on all cores.
pub fn simulate(figures: &mut Figures, first: u64, seeds: u64) {
    let folder = tempfile::tempdir().unwrap();
    let load = |seed| {
        let path = folder.path().join(format!("model-{seed}"));
        std::fs::create_dir(&path).unwrap();
        models::write_mlp(&path, WIDTH, &[8], CLASSES, seed);
        Arc::new(Classifier::load(&path).unwrap())
    };
    let (model, other) = (load(1), load(2));
    let seen = Arc::new(Seen::default());
    let next = Arc::new(AtomicU64::new(first));
    // Of tasks, too, which tokio keeps to itself.
    let (panics, before) = (Arc::clone(&seen), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        panics.panics.fetch_add(1, Ordering::Relaxed);
        before(info);
    }));
    let threads: Vec<_> = (0..thread::available_parallelism().map_or(1, usize::from))
        .map(|_| {
            let (model, other) = (Arc::clone(&model), Arc::clone(&other));
            let (seen, next) = (Arc::clone(&seen), Arc::clone(&next));
            thread::spawn(move || {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    progress(&format!("simulate: seed {seed}"));
                    // A panic within a host is that seed's failure.
                    let ran = catch_unwind(AssertUnwindSafe(|| one(seed, &model, &other, &seen)));
                    let failure = match ran {
                        Ok(Ok(())) => continue,
                        Ok(Err(failure)) => failure,
                        Err(_) => "it panicked".to_owned(),
                    };
                    seen.failures.lock().unwrap().push(format!("seed {seed}: {failure}"));
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    progress("");
    let failures = std::mem::take(&mut *seen.failures.lock().unwrap());
    figures.add("seeds", seeds);
    figures.add("faults", seen.faults.load(Ordering::Relaxed));
    figures.add("came_back_as_another_model", seen.impostors.load(Ordering::Relaxed));
    figures.add("panics", seen.panics.load(Ordering::Relaxed));
    figures.require(seen.panics.load(Ordering::Relaxed) == 0, "something panicked");
    figures.require(seen.faults.load(Ordering::Relaxed) > seeds, "there were no faults");
    let impostors = seen.impostors.load(Ordering::Relaxed);
    figures.require(impostors > 0 || seeds < 10, "no teacher came back as another model");
    figures.add("requests_labelled", seen.labels.load(Ordering::Relaxed));
    figures.add("requests_expected", seeds * STUDENTS as u64 * REQUESTS);
    figures.add("simulated_hours", seen.simulated_ms.load(Ordering::Relaxed) as f64 / 3.6e6);
    figures.add("failed_seeds", failures.len() as u64);
    for failure in failures.into_iter().take(10) {
        figures.require(false, failure);
    }
}

/// One seed.
fn one(
    seed: u64,
    model: &Arc<Classifier>,
    other: &Arc<Classifier>,
    seen: &Seen,
) -> Result<(), String> {
    let mut dice = Dice::new(seed);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .enable_random_order()
        .tick_duration(Duration::from_millis(2))
        .simulation_duration(LONGEST)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(20))
        .build();
    // Which model a teacher comes back with.
    let impostor = Arc::new(AtomicBool::new(false));
    for number in 0..TEACHERS {
        let (model, other, impostor) =
            (Arc::clone(model), Arc::clone(other), Arc::clone(&impostor));
        sim.host(teacher(number), move || {
            let another = number == 0 && impostor.load(Ordering::Relaxed);
            let model = Arc::clone(if another { &other } else { &model });
            async move { serve(model).await }
        });
    }
    let endpoints: Vec<String> = (0..TEACHERS)
        .map(|number| format!("http://{}:{PORT}", sim.lookup(teacher(number))))
        .collect();
    let connected = Arc::new(AtomicUsize::new(0));
    let failures: Rc<RefCell<Vec<String>>> = Rc::default();
    let done = Arc::new(AtomicU64::new(0));
    for number in 0..STUDENTS {
        let (endpoints, connected) = (endpoints.clone(), Arc::clone(&connected));
        let (model, done, failures) = (Arc::clone(model), Arc::clone(&done), Rc::clone(&failures));
        sim.client(student(number), async move {
            if let Err(failure) =
                learn(number as u64, seed, endpoints, &model, &connected, &done).await
            {
                failures.borrow_mut().push(format!("student {number}: {failure}"));
            }
            Ok(())
        });
    }

    // Everybody is there before anything happens: a run's first teacher is the one it trusts.
    let mut faults = Faults::default();
    loop {
        let over = sim.step().map_err(|error| error.to_string())?;
        if over || !failures.borrow().is_empty() {
            break;
        }
        if connected.load(Ordering::Relaxed) == STUDENTS {
            faults.step(&mut sim, &mut dice, &impostor);
        }
    }
    seen.faults.fetch_add(faults.count, Ordering::Relaxed);
    seen.impostors.fetch_add(faults.impostors, Ordering::Relaxed);
    seen.labels.fetch_add(done.load(Ordering::Relaxed), Ordering::Relaxed);
    seen.simulated_ms.fetch_add(sim.elapsed().as_millis() as u64, Ordering::Relaxed);
    match failures.borrow().first() {
        Some(failure) => Err(failure.clone()),
        None if done.load(Ordering::Relaxed) == STUDENTS as u64 * REQUESTS => Ok(()),
        None => Err(format!("{} requests were labelled", done.load(Ordering::Relaxed))),
    }
}

fn teacher(number: usize) -> String {
    format!("teacher-{number}")
}

fn student(number: usize) -> String {
    format!("student-{number}")
}

/// What is wrong at the moment, and when it ends.
#[derive(Default)]
struct Faults {
    count: u64,
    /// Crashes after which a teacher came back as another model.
    impostors: u64,
    next: Duration,
    down: [Option<Duration>; TEACHERS],
    links: [[Option<(Duration, bool)>; TEACHERS]; STUDENTS],
}

impl Faults {
    /// Ends what is over, and begins something now and then.
    fn step(&mut self, sim: &mut turmoil::Sim<'_>, dice: &mut Dice, impostor: &AtomicBool) {
        let now = sim.elapsed();
        for number in 0..TEACHERS {
            if self.down[number].is_some_and(|until| until <= now) {
                self.down[number] = None;
                sim.bounce(teacher(number));
            }
            for of in 0..STUDENTS {
                if let Some((until, held)) = self.links[of][number]
                    && until <= now
                {
                    self.links[of][number] = None;
                    match held {
                        true => sim.release(student(of), teacher(number)),
                        false => sim.repair(student(of), teacher(number)),
                    }
                }
            }
        }
        if now < self.next {
            return;
        }
        let up_to =
            |dice: &mut Dice, milliseconds| Duration::from_millis(1 + dice.below(milliseconds));
        self.next = now + up_to(dice, 1500);
        let number = dice.below(TEACHERS as u64) as usize;
        let of = dice.below(STUDENTS as u64) as usize;
        match dice.below(4) {
            0 | 1 if self.down[number].is_none() => {
                // Sometimes it comes back as another model, and later as itself.
                if number == 0 {
                    let another = dice.below(3) == 0;
                    impostor.store(another, Ordering::Relaxed);
                    self.impostors += u64::from(another);
                }
                sim.crash(teacher(number));
                self.down[number] = Some(now + up_to(dice, 4000));
            }
            2 if self.links[of][number].is_none() => {
                sim.hold(student(of), teacher(number));
                self.links[of][number] = Some((now + up_to(dice, 8000), true));
            }
            3 if self.links[of][number].is_none() => {
                sim.partition(student(of), teacher(number));
                self.links[of][number] = Some((now + up_to(dice, 8000), false));
            }
            _ => return,
        }
        self.count += 1;
    }
}

/// A teacher, until it crashes.
async fn serve(model: Arc<Classifier>) -> turmoil::Result {
    let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), PORT)).await?;
    let ensemble = Ensemble::new([(PathBuf::from("m"), model as Arc<dyn Model>)])?;
    let server = Simulated::new(Settings::embedded("m"), ensemble)?;
    let incoming = futures(listener);
    server.serve(incoming, FORWARD).await?;
    Ok(())
}

/// Connections, one after the other.
fn futures(
    listener: TcpListener,
) -> impl tokio_stream::Stream<Item = io::Result<Accepted>> + Send + 'static {
    let (accepted, connections) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if accepted.send(Ok(Accepted(stream))).await.is_err() {
                return;
            }
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(connections)
}

/// A connection that a server has accepted.
struct Accepted(TcpStream);

impl Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

/// The rows of a request: each row of the data is in many.
fn rows(student: u64, request: u64) -> Vec<f32> {
    let row = |at: u64| (request * 7 + at * 11 + student) % DATA as u64;
    let value = |row: u64, at: u64| ((row * 31 + at * 17) % 13) as f32 / 13.0;
    (0..ROWS as u64).flat_map(|at| (0..WIDTH as u64).map(move |x| value(row(at), x))).collect()
}

fn features(values: &[f32]) -> Inputs {
    let shape = [values.len() / WIDTH, WIDTH];
    Inputs::Features(Tensor::from_f32(values, DType::F32, &shape).unwrap())
}

/// A student's labels, each compared with what they must be.
async fn learn(
    number: u64,
    seed: u64,
    endpoints: Vec<String>,
    model: &Classifier,
    connected: &AtomicUsize,
    done: &AtomicU64,
) -> Result<(), String> {
    let dense = DenseEncoding { kind: DenseKind::Logits.into(), dtype: DType::F32.into() };
    let wanted = Wanted {
        client: student(number as usize),
        probe_temperature: 1.0,
        encoding: Kind::Dense(dense),
        ensemble: EnsembleRule::Unspecified,
        input: WantedInput::Features { width: WIDTH },
        classes: CLASSES,
        request_rows: ROWS,
        timeout: Duration::from_secs(10),
    };
    let patience = Patience {
        window: 4,
        budget: Duration::from_secs(300),
        initial: Duration::from_millis(50),
        max: Duration::from_secs(2),
        seed,
        on_loss: OnTeacherLoss::Wait,
        // Half of the seeds keep labels: of half of the rows.
        kept_bytes: if seed.is_multiple_of(2) {
            0
        } else {
            DATA / 2 * (4 * CLASSES + KEPT_OVERHEAD)
        },
    };
    let dial = Dial::new(|address| async move {
        let host: IpAddr = address.host().unwrap_or_default().parse().map_err(io::Error::other)?;
        let stream = TcpStream::connect((host, address.port_u16().unwrap_or(PORT))).await?;
        Ok(Box::new(stream) as Box<dyn Wire>)
    });
    let teachers = Teachers { dial: Some(dial), ..Teachers::at(endpoints) };
    let probe = Probe { inputs: features(&rows(0, 0)), floats: None, rows: ROWS };
    let client = LabelClient::connect(&teachers, wanted, probe, patience).await;
    let client = client.map_err(|error| error.to_string())?;
    connected.fetch_add(1, Ordering::Relaxed);
    let jobs = (0..REQUESTS).map(move |index| Job {
        index,
        inputs: features(&rows(number, index)),
        rows: ROWS,
        temperature: 1.0,
        seed: 0,
        // Some whole, some row by row.
        whole: index % 5 == 0,
    });
    let mut labels = client.labels(jobs);
    for index in 0..REQUESTS {
        let next = labels.next().await.ok_or("the labels ended before the run did")?;
        let next = next.map_err(|error| error.to_string())?;
        if next.index != index {
            return Err(format!("the labels of {} came in the place of {index}", next.index));
        }
        let found = match next.batch.map(|batch| batch.labels) {
            Some(SoftLabels::Dense { values, .. }) => values,
            other => return Err(format!("request {index}: {other:?}")),
        };
        let Inference { logits: expected, .. } =
            model.infer(&rows(number, index), ROWS).map_err(|error| error.to_string())?;
        if found.iter().map(|x| x.to_bits()).ne(expected.iter().map(|x| x.to_bits())) {
            return Err(format!(
                "request {index}: the labels are {found:?}, expected {expected:?}"
            ));
        }
        done.fetch_add(1, Ordering::Relaxed);
        // The student's own work.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    match labels.next().await {
        None => Ok(()),
        Some(_) => Err("there are more labels than requests".to_owned()),
    }
}
