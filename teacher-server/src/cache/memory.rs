//! The tier in memory: bounded in bytes, for all threads.

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, Weighter,
    sync::{Cache, DefaultLifecycle},
};

use super::Key;
use crate::output::Output;

/// What an entry takes beside its values: key, counts, pointers and its places in tables.
const OVERHEAD: u64 = 128;
/// A shard is at least this large, so that long sequences of a wide model fit in one.
const SHARD_BYTES: u64 = 64 << 20;
const MOST_SHARDS: u64 = 16;

#[derive(Clone)]
struct Bytes;

impl Weighter<Key, Output> for Bytes {
    fn weight(&self, _: &Key, output: &Output) -> u64 {
        size_of_val::<[f32]>(output) as u64 + OVERHEAD
    }
}

/// Outputs by their keys. What has not been asked for again for long makes room.
pub(crate) struct Memory(Option<Cache<Key, Output, Bytes>>);

impl Memory {
    /// One that holds this many bytes; 0: none.
    pub(crate) fn new(bytes: u64) -> Self {
        // A power of two, as the cache would otherwise round it up to.
        let shards = 1 << (bytes / SHARD_BYTES).clamp(1, MOST_SHARDS).ilog2();
        let items = usize::try_from(bytes / (2 * OVERHEAD)).unwrap_or(usize::MAX);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(items.clamp(16, 1 << 20))
            .weight_capacity(bytes)
            .shards(shards)
            .build();
        // A count and a capacity are set, which is all that can be wrong.
        let Ok(options) = options else { return Self(None) };
        let cache = || {
            let hasher = DefaultHashBuilder::default();
            Cache::with_options(options, Bytes, hasher, DefaultLifecycle::default())
        };
        Self((bytes > 0).then(cache))
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Output> {
        self.0.as_ref()?.get(key)
    }

    pub(crate) fn insert(&self, key: Key, output: Output) {
        if let Some(cache) = &self.0 {
            cache.insert(key, output);
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.as_ref().map_or(0, Cache::weight)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.as_ref().map_or(0, Cache::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u32) -> Key {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        Key(bytes)
    }

    #[test]
    fn it_never_holds_more_than_its_bytes() {
        let bound = 1 << 20;
        let memory = Memory::new(bound);
        for number in 0..20_000 {
            memory.insert(key(number), vec![number as f32; 10].into());
            assert!(memory.bytes() <= bound);
        }
        assert!(memory.bytes() > bound / 2, "{} of {bound} used", memory.bytes());
        assert_eq!(memory.get(&key(19_999)).unwrap()[..], [19_999.0; 10]);
        assert_eq!(memory.get(&key(20_000)), None);
    }

    #[test]
    fn a_long_sequence_of_a_wide_model_fits() {
        let memory = Memory::new(256 << 20);
        // 4,096 positions, 2,048 wide.
        memory.insert(key(1), vec![0.0; 4096 * 2048].into());
        assert_eq!(memory.len(), 1);
    }

    #[test]
    fn without_bytes_it_holds_nothing() {
        let memory = Memory::new(0);
        memory.insert(key(1), vec![1.0].into());
        assert_eq!((memory.get(&key(1)), memory.len(), memory.bytes()), (None, 0, 0));
    }
}
