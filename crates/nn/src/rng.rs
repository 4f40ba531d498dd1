//! Philox 4x32-10: random numbers as a function of (key, counter), so that a stream can be sought.
//!
//! Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The
//! 64-bit key is the seed; the 128-bit counter is the block number (low half) and the stream (high
//! half). One block is four words of 32 bits. The same seed, stream and position give the same
//! numbers on every machine.

/// Multipliers of the two 32 by 32 bit products of a round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// What the two key words grow by between rounds (the golden ratio and sqrt(3) - 1).
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Words in a block.
const WORDS: u64 = 4;

/// Ten Philox rounds of `counter` under `key`.
fn block(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let b = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A seekable stream of random numbers.
#[derive(Clone, Debug)]
pub struct Philox {
    seed: u64,
    stream: u64,
    /// Words consumed.
    position: u64,
    /// The block that `position` lies in; valid unless `position` is at a block's start.
    buffer: [u32; 4],
}

impl PartialEq for Philox {
    /// Equal generators go on with equal numbers.
    fn eq(&self, other: &Self) -> bool {
        (self.seed, self.stream, self.position) == (other.seed, other.stream, other.position)
    }
}

impl Eq for Philox {}

impl Philox {
    /// The beginning of sequence `stream` under `seed`. Different streams of one seed are
    /// independent.
    pub fn new(seed: u64, stream: u64) -> Self {
        Self { seed, stream, position: 0, buffer: [0; 4] }
    }

    /// Words of 32 bits consumed so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at word `position`, forwards or backwards, in constant time.
    pub fn seek(&mut self, position: u64) {
        self.position = position;
        if !position.is_multiple_of(WORDS) {
            self.buffer = self.block_at(position / WORDS);
        }
    }

    fn block_at(&self, number: u64) -> [u32; 4] {
        let split = |word: u64| [word as u32, (word >> 32) as u32];
        let ([n0, n1], [s0, s1]) = (split(number), split(self.stream));
        block([n0, n1, s0, s1], split(self.seed))
    }

    /// The next word.
    pub fn next_u32(&mut self) -> u32 {
        let within = (self.position % WORDS) as usize;
        if within == 0 {
            self.buffer = self.block_at(self.position / WORDS);
        }
        self.position = self.position.wrapping_add(1);
        self.buffer[within]
    }

    /// The next two words, the first in the low half.
    pub fn next_u64(&mut self) -> u64 {
        let low = u64::from(self.next_u32());
        low | u64::from(self.next_u32()) << 32
    }

    /// Uniform in [0, 1) in steps of 2^-24; one word.
    pub fn next_f32(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / (1u32 << 24) as f32)
    }

    /// Uniform in [0, 1) in steps of 2^-53; two words.
    pub fn next_f64(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Standard normal (Box-Muller); always four words.
    pub fn normal(&mut self) -> f64 {
        // 1 - u lies in (0, 1]: the logarithm is finite.
        let radius = (-2.0 * (1.0 - self.next_f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.next_f64()).cos()
    }

    /// Uniform in 0..n without bias (Lemire, "Fast random integer generation in an interval",
    /// 2019); one word or, seldom, more. 0 for n = 0.
    pub fn below(&mut self, n: u32) -> u32 {
        let mut product = u64::from(self.next_u32()) * u64::from(n);
        if (product as u32) < n {
            let threshold = n.wrapping_neg() % n;
            while (product as u32) < threshold {
                product = u64::from(self.next_u32()) * u64::from(n);
            }
        }
        (product >> 32) as u32
    }

    /// 0..n in random order (Fisher-Yates).
    pub fn permutation(&mut self, n: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..n).collect();
        for last in (1..n).rev() {
            order.swap(last as usize, self.below(last + 1) as usize);
        }
        order
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The `philox4x32 10` lines of Random123's `kat_vectors`.
    #[test]
    fn known_answers_of_random123() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(block(counter, key), expected);
        }
        // The same through the public face: counter and key are (position, stream) and seed.
        let mut rng = Philox::new(0x299f_31d0_a409_3822, 0x0370_7344_1319_8a2e);
        rng.seek(0);
        assert_eq!(Philox::new(0, 0).next_u32(), 0x6627_e8d5);
        let number = 0x05a3_08d3_243f_6a88_u64;
        rng.seek(number * WORDS);
        let expected =
            block([0x243f_6a88, 0x05a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
        assert_eq!([(); 4].map(|()| rng.next_u32()), expected);
    }

    proptest! {
        /// Seeking to a position gives what walking there gives.
        #[test]
        fn seek_is_walk(seed: u64, stream: u64, to in 0u64..200, from in 0u64..200) {
            let mut walked = Philox::new(seed, stream);
            (0..to).for_each(|_| { walked.next_u32(); });
            let mut sought = Philox::new(seed, stream);
            sought.seek(from);
            sought.next_u32();
            sought.seek(to);
            prop_assert_eq!(&sought, &walked);
            for _ in 0..9 {
                prop_assert_eq!(sought.next_u32(), walked.next_u32());
            }
            prop_assert_eq!(sought.position(), to + 9);
        }

        /// A permutation holds every number once.
        #[test]
        fn permutation_is_one(seed: u64, n in 0u32..300) {
            let mut order = Philox::new(seed, 0).permutation(n);
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..n));
        }
    }

    #[test]
    fn streams_and_seeds_differ() {
        let first = |seed, stream| Philox::new(seed, stream).next_u64();
        assert_ne!(first(1, 0), first(0, 1));
        assert_ne!(first(0, 0), first(0, 1));
        assert_ne!(first(0, 0), first(1 << 32, 0));
    }

    #[test]
    fn moments_of_a_long_run() {
        let mut rng = Philox::new(7, 3);
        let n = 40_000;
        let normal: Vec<f64> = (0..n).map(|_| rng.normal()).collect();
        let mean = normal.iter().sum::<f64>() / f64::from(n);
        let variance = normal.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / f64::from(n);
        assert!(mean.abs() < 0.02, "mean {mean}");
        assert!((variance - 1.0).abs() < 0.03, "variance {variance}");
        assert_eq!(rng.position(), 4 * u64::from(n as u32));
        let uniform = (0..n).map(|_| f64::from(rng.next_f32())).sum::<f64>() / f64::from(n);
        assert!((uniform - 0.5).abs() < 0.01, "uniform {uniform}");
        let mut counts = [0u32; 3];
        (0..n).for_each(|_| counts[rng.below(3) as usize] += 1);
        for count in counts {
            assert!((f64::from(count) / f64::from(n) - 1.0 / 3.0).abs() < 0.01, "{counts:?}");
        }
    }
}
