use super::*;
use crate::rng::Philox;

fn draw(rng: &mut Philox, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.normal() as f32).collect()
}

/// The definition in f64, for one query head of one sequence; `factors` [queries, keys] are what dropout
/// multiplies weights by.
fn reference(
    (scores, width, factors): (&Scores, usize, &[f32]),
    q: &[f64],
    k: &[f64],
    v: &[f64],
) -> Vec<f64> {
    let keys = k.len() / width;
    let past = keys - q.len() / width;
    let row = |(i, q): (usize, &[f64])| {
        let visible = scores.visible(past + i, keys);
        let score = |key: usize| {
            let s: f64 = q.iter().zip(&k[key * width..][..width]).map(|(a, b)| a * b).sum();
            let s = s * f64::from(scores.scale);
            scores.softcap.map_or(s, |cap| f64::from(cap) * (s / f64::from(cap)).tanh())
        };
        let exps: Vec<f64> = visible.clone().map(|key| score(key).exp()).collect();
        let sum: f64 = exps.iter().sum();
        (0..width)
            .map(|c| {
                let terms = visible.clone().zip(&exps);
                let factor = |key: usize| f64::from(factors[i * keys + key]);
                terms.map(|(key, e)| e / sum * factor(key) * v[key * width + c]).sum::<f64>()
            })
            .collect::<Vec<_>>()
    };
    q.chunks_exact(width).enumerate().flat_map(row).collect()
}

const KINDS: [Scores; 5] = [
    Scores { scale: 0.4, softcap: None, causal: true, window: None },
    Scores { scale: 0.4, softcap: None, causal: false, window: None },
    Scores { scale: 0.4, softcap: None, causal: true, window: Some(5) },
    Scores { scale: 0.4, softcap: Some(0.7), causal: true, window: Some(60) },
    Scores { scale: 0.4, softcap: None, causal: false, window: Some(3) },
];

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

#[test]
fn value_and_gradients_are_those_of_the_definition() {
    let mut rng = Philox::new(5, 0);
    let heads = Heads { queries: 4, keys: 2, width: 20 };
    let layout = Layout::whole(vec![3, 70, 1, 130]);
    let (tokens, width) = (layout.tokens(), heads.width);
    let q = draw(&mut rng, tokens * 4 * width);
    let (k, v) = (draw(&mut rng, tokens * 2 * width), draw(&mut rng, tokens * 2 * width));
    let grad = draw(&mut rng, q.len());
    let dropped = Mask { seed: 9, stream: 4, rate: 0.3 };
    let weights: usize = layout.lengths.iter().map(|length| 4 * length * length).sum();
    for (scores, mask) in KINDS.into_iter().flat_map(|s| [(s, None), (s, Some(dropped))]) {
        let mut factors = vec![1.0; weights];
        mask.iter().for_each(|mask| mask.apply(&mut factors));
        let mut rest = factors.as_slice();
        let parts = |x| split(x, &layout, heads.keys, heads.keys * width);
        let attended = attend(&layout, heads, scores, mask, &q, &parts(&k), &parts(&v));
        let found = backward(&layout, heads, scores, mask, [&q, &k, &v], &attended, &grad);
        let (keys, values) = (parts(&k), parts(&v));
        let by_head = |x| split(x, &layout, heads.queries, heads.queries * width);
        let (queries, outs, grads) = (by_head(&q), by_head(&attended.out), by_head(&grad));
        let (to_q, to_k, to_v) = (by_head(&found.q), parts(&found.k), parts(&found.v));
        for (sequence, length) in layout.lengths.iter().enumerate() {
            let (own, others) = rest.split_at(4 * length * length);
            rest = others;
            let of = |head: usize| (&scores, width, &own[head * length * length..]);
            for head in 0..heads.queries {
                let (at, key) = (sequence * 4 + head, sequence * 2 + head / 2);
                let [q64, k64, v64, g64] =
                    [queries[at], keys[key], values[key], grads[at]].map(wide);
                let expected = reference(of(head), &q64, &k64, &v64);
                for (found, expected) in outs[at].iter().zip(&expected) {
                    assert!((f64::from(*found) - expected).abs() < 1e-5, "{scores:?}");
                }
                let h = 1e-6;
                for i in (0..q64.len()).step_by(q64.len() / 7 + 1) {
                    let loss = |by: f64| -> f64 {
                        let mut moved = q64.clone();
                        moved[i] += by;
                        let out = reference(of(head), &moved, &k64, &v64);
                        out.iter().zip(&g64).map(|(a, b)| a * b).sum()
                    };
                    let numeric = (loss(h) - loss(-h)) / (2.0 * h);
                    let off = (f64::from(to_q[at][i]) - numeric).abs();
                    assert!(off < 1e-4, "{scores:?} {i}: {numeric}");
                }
            }
            // Keys and values have the gradients of both query heads.
            for key_head in 0..heads.keys {
                let key = sequence * 2 + key_head;
                let [k64, v64] = [keys[key], values[key]].map(wide);
                let h = 1e-6;
                for i in (0..k64.len()).step_by(k64.len() / 7 + 1) {
                    let loss = |by_k: f64, by_v: f64| -> f64 {
                        let (mut k64, mut v64) = (k64.clone(), v64.clone());
                        k64[i] += by_k;
                        v64[i] += by_v;
                        let sum = |head: usize| -> f64 {
                            let head = key_head * 2 + head;
                            let at = sequence * 4 + head;
                            let out = reference(of(head), &wide(queries[at]), &k64, &v64);
                            out.iter().zip(grads[at]).map(|(a, &b)| a * f64::from(b)).sum()
                        };
                        sum(0) + sum(1)
                    };
                    let numeric = (loss(h, 0.0) - loss(-h, 0.0)) / (2.0 * h);
                    assert!((f64::from(to_k[key][i]) - numeric).abs() < 2e-4, "{scores:?} k {i}");
                    let numeric = (loss(0.0, h) - loss(0.0, -h)) / (2.0 * h);
                    assert!((f64::from(to_v[key][i]) - numeric).abs() < 2e-4, "{scores:?} v {i}");
                }
            }
        }
    }
}

/// Alone or among others, all at once or token by token behind a cache: the same bits.
#[test]
fn nothing_but_the_position_decides_the_bits() {
    let mut rng = Philox::new(6, 0);
    let heads = Heads { queries: 2, keys: 1, width: 12 };
    let length = 101;
    let q = draw(&mut rng, length * 2 * heads.width);
    let (k, v) = (draw(&mut rng, length * heads.width), draw(&mut rng, length * heads.width));
    for scores in KINDS.into_iter().filter(|scores| scores.causal) {
        let alone = Layout::whole(vec![length]);
        let whole = attend(&alone, heads, scores, None, &q, &[&k], &[&v]);
        for past in [0, 1, 15, 16, 47, 48, 100] {
            for n in [1, 2, length - past] {
                if past + n > length {
                    continue;
                }
                let layout = Layout { lengths: vec![n], past: vec![past] };
                let cut =
                    |head: usize| &q[(head * length + past) * heads.width..][..n * heads.width];
                let q = [cut(0), cut(1)].concat();
                let seen = (past + n) * heads.width;
                let part = attend(&layout, heads, scores, None, &q, &[&k[..seen]], &[&v[..seen]]);
                for head in 0..2 {
                    let expected =
                        &whole.out[(head * length + past) * heads.width..][..n * heads.width];
                    let found = &part.out[head * n * heads.width..][..n * heads.width];
                    assert_eq!(found, expected, "{scores:?} {past} {n}");
                    assert_eq!(
                        part.log_sums[head * n..][..n],
                        whole.log_sums[head * length + past..][..n]
                    );
                }
            }
        }
    }
}

#[test]
fn a_number_that_is_none_shows() {
    let heads = Heads { queries: 1, keys: 1, width: 1 };
    let layout = Layout::whole(vec![2]);
    for bad in [f32::NAN, f32::INFINITY] {
        let out =
            attend(&layout, heads, KINDS[0], None, &[1.0, bad], &[&[1.0, 1.0]], &[&[1.0, 2.0]]).out;
        assert_eq!(out[0], 1.0);
        assert!(out[1].is_nan(), "{bad} {out:?}");
    }
}
