//! What values of a recipe for text are accepted.

use stillhouse_nn::LossError;

use super::{OnLong, OnPolicySection, StudentSection, TextFormat, TextRecipe};
use crate::recipe::{
    Invalid, RecipeError, check_name,
    teacher::{OnTeacherLoss, TeacherKind},
    validate as checks,
};

/// Parts of a step whose sequences fill half of each at least.
const MAX_PARTS: usize = 1 << 15;

/// Checks a recipe that was not read from a file.
///
/// # Errors
/// If a value is outside its range.
pub fn check(recipe: &TextRecipe) -> Result<(), RecipeError> {
    recipe.loss.validate().map_err(|error| {
        let divergence = matches!(error, LossError::Config { field: "beta" | "lambda", .. });
        let prefix = if divergence { "loss.divergence." } else { "loss." };
        RecipeError::Section(format!("{prefix}{error}"))
    })?;
    recipe.optimizer.validate().map_err(|error| RecipeError::Section(error.to_string()))?;
    recipe.schedule.validate().map_err(|error| RecipeError::Section(error.to_string()))?;
    Ok(values(recipe)?)
}

fn values(recipe: &TextRecipe) -> Result<(), Invalid> {
    use checks::{check, require};

    check_name("name", &recipe.name)?;
    let seed = recipe.seed;
    check(i64::try_from(seed).is_ok(), "seed", seed, "0 to 9223372036854775807")?;
    let data = &recipe.data;
    check(!data.train_files.is_empty(), "data.train_files", "an empty list", "one file or more")?;
    let given = usize::from(!data.validation_files.is_empty())
        + usize::from(data.validation_fraction.is_some());
    let expected = "either this or data.validation_fraction";
    check(given == 1, "data.validation_files", format!("one of {given} given"), expected)?;
    if let Some(fraction) = data.validation_fraction {
        let fits = fraction > 0.0 && fraction < 1.0;
        check(fits, "data.validation_fraction", fraction, "above 0 and below 1")?;
    }
    let length = data.sequence_length;
    check((2..=1 << 20).contains(&length), "data.sequence_length", length, "2 to 1048576")?;
    let text = data.format == TextFormat::Text;
    for (key, given) in [
        ("data.prompt_field", data.prompt_field.is_some()),
        ("data.completion_field", data.completion_field.is_some()),
    ] {
        check(!(text && given), key, "given", "absent where data.format is text")?;
    }
    let pairs = data.prompt_field.is_some() || data.completion_field.is_some();
    let conversations = data.messages_field.is_some();
    let expected = "absent where data.format is text, and beside other fields";
    let read = !(text || pairs || conversations) || data.text_field.is_none();
    check(read, "data.text_field", "given", expected)?;
    let read = pairs || conversations || data.completions_only.is_none();
    let expected = "absent unless there are prompts: data.prompt_field or data.messages_field";
    check(read, "data.completions_only", "given", expected)?;
    let read = !text || data.on_malformed.is_none();
    check(read, "data.on_malformed", "given", "absent where data.format is text")?;
    let separator = data.separator.is_some();
    check(text || !separator, "data.separator", "given", "absent unless data.format is text")?;
    let chat = data.messages_field.is_some();
    let jsonl = data.format == TextFormat::Jsonl;
    check(jsonl || !chat, "data.messages_field", "given", "absent unless data.format is jsonl")?;
    let beside = chat && data.prompt_field.is_some();
    check(!beside, "data.messages_field", "given", "absent beside data.prompt_field")?;
    let template = data.chat_template.is_some();
    check(chat || !template, "data.chat_template", "given", "absent without data.messages_field")?;
    let empty = data.separator.as_deref() == Some("");
    check(!empty, "data.separator", "empty", "a text, or absent")?;
    if data.prompt_field.is_some() || data.completion_field.is_some() {
        let beside = "given together with the other of prompt_field and completion_field";
        require(data.prompt_field.as_ref(), "data.prompt_field", beside)?;
        require(data.completion_field.as_ref(), "data.completion_field", beside)?;
    }
    if let Some(fraction) = data.fraction {
        let fits = fraction > 0.0 && fraction <= 1.0;
        check(fits, "data.fraction", fraction, "above 0, at most 1")?;
    }
    if let Some([index, count]) = data.shard {
        let found = format!("[{index}, {count}]");
        check(index < count, "data.shard", found, "[index, count], the index below the count")?;
    }
    if data.classifies() {
        for (key, given) in [
            ("data.prompt_field", data.prompt_field.is_some()),
            ("data.messages_field", data.messages_field.is_some()),
            ("data.begin", data.begin.is_some()),
            ("data.end", data.end.is_some()),
            ("on_policy", recipe.on_policy.is_some()),
        ] {
            check(!given, key, "given", "absent beside data.label_field")?;
        }
        check(!text, "data.label_field", "given", "absent where data.format is text")?;
        let split = data.on_long == Some(OnLong::Split);
        let expected = "truncate, skip or error beside data.label_field";
        check(!split, "data.on_long", "split", expected)?;
    }
    student(&recipe.student)?;
    let train = &recipe.train;
    check((1..=1 << 40).contains(&train.steps), "train.steps", train.steps, "1 to 2^40")?;
    let budget = train.batch_tokens;
    let range = format!("{length}, the sequence length, to 16777216");
    check((length..=1 << 24).contains(&budget), "train.batch_tokens", budget, &range)?;
    let micro = train.micro_batch_tokens();
    // A step has less than 2^16 parts, by whose number the teacher's draws are seeded.
    let least = length.max(budget.div_ceil(MAX_PARTS));
    let why = if least == length { "the sequence length" } else { "32768 parts of a step" };
    let range = format!("{least}, {why}, to {budget}, train.batch_tokens");
    check((least..=budget).contains(&micro), "train.micro_batch_tokens", micro, &range)?;
    let norm = train.clip_norm;
    let fits = norm == 0.0 || (norm > 0.0 && (norm as f32).is_normal());
    let expected = "1.2e-38 to 3.4e38, or 0: not clipped";
    check(fits, "train.clip_norm", format!("{norm:e}"), expected)?;
    let warmup = recipe.schedule.warmup_steps;
    let range = format!("below {}, train.steps", train.steps);
    check(warmup < train.steps, "schedule.warmup_steps", warmup, &range)?;
    let t = recipe.loss.temperature;
    let expected = "1.2e-38 to 3.4e38, the numbers above 0 that 32 bits hold";
    check((t as f32).is_normal(), "loss.temperature", format!("{t:e}"), expected)?;
    check(train.eval_every_steps > 0, "train.eval_every_steps", 0, "1 or more")?;
    check(train.eval_tokens != Some(0), "train.eval_tokens", 0, "1 or more, or absent")?;
    check(train.keep_checkpoints > 0, "train.keep_checkpoints", 0, "1 or more")?;
    if let Some(section) = &recipe.on_policy {
        on_policy(section, recipe)?;
    }
    let (hard, soft) = recipe.loss.weights();
    let key = if recipe.loss.soft_weight.is_some() { "loss.soft_weight" } else { "loss.alpha" };
    match &recipe.teacher {
        None => check(soft == 0.0, key, soft, "0 where there is no [teacher]"),
        Some(section) => {
            check(soft > 0.0, key, soft, "above 0 where there is a [teacher]")?;
            check(hard >= 0.0, "loss.hard_weight", hard, "0 or more")?;
            let captured = section.kind == TeacherKind::Captured;
            let expected = "embedded or endpoints: labels of text are not captured yet";
            check(!captured, "teacher.kind", "captured", expected)?;
            check(
                section.request_rows.is_none(),
                "teacher.request_rows",
                "given",
                "absent: train.micro_batch_tokens decides what a request holds",
            )?;
            checks::teacher(section, &recipe.loss, None)
        }
    }
}

fn on_policy(section: &OnPolicySection, recipe: &TextRecipe) -> Result<(), Invalid> {
    use checks::check;

    let taught = recipe.teacher.is_some();
    check(taught, "on_policy", "a table", "none where there is no [teacher]")?;
    let fraction = section.fraction;
    let fits = fraction > 0.0 && fraction <= 1.0;
    check(fits, "on_policy.fraction", fraction, "above 0, at most 1")?;
    let alone =
        recipe.teacher.as_ref().map(|of| of.on_teacher_loss) == Some(OnTeacherLoss::HardLabels);
    let expected = "wait or fail with [on_policy]: what a student writes has no hard labels";
    check(!alone, "teacher.on_teacher_loss", "\"hard-labels\"", expected)?;
    let (prompt, new) = (section.prompt_tokens, section.max_new_tokens);
    let most = recipe.data.sequence_length - 1;
    let range = format!("1 to {most}, below the sequence length");
    check((1..=most).contains(&prompt), "on_policy.prompt_tokens", prompt, &range)?;
    let range = format!("1 to {}, the sequence length", most + 1);
    check((1..=most + 1).contains(&new), "on_policy.max_new_tokens", new, &range)?;
    let t = section.temperature;
    let fits = t.is_finite() && t >= 0.0;
    check(fits, "on_policy.temperature", t, "a finite number, 0 or more")?;
    let p = section.top_p;
    check(p > 0.0 && p <= 1.0, "on_policy.top_p", p, "above 0, at most 1")?;
    let greedy = t == 0.0 && p != 1.0;
    check(!greedy, "on_policy.top_p", p, "1 where on_policy.temperature is 0")
}

fn student(student: &StudentSection) -> Result<(), Invalid> {
    use checks::check;

    let given = [&student.config, &student.model, &student.layers_of];
    let count = given.iter().filter(|path| path.is_some()).count();
    let expected = "exactly one of student.config, student.model and student.layers_of";
    check(count == 1, "student", format!("with {count} of them"), expected)?;
    let (keep, layers) = (&student.keep_layers, student.layers_of.is_some());
    let found = format!("{keep:?}");
    let ascending = keep.is_sorted_by(|a, b| a < b);
    if layers {
        let fits = ascending && !keep.is_empty();
        return check(fits, "student.keep_layers", found, "one layer or more, ascending");
    }
    check(keep.is_empty(), "student.keep_layers", found, "absent without student.layers_of")
}
