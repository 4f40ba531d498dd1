//! Several models behind one service: each batch passes through all of them once, and a row needs
//! all of them.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use stillhouse_nn::{Head, Inference, ModelError};
use stillhouse_proto::{
    SoftLabels, decode,
    v1::{
        DenseEncoding, DenseKind, DescribeRequest, Encoding, EncodingKind, EnsembleRule,
        FetchHeadRequest, HiddenEncoding, LabelRequest, RuleFingerprint, encoding::Kind,
        label_stream_response::Result as Answer,
    },
};
use teacher_server::{
    Running, Server, Settings,
    ensemble::{Ensemble, Rule},
    model::Model,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;

use crate::gated::{Client, label, request};

/// A model of one feature with logits `factor * x` and 0; NaN where x is its own number.
struct Line {
    factor: f32,
    not_finite_at: f32,
    batches: AtomicUsize,
    rows: AtomicUsize,
}

impl Line {
    fn new(factor: f32, not_finite_at: f32) -> Arc<Self> {
        let (batches, rows) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { factor, not_finite_at, batches, rows })
    }

    fn has_run(&self) -> (usize, usize) {
        (self.batches.load(Ordering::SeqCst), self.rows.load(Ordering::SeqCst))
    }
}

impl Model for Line {
    fn input_width(&self) -> usize {
        1
    }

    fn classes(&self) -> usize {
        2
    }

    fn hidden_size(&self) -> usize {
        1
    }

    fn rescale_factor(&self) -> f64 {
        1.0
    }

    fn fingerprint(&self) -> [u8; 32] {
        [self.factor as u8; 32]
    }

    fn infer(&self, input: &[f32], rows: usize) -> Result<Inference, ModelError> {
        self.batches.fetch_add(1, Ordering::SeqCst);
        self.rows.fetch_add(rows, Ordering::SeqCst);
        let logit = |x: f32| if x == self.not_finite_at { f32::NAN } else { self.factor * x };
        let logits = input.iter().flat_map(|&x| [logit(x), 0.0]).collect();
        Ok(Inference { logits, hidden: input.to_vec() })
    }

    fn head(&self) -> Head {
        Head {
            weight: vec![self.factor, 0.0],
            bias: None,
            classes: 2,
            hidden_size: 1,
            softcap: None,
        }
    }
}

async fn serve(models: [&Arc<Line>; 2], rule: Rule) -> (Client, Running) {
    let folders = ["models/a", "models/b"].map(PathBuf::from);
    let models = models.map(|model| Arc::clone(model) as Arc<dyn Model>);
    let ensemble = Ensemble::new(folders.into_iter().zip(models)).unwrap();
    let settings = Settings { ensemble: rule, ..Settings::embedded("unused") };
    let running = Server::bind_ensemble(settings, ensemble).await.unwrap().spawn();
    let client = Client::connect(format!("http://{}", running.address())).await.unwrap();
    (client, running)
}

fn ask(id: u64, rows: &[f32], rule: EnsembleRule, kind: Kind) -> LabelRequest {
    let encoding = Some(Encoding { kind: Some(kind) });
    LabelRequest { encoding, ensemble_rule: rule.into(), ..request(id, rows) }
}

fn dense(kind: DenseKind) -> Kind {
    Kind::Dense(DenseEncoding { kind: kind.into(), dtype: 0 })
}

fn sigmoid(x: f32) -> f64 {
    (1.0 + (-f64::from(x)).exp()).recip()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_passes_through_all_members_and_each_request_gets_its_rule() {
    let (a, b) = (Line::new(1.0, 50.0), Line::new(3.0, 60.0));
    let (mut client, running) = serve([&a, &b], Rule::Geometric).await;
    let about = client.describe(DescribeRequest {}).await.unwrap().into_inner();
    let fingerprint = |rule: EnsembleRule| {
        let rules = &about.rule_fingerprints;
        rules.iter().find(|of| of.rule() == rule).unwrap().fingerprint.clone()
    };

    let (send, requests) = tokio::sync::mpsc::channel(64);
    let mut answers =
        client.label_stream(ReceiverStream::new(requests)).await.unwrap().into_inner();
    // More rows with every request, so that none can be answered with another's.
    let rules = [EnsembleRule::Unspecified, EnsembleRule::Arithmetic, EnsembleRule::Geometric];
    let rows = |id: u64| (0..=id).map(|row| (id as f32 - row as f32) / 4.0).collect::<Vec<_>>();
    for id in 0..30 {
        let rule = rules[id as usize % 3];
        let message = label(ask(id, &rows(id), rule, dense(DenseKind::Probabilities)));
        send.send(message).await.unwrap();
    }
    drop(send);
    let mut answered = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        let Some(Answer::Response(response)) = answer.result else { panic!("{answer:?}") };
        let arithmetic = answer.id % 3 == 1;
        let rule = if arithmetic { EnsembleRule::Arithmetic } else { EnsembleRule::Geometric };
        assert_eq!(response.fingerprint, fingerprint(rule));
        let SoftLabels::Dense { values, .. } = decode(&response.labels[0]).unwrap().labels else {
            panic!("not dense")
        };
        assert_eq!(values.len(), 2 * rows(answer.id).len());
        for (x, p) in rows(answer.id).into_iter().zip(values.chunks(2)) {
            let expected =
                if arithmetic { 0.5 * (sigmoid(x) + sigmoid(3.0 * x)) } else { sigmoid(2.0 * x) };
            assert!((f64::from(p[0]) - expected).abs() < 1e-6, "{x}: {p:?}, not {expected}");
        }
        answered += 1;
    }
    assert_eq!(answered, 30);
    assert_eq!(a.has_run(), b.has_run(), "every batch passes through both");
    assert_eq!(a.has_run().1, 30, "equal rows are run once, whatever the rule");
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_one_member_has_no_finite_output_for_has_no_label() {
    let (a, b) = (Line::new(1.0, 50.0), Line::new(3.0, 60.0));
    let (mut client, running) = serve([&a, &b], Rule::Arithmetic).await;
    for rule in [EnsembleRule::Arithmetic, EnsembleRule::Geometric] {
        let request = ask(1, &[1.0, 50.0, 2.0, 60.0], rule, dense(DenseKind::Probabilities));
        let response = client.label(request).await.unwrap().into_inner();
        let rows: Vec<u32> = response.row_errors.iter().map(|error| error.row).collect();
        assert_eq!((rows, response.labels[0].rows), (vec![1, 3], 2));
    }
    running.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ensemble_says_what_it_is_and_what_it_has_not() {
    let (a, b) = (Line::new(1.0, 50.0), Line::new(3.0, 60.0));
    let (mut client, running) = serve([&a, &b], Rule::Geometric).await;
    let about = client.describe(DescribeRequest {}).await.unwrap().into_inner();
    assert_eq!((about.name.as_str(), about.hidden_size), ("a + b", 0));
    let members: Vec<_> =
        about.members.iter().map(|m| (m.name.as_str(), m.fingerprint.to_vec())).collect();
    assert_eq!(members, [("a", vec![1; 32]), ("b", vec![3; 32])]);
    assert_eq!(about.default_rule(), EnsembleRule::Geometric);
    let rules: Vec<_> = about.rule_fingerprints.iter().map(RuleFingerprint::rule).collect();
    assert_eq!(rules, [EnsembleRule::Arithmetic, EnsembleRule::Geometric]);
    assert_eq!(about.fingerprint, about.rule_fingerprints[1].fingerprint);
    assert_ne!(about.fingerprint, about.rule_fingerprints[0].fingerprint);
    assert!(!about.encodings().any(|kind| kind == EncodingKind::Hidden));

    let hidden = Kind::Hidden(HiddenEncoding::default());
    let status = client.label(ask(1, &[1.0], EnsembleRule::Unspecified, hidden)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(
        status.message().contains("2 models of this ensemble have no hidden state"),
        "{status}"
    );
    let logits = dense(DenseKind::Logits);
    let status = client.label(ask(1, &[1.0], EnsembleRule::Arithmetic, logits)).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let status = client.fetch_head(FetchHeadRequest { dtype: 0 }).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    assert!(status.message().contains("ensemble of 2 models"), "{status}");
    running.shutdown().await.unwrap();
}
