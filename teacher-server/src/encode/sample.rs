//! Seeded draws from p_T.

use stillhouse_nn::{rng::Philox, softmax::exp_and_sum};

/// Draws `draws` classes with replacement from a row's distribution by inverting its cumulative
/// distribution, and appends the distinct ids, ascending, and how often each was drawn. Returns
/// the number of distinct ids.
///
/// The generator is keyed by the request's seed and the row's index alone, so the same request
/// draws the same classes on any replica and after any retry.
pub(super) fn draw(
    log_probabilities: &[f64],
    draws: u32,
    seed: u64,
    row: u64,
    ids: &mut Vec<u32>,
    counts: &mut Vec<u32>,
) -> u16 {
    let mut cumulative = log_probabilities.to_vec();
    exp_and_sum(&mut cumulative);
    let mut total = 0.0_f64;
    for mass in &mut cumulative {
        total += *mass;
        *mass = total;
    }
    let mut random = Philox::new(seed, row);
    let mut drawn: Vec<u32> = (0..draws)
        .map(|_| {
            let at = random.next_f64() * total;
            // The first class whose cumulative mass exceeds the draw: never one without mass.
            let id = cumulative.partition_point(|mass| *mass <= at);
            id.min(cumulative.len() - 1) as u32
        })
        .collect();
    drawn.sort_unstable();
    let mut distinct = 0_u16;
    for run in drawn.chunk_by(|a, b| a == b) {
        ids.push(run[0]);
        counts.push(run.len() as u32);
        distinct += 1;
    }
    distinct
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(log_probabilities: &[f64], draws: u32, seed: u64, row: u64) -> (Vec<u32>, Vec<u32>) {
        let (mut ids, mut counts) = (Vec::new(), Vec::new());
        let distinct = draw(log_probabilities, draws, seed, row, &mut ids, &mut counts);
        assert_eq!(usize::from(distinct), ids.len());
        (ids, counts)
    }

    #[test]
    fn counts_follow_the_distribution() {
        let p = [0.5_f64, 0.25, 0.125, 0.125, 0.0];
        let log_p: Vec<f64> = p.iter().map(|p| p.ln()).collect();
        let (ids, counts) = drawn(&log_p, 60_000, 7, 0);
        assert_eq!(ids, [0, 1, 2, 3], "a class without mass is never drawn");
        assert_eq!(counts.iter().sum::<u32>(), 60_000);
        for (id, count) in ids.iter().zip(counts) {
            // Five standard deviations of a binomial; the seed is fixed, so this cannot flicker.
            let p = p[*id as usize];
            let deviation = (60_000.0 * p * (1.0 - p)).sqrt();
            assert!((f64::from(count) - 60_000.0 * p).abs() < 5.0 * deviation);
        }
    }

    #[test]
    fn the_seed_and_the_row_decide() {
        let log_p = vec![(1.0_f64 / 1000.0).ln(); 1000];
        assert_eq!(drawn(&log_p, 50, 1, 3), drawn(&log_p, 50, 1, 3));
        assert_ne!(drawn(&log_p, 50, 1, 3), drawn(&log_p, 50, 1, 4));
        assert_ne!(drawn(&log_p, 50, 1, 3), drawn(&log_p, 50, 2, 3));
    }
}
