//! A run: from a recipe to a trained student.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use stillhouse_nn::{PackedHead, Philox, TextTrainerConfig};
use tokio::{runtime::Handle, sync::watch, task::spawn_blocking};

use super::{
    classes::Classes,
    corpus::TextError,
    on_policy::is_on_policy,
    packing::{MOST_SEQUENCES, Order, Packed, groups},
    prepared::Prepared,
    recipe::TextRecipe,
    report,
    session::{AskedLabels, Ended, TextSession},
    student,
    teacher::{Sizes, TextTeacher, job},
};
use crate::{
    label_client::Job,
    progress::Observer,
    random,
    recipe::identity::Identity,
    run_folder::{
        Claim, Existing, RunFolder, RunRecipe, metrics::ValidationRecord, report::REPORT,
    },
    train::{Error, Meter, steps_without_teacher, unless},
};

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TextOutcome {
    /// The recipe's name.
    pub name: String,
    /// Whether the student is trained; otherwise the run was told to stop.
    pub finished: bool,
    /// Steps done, by the runs that this one goes on from too.
    pub steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The last validation, of the trained student.
    pub validation: Option<ValidationRecord>,
    /// Number of the student's weights.
    pub parameters: usize,
    /// Wall-clock time of this process's part, in seconds.
    pub seconds: f64,
    /// Tokens trained on per second, validations and checkpoints left out.
    pub tokens_per_second: f64,
    /// Part of that time that was spent waiting for labels.
    pub stall_fraction: f64,
    /// Steps of which some labels did not come, so that hard labels alone stood in for them, by the
    /// runs that this one goes on from too.
    #[serde(default)]
    pub steps_without_teacher: u64,
    /// The teacher's fingerprint, hexadecimal.
    pub teacher: Option<String>,
    /// The run's folder.
    pub folder: PathBuf,
    /// The newest checkpoint, which holds all those steps; none if no step was taken yet.
    pub checkpoint: Option<PathBuf>,
    /// The report.
    pub report: Option<PathBuf>,
}

impl RunRecipe for TextRecipe {
    fn keep_checkpoints(&self) -> usize {
        self.train.keep_checkpoints
    }

    fn set_output(&mut self, folder: PathBuf) {
        self.output.dir = Some(folder);
    }
}

/// Where a recipe's results go.
pub fn output_folder(recipe: &TextRecipe) -> PathBuf {
    let default = || Path::new("runs").join(&recipe.name);
    recipe.output.dir.clone().unwrap_or_else(default)
}

/// Where tokens and heads are kept.
pub(super) fn cache_folder(recipe: &TextRecipe) -> PathBuf {
    let beside = || match output_folder(recipe).parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.join("cache"),
        _ => PathBuf::from("cache"),
    };
    recipe.data.cache_dir.clone().unwrap_or_else(beside)
}

/// What decides the trained weights.
fn identity(
    recipe: &TextRecipe,
    config: &TextTrainerConfig,
    data: &Prepared,
    start: [u8; 32],
    teacher: Option<&[u8]>,
) -> Identity {
    fn json(value: &impl Serialize) -> Value {
        serde_json::to_value(value).unwrap_or_else(|error| Value::String(error.to_string()))
    }
    let train = &recipe.train;
    let encoding = recipe
        .teacher
        .as_ref()
        .map(|section| json(&section.encoding().implicit(recipe.loss.divergence)));
    let values = [
        ("seed", recipe.seed.into()),
        ("student", json(&config.model)),
        ("student (SHA-256 of its first weights)", crate::recipe::identity::hex(&start).into()),
        ("vocabulary", json(&config.vocabulary)),
        ("loss", json(&recipe.loss)),
        ("optimizer", json(&recipe.optimizer)),
        ("schedule", json(&recipe.schedule)),
        ("train.steps", train.steps.into()),
        ("train.batch_tokens", train.batch_tokens.into()),
        ("train.micro_batch_tokens", train.micro_batch_tokens().into()),
        ("train.clip_norm", json(&train.clip_norm)),
        ("train.decay_vectors", train.decay_vectors.into()),
        // Runs that were started before there was a choice go on.
        ("train.precision", json(&Some(train.precision).filter(|precision| !precision.is_f32()))),
        ("data.fraction", json(&recipe.data.fraction)),
        ("data.sequence_length", recipe.data.sequence_length.into()),
        ("data.shard", json(&recipe.data.shard)),
        ("teacher.encoding", encoding.unwrap_or_default()),
        ("on_policy", json(&recipe.on_policy)),
    ];
    Identity::of(values, data.corpora.train.sha256(), teacher)
}

/// Runs a recipe. Ends early, with a checkpoint of what was done, when `stop` turns true. A run that
/// was trained to the end before is not run again: its outcome is returned, and no teacher is asked.
///
/// # Errors
/// If anything that the recipe names cannot be used, no teacher answers for too long, or a step
/// fails. What was saved before stays.
pub async fn run(
    recipe: TextRecipe,
    existing: Existing,
    observer: Box<dyn Observer>,
    mut stop: watch::Receiver<bool>,
) -> Result<TextOutcome, Error> {
    let begun = Instant::now();
    let reading = recipe.clone();
    let (data, mut trainer) = spawn_blocking(move || {
        let model = student::config(&reading).map_err(Error::Recipe)?;
        let classes = reading.data.classifies().then(|| Classes::of(&model));
        let data = Prepared::read(&reading, classes.as_ref())?;
        let words = data.tokenizer.info().size;
        student::check_sizes(&reading, &model, words).map_err(Error::Recipe)?;
        let config = student::trainer_config(&reading, model, words);
        config.validate().map_err(Error::Recipe)?;
        let trainer = student::trainer(&reading.student, config).map_err(Error::Load)?;
        Ok::<_, Error>((Arc::new(data), trainer))
    })
    .await??;
    let mut order = data.order(&recipe);
    if order.is_empty() {
        let found = format!("{} sequences, none in data.shard", order.len());
        return Err(TextError::Nothing { what: "data.train_files", found }.into());
    }

    let start = trainer.weights_sha256()?;
    let identify =
        |teacher: Option<&[u8]>| identity(&recipe, trainer.config(), &data, start, teacher);
    let claim = Claim::take(&output_folder(&recipe), existing, &identify(None))?;
    let (total, done) = (recipe.train.steps, claim.checkpoint().map_or(0, |c| c.position.step));
    let trained = done == total;
    if trained && let Some(outcome) = claim.outcome::<TextOutcome>() {
        let folder = output_folder(&recipe);
        let report = outcome.report.and(Some(folder.join(REPORT)));
        let checkpoint = claim.checkpoint().map(|checkpoint| checkpoint.folder.clone());
        return Ok(TextOutcome { folder, checkpoint, report, ..outcome });
    }
    let mut outcome = TextOutcome {
        name: recipe.name.clone(),
        finished: false,
        steps: done,
        total_steps: total,
        validation: None,
        parameters: trainer.parameters(),
        seconds: 0.0,
        tokens_per_second: 0.0,
        stall_fraction: 0.0,
        steps_without_teacher: 0,
        teacher: None,
        folder: output_folder(&recipe),
        checkpoint: claim.checkpoint().map(|checkpoint| checkpoint.folder.clone()),
        report: None,
    };

    let config = trainer.config();
    let classes = config.vocabulary.unwrap_or(config.model.classes());
    // A student that is trained needs no labels any more.
    let mut teacher = None;
    if let Some(section) = recipe.teacher.as_ref().filter(|_| !trained) {
        let connecting = Box::pin(connect(&recipe, section, &data, &mut order, classes));
        match unless(&mut stop, connecting).await {
            Some(connected) => teacher = Some(connected?),
            None => {
                outcome.seconds = begun.elapsed().as_secs_f64();
                return Ok(outcome);
            }
        }
    }
    let identity = match claim.checkpoint().filter(|_| trained) {
        Some(checkpoint) => checkpoint.position.identity.clone(),
        None => identify(teacher.as_ref().map(|(teacher, ..)| &*teacher.described().fingerprint)),
    };
    let (run, checkpoint) = RunFolder::open(claim, &recipe, &identity)?;
    if let Some(checkpoint) = &checkpoint {
        trainer.load_state(&checkpoint.folder)?;
    }
    let begins_at = trainer.steps_done();
    let (mut labels, mut server, mut head, mut compared) = (None, None, None, vec![]);
    let mut demanded = None;
    if let Some((teacher, own_head, states)) = teacher {
        if recipe.on_policy.is_some() {
            demanded = Some(teacher.on_demand().await?);
        }
        let jobs = Jobs {
            recipe: recipe.clone(),
            data: Arc::clone(&data),
            order: order.clone(),
            step: begins_at,
            pending: VecDeque::new(),
        };
        let (answers, running) = teacher.ask(jobs);
        labels = Some(AskedLabels { labels: answers, demanded, runtime: Handle::current() });
        (server, head, compared) = (running, own_head, states);
    }
    outcome.teacher = identity.teacher().map(str::to_owned);
    let session = TextSession {
        recipe: recipe.clone(),
        data,
        order,
        trainer,
        run,
        identity,
        labels,
        head,
        compared,
        observer,
        stop,
        meter: Meter::new(),
    };
    let ended = spawn_blocking(move || session.train()).await?;
    let closed = match server {
        Some(server) => server.shutdown().await,
        None => Ok(()),
    };
    // What the training says comes before what its teacher says.
    let Ended { steps, validation, checkpoint, mut run, meter } = ended?;
    closed?;
    outcome.finished = steps == total;
    outcome.steps = steps;
    outcome.validation = validation;
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome.tokens_per_second = meter.mean_examples_per_second();
    outcome.stall_fraction = meter.stall_fraction();
    outcome.steps_without_teacher = steps_without_teacher(&run.records()?);
    outcome.folder = run.path().to_owned();
    outcome.checkpoint = Some(checkpoint);
    if outcome.finished {
        outcome.report = Some(report::write(&recipe, &outcome, begins_at, &mut run)?);
        run.finish(&outcome)?;
    }
    Ok(outcome)
}

/// Connects, and asks for what is needed before the first step: the head, where labels are hidden
/// states or are compared with some, and those.
async fn connect(
    recipe: &TextRecipe,
    section: &crate::recipe::TeacherSection,
    data: &Prepared,
    order: &mut Order,
    classes: usize,
) -> Result<(TextTeacher, Option<PackedHead>, Vec<Vec<f32>>), Error> {
    let micro = recipe.train.micro_batch_tokens();
    // Sequences are at least one token long, but not many are that short: what a request may hold is
    // counted over all steps of an epoch, and all validation.
    let in_epoch = most_sequences(recipe, data, order, micro);
    let validated = data.validation.iter().map(|part| part.lengths.len()).max().unwrap_or(1);
    let info = data.tokenizer.info();
    let longest = data.sequences.iter().map(|sequence| sequence.length).max().unwrap_or(1);
    let validated_longest = data.validation.iter().flat_map(|part| &part.lengths).max();
    let sizes = Sizes {
        classes,
        classifies: recipe.data.classifies(),
        tokenizer_sha256: info.sha256,
        longest: match &recipe.on_policy {
            // What the student writes is as long as any sequence may be.
            Some(_) => recipe.data.sequence_length,
            None => longest.max(validated_longest.map_or(1, |length| *length as usize)),
        },
        request_sequences: in_epoch.max(validated),
        request_tokens: micro,
    };
    let (_, chosen) = order.step(0);
    let first = Packed::new(&data.corpora.train, &data.sequences, &chosen[..1]);
    let teacher = TextTeacher::connect(recipe, section, sizes, &first).await?;
    let compared = &data.validation[..data.compared];
    let states = match compared {
        [] => None,
        parts => teacher.compared(parts).await?,
    };
    let by_states = states.is_some() && !recipe.data.classifies();
    let head = match teacher.sends_hidden() || by_states {
        true => Some(teacher.head(&cache_folder(recipe)).await?.pack()?),
        false => None,
    };
    Ok((teacher, head, states.unwrap_or_default()))
}

/// Most sequences that a request may hold: as many of the shortest as fit.
fn most_sequences(recipe: &TextRecipe, data: &Prepared, order: &Order, micro: usize) -> usize {
    let mut lengths: Vec<usize> = data.sequences.iter().map(|sequence| sequence.length).collect();
    lengths.sort_unstable();
    let mut tokens = 0;
    let fit = lengths.iter().take_while(|&&length| {
        tokens += length;
        tokens <= micro.min(recipe.train.batch_tokens)
    });
    fit.count().clamp(1, order.len().clamp(1, MOST_SEQUENCES))
}

/// The requests of a run, in order.
struct Jobs {
    recipe: TextRecipe,
    data: Arc<Prepared>,
    order: Order,
    step: u64,
    pending: VecDeque<Job>,
}

impl Iterator for Jobs {
    type Item = Job;

    fn next(&mut self) -> Option<Job> {
        while self.pending.is_empty() {
            if self.step == self.recipe.train.steps {
                return None;
            }
            let (_, chosen) = self.order.step(self.step);
            let micro = self.recipe.train.micro_batch_tokens();
            if is_on_policy(&self.recipe, self.step) {
                // The session asks, once the student has written.
                self.step += 1;
                continue;
            }
            for (group, part) in groups(&self.data.sequences, chosen, micro).zip(0..) {
                let packed = Packed::new(&self.data.corpora.train, &self.data.sequences, group);
                // Steps have few parts; the same for every run that comes to this step.
                let index = self.step << 16 | part;
                let draws = random::teacher_draws(index);
                let seed = Philox::new(self.recipe.seed, draws).next_u64();
                let temperature = self.recipe.loss.temperature as f32;
                self.pending.push_back(job(index, &packed, temperature, seed));
            }
            self.step += 1;
        }
        self.pending.pop_front()
    }
}
