//! A sweep's runs, worked out and checked before anything is trained.

use std::path::{Path, PathBuf};

use stillhouse_runtime::config;
use toml::{Table, Value};

use super::{
    check,
    file::{Run, Sweep, TaughtBy},
};
use crate::{
    capture::labels_change_with_epochs,
    recipe::{
        self, Recipe, RecipeError, TeacherSection,
        teacher::{DenseValues, EncodingName, EncodingSection, EnsembleRule, TeacherKind},
    },
    text::{self, recipe::TextRecipe},
    train::output_folder,
};

/// Everything that a sweep trains.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The file.
    pub sweep: Sweep,
    /// Where results go.
    pub output: PathBuf,
    /// In order: teachers come before their students.
    pub(super) jobs: Vec<Job>,
}

/// One run of one seed, or the capture of a teacher's labels for one or more of them.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Index into the sweep's runs; of a capture, of the first run that needs it.
    pub(super) run: usize,
    pub(super) seed: u64,
    pub(super) recipe: JobRecipe,
    /// Where labels go; none: this trains a student.
    pub(super) capture: Option<PathBuf>,
    /// Jobs that come before: those whose students are this one's teachers, or their capture.
    pub(super) after: Vec<usize>,
}

/// What a job trains: all of a sweep's are of one kind.
#[derive(Clone, Debug)]
pub(super) enum JobRecipe {
    /// A classifier.
    Rows(Box<Recipe>),
    /// A language model.
    Text(Box<TextRecipe>),
}

impl JobRecipe {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Rows(recipe) => &recipe.name,
            Self::Text(recipe) => &recipe.name,
        }
    }

    /// Where the student goes.
    pub(super) fn output_folder(&self) -> PathBuf {
        match self {
            Self::Rows(recipe) => output_folder(recipe),
            Self::Text(recipe) => text::output_folder(recipe),
        }
    }

    fn rows(&self) -> Option<&Recipe> {
        match self {
            Self::Rows(recipe) => Some(recipe),
            Self::Text(_) => None,
        }
    }
}

/// Reads a sweep, makes the recipe of every run and seed, and checks them all.
///
/// # Errors
/// If the file or a recipe is not accepted; names the run.
pub fn load(file: &Path) -> Result<Plan, RecipeError> {
    let sweep: Sweep = config::read(config::read_file(file)?)?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let output = match &sweep.output {
        Some(output) => folder.join(output),
        None => Path::new("runs").join(&sweep.name),
    };
    let absolute = |path: &Path| {
        std::path::absolute(path).map_err(|source| RecipeError::Path {
            key: "output",
            path: path.to_owned(),
            source,
        })
    };
    check::sweep(&sweep).map_err(RecipeError::Section)?;
    let mut plan = Plan { output: absolute(&output)?, jobs: vec![], sweep };
    let Sweep { seeds, runs, .. } = plan.sweep.clone();
    for (index, run) in runs.iter().enumerate() {
        for &seed in run.seeds.as_ref().unwrap_or(&seeds) {
            let named =
                |reason: String| RecipeError::Section(format!("runs.{}: {reason}", run.name));
            let after = match &run.teacher {
                Some(teacher) => teachers(&plan, teacher, seed).map_err(named)?,
                None => vec![],
            };
            let folders: Vec<PathBuf> =
                after.iter().map(|&job| plan.jobs[job].recipe.output_folder()).collect();
            let table = table(&plan, run, seed, &folders);
            let table = table.map_err(|error| named(error.to_string()))?;
            if text::recipe::is_text(&table) {
                let recipe = text::recipe::from_table(table, folder);
                let recipe = recipe.map_err(|error| named(error.to_string()))?;
                check::text(run, after.len()).map_err(named)?;
                let recipe = JobRecipe::Text(Box::new(recipe));
                plan.jobs.push(Job { run: index, seed, recipe, capture: None, after });
                continue;
            }
            let recipe = recipe::from_table(table, folder);
            let mut recipe = recipe.map_err(|error| named(error.to_string()))?;
            check::bias(&run.fit_bias, recipe.student.classes()).map_err(named)?;
            if after.len() > 1 {
                check::labels_of_several(&recipe).map_err(named)?;
            }
            let after = match &run.teacher {
                Some(_) => plan.capture(index, seed, &mut recipe, after),
                None => after,
            };
            let recipe = JobRecipe::Rows(Box::new(recipe));
            plan.jobs.push(Job { run: index, seed, recipe, capture: None, after });
        }
    }
    Ok(plan)
}

/// The jobs whose students teach.
fn teachers(plan: &Plan, teacher: &TaughtBy, seed: u64) -> Result<Vec<usize>, String> {
    let of_run = |(_, job): &(usize, &Job)| {
        plan.sweep.runs[job.run].name == teacher.run && job.capture.is_none()
    };
    let all: Vec<(usize, &Job)> = plan.jobs.iter().enumerate().filter(of_run).collect();
    if teacher.ensemble.is_some() || all.len() == 1 {
        return Ok(all.into_iter().map(|(index, _)| index).collect());
    }
    match all.iter().find(|(_, job)| job.seed == seed) {
        Some((index, _)) => Ok(vec![*index]),
        None => Err(format!("teacher.run {:?} has no student of seed {seed}", teacher.run)),
    }
}

/// The recipe of one run and seed, as a recipe's file would hold it.
fn table(
    plan: &Plan,
    run: &Run,
    seed: u64,
    teachers: &[PathBuf],
) -> Result<Table, toml::ser::Error> {
    let mut table = plan.sweep.base.clone();
    config::overlay(&mut table, run.set.clone());
    let text = |path: &Path| Value::String(path.to_string_lossy().into_owned());
    let name = format!("{}-{seed}", run.name);
    let folder = plan.output.join(&name);
    let mut put = |section: &str, key: &str, value: Value| {
        let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(key.to_owned(), value);
        }
    };
    put("output", "dir", text(&folder));
    if let Some(teacher) = &run.teacher {
        put("teacher", "kind", Value::String("embedded".to_owned()));
        let models = teachers.iter().map(|path| text(path)).collect();
        put("teacher", "models", Value::Array(models));
        if let Some(rule) = teacher.ensemble {
            put("teacher", "ensemble", Value::try_from(rule)?);
        }
    }
    table.insert("name".to_owned(), Value::String(name));
    table.insert("seed".to_owned(), Value::Integer(i64::try_from(seed).unwrap_or(-1)));
    Ok(table)
}

impl Plan {
    /// Has the labels of a recipe captured before it is run, where they are the same in every epoch:
    /// one pass of the teacher then serves all epochs, and all runs on the same rows. Returns what
    /// comes before the run.
    fn capture(
        &mut self,
        run: usize,
        seed: u64,
        recipe: &mut Recipe,
        after: Vec<usize>,
    ) -> Vec<usize> {
        if labels_change_with_epochs(recipe) {
            return after;
        }
        let mut asking = recipe.clone();
        let Some(section) = &mut asking.teacher else { return after };
        let encoding = section.encoding();
        // Logits serve every temperature. A mean of probabilities has none.
        let has_logits = after.len() == 1 || section.ensemble == Some(EnsembleRule::Geometric);
        let any_temperature = encoding.kind == EncodingName::Dense && has_logits;
        if any_temperature {
            let values = Some(DenseValues::Logits);
            section.encoding = Some(EncodingSection { values, ..encoding });
        }
        let replaying = section.clone();
        let serves = |job: &Job| {
            let (Some(theirs), ours) = (job.recipe.rows(), &asking) else { return false };
            let over_time = |recipe: &Recipe| {
                (recipe.loss.temperature, recipe.loss_schedule.clone(), recipe.train.epochs)
            };
            let seen = |recipe: &Recipe| {
                let student = &recipe.student;
                (student.input_width(), student.classes(), student.rescale_factor())
            };
            // The seed chooses the rows of a part.
            let part = ours.data.train_rows.is_some() || ours.data.fraction.is_some();
            job.capture.is_some()
                && theirs.teacher == ours.teacher
                && theirs.data == ours.data
                && seen(theirs) == seen(ours)
                && (any_temperature || over_time(theirs) == over_time(ours))
                && (!part || theirs.seed == ours.seed)
        };
        let known = self.jobs.iter().position(serves);
        let job = known.unwrap_or_else(|| {
            let capture = Some(self.output.join("labels").join(&asking.name));
            let recipe = JobRecipe::Rows(Box::new(asking));
            self.jobs.push(Job { run, seed, recipe, capture, after });
            self.jobs.len() - 1
        });
        let dir = self.jobs[job].capture.clone();
        recipe.teacher = Some(TeacherSection { kind: TeacherKind::Captured, dir, ..replaying });
        vec![job]
    }

    /// Runs over all seeds, and captures.
    pub fn len(&self) -> usize {
        self.jobs.len()
    }

    /// Never so for a plan that was loaded.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWEEP: &str = r#"
        name = "small"
        seeds = [1, 2]
        output = "out"
        [base]
        data.dir = "mnist"
        student = { model_type = "mlp", input_size = 784, hidden_sizes = [8], num_labels = 10 }
        loss.alpha = 0.0
        [[runs]]
        name = "teacher"
        set.student.hidden_sizes = [16, 16]
        [[runs]]
        name = "student"
        teacher.run = "teacher"
        set.loss.alpha = 1.0
        [[runs]]
        name = "of-all"
        seeds = [5]
        teacher = { run = "teacher", ensemble = "geometric" }
        set.loss.alpha = 1.0
    "#;

    fn load_text(text: &str) -> Result<Plan, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sweep.toml");
        std::fs::write(&file, text).unwrap();
        load(&file).map_err(|error| error.to_string())
    }

    #[test]
    fn every_run_and_seed_has_a_recipe() {
        let plan = load_text(SWEEP).unwrap();
        assert_eq!(plan.len(), 8);
        let names: Vec<&str> = plan.jobs.iter().map(|job| job.recipe.name()).collect();
        // Each student comes after the capture of its labels.
        let expected = ["teacher-1", "teacher-2", "student-1", "student-1", "student-2"];
        assert_eq!(names[..5], expected);
        assert_eq!(names[5..], ["student-2", "of-all-5", "of-all-5"]);
        let captures: Vec<bool> = plan.jobs.iter().map(|job| job.capture.is_some()).collect();
        assert_eq!(captures, [false, false, true, false, true, false, true, false]);
        let seeds: Vec<u64> = plan.jobs.iter().map(|job| job.seed).collect();
        assert_eq!(seeds, [1, 2, 1, 1, 2, 2, 5, 5]);
        let after: Vec<&[usize]> = plan.jobs.iter().map(|job| job.after.as_slice()).collect();
        assert_eq!(after, [&[][..], &[], &[0], &[2], &[1], &[4], &[0, 1], &[6]]);
        let student = plan.jobs[5].recipe.rows().unwrap();
        assert_eq!(student.teacher.as_ref().unwrap().dir, plan.jobs[4].capture);
        let teacher = student.teacher.as_ref().unwrap();
        assert_eq!(teacher.folders(), [plan.output.join("teacher-2")]);
        assert_eq!(student.output.dir, Some(plan.output.join("student-2")));
        assert!(student.data.dir.as_ref().unwrap().ends_with("mnist"));
        let all = plan.jobs[7].recipe.rows().unwrap().teacher.as_ref().unwrap();
        assert_eq!((all.folders().len(), all.ensemble), (2, Some(EnsembleRule::Geometric)));
    }

    #[test]
    fn one_capture_serves_every_temperature_but_of_a_mean_of_probabilities() {
        let hot = "[[runs]]\nname = \"hot\"\nseeds = [1]\nteacher.run = \"teacher\"\n\
                   set.loss = { alpha = 1.0, temperature = 20.0 }\n";
        let plan = load_text(&format!("{SWEEP}{hot}")).unwrap();
        assert_eq!((plan.len(), plan.jobs[8].after.as_slice()), (9, &[2][..]));
        let mean = hot.replace(
            "teacher.run = \"teacher\"",
            "teacher = { run = \"teacher\", ensemble = \"arithmetic\" }",
        );
        let cold = mean.replace("hot", "cold").replace("20.0", "2.0");
        let plan = load_text(&format!("{SWEEP}{mean}{cold}")).unwrap();
        assert_eq!(plan.len(), 12);
        // Images that move have other labels in every epoch: the teacher itself is asked.
        let moved = format!("{hot}set.data.augment.shift = 1\n");
        let plan = load_text(&format!("{SWEEP}{moved}")).unwrap();
        assert_eq!((plan.len(), plan.jobs[8].after.as_slice()), (9, &[0][..]));
    }

    #[test]
    fn faults_name_the_run() {
        for (from, to, expected) in [
            (
                "\"teacher\"\n        set.loss",
                "\"nobody\"\n        set.loss",
                "runs.student: teacher.run is \"nobody\"; expected a run before it: teacher",
            ),
            (
                "hidden_sizes = [16, 16]",
                "hidden_sizes = [0]",
                "runs.teacher: student.hidden_sizes[0] is 0",
            ),
            ("seeds = [5]", "sedes = [5]", "sedes"),
            (
                "seeds = [5]",
                "seeds = [5]\nset.teacher.encoding.kind = \"hidden\"",
                "runs.of-all: teacher.encoding.kind is \"hidden\"; expected another",
            ),
            (
                "ensemble = \"geometric\" }",
                "ensemble = \"arithmetic\" }\nset.loss.divergence.kind = \"logit_mse\"",
                "runs.of-all: teacher.ensemble is \"arithmetic\"; expected \"geometric\" where labels",
            ),
        ] {
            let error = load_text(&SWEEP.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let apart = SWEEP.replace(
            "seeds = [5]\n        teacher = { run = \"teacher\", ensemble = \"geometric\" }",
            "seeds = [5]\n        teacher.run = \"teacher\"",
        );
        let error = load_text(&apart).unwrap_err();
        assert!(
            error.contains("runs.of-all: teacher.run \"teacher\" has no student of seed 5"),
            "{error}"
        );
    }

    const TEXT: &str = r#"
        name = "text"
        seeds = [1, 2]
        output = "out"
        [base]
        data = { format = "text", train_files = ["a"], validation_fraction = 0.1, sequence_length = 8 }
        student.config = "student.json"
        loss.alpha = 0.0
        [[runs]]
        name = "teacher"
        seeds = [9]
        [[runs]]
        name = "student"
        teacher.run = "teacher"
        gap_from = "teacher"
        set.loss.alpha = 1.0
        set.teacher.encoding.kind = "hidden"
    "#;

    #[test]
    fn language_models_are_trained_alike() {
        let plan = load_text(TEXT).unwrap();
        let names: Vec<&str> = plan.jobs.iter().map(|job| job.recipe.name()).collect();
        assert_eq!(names, ["teacher-9", "student-1", "student-2"]);
        let JobRecipe::Text(student) = &plan.jobs[1].recipe else { panic!() };
        let folders = student.teacher.as_ref().unwrap().folders();
        assert_eq!(folders, [plan.output.join("teacher-9")]);
        assert_eq!(plan.jobs[1].after, [0]);
        for (from, to, expected) in [
            (
                "gap_from = \"teacher\"",
                "fit_bias = [1]",
                "runs.student: fit_bias is [1]; expected none where text is read",
            ),
            (
                "gap_from = \"teacher\"",
                "paper.errors = 3.0",
                "runs.student: paper is set; expected none where text is read",
            ),
            ("sequence_length = 8", "sequence_length = 0", "runs.teacher: data.sequence_length: 0"),
        ] {
            let error = load_text(&TEXT.replace(from, to)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
