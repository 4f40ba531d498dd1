//! Which replica labels a row: rendezvous hashing with bounded load.
//!
//! Every row has an order of the replicas of its own, by a hash of its content and their names
//! (D. Thaler and C. Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM
//! Transactions on Networking 6(1), 1998), and goes to the first of them that takes work. So each
//! row is in the cache of one replica, whichever student asks; when a replica comes or goes, only
//! the rows move that it comes to or goes from. None of them takes much more than [`BOUND`] times the
//! mean of what is under way (V. Mirrokni, M. Thorup and M. Zadimoghaddam, "Consistent Hashing with
//! Bounded Loads", SODA 2018): the row's next choice takes what is beyond.

use twox_hash::XxHash64;

/// Most rows under way at one replica, as a multiple of the mean.
const BOUND: f64 = 1.25;

/// A replica that work may go to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Replica {
    pub(super) endpoint: usize,
    /// Hash of its name.
    pub(super) hash: u64,
    /// Rows under way.
    pub(super) load: usize,
    /// Requests that it may still be sent.
    pub(super) room: usize,
}

/// What rendezvous hashing knows a replica by.
pub(super) fn name_hash(name: &str) -> u64 {
    XxHash64::oneshot(1, name.as_bytes())
}

/// How much a replica likes a row: a mix of both hashes, every bit of which depends on every bit of
/// them (the finalizer of SplitMix64).
fn liking(row: u64, replica: u64) -> u64 {
    let mut mixed = row ^ replica;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Shares units out, each named by its place in `hashes`: one group for each replica that gets any.
/// Empty if no replica has room for a request.
pub(super) fn share(replicas: &[Replica], hashes: &[(u32, u64)]) -> Vec<(usize, Vec<u32>)> {
    let open: Vec<&Replica> = replicas.iter().filter(|replica| replica.room > 0).collect();
    let under_way: usize = open.iter().map(|replica| replica.load).sum();
    let mean = (under_way + hashes.len()) as f64 / open.len().max(1) as f64;
    let most = most(mean);
    let mut loads: Vec<usize> = open.iter().map(|replica| replica.load).collect();
    let mut groups = vec![Vec::new(); open.len()];
    for &(unit, hash) in hashes {
        // The bound is above the mean: somebody is below it.
        let choice = (0..open.len())
            .filter(|&at| loads[at] < most)
            .max_by_key(|&at| (liking(hash, open[at].hash), open[at].endpoint));
        let Some(choice) = choice else { return Vec::new() };
        loads[choice] += 1;
        groups[choice].push(unit);
    }
    let groups = open.iter().zip(groups).map(|(replica, units)| (replica.endpoint, units));
    groups.filter(|(_, units)| !units.is_empty()).collect()
}

/// Most units under way at one replica, of so many in the mean: as much above [`BOUND`] as chance
/// makes of few units, which alone should not send a row to another cache.
fn most(mean: f64) -> usize {
    (BOUND * mean + 2.0 * mean.sqrt()).ceil() as usize
}

/// One replica for a whole request: the first choice of its first unit that takes work.
pub(super) fn whole(replicas: &[Replica], hash: u64) -> Option<usize> {
    share(replicas, &[(0, hash)]).first().map(|(endpoint, _)| *endpoint)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn replicas(count: usize) -> Vec<Replica> {
        let replica = |endpoint| {
            let hash = name_hash(&format!("http://10.0.0.{endpoint}:7070"));
            Replica { endpoint, hash, load: 0, room: 8 }
        };
        (0..count).map(replica).collect()
    }

    fn rows(count: u32) -> Vec<(u32, u64)> {
        (0..count).map(|row| (row, XxHash64::oneshot(0, &row.to_le_bytes()))).collect()
    }

    /// The replica of every row, each routed by itself.
    fn homes(replicas: &[Replica], rows: &[(u32, u64)]) -> Vec<usize> {
        rows.iter().map(|&(_, hash)| whole(replicas, hash).unwrap()).collect()
    }

    #[test]
    fn rows_spread_evenly_and_only_those_of_a_lost_replica_move() {
        let (all, rows) = (replicas(5), rows(10_000));
        let before = homes(&all, &rows);
        for endpoint in 0..5 {
            let own = before.iter().filter(|home| **home == endpoint).count();
            assert!((1800..2200).contains(&own), "{own} of 10,000");
        }
        let left: Vec<Replica> = all.into_iter().filter(|replica| replica.endpoint != 2).collect();
        let after = homes(&left, &rows);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == 2);
        }
    }

    #[test]
    fn a_replica_without_room_gets_nothing_and_none_at_all_is_told() {
        let mut all = replicas(2);
        all[0].room = 0;
        assert_eq!(share(&all, &rows(3)), [(1, vec![0, 1, 2])]);
        all[1].room = 0;
        assert_eq!(share(&all, &rows(3)), []);
        assert_eq!(share(&[], &rows(3)), []);
    }

    proptest! {
        /// Every unit goes to one replica; none has more than its bound, whatever was under way.
        #[test]
        fn nobody_is_given_more_than_the_bound(
            loads in prop::collection::vec(0_usize..300, 1..6),
            count in 1_u32..300,
        ) {
            let mut all = replicas(loads.len());
            for (replica, load) in all.iter_mut().zip(&loads) {
                replica.load = *load;
            }
            let groups = share(&all, &rows(count));
            let mut units: Vec<u32> = groups.iter().flat_map(|(_, units)| units.clone()).collect();
            units.sort_unstable();
            prop_assert_eq!(units, (0..count).collect::<Vec<_>>());
            let total = loads.iter().sum::<usize>() + count as usize;
            let most = most(total as f64 / loads.len() as f64);
            for (endpoint, units) in groups {
                prop_assert!(loads[endpoint] + units.len() <= most);
            }
        }
    }
}
