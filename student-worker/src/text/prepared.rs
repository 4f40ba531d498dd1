//! The text of a recipe, tokenised and cut into sequences.

use stillhouse_nn::ModelError;

use super::{
    classes::Classes,
    corpus::{Corpora, Corpus, TextError, TextTokenizer, format_name},
    packing::{Order, Packed, Sequence, groups, sequences},
    recipe::TextRecipe,
    run::cache_folder,
    student,
};
use crate::{
    data::subset::{balanced_rows, shuffled},
    train::Error,
};

/// Text, ready to be trained on.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) tokenizer: TextTokenizer,
    pub(super) corpora: Corpora,
    /// Of the text to train on.
    pub(super) sequences: Vec<Sequence>,
    /// Batches to validate on; of the first `compared`, the teacher is asked, too.
    pub(super) validation: Vec<Packed>,
    pub(super) compared: usize,
}

impl Prepared {
    /// Reads it; `classes` are those of a classifier.
    pub(super) fn read(recipe: &TextRecipe, classes: Option<&Classes>) -> Result<Self, Error> {
        let data = &recipe.data;
        let path = data.tokenizer.as_deref().or(student::folder(&recipe.student));
        let Some(path) = path else {
            let expected = "a tokenizer.json: the student comes with none";
            return Err(refused("data.tokenizer", &"no value", expected));
        };
        let tokenizer = TextTokenizer::load(data, path)?;
        if let Some(added) = classes.map(|_| tokenizer.added_tokens())
            && data.sequence_length <= added
        {
            let least = added + 1;
            let expected = format!("{least} or more: the tokenizer adds {added} to every text");
            return Err(refused("data.sequence_length", &data.sequence_length, &expected));
        }
        let corpora = Corpora::read(data, &tokenizer, classes, &cache_folder(recipe))?;
        let longest = data.sequence_length;
        let own = |what, corpus: &Corpus| match sequences(corpus, longest) {
            none if none.is_empty() => {
                let remarks = corpus.counts.remarks(data.on_long());
                let found = remarks.unwrap_or_else(|| "no document at all".to_owned());
                Err(TextError::Nothing { what, found })
            }
            some => Ok(some),
        };
        let mut train = own("data.train_files", &corpora.train)?;
        if let Some(fraction) = data.fraction {
            train = part_of(&train, &corpora.train, fraction, recipe.seed)?;
        }
        let validation = own("the text to validate on", &corpora.validation)?;
        for (part, corpus) in [("train", &corpora.train), ("validation", &corpora.validation)] {
            let counts = &corpus.counts;
            tracing::info!(
                part,
                format = format_name(data.format),
                documents = counts.documents,
                tokens = counts.tokens,
                learnt = counts.learnt,
                passed_over = counts.remarks(data.on_long()).unwrap_or_default(),
                "text"
            );
        }
        let budget = recipe.train.micro_batch_tokens();
        let most = recipe.train.eval_tokens.unwrap_or(usize::MAX);
        // The same sequences, whatever is computed at once.
        let until = |tokens: usize| first_of(&validation, tokens.min(most));
        let (mut compared, end) = (until(recipe.train.agreement_tokens), until(most));
        let mut all: Vec<u32> = (0..validation.len() as u32).collect();
        if classes.is_some() {
            // Files may be sorted by class.
            let count = all.len();
            all = (0..end).map(|at| (at * count / end) as u32).collect();
            compared = if compared > 0 { end } else { 0 };
        }
        let pack = |part: &[u32]| {
            let packed = |group: &[u32]| Packed::new(&corpora.validation, &validation, group);
            groups(&validation, part, budget).map(packed).collect::<Vec<_>>()
        };
        let mut parts = pack(&all[..compared]);
        let compared_parts = parts.len();
        parts.extend(pack(&all[compared..end]));
        Ok(Self {
            tokenizer,
            corpora,
            sequences: train,
            validation: parts,
            compared: compared_parts,
        })
    }

    pub(super) fn order(&self, recipe: &TextRecipe) -> Order {
        let lengths = self.sequences.iter().map(|sequence| sequence.length).collect();
        Order::new(recipe.seed, lengths, recipe.train.batch_tokens, recipe.data.shard)
    }
}

/// An error about a key, once the data are known.
fn refused(field: &str, value: &dyn ToString, expected: &str) -> Error {
    let (field, value, expected) = (field.to_owned(), value.to_string(), expected.to_owned());
    Error::Recipe(ModelError::Config { field, value, expected })
}

/// A part of the sequences, the same for the same seed; balanced, where they are classified.
fn part_of(
    all: &[Sequence],
    corpus: &Corpus,
    fraction: f64,
    seed: u64,
) -> Result<Vec<Sequence>, Error> {
    let count = (fraction * all.len() as f64).round() as usize;
    if count == 0 {
        let expected = format!("a part of {} sequences that has one or more", all.len());
        return Err(refused("data.fraction", &fraction, &expected));
    }
    let mut order = shuffled(all.len(), seed);
    let chosen = match corpus.classes.is_empty() {
        // One sequence is one document.
        false => balanced_rows(&corpus.classes, order, count),
        true => {
            order.truncate(count);
            order.sort_unstable();
            order
        }
    };
    Ok(chosen.into_iter().map(|at| all[at as usize]).collect())
}

/// How many of the first sequences it takes to come to so many tokens.
fn first_of(sequences: &[Sequence], tokens: usize) -> usize {
    let mut seen = 0;
    let below = sequences.iter().take_while(|sequence| {
        let more = seen < tokens;
        seen = seen.saturating_add(sequence.length);
        more
    });
    below.count()
}
