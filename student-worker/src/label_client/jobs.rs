//! What a client is asked for, and how far ahead of its use: known beforehand, or coming as it goes.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc};

use super::Job;

/// Where jobs come from, and how many may be taken now.
pub(super) struct Jobs<I> {
    source: Source<I>,
    /// A permit for each.
    room: Arc<Semaphore>,
}

enum Source<I> {
    /// They are known.
    Planned(I),
    /// They come when somebody has them.
    Demanded(mpsc::Receiver<Job>),
}

/// The next job, if there is one already.
pub(super) enum Next {
    Job(Box<Job>),
    NotYet,
    End,
}

/// How many jobs are taken before the labels of earlier ones are used: the side of who uses them.
#[derive(Debug)]
pub(super) struct Room {
    room: Arc<Semaphore>,
    /// Labels that are used before room is made for as many jobs; 0: room is made by whoever waits.
    at_once: usize,
    /// Labels used since then.
    used: usize,
    /// Waits that room has been made for and that have not begun.
    told: usize,
}

impl<I> Jobs<I> {
    /// Jobs that are known: `ahead` of them at least are taken whose labels are not used; 0: each when it is
    /// waited for.
    ///
    /// Room is made for half as many at a time, on top of them: whoever trains on the same core is then
    /// interrupted once for several requests.
    pub(super) fn planned(jobs: I, ahead: usize) -> (Self, Room) {
        let at_once = ahead.div_ceil(2);
        let room = Room::new(ahead.saturating_add(at_once), at_once);
        (Self { source: Source::Planned(jobs), room: Arc::clone(&room.room) }, room)
    }

    /// Jobs that come when somebody has them; `ahead` (1 or more) at most are held.
    pub(super) fn demanded(jobs: mpsc::Receiver<Job>, ahead: usize) -> (Self, Room) {
        let room = Room::new(ahead, 1);
        (Self { source: Source::Demanded(jobs), room: Arc::clone(&room.room) }, room)
    }
}

impl<I: Iterator<Item = Job>> Jobs<I> {
    pub(super) fn next(&mut self) -> Next {
        let Ok(one) = self.room.try_acquire() else { return Next::NotYet };
        let job = match &mut self.source {
            Source::Planned(jobs) => jobs.next(),
            Source::Demanded(jobs) => match jobs.try_recv() {
                Ok(job) => Some(job),
                Err(mpsc::error::TryRecvError::Empty) => return Next::NotYet,
                Err(mpsc::error::TryRecvError::Disconnected) => None,
            },
        };
        let Some(job) = job else { return Next::End };
        one.forget();
        Next::Job(Box::new(job))
    }

    /// Waits until there is room for a job, and one that is demanded; none when there will be no more.
    pub(super) async fn wait(&mut self) -> Option<Job> {
        // Closed by nobody.
        let one = self.room.acquire().await.ok()?;
        let job = match &mut self.source {
            Source::Planned(jobs) => jobs.next(),
            Source::Demanded(jobs) => jobs.recv().await,
        }?;
        one.forget();
        Some(job)
    }
}

impl Room {
    fn new(ahead: usize, at_once: usize) -> Self {
        let ahead = ahead.min(Semaphore::MAX_PERMITS);
        Self { room: Arc::new(Semaphore::new(ahead)), at_once, used: 0, told: 0 }
    }

    /// Says that so many labels will be waited for now, one after the other.
    pub(super) fn will_take(&mut self, jobs: usize) {
        if self.at_once == 0 {
            self.told += jobs;
            self.room.add_permits(jobs);
        }
    }

    /// Says that the next labels are waited for.
    pub(super) fn wait(&mut self) {
        if self.told == 0 {
            self.will_take(1);
        }
        self.told = self.told.saturating_sub(1);
    }

    /// Says that labels are used.
    pub(super) fn used(&mut self) {
        self.used += 1;
        if self.used == self.at_once {
            self.used = 0;
            self.room.add_permits(self.at_once);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use stillhouse_proto::v1::{Tensor, label_request::Inputs};

    use super::*;

    fn job(index: u64) -> Job {
        let inputs = Inputs::Features(Tensor::default());
        Job { index, inputs, rows: 1, temperature: 1.0, seed: 0, whole: true }
    }

    /// Jobs that can be taken now.
    fn taken(jobs: &mut Jobs<impl Iterator<Item = Job>>) -> Vec<u64> {
        let next = || match jobs.next() {
            Next::Job(job) => Some(job.index),
            Next::NotYet | Next::End => None,
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn known_jobs_are_taken_ahead_and_half_as_many_at_a_time() {
        for (ahead, first, then) in [
            (1, vec![0, 1], [vec![2], vec![3], vec![4], vec![5]]),
            (2, vec![0, 1, 2], [vec![3], vec![4], vec![5], vec![6]]),
            (3, vec![0, 1, 2, 3, 4], [vec![], vec![5, 6], vec![], vec![7, 8]]),
            (4, vec![0, 1, 2, 3, 4, 5], [vec![], vec![6, 7], vec![], vec![8, 9]]),
        ] {
            let (mut jobs, mut room) = Jobs::planned((0..100).map(job), ahead);
            assert_eq!(taken(&mut jobs), first);
            for then in then {
                room.wait();
                assert_eq!(taken(&mut jobs), [0; 0], "{ahead}: to wait makes no room");
                room.used();
                assert_eq!(taken(&mut jobs), then, "{ahead}");
            }
        }
    }

    proptest! {
        /// However taking, waiting and using alternate: no more are held than there may be, and no fewer
        /// can be.
        #[test]
        fn what_is_held_is_bounded(ahead in 0_usize..9, uses in prop::collection::vec(any::<bool>(), 1..200)) {
            let (mut jobs, mut room) = Jobs::planned((0..1000).map(job), ahead);
            let (mut held, mut waited) = (0, 0);
            for is_use in uses {
                if is_use && held > 0 {
                    room.used();
                    held -= 1;
                } else {
                    held += taken(&mut jobs).len();
                    let asked = if ahead == 0 { waited } else { ahead + ahead.div_ceil(2) };
                    prop_assert!((ahead..=asked).contains(&held), "{held} of {ahead}");
                    if ahead == 0 && held == 0 {
                        room.wait();
                        waited = 1;
                    }
                }
            }
        }
    }

    #[test]
    fn with_none_ahead_each_is_taken_when_it_is_waited_for() {
        let (mut jobs, mut room) = Jobs::planned((0..100).map(job), 0);
        assert_eq!(taken(&mut jobs), [0; 0]);
        room.will_take(3);
        assert_eq!(taken(&mut jobs), [0, 1, 2]);
        for _ in 0..3 {
            room.wait();
            room.used();
        }
        assert_eq!(taken(&mut jobs), [0; 0]);
        room.wait();
        assert_eq!(taken(&mut jobs), [3], "without word of it before");
    }

    #[tokio::test]
    async fn demanded_jobs_are_taken_as_long_as_there_is_room() {
        let (sender, receiver) = mpsc::channel(10);
        let (mut jobs, mut room) = Jobs::<std::iter::Empty<Job>>::demanded(receiver, 2);
        assert!(matches!(jobs.next(), Next::NotYet));
        (0..5).for_each(|index| sender.try_send(job(index)).unwrap());
        assert_eq!(taken(&mut jobs), [0, 1], "what was not there took no room");
        room.used();
        assert_eq!(jobs.wait().await, Some(job(2)));
        room.used();
        assert_eq!(taken(&mut jobs), [3]);
        drop(sender);
        (0..3).for_each(|_| room.used());
        assert_eq!(taken(&mut jobs), [4]);
        assert!(matches!(jobs.next(), Next::End));
        assert_eq!(jobs.wait().await, None);
    }
}
