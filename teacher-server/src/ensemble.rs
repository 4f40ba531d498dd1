//! One model or several that answer as one teacher.

mod agreement;

use std::{fmt::Debug, iter, path::PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use stillhouse_nn::{Inference, ModelError, TokenBatch};
use stillhouse_proto::{
    limits::MAX_NAME_BYTES,
    v1::{self, EnsembleRule},
};
use stillhouse_runtime::config::ConfigError;

use agreement::wrong;
pub(crate) use agreement::{Signature, agree};

use crate::{error::ServeError, model::AnyModel};

/// Separates fingerprints of ensembles from any other use of SHA-256, and from a later definition.
const DOMAIN: &[u8] = b"stillhouse ensemble 1";

/// How the distributions of an ensemble's members become one (Hinton et al. 2015, arXiv 1503.02531,
/// sections 1 and 2). Of a single model both rules are the identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// p_T is the mean over the members of `softmax(z_m / T)`, at the T that is asked for.
    #[default]
    Arithmetic,
    /// z is the mean over the members of their logits, and p_T is `softmax(z / T)`.
    Geometric,
}

impl Rule {
    /// Every rule.
    pub const ALL: [Self; 2] = [Self::Arithmetic, Self::Geometric];

    fn name(self) -> &'static str {
        match self {
            Self::Arithmetic => "arithmetic",
            Self::Geometric => "geometric",
        }
    }
}

impl From<Rule> for EnsembleRule {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Arithmetic => Self::Arithmetic,
            Rule::Geometric => Self::Geometric,
        }
    }
}

/// A model and the folder that it came from.
struct Member {
    folder: PathBuf,
    model: AnyModel,
}

impl Member {
    /// The folder's name, for people.
    fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or(self.folder.as_os_str());
        let mut name = name.to_string_lossy().into_owned();
        name.truncate(name.floor_char_boundary(MAX_NAME_BYTES));
        name
    }
}

/// One model or several, with the same input and the same classes.
pub struct Ensemble {
    first: Member,
    others: Vec<Member>,
    /// The fingerprint under [`Rule::Arithmetic`], and under [`Rule::Geometric`].
    arithmetic: Bytes,
    geometric: Bytes,
}

impl Ensemble {
    /// Of models and the folders that they are named by, in an order that the fingerprint covers.
    ///
    /// # Errors
    /// If there is none, or two do not agree on what a row or a label is: names the first value that
    /// differs, and both folders.
    pub fn new<M: Into<AnyModel>>(
        members: impl IntoIterator<Item = (PathBuf, M)>,
    ) -> Result<Self, ConfigError> {
        let member = |(folder, model): (PathBuf, M)| Member { folder, model: model.into() };
        let mut members = members.into_iter().map(member);
        let Some(first) = members.next() else {
            return Err(wrong("is an empty list; must be one model or more".to_owned()));
        };
        let others: Vec<Member> = members.collect();
        let mut ensemble =
            Self { first, others, arithmetic: Bytes::new(), geometric: Bytes::new() };
        let signatures = ensemble.members();
        agree(signatures.map(|member| (&*member.folder, Signature::of(&member.model))))?;
        for Member { folder, model } in ensemble.members() {
            if let AnyModel::Text(model) = model
                && model.tokenizer().is_none()
            {
                let folder = folder.display();
                return Err(wrong(format!(
                    "{folder} has no tokenizer.json; labels of token sequences must say which \
                     tokenizer they are for"
                )));
            }
        }
        ensemble.arithmetic = ensemble.hash(Rule::Arithmetic);
        ensemble.geometric = ensemble.hash(Rule::Geometric);
        Ok(ensemble)
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        iter::once(&self.first).chain(&self.others)
    }

    /// Number of models, at least 1.
    pub(crate) fn len(&self) -> usize {
        1 + self.others.len()
    }

    /// The model, if it is the only one.
    pub(crate) fn only(&self) -> Option<&AnyModel> {
        self.others.is_empty().then_some(&self.first.model)
    }

    /// What requests must hold.
    pub(crate) fn accepts(&self) -> Accepts {
        match &self.first.model {
            AnyModel::Features(model) => Accepts::Features {
                width: model.input_width(),
                rescale_factor: model.rescale_factor() as f32,
            },
            AnyModel::Text(model) => {
                // What every member takes.
                let members = || {
                    self.members().filter_map(|member| match &member.model {
                        AnyModel::Text(model) => Some(model),
                        AnyModel::Features(_) => None,
                    })
                };
                let lengths = members().map(|model| model.config().max_length());
                let vocabularies =
                    members().map(|model| match model.config().is_language_model() {
                        true => model.classes(),
                        false => model.config().vocabulary(),
                    });
                Accepts::Sequences {
                    max_length: lengths.min().unwrap_or(1),
                    vocabulary: vocabularies.min().unwrap_or(0),
                    // `new` has refused models without.
                    tokenizer: model.tokenizer().map_or([0; 32], |tokenizer| tokenizer.sha256),
                    every_position: model.config().is_language_model(),
                }
            }
        }
    }

    /// Classes, V.
    pub(crate) fn classes(&self) -> usize {
        self.first.model.classes()
    }

    /// Width d of the hidden state; 0 for several models, which have none in common.
    pub(crate) fn hidden_size(&self) -> usize {
        self.only().map_or(0, AnyModel::hidden_size)
    }

    /// Width of the hidden state of each member.
    pub(crate) fn hidden_sizes(&self) -> Vec<usize> {
        self.members().map(|member| member.model.hidden_size()).collect()
    }

    /// What labels under a rule are told apart by, 32 bytes. A single model's own, whatever the rule.
    pub(crate) fn fingerprint(&self, rule: Rule) -> &Bytes {
        match rule {
            Rule::Arithmetic => &self.arithmetic,
            Rule::Geometric => &self.geometric,
        }
    }

    /// SHA-256 over the rule and the members' fingerprints in their order, each part preceded by its
    /// length.
    fn hash(&self, rule: Rule) -> Bytes {
        if let Some(only) = self.only() {
            return Bytes::copy_from_slice(&only.fingerprint());
        }
        let mut hash = Sha256::new();
        let mut part = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(DOMAIN);
        part(rule.name().as_bytes());
        self.members().for_each(|member| part(&member.model.fingerprint()));
        Bytes::copy_from_slice(&hash.finalize())
    }

    /// The members' names for people, at most 256 bytes in all.
    pub(crate) fn name(&self) -> String {
        let names: Vec<String> = self.members().map(Member::name).collect();
        let name = names.join(" + ");
        if name.len() > MAX_NAME_BYTES { format!("{} models", self.len()) } else { name }
    }

    /// The members as `Describe` lists them.
    pub(crate) fn describe(&self) -> Vec<v1::EnsembleMember> {
        self.members()
            .map(|member| v1::EnsembleMember {
                name: member.name(),
                fingerprint: Bytes::copy_from_slice(&member.model.fingerprint()),
            })
            .collect()
    }

    /// The forward pass of every member, one after the other.
    pub(crate) fn infer(&self, input: &Input<'_>) -> Result<Outputs, ServeError> {
        let run = |member: &Member| {
            member.infer(input).map_err(|error| match self.only() {
                Some(_) => ServeError::Forward(error.to_string()),
                None => ServeError::Forward(format!("{}: {error}", member.name())),
            })
        };
        let mut outputs = Outputs::default();
        for member in self.members() {
            let Inference { logits, hidden } = run(member)?;
            if logits.is_empty() {
                outputs.states.push(hidden);
            } else {
                outputs.logits.push(logits);
                // Several members have none in common.
                outputs.hidden = if self.others.is_empty() { hidden } else { Vec::new() };
            }
        }
        Ok(outputs)
    }

    /// The logits that a language model makes of hidden states `[rows, d]`.
    pub(crate) fn logits(&self, member: usize, states: &[f32]) -> Result<Vec<f32>, ServeError> {
        match self.members().nth(member).map(|member| &member.model) {
            Some(AnyModel::Text(model)) => {
                let logits = model.packed_head().logits(states);
                logits.map_err(|error| ServeError::Forward(error.to_string()))
            }
            _ => Err(ServeError::Forward("no language model to make logits with".to_owned())),
        }
    }
}

impl Member {
    /// Logits and hidden states. Of a language model, whose logits can be large, hidden states alone.
    fn infer(&self, input: &Input<'_>) -> Result<Inference, ModelError> {
        match (&self.model, input) {
            (AnyModel::Features(model), &Input::Features { values, rows }) => {
                model.infer(values, rows)
            }
            (AnyModel::Text(model), Input::Tokens { batch, labelled }) => {
                if model.config().is_language_model() {
                    let hidden = model.hidden(batch, Some(labelled))?;
                    return Ok(Inference { logits: Vec::new(), hidden });
                }
                let hidden = model.hidden(batch, None)?;
                Ok(Inference { logits: model.packed_head().logits(&hidden)?, hidden })
            }
            // Requests are checked against what the ensemble accepts.
            _ => {
                let expected = "features of a classifier, tokens of a text model".to_owned();
                Err(ModelError::Size { field: "input", found: 0, expected })
            }
        }
    }
}

/// What the models take.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Accepts {
    Features {
        /// Elements per input row.
        width: usize,
        /// What U8 features are multiplied by.
        rescale_factor: f32,
    },
    Sequences {
        /// Tokens in a sequence, at most.
        max_length: usize,
        /// Every token id is below it.
        vocabulary: usize,
        tokenizer: [u8; 32],
        /// A language model, with a label at every position that is asked for; otherwise one for each
        /// sequence.
        every_position: bool,
    },
}

/// A batch as models take it.
pub(crate) enum Input<'a> {
    Features {
        /// `[rows, width]`.
        values: &'a [f32],
        rows: usize,
    },
    Tokens {
        batch: TokenBatch<'a>,
        /// Positions to label among the packed ids, ascending.
        labelled: &'a [usize],
    },
}

/// What the members say about a batch.
#[derive(Default)]
pub(crate) struct Outputs {
    /// `[rows, classes]` of each member, in their order; none of language models.
    pub(crate) logits: Vec<Vec<f32>>,
    /// Of language models in the place of logits: `[rows, d]` of each member, in their order.
    pub(crate) states: Vec<Vec<f32>>,
    /// `[rows, hidden_size]` of a single model; empty for several.
    pub(crate) hidden: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stillhouse_nn::Head;

    use super::*;
    use crate::model::Model;

    /// A model of which only what it says of itself matters.
    struct Named {
        fingerprint: u8,
        width: usize,
        classes: usize,
        shape: Option<[usize; 3]>,
        factor: f64,
    }

    impl Named {
        fn new(fingerprint: u8) -> Self {
            Self { fingerprint, width: 4, classes: 3, shape: None, factor: 1.0 }
        }
    }

    impl Model for Named {
        fn input_width(&self) -> usize {
            self.width
        }

        fn classes(&self) -> usize {
            self.classes
        }

        fn hidden_size(&self) -> usize {
            5
        }

        fn image_shape(&self) -> Option<[usize; 3]> {
            self.shape
        }

        fn rescale_factor(&self) -> f64 {
            self.factor
        }

        fn fingerprint(&self) -> [u8; 32] {
            [self.fingerprint; 32]
        }

        fn infer(&self, _: &[f32], _: usize) -> Result<Inference, ModelError> {
            Err(ModelError::Size { field: "input", found: 0, expected: "none".to_owned() })
        }

        fn head(&self) -> Head {
            Head {
                weight: Vec::new(),
                bias: None,
                classes: self.classes,
                hidden_size: 5,
                softcap: None,
            }
        }
    }

    fn ensemble(models: Vec<Named>) -> Result<Ensemble, String> {
        let folders = ["/models/a", "/models/b", "/models/c"].map(PathBuf::from);
        let models = models.into_iter().map(|model| Arc::new(model) as Arc<dyn Model>);
        Ensemble::new(folders.into_iter().zip(models)).map_err(|error| error.to_string())
    }

    fn fingerprint(models: &[u8], rule: Rule) -> Bytes {
        let models = models.iter().map(|&fingerprint| Named::new(fingerprint)).collect();
        ensemble(models).unwrap().fingerprint(rule).clone()
    }

    #[test]
    fn members_their_order_and_the_rule_make_the_fingerprint() {
        use Rule::{Arithmetic, Geometric};
        let all = [
            fingerprint(&[1, 2], Arithmetic),
            fingerprint(&[1, 2], Geometric),
            fingerprint(&[2, 1], Arithmetic),
            fingerprint(&[1, 1], Arithmetic),
            fingerprint(&[1, 2, 2], Arithmetic),
            fingerprint(&[1], Arithmetic),
        ];
        for (i, a) in all.iter().enumerate() {
            assert_eq!(a.len(), 32);
            for b in &all[..i] {
                assert_ne!(a, b);
            }
        }
        assert_eq!(all[0], fingerprint(&[1, 2], Arithmetic));
        // What is hashed, spelt out.
        let parts: [&[u8]; 4] = [b"stillhouse ensemble 1", b"geometric", &[1; 32], &[2; 32]];
        let bytes: Vec<u8> = parts
            .iter()
            .flat_map(|part| [&(part.len() as u64).to_le_bytes()[..], part].concat())
            .collect();
        assert_eq!(all[1], Sha256::digest(bytes).as_slice());
    }

    #[test]
    fn a_single_model_keeps_its_fingerprint_whatever_the_rule() {
        for rule in Rule::ALL {
            assert_eq!(fingerprint(&[7], rule), [7; 32].as_slice());
        }
        let single = ensemble(vec![Named::new(7)]).unwrap();
        assert_eq!((single.len(), single.hidden_size(), single.name().as_str()), (1, 5, "a"));
        let several = ensemble(vec![Named::new(7), Named::new(8)]).unwrap();
        assert_eq!((several.len(), several.hidden_size()), (2, 0));
        assert_eq!(several.name(), "a + b");
    }

    #[test]
    fn what_members_differ_in_is_named_with_both_values_and_folders() {
        type Change = fn(&mut Named);
        let cases: [(Change, &str); 4] = [
            (|b| (b.width, b.classes) = (6, 9), "input width is 4 in /models/a and 6 in /models/b"),
            (
                |b| (b.classes, b.factor) = (9, 0.5),
                "number of classes is 3 in /models/a and 9 in /models/b",
            ),
            (
                |b| (b.shape, b.factor) = (Some([1, 4, 1]), 0.5),
                "image shape is [1, 2, 2] in /models/a and [1, 4, 1] in /models/b",
            ),
            (|b| b.factor = 0.5, "rescale factor is 1.0 in /models/a and 0.5 in /models/b"),
        ];
        let image = || Named { shape: Some([1, 2, 2]), ..Named::new(1) };
        for (change, expected) in cases {
            let mut other = image();
            change(&mut other);
            let error = ensemble(vec![image(), other]).err().unwrap();
            assert!(error.starts_with("model: ") && error.contains(expected), "{error}");
        }
        let fitting = vec![image(), Named::new(2), image()];
        assert!(ensemble(fitting).is_ok(), "a model that takes any features goes with images");
        let other = Named { shape: Some([1, 4, 1]), ..Named::new(1) };
        let error = ensemble(vec![Named::new(2), image(), other]).err().unwrap();
        assert!(error.contains("[1, 2, 2] in /models/b and [1, 4, 1] in /models/c"), "{error}");
        assert!(ensemble(Vec::new()).is_err());
    }

    #[test]
    fn a_member_that_fails_is_named() {
        let infer = |models| {
            ensemble(models)
                .unwrap()
                .infer(&Input::Features { values: &[], rows: 0 })
                .err()
                .unwrap()
                .to_string()
        };
        let several = infer(vec![Named::new(1), Named::new(2)]);
        assert!(several.contains("failed: a: "), "{several}");
        let single = infer(vec![Named::new(1)]);
        assert!(!single.contains("a: "), "{single}");
    }

    #[test]
    fn names_keep_to_the_contracts_length() {
        let long = "é".repeat(200);
        let single = vec![(PathBuf::from(&long), Arc::new(Named::new(1)) as Arc<dyn Model>)];
        let single = Ensemble::new(single).unwrap();
        assert_eq!(single.name(), "é".repeat(128));
        let several =
            [1, 2].map(|at| (PathBuf::from(&long), Arc::new(Named::new(at)) as Arc<dyn Model>));
        let several = Ensemble::new(several).unwrap();
        assert_eq!(several.name(), "2 models");
        assert_eq!(several.describe()[1].name.len(), 256);
    }
}
