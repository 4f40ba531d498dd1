//! What a sweep must be, beyond its types and its recipes. Checked before anything is trained.

use super::file::{Paper, Run, Sweep};
use crate::recipe::{
    Recipe, check_name,
    teacher::{DenseValues, EncodingName, EnsembleRule},
};

/// Names, seeds and figures, and what runs say of each other.
pub(super) fn sweep(sweep: &Sweep) -> Result<(), String> {
    check_name("name", &sweep.name).map_err(|error| error.to_string())?;
    if sweep.output.as_ref().is_some_and(|output| output.as_os_str().is_empty()) {
        return Err("output is empty; expected a path".to_owned());
    }
    if sweep.runs.is_empty() {
        return Err("runs is an empty list; expected one run or more".to_owned());
    }
    own_keys("base", &sweep.base)?;
    for (index, run) in sweep.runs.iter().enumerate() {
        let before = &sweep.runs[..index];
        check_name("runs.name", &run.name).map_err(|error| error.to_string())?;
        if before.iter().any(|other| other.name == run.name) {
            return Err(format!("runs.name {:?} is the name of two runs", run.name));
        }
        let named = |reason: String| format!("runs.{}: {reason}", run.name);
        own_keys("set", &run.set).map_err(named)?;
        seeds(run.seeds.as_ref().unwrap_or(&sweep.seeds)).map_err(named)?;
        references(run, before).map_err(named)?;
        figures(run).map_err(named)?;
    }
    Ok(())
}

/// The classes of `fit_bias`, for a student of `classes`.
pub(super) fn bias(fit: &[usize], classes: usize) -> Result<(), String> {
    for (i, class) in fit.iter().enumerate() {
        if *class >= classes {
            let last = classes.max(1) - 1;
            return Err(format!("fit_bias[{i}] is {class}; expected a class from 0 to {last}"));
        }
        if fit[..i].contains(class) {
            return Err(format!("fit_bias[{i}] is {class}; expected each class once"));
        }
    }
    if fit.len() == classes {
        return Err(format!("fit_bias is {fit:?}; expected not all classes"));
    }
    Ok(())
}

/// Refuses what a teacher of several models could not give, long after the first of them was trained.
pub(super) fn labels_of_several(recipe: &Recipe) -> Result<(), String> {
    let Some(teacher) = &recipe.teacher else { return Ok(()) };
    let encoding = teacher.encoding().explicit(recipe.loss.divergence);
    if encoding.kind == EncodingName::Hidden {
        let expected = "another: several models have no one hidden state";
        return Err(format!("teacher.encoding.kind is \"hidden\"; expected {expected}"));
    }
    if encoding.values == Some(DenseValues::Logits)
        && teacher.ensemble != Some(EnsembleRule::Geometric)
    {
        let expected = "\"geometric\" where labels are logits: a mean of probabilities has none";
        return Err(format!("teacher.ensemble is \"arithmetic\"; expected {expected}"));
    }
    Ok(())
}

/// Refuses what a table of students that read text has no place for.
pub(super) fn text(run: &Run, teachers: usize) -> Result<(), String> {
    let none = |key: &str, found: String, given: bool| match given {
        true => Err(format!("{key} is {found}; expected none where text is read")),
        false => Ok(()),
    };
    none("fit_bias", format!("{:?}", run.fit_bias), !run.fit_bias.is_empty())?;
    none("paper", "set".to_owned(), run.paper != Paper::default())?;
    none("teacher.ensemble", format!("of {teachers} models"), teachers > 1)
}

/// Refuses keys of a recipe that the sweep decides.
fn own_keys(within: &str, table: &toml::Table) -> Result<(), String> {
    match ["name", "seed", "output"].into_iter().find(|key| table.contains_key(*key)) {
        Some(key) => Err(format!("{within}.{key} is set; expected none: the sweep decides it")),
        None => Ok(()),
    }
}

fn seeds(seeds: &[u64]) -> Result<(), String> {
    if seeds.is_empty() {
        return Err("seeds is an empty list; expected one or more".to_owned());
    }
    match seeds.iter().enumerate().find(|(i, seed)| seeds[..*i].contains(seed)) {
        Some((_, seed)) => Err(format!("seeds has {seed} twice; expected each seed once")),
        None => Ok(()),
    }
}

/// Runs that a run builds on come before it.
fn references(run: &Run, before: &[Run]) -> Result<(), String> {
    let teacher = run.teacher.iter().map(|teacher| ("teacher.run", &teacher.run));
    for (key, name) in teacher.chain(run.gap_from.iter().map(|name| ("gap_from", name))) {
        if before.iter().all(|other| other.name != *name) {
            let names: Vec<&str> = before.iter().map(|other| other.name.as_str()).collect();
            let names =
                if names.is_empty() { "there is none".to_owned() } else { names.join(", ") };
            return Err(format!("{key} is {name:?}; expected a run before it: {names}"));
        }
    }
    match (&run.gap_from, &run.teacher) {
        (Some(_), None) => Err("gap_from is set; expected none without teacher.run".to_owned()),
        (Some(_), Some(teacher)) if teacher.ensemble.is_some() => {
            Err("gap_from is set; expected none with an ensemble, which has no run".to_owned())
        }
        _ => Ok(()),
    }
}

fn figures(run: &Run) -> Result<(), String> {
    let paper = run.paper;
    for (key, figure) in [
        ("errors", paper.errors),
        ("errors_after_bias", paper.errors_after_bias),
        ("right_after_bias_percent", paper.right_after_bias_percent),
    ] {
        if let Some(figure) = figure.filter(|figure| !(figure.is_finite() && *figure >= 0.0)) {
            return Err(format!("paper.{key} is {figure}; expected a finite number, 0 or more"));
        }
    }
    match &run.chart {
        Some(point) if !(point.x.is_finite() && point.x > 0.0) => {
            Err(format!("chart.x is {}; expected a finite number above 0", point.x))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SWEEP: &str = r#"
        name = "small"
        seeds = [1, 2]
        [base]
        [[runs]]
        name = "teacher"
        [[runs]]
        name = "student"
        teacher.run = "teacher"
        gap_from = "teacher"
        paper.errors = 3
        chart = { line = "l", x = 2 }
    "#;

    #[test]
    fn faults_name_the_key_and_what_is_expected() {
        let check = |text: &str| sweep(&toml::from_str(text).unwrap());
        check(SWEEP).unwrap();
        for (from, to, expected) in [
            ("\"small\"", "\"../evil\"", "name: \"../evil\" is not accepted, expected letters"),
            ("\"student\"", "\"\"", "runs.name: \"\" is not accepted, expected letters"),
            ("\"student\"", "\"teacher\"", "\"teacher\" is the name of two runs"),
            ("[base]", "[base]\noutput.dir = \"x\"", "base.output is set; expected none"),
            ("[1, 2]", "[1, 1]", "runs.teacher: seeds has 1 twice"),
            ("[1, 2]", "[]", "runs.teacher: seeds is an empty list"),
            (
                "run = \"teacher\"",
                "run = \"x\"",
                "teacher.run is \"x\"; expected a run before it: teacher",
            ),
            ("teacher.run = \"teacher\"", "", "gap_from is set; expected none without"),
            (
                "teacher.run = \"teacher\"",
                "teacher = { run = \"teacher\", ensemble = \"geometric\" }",
                "expected none with an ensemble",
            ),
            ("errors = 3", "errors = inf", "paper.errors is inf; expected a finite"),
            ("x = 2", "x = 0", "chart.x is 0; expected a finite number above 0"),
            ("gap_from", "set.seed = 3\ngap_from", "runs.student: set.seed is set"),
        ] {
            let error = check(&SWEEP.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let first =
            SWEEP.replacen("name = \"teacher\"", "name = \"teacher\"\nteacher.run = \"x\"", 1);
        assert!(check(&first).unwrap_err().contains("before it: there is none"));
    }

    #[test]
    fn a_bias_is_of_some_classes() {
        assert_eq!(bias(&[7, 8], 10), Ok(()));
        for (fit, expected) in [
            (&[3, 10][..], "fit_bias[1] is 10; expected a class from 0 to 9"),
            (&[3, 3], "fit_bias[1] is 3; expected each class once"),
            (&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "expected not all classes"),
        ] {
            assert!(bias(fit, 10).unwrap_err().contains(expected));
        }
    }
}
