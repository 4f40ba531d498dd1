//! The teacher of a language model's run: connected, asked for its head once, then for labels.

use std::{fs, path::Path, time::Duration};

use sha2::{Digest as _, Sha256};
use stillhouse_nn::{Head, SoftTarget};
use stillhouse_proto::{
    LabelBatch, SoftLabels,
    v1::{
        DType, DenseEncoding, DenseKind, EncodingKind, HiddenEncoding, encoding::Kind,
        label_request::Inputs,
    },
};

use tokio::sync::mpsc;

use super::packing::Packed;
use crate::{
    capture::{HEAD, read_head, write_head},
    label_client::{
        self, ClientError, Job, LabelClient, OrderedLabels, Patience, Probe, TargetError, Teachers,
        Wanted, WantedInput, encoding_of, rule_of, soft_target,
    },
    recipe::{TeacherSection, identity::hex, teacher::TeacherKind},
    text::recipe::TextRecipe,
    train::{Error, Room, embedded},
};

/// Of an answer with states to compare: half of the least that a server lets an answer be.
const COMPARED_BYTES: usize = 1 << 20;
/// Positions of the probe that every teacher answers, at most.
const PROBE_POSITIONS: usize = 8;

/// What requests of a run are like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Words, or classes.
    pub(super) classes: usize,
    /// Whether sequences are what has labels, and not positions.
    pub(super) classifies: bool,
    pub(super) tokenizer_sha256: [u8; 32],
    /// Tokens of the longest sequence.
    pub(super) longest: usize,
    /// Sequences in the largest request.
    pub(super) request_sequences: usize,
    /// Tokens in the largest request.
    pub(super) request_tokens: usize,
}

/// A teacher that is connected.
pub(super) struct TextTeacher {
    client: LabelClient,
    wanted: Wanted,
    patience: Patience,
    teachers: Teachers,
    probe: Probe,
    server: Option<teacher_server::Running>,
}

impl TextTeacher {
    /// Starts it, where it is embedded, and connects. `first` are the first sequences of the run.
    pub(super) async fn connect(
        recipe: &TextRecipe,
        section: &TeacherSection,
        sizes: Sizes,
        first: &Packed,
    ) -> Result<Self, Error> {
        let wanted = Wanted {
            client: section.client.clone(),
            probe_temperature: recipe.loss.temperature as f32,
            encoding: encoding_of(section, recipe.loss.divergence),
            ensemble: rule_of(section),
            input: WantedInput::Sequences {
                classified: sizes.classifies,
                tokenizer_sha256: sizes.tokenizer_sha256,
                longest: sizes.longest,
                request_sequences: sizes.request_sequences,
                request_tokens: sizes.request_tokens,
            },
            classes: sizes.classes,
            request_rows: match sizes.classifies {
                true => sizes.request_sequences,
                false => sizes.request_tokens,
            },
            timeout: Duration::from_millis(section.timeout_ms.into()),
        };
        let (teachers, server) = match section.kind {
            TeacherKind::Embedded => {
                let room = Room { rows: sizes.request_sequences, tokens: sizes.request_tokens };
                let server = embedded::start(section, room).await?;
                (Teachers::at(vec![format!("http://{}", server.address())]), Some(server))
            }
            TeacherKind::Endpoints | TeacherKind::Captured => (Teachers::of(section), None),
        };
        let requests = recipe.train.batch_tokens.div_ceil(sizes.request_tokens);
        let patience = Patience::new(section, requests);
        let probe = probe(first);
        let client =
            LabelClient::connect(&teachers, wanted.clone(), probe.clone(), patience).await?;
        Ok(Self { client, wanted, patience, teachers, probe, server })
    }

    /// What it said of itself.
    pub(super) fn described(&self) -> &label_client::Teacher {
        self.client.teacher()
    }

    /// Whether labels are hidden states.
    pub(super) fn sends_hidden(&self) -> bool {
        self.wanted.encoding_kind() == EncodingKind::Hidden
    }

    /// Its output projection: from `cache`, where it lies under the teacher's fingerprint, or fetched,
    /// and kept there.
    pub(super) async fn head(&self, cache: &Path) -> Result<Head, Error> {
        let fingerprint = &self.described().fingerprint;
        let folder = cache.join(format!("head-{}", hex(&fingerprint[..fingerprint.len().min(16)])));
        let sizes = (self.wanted.classes, self.described().hidden_size);
        if let Some(head) = kept_head(&folder, sizes) {
            return Ok(head);
        }
        let head = self.client.fetch_head().await?;
        if let Err(error) = keep_head(&folder, &head) {
            tracing::warn!(%error, folder = %folder.display(), "the teacher's head cannot be kept");
        }
        Ok(head)
    }

    /// Labels of sequences for comparisons at T = 1, whatever the run asks for: of a language model,
    /// hidden states in f32, or none of a teacher that has none to give; of a classifier,
    /// log-probabilities.
    pub(super) async fn compared(&self, parts: &[Packed]) -> Result<Option<Vec<Vec<f32>>>, Error> {
        let classified = parts.iter().any(|part| part.classified);
        let dtype = DType::F32.into();
        let (encoding, width) = match classified {
            false => (Kind::Hidden(HiddenEncoding { dtype }), self.described().hidden_size),
            true => {
                let kind = DenseKind::LogProbabilities.into();
                (Kind::Dense(DenseEncoding { kind, dtype }), self.wanted.classes)
            }
        };
        if width == 0 || (classified && !self.described().offers_dense) {
            return Ok(None);
        }
        // They are large: a request asks for those of some positions, as many as an answer holds.
        let rows = (COMPARED_BYTES / (4 * width)).clamp(1, self.wanted.request_rows);
        let wanted =
            Wanted { encoding, request_rows: rows, probe_temperature: 1.0, ..self.wanted.clone() };
        let mut client = self.another(wanted).await?;
        // What is compared cannot do without.
        client.must_have_labels();
        client.keep_none();
        let pieces: Vec<(usize, Packed)> = pieces(parts, rows).collect();
        let owners: Vec<usize> = pieces.iter().map(|(at, _)| *at).collect();
        let jobs = (0..).zip(pieces).map(|(index, (_, piece))| job(index, &piece, 1.0, 0));
        let mut labels = client.labels(jobs);
        let mut states = vec![vec![]; parts.len()];
        let mut owner = owners.into_iter();
        while let Some(answer) = labels.next().await {
            match (answer?.labels()?.labels, owner.next()) {
                (SoftLabels::Hidden { states: own, .. }, Some(at))
                | (SoftLabels::Dense { values: own, .. }, Some(at)) => states[at].extend(own),
                _ => return Ok(None),
            }
        }
        Ok(Some(states))
    }

    /// Another access to the same teacher, for jobs that are not known yet.
    pub(super) async fn on_demand(&self) -> Result<(mpsc::Sender<Job>, OrderedLabels), Error> {
        Ok(self.another(self.wanted.clone()).await?.on_demand())
    }

    /// Another connection, to the same model.
    async fn another(&self, wanted: Wanted) -> Result<LabelClient, Error> {
        let (probe, patience) = (self.probe.clone(), self.patience);
        let client = LabelClient::connect(&self.teachers, wanted, probe, patience).await?;
        let (found, expected) = (&client.teacher().fingerprint, &self.described().fingerprint);
        if found != expected {
            return Err(Error::Labels(ClientError::Fingerprint {
                endpoint: self.teachers.endpoints.join(", "),
                found: found.clone(),
                expected: expected.clone(),
            }));
        }
        Ok(client)
    }

    /// Starts asking for labels, in the order of the jobs.
    pub(super) fn ask<I>(self, jobs: I) -> (OrderedLabels, Option<teacher_server::Running>)
    where
        I: Iterator<Item = Job> + Send + 'static,
    {
        (self.client.labels(jobs), self.server)
    }
}

/// The parts with at most `rows` labels at a time, and which part each is of.
fn pieces(parts: &[Packed], rows: usize) -> impl Iterator<Item = (usize, Packed)> {
    parts.iter().enumerate().flat_map(move |(at, part)| {
        let chunks = part.labelled.chunks(rows).zip(part.lengths.chunks(rows));
        let positions = part.labelled.chunks(rows).map(move |labelled| with_labels(part, labelled));
        let sequences = chunks.map(move |(firsts, lengths)| {
            let first = firsts.first().copied().unwrap_or(0);
            let tokens: u32 = lengths.iter().sum();
            Packed {
                ids: part.ids[first..first + tokens as usize].to_vec(),
                lengths: lengths.to_vec(),
                labelled: firsts.iter().map(|at| at - first).collect(),
                hard: vec![],
                classified: true,
            }
        });
        let pieces: Box<dyn Iterator<Item = Packed>> = match part.classified {
            true => Box::new(sequences),
            false => Box::new(positions),
        };
        pieces.map(move |piece| (at, piece))
    })
}

/// The sequences of a part that some labelled positions are in: no others need be computed.
fn with_labels(part: &Packed, labelled: &[usize]) -> Packed {
    let mut own = Packed { classified: part.classified, ..Packed::default() };
    let (mut start, mut rest) = (0, labelled);
    for &length in &part.lengths {
        let end = start + length as usize;
        let (here, later) = rest.split_at(rest.partition_point(|&at| at < end));
        if !here.is_empty() {
            let first = own.ids.len();
            own.labelled.extend(here.iter().map(|at| first + at - start));
            own.ids.extend_from_slice(&part.ids[start..end]);
            own.lengths.push(length);
        }
        (start, rest) = (end, later);
    }
    own
}

/// A request for the labels of one micro-batch.
pub(super) fn job(index: u64, packed: &Packed, temperature: f32, seed: u64) -> Job {
    Job {
        index,
        inputs: Inputs::Sequences(packed.to_wire()),
        rows: packed.labelled.len(),
        temperature,
        seed,
        whole: false,
    }
}

/// The last positions of the first sequence: a few, as dense labels of a vocabulary are large.
fn probe(first: &Packed) -> Probe {
    let length = first.lengths.first().map_or(0, |length| *length as usize);
    let labelled: Vec<usize> = match first.classified {
        true => vec![0],
        false => (length.saturating_sub(PROBE_POSITIONS)..length).collect(),
    };
    let rows = labelled.len();
    let one = Packed {
        ids: first.ids[..length].to_vec(),
        lengths: vec![length as u32],
        labelled,
        hard: vec![],
        classified: first.classified,
    };
    Probe { inputs: Inputs::Sequences(one.to_wire()), floats: None, rows }
}

/// Labels of one micro-batch, as the loss takes them.
#[derive(Debug)]
pub(super) enum TextLabels {
    Target(SoftTarget),
    /// For the teacher's head.
    Hidden(Vec<f32>),
}

impl TextLabels {
    pub(super) fn new(batch: LabelBatch) -> Result<Self, TargetError> {
        match batch.labels {
            SoftLabels::Hidden { states, .. } => Ok(Self::Hidden(states)),
            _ => soft_target([batch], None).map(Self::Target),
        }
    }
}

const DIGEST: &str = "head.sha256";

/// A head that was kept, if it is whole.
fn kept_head(folder: &Path, (classes, hidden_size): (usize, usize)) -> Option<Head> {
    let digest = fs::read_to_string(folder.join(DIGEST)).ok()?;
    let bytes = fs::read(folder.join(HEAD)).ok()?;
    (hex(&Sha256::digest(bytes)) == digest.trim()).then_some(())?;
    read_head(folder, classes, hidden_size).ok()
}

fn keep_head(folder: &Path, head: &Head) -> Result<(), Box<dyn std::error::Error>> {
    fs::create_dir_all(folder)?;
    write_head(folder, head)?;
    let bytes = fs::read(folder.join(HEAD))?;
    let digest = format!("{}\n", hex(&Sha256::digest(bytes)));
    Ok(stillhouse_nn::io::write_atomic(&folder.join(DIGEST), digest.as_bytes())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_kept_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let (weight, softcap) = (vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Some(30.0));
        let head = Head { weight, bias: None, classes: 3, hidden_size: 2, softcap };
        assert_eq!(kept_head(folder.path(), (3, 2)), None);
        keep_head(folder.path(), &head).unwrap();
        assert_eq!(kept_head(folder.path(), (3, 2)), Some(head));
        assert_eq!(kept_head(folder.path(), (2, 3)), None);
        let file = folder.path().join(HEAD);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, bytes).unwrap();
        assert_eq!(kept_head(folder.path(), (3, 2)), None);
    }

    #[test]
    fn positions_to_compare_are_asked_for_in_pieces() {
        let part = |ids: Vec<u32>, labelled: Vec<usize>| {
            let lengths = vec![ids.len() as u32];
            Packed { ids, lengths, labelled, ..Packed::default() }
        };
        let parts = [part(vec![1, 2, 3, 4], vec![0, 2, 3]), part(vec![5, 6], vec![1])];
        let found: Vec<_> = pieces(&parts, 2).collect();
        let expected = [
            (0, part(vec![1, 2, 3, 4], vec![0, 2])),
            (0, part(vec![1, 2, 3, 4], vec![3])),
            (1, part(vec![5, 6], vec![1])),
        ];
        assert_eq!(found, expected);

        // Sequences without a position to compare are left out.
        let three = Packed {
            ids: vec![1, 2, 3, 4, 5, 6],
            lengths: vec![2, 3, 1],
            labelled: vec![0, 3, 4, 5],
            ..Packed::default()
        };
        let found: Vec<Packed> = pieces(&[three], 2).map(|(_, piece)| piece).collect();
        let one = |ids: &[u32], lengths: &[u32], labelled: &[usize]| Packed {
            ids: ids.to_vec(),
            lengths: lengths.to_vec(),
            labelled: labelled.to_vec(),
            ..Packed::default()
        };
        let expected =
            [one(&[1, 2, 3, 4, 5], &[2, 3], &[0, 3]), one(&[3, 4, 5, 6], &[3, 1], &[2, 3])];
        assert_eq!(found, expected);
    }

    #[test]
    fn so_are_sequences_that_are_classified() {
        let part = |ids: &[u32], lengths: &[u32], labelled: &[usize]| Packed {
            ids: ids.to_vec(),
            lengths: lengths.to_vec(),
            labelled: labelled.to_vec(),
            hard: vec![],
            classified: true,
        };
        let whole = part(&[1, 2, 3, 4, 5, 6], &[2, 1, 3], &[0, 2, 3]);
        let found: Vec<_> = pieces(&[whole], 2).collect();
        let expected = [(0, part(&[1, 2, 3], &[2, 1], &[0, 2])), (0, part(&[4, 5, 6], &[3], &[0]))];
        assert_eq!(found, expected);
        let Probe { inputs: Inputs::Sequences(sequences), rows, .. } = probe(&found[0].1) else {
            panic!()
        };
        assert_eq!((sequences.lengths, sequences.label_mask.len(), rows), (vec![2], 0, 1));
    }

    #[test]
    fn the_probe_is_the_end_of_the_first_sequence() {
        let ids: Vec<u32> = (0..30).collect();
        let lengths = vec![12, 18];
        let first = Packed { ids, lengths, labelled: (0..30).collect(), ..Packed::default() };
        let Probe { inputs: Inputs::Sequences(sequences), rows, .. } = probe(&first) else {
            panic!()
        };
        assert_eq!((sequences.lengths, rows), (vec![12], 8));
        assert_eq!(*sequences.label_mask, [0b1111_0000, 0b1111]);
    }
}
