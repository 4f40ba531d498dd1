use super::*;
use crate::kernel::precision::Precision::{Bf16, F32};
use crate::layers::Parameter;
use crate::loss::config::Divergence;
use crate::model::Head;
use crate::rng::Philox;

const D: usize = 6;
const ROWS: usize = 5;
const CLASSES: usize = 37;
/// Rows of the weights beyond the classes.
const PADDING: usize = 3;

struct Case {
    hidden: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    states: Vec<f32>,
    head: Head,
    hard: Vec<u32>,
}

fn case(softcap: Option<f32>) -> Case {
    let mut rng = Philox::new(11, 0);
    let mut draw = |n: usize| (0..n).map(|_| rng.normal() as f32).collect::<Vec<f32>>();
    let outputs = CLASSES + PADDING;
    Case {
        hidden: draw(ROWS * D),
        weight: draw(outputs * D),
        bias: draw(outputs),
        states: draw(ROWS * 4),
        head: Head {
            weight: draw(outputs * 4),
            bias: None,
            classes: outputs,
            hidden_size: 4,
            softcap,
        },
        hard: vec![3, 0, 36, 17, 17],
    }
}

fn divergences() -> [Divergence; 7] {
    [
        Divergence::ForwardKl,
        Divergence::CrossEntropy,
        Divergence::ReverseKl,
        Divergence::JensenShannon { beta: 0.3 },
        Divergence::SkewKl { lambda: 0.2 },
        Divergence::TotalVariation,
        Divergence::LogitMse,
    ]
}

/// Logits in f64, over the classes.
fn logits(
    rows: &[f64],
    weight: &[f64],
    bias: Option<&[f64]>,
    d: usize,
    cap: Option<f32>,
) -> Vec<f64> {
    let of = |row: &[f64], class: usize| {
        let z: f64 = row.iter().zip(&weight[class * d..][..d]).map(|(a, b)| a * b).sum();
        let z = z + bias.map_or(0.0, |bias| bias[class]);
        cap.map_or(z, |cap| f64::from(cap) * (z / f64::from(cap)).tanh())
    };
    rows.chunks_exact(d).flat_map(|row| (0..CLASSES).map(move |class| of(row, class))).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// The loss by the definition: the unfused one on f64 logits.
fn reference(
    case: &Case,
    [hidden, weight, bias]: [&[f64]; 3],
    soft: Option<&SoftTarget>,
    config: &LossConfig,
    cap: Option<f32>,
) -> LossParts {
    let z = logits(hidden, weight, Some(bias), D, cap);
    let labels = Some(&*case.hard);
    crate::loss::batch::evaluate(&z, ROWS, CLASSES, labels, soft, config).unwrap().0
}

/// Everything that labels may be, from the teacher's logits.
fn targets(teacher: &[f64], t: f64) -> Vec<(&'static str, SoftTarget)> {
    let rows = || teacher.chunks_exact(CLASSES);
    let log_p: Vec<Vec<f64>> = rows()
        .map(|z| crate::loss::outcomes::log_softmax(&z.iter().map(|z| z / t).collect::<Vec<_>>()))
        .collect();
    let flat = || log_p.iter().flatten();
    let k = 4;
    let mut top = (vec![], vec![], vec![]);
    for row in &log_p {
        let mut order: Vec<usize> = (0..CLASSES).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        top.0.extend(order[..k].iter().map(|&id| id as u32));
        top.1.extend(order[..k].iter().map(|&id| row[id] as f32));
        top.2.push(order[k..].iter().map(|&id| row[id].exp()).sum::<f64>().ln() as f32);
    }
    vec![
        ("logits", SoftTarget::Logits(teacher.iter().map(|&z| z as f32).collect())),
        ("log-probabilities", SoftTarget::LogProbabilities(flat().map(|&x| x as f32).collect())),
        ("probabilities", SoftTarget::Probabilities(flat().map(|x| x.exp() as f32).collect())),
        (
            "top_k",
            SoftTarget::TopK { k, ids: top.0, log_probabilities: top.1, log_tail_mass: top.2 },
        ),
        (
            "sampled",
            SoftTarget::Sampled {
                draws: 5,
                distinct: vec![2; ROWS],
                ids: vec![1, 36, 0, 2, 5, 6, 17, 18, 3, 17],
                counts: vec![4, 1, 2, 3, 1, 4, 3, 2, 1, 4],
            },
        ),
    ]
}

fn run(
    case: &Case,
    soft: Option<&SoftLabels<'_>>,
    config: &LossConfig,
    cap: Option<f32>,
    precision: Precision,
) -> (LossSums, [Vec<f32>; 3]) {
    let parameter =
        |values: &[f32], shape: &[usize]| Parameter::new("p", values.to_vec(), shape).unwrap();
    let weight = parameter(&case.weight, &[CLASSES + PADDING, D]);
    let bias = parameter(&case.bias, &[CLASSES + PADDING]);
    let mut hidden = vec![f32::NAN; ROWS * D];
    let output = OutputLayer {
        weight: &case.weight,
        bias: Some(&case.bias),
        softcap: cap,
        width: D,
        classes: CLASSES,
        precision,
    };
    let gradients =
        Gradients { hidden: &mut hidden, weight: weight.gradient(), bias: Some(bias.gradient()) };
    let (states, labels) = (&case.hidden, Some(&*case.hard));
    let sums =
        fused_loss(states, output, labels, soft, config, ROWS as f64, Some(gradients)).unwrap();
    (sums, [hidden, weight.gradient_values(), bias.gradient_values()])
}

fn close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 2e-5 * (1.0 + expected.abs()), "{what}: {found} {expected}");
}

#[test]
fn value_and_gradients_are_those_of_the_definition() {
    for cap in [None, Some(2.0)] {
        let case = case(cap);
        let packed = case.head.pack().unwrap();
        let hidden_states = SoftLabels::Hidden { states: &case.states, head: &packed };
        let teacher = logits(&wide(&case.states), &wide(&case.head.weight), None, 4, cap);
        for temperature in [1.0, 2.5] {
            let targets = targets(&teacher, temperature);
            for divergence in divergences() {
                for (alpha, hard_weight) in [(0.7, None), (1.0, None), (0.4, Some(2.0))] {
                    let config = LossConfig {
                        alpha,
                        hard_weight,
                        temperature,
                        divergence,
                        ..LossConfig::default()
                    };
                    let mut all: Vec<_> = targets
                        .iter()
                        .filter(|(_, target)| divergence.supports(target).is_ok())
                        .map(|(name, target)| (*name, SoftLabels::Target(target), target))
                        .collect();
                    all.push(("hidden", hidden_states, &targets[0].1));
                    for (name, soft, same) in all {
                        let what = format!("{name} {divergence:?} T {temperature} {alpha} {cap:?}");
                        check(&case, &soft, same, &config, cap, &what);
                    }
                }
            }
        }
    }
}

fn check(
    case: &Case,
    soft: &SoftLabels<'_>,
    same: &SoftTarget,
    config: &LossConfig,
    cap: Option<f32>,
    what: &str,
) {
    let (sums, gradients) = run(case, Some(soft), config, cap, F32);
    let operands = [wide(&case.hidden), wide(&case.weight), wide(&case.bias)];
    let loss = |operands: &[Vec<f64>; 3]| {
        let [a, b, c] = operands;
        reference(case, [a, b, c], Some(same), config, cap)
    };
    let (found, expected) = (sums.parts(config, ROWS as f64), loss(&operands));
    close(found.total, expected.total, what);
    close(found.hard.unwrap(), expected.hard.unwrap(), what);
    close(found.soft.unwrap(), expected.soft.unwrap(), what);
    let h = 1e-5;
    for (which, gradient) in gradients.iter().enumerate() {
        // A prime stride, so that all classes and columns come in.
        for i in (0..gradient.len()).step_by(7) {
            let at = |by: f64| {
                let mut moved = operands.clone();
                moved[which][i] += by;
                loss(&moved).total
            };
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            close(f64::from(gradient[i]), numeric, &format!("{what}: {which} {i}"));
        }
    }
    // Padding gets no gradient.
    assert!(gradients[1][CLASSES * D..].iter().chain(&gradients[2][CLASSES..]).all(|&g| g == 0.0));
}

#[test]
fn hard_labels_alone() {
    let case = case(None);
    let config = LossConfig { alpha: 0.0, ..LossConfig::default() };
    let (sums, gradients) = run(&case, None, &config, None, F32);
    let operands = [wide(&case.hidden), wide(&case.weight), wide(&case.bias)];
    let loss = |operands: &[Vec<f64>; 3]| {
        let [a, b, c] = operands;
        reference(&case, [a, b, c], None, &config, None).total
    };
    close(sums.parts(&config, ROWS as f64).total, loss(&operands), "hard");
    let h = 1e-5;
    for (which, gradient) in gradients.iter().enumerate() {
        for i in 0..gradient.len() {
            let at = |by: f64| {
                let mut moved = operands.clone();
                moved[which][i] += by;
                loss(&moved)
            };
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            close(f64::from(gradient[i]), numeric, &format!("hard {which} {i}"));
        }
    }
}

/// A student that is the teacher: no loss, no gradient, all rows agree.
#[test]
fn a_match_costs_nothing() {
    let mut case = case(None);
    case.head = Head {
        weight: case.weight.clone(),
        bias: Some(case.bias.clone()),
        classes: CLASSES + PADDING,
        hidden_size: D,
        softcap: None,
    };
    case.states.clone_from(&case.hidden);
    let packed = case.head.pack().unwrap();
    let soft = SoftLabels::Hidden { states: &case.states, head: &packed };
    // Total variation has a kink there.
    for divergence in divergences().into_iter().filter(|d| *d != Divergence::TotalVariation) {
        let config = LossConfig { alpha: 1.0, divergence, ..LossConfig::default() };
        let (sums, gradients) = run(&case, Some(&soft), &config, None, F32);
        let entropy = divergence == Divergence::CrossEntropy;
        assert!(entropy || sums.soft.unwrap().abs() < 1e-5, "{divergence:?} {sums:?}");
        assert!(gradients.iter().flatten().all(|g| g.abs() < 1e-6), "{divergence:?}");
        assert_eq!(sums.agreeing, ROWS);
    }
}

/// However the rows are cut, their sums are those of all: with the whole batch's denominator, the
/// gradients add up.
#[test]
fn parts_of_a_batch_add_up() {
    let case = case(None);
    let config = LossConfig::default();
    let packed = case.head.pack().unwrap();
    let soft = SoftLabels::Hidden { states: &case.states, head: &packed };
    let (whole, expected) = run(&case, Some(&soft), &config, None, F32);
    let weight = Parameter::new("w", case.weight.clone(), &[CLASSES + PADDING, D]).unwrap();
    let output = OutputLayer {
        weight: &case.weight,
        bias: Some(&case.bias),
        softcap: None,
        width: D,
        classes: CLASSES,
        precision: F32,
    };
    let mut sums = LossSums { hard: None, soft: None, agreeing: 0, rows: 0 };
    let mut hidden = [0.0; ROWS * D];
    weight.clear_gradient();
    for part in [0..2, 2..5] {
        let states = &case.states[part.start * 4..part.end * 4];
        let packed = case.head.pack().unwrap();
        let soft = SoftLabels::Hidden { states, head: &packed };
        let gradients = Gradients {
            hidden: &mut hidden[part.start * D..part.end * D],
            weight: weight.gradient(),
            bias: None,
        };
        let rows = &case.hidden[part.start * D..part.end * D];
        let hard = Some(&case.hard[part.clone()]);
        let n = ROWS as f64;
        sums.add(
            &fused_loss(rows, output, hard, Some(&soft), &config, n, Some(gradients)).unwrap(),
        );
    }
    close(sums.parts(&config, ROWS as f64).total, whole.parts(&config, ROWS as f64).total, "sum");
    assert_eq!((sums.rows, sums.agreeing), (whole.rows, whole.agreeing));
    for (a, b) in hidden.iter().chain(&weight.gradient_values()).zip(expected[..2].iter().flatten())
    {
        assert!((a - b).abs() < 1e-6);
    }
}

/// Mass that the teacher has and the student does not, and the other way round.
#[test]
fn extremes_stay_finite() {
    let weight: Vec<f32> = (0..CLASSES).map(|class| if class == 0 { 300.0 } else { 0.0 }).collect();
    let output = OutputLayer {
        weight: &weight,
        bias: None,
        softcap: None,
        width: 1,
        classes: CLASSES,
        precision: F32,
    };
    let head = Head {
        weight: vec![300.0; CLASSES],
        bias: None,
        classes: CLASSES,
        hidden_size: 1,
        softcap: None,
    };
    let top = SoftTarget::TopK {
        k: 1,
        ids: vec![0],
        log_probabilities: vec![(0.3f32).ln()],
        log_tail_mass: vec![(0.7f32).ln()],
    };
    let certain: Vec<f32> =
        (0..CLASSES).map(|class| if class == 1 { 0.0 } else { f32::NEG_INFINITY }).collect();
    let certain = SoftTarget::LogProbabilities(certain);
    for temperature in [1e-3, 1.0, 1e3] {
        for divergence in &divergences()[..4] {
            let config = LossConfig {
                alpha: 0.5,
                temperature,
                divergence: *divergence,
                ..LossConfig::default()
            };
            for soft in [
                SoftLabels::Hidden { states: &[1.0], head: &head.pack().unwrap() },
                SoftLabels::Target(&top),
                SoftLabels::Target(&certain),
            ] {
                let p = Parameter::new("w", weight.clone(), &[CLASSES, 1]).unwrap();
                let mut hidden = vec![0.0];
                let gradients = Gradients { hidden: &mut hidden, weight: p.gradient(), bias: None };
                let sums = fused_loss(
                    &[1.0],
                    output,
                    Some(&[1]),
                    Some(&soft),
                    &config,
                    1.0,
                    Some(gradients),
                );
                let sums = sums.unwrap();
                let total = sums.parts(&config, 1.0).total;
                assert!(total.is_finite() && total >= 0.0, "{config:?} {soft:?}: {sums:?}");
                assert!(hidden[0].is_finite() && p.gradient_values().iter().all(|g| g.is_finite()));
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let case = case(None);
    let output = OutputLayer {
        weight: &case.weight,
        bias: None,
        softcap: None,
        width: D,
        classes: CLASSES,
        precision: F32,
    };
    let refusal = |hidden: &[f32], output, hard: Option<&[u32]>, soft: Option<&SoftLabels<'_>>| {
        let config = LossConfig::default();
        fused_loss(hidden, output, hard, soft, &config, 1.0, None).unwrap_err().to_string()
    };
    let hard = Some(&*case.hard);
    let packed = case.head.pack().unwrap();
    let soft = SoftLabels::Hidden { states: &case.states, head: &packed };
    let error = refusal(&case.hidden[1..], output, hard, Some(&soft));
    assert_eq!(error, "hidden states has 29 elements; expected 24");
    let error = refusal(&[], output, hard, Some(&soft));
    assert_eq!(error, "hidden states has 0 elements; expected 6");
    let wide = OutputLayer { classes: CLASSES + PADDING + 1, ..output };
    let error = refusal(&case.hidden, wide, hard, Some(&soft));
    assert_eq!(error, "output weight has 240 elements; expected 246");
    let packed = case.head.pack().unwrap();
    let short = SoftLabels::Hidden { states: &case.states[1..], head: &packed };
    let error = refusal(&case.hidden, output, hard, Some(&short));
    assert_eq!(error, "teacher's hidden states has 19 elements; expected 20");
    let head = Head { classes: 7, weight: vec![0.0; 28], ..case.head.clone() };
    let packed = head.pack().unwrap();
    let small = SoftLabels::Hidden { states: &case.states, head: &packed };
    let error = refusal(&case.hidden, output, hard, Some(&small));
    assert_eq!(error, "teacher's head has 7 elements; expected 37");
    assert!(
        refusal(&case.hidden, output, Some(&[37; 5]), Some(&soft))
            .contains("hard label of row 0 is 37")
    );
    assert!(
        refusal(&case.hidden, output, None, Some(&soft)).contains("hard labels have the weight")
    );
    assert!(refusal(&case.hidden, output, hard, None).contains("soft labels have the weight"));
    let mut states = case.states.clone();
    states[4] = f32::NAN;
    let packed = case.head.pack().unwrap();
    let soft = SoftLabels::Hidden { states: &states, head: &packed };
    let error = refusal(&case.hidden, output, hard, Some(&soft));
    assert_eq!(error, "teacher logit of row 1 is NaN; expected a finite number");
    // All of them are wrong, and rows are computed side by side: the first is named, every time.
    let logits = SoftTarget::LogProbabilities(vec![0.0; ROWS * CLASSES]);
    for _ in 0..50 {
        let error = refusal(&case.hidden, output, hard, Some(&SoftLabels::Target(&logits)));
        let row = "probability mass of the soft label of row 0 is 37; expected 1 within 0.05";
        assert_eq!(error, row);
    }
}

/// T^2 times the rounding of sums in f32 would be all that is left at large temperatures.
#[test]
fn large_temperatures_keep_their_digits() {
    const V: usize = 8192;
    let mut rng = Philox::new(5, 0);
    let teacher: Vec<f32> = (0..V).map(|_| 3.0 * rng.normal() as f32).collect();
    let student: Vec<f32> = teacher.iter().map(|&z| z + rng.normal() as f32).collect();
    let output = OutputLayer {
        weight: &student,
        bias: None,
        softcap: None,
        width: 1,
        classes: V,
        precision: F32,
    };
    let head =
        Head { weight: teacher.clone(), bias: None, classes: V, hidden_size: 1, softcap: None };
    let packed = head.pack().unwrap();
    let soft = SoftLabels::Hidden { states: &[1.0], head: &packed };
    for temperature in [1.0, 20.0, 32.0, 33.0, 1e3, 1e5] {
        for divergence in &divergences()[..5] {
            let divergence = *divergence;

            let config =
                LossConfig { alpha: 1.0, temperature, divergence, ..LossConfig::default() };
            let found = fused_loss(&[1.0], output, None, Some(&soft), &config, 1.0, None).unwrap();
            let found = found.parts(&config, 1.0).total;
            let target = SoftTarget::Logits(teacher.clone());
            let expected =
                crate::loss::batch::evaluate(&wide(&student), 1, V, None, Some(&target), &config);
            let expected = expected.unwrap().0.total;
            let error = (found - expected).abs() / expected;
            assert!(error < 2e-3, "{divergence:?} at {temperature}: {found}, not {expected}");
        }
    }
}

/// Rounded operands, and sums that are not: near the loss in f32, and not the same.
#[test]
fn bf16_is_as_near_as_its_operands() {
    for cap in [None, Some(2.0)] {
        let case = case(cap);
        let packed = case.head.pack().unwrap();
        let soft = SoftLabels::Hidden { states: &case.states, head: &packed };
        let config = LossConfig { alpha: 0.7, temperature: 2.0, ..LossConfig::default() };
        let (exact, expected) = run(&case, Some(&soft), &config, cap, F32);
        let (near, found) = run(&case, Some(&soft), &config, cap, Bf16);
        for (exact, near) in [(exact.hard, near.hard), (exact.soft, near.soft)] {
            let off = (near.unwrap() - exact.unwrap()).abs();
            assert!(off > 0.0 && off < 0.01 * exact.unwrap(), "{off} of {exact:?}");
        }
        for (found, expected) in found.iter().zip(&expected) {
            let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>().sqrt();
            let off = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
            let size = norm(&mut expected.iter().copied());
            assert!(off > 0.0 && off < 0.01 * size, "{off} of {size}");
        }
    }
}
