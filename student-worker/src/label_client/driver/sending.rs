//! What is sent, to whom, and what is given up.

use super::*;

impl<I: Iterator<Item = Job> + Send> Driver<I> {
    /// Passes on how the run is going, to those who want to know and have room.
    pub(super) fn tell(&self, report: &StudentReport) {
        for live in self.endpoints.iter().filter_map(|replica| replica.live.as_ref()) {
            // Room for every request that the teacher may have comes first.
            let link = &live.link;
            let room = link.requests.capacity() + live.in_flight.len() > link.capacity;
            if link.takes_reports && room {
                let client = self.gate.wanted.client.clone();
                let action = Some(Action::Report(StudentReport { client, ..report.clone() }));
                drop(live.link.requests.try_send(LabelStreamRequest { action }));
            }
        }
    }

    /// Replicas that work may go to: those that are well, or else those that are not.
    pub(super) fn replicas(&self) -> Vec<router::Replica> {
        let now = clock::now();
        let open = |well: bool| -> Vec<router::Replica> {
            let replicas = self.endpoints.iter().enumerate();
            replicas
                .filter_map(|(endpoint, replica)| {
                    let live = replica.live.as_ref()?;
                    let is_well = replica.is_well(now);
                    let room = live.link.capacity.saturating_sub(live.in_flight.len());
                    let (hash, load) = (replica.hash, live.load());
                    (is_well == well).then_some(router::Replica { endpoint, hash, load, room })
                })
                .collect()
        };
        let well = open(true);
        if well.is_empty() { open(false) } else { well }
    }

    /// Whether any but one can be given work.
    pub(super) fn others_are_well(&self, endpoint: usize, now: Instant) -> bool {
        let others = self.endpoints.iter().enumerate();
        others.into_iter().any(|(at, of)| at != endpoint && of.is_well(now))
    }

    /// Whether any but one can be asked, or may be later.
    pub(super) fn others(&self, endpoint: usize, now: Instant) -> Others {
        let mut others = self.endpoints.iter().enumerate().filter(|&(at, _)| at != endpoint);
        if self.others_are_well(endpoint, now) {
            Others::Well
        } else if others.any(|(_, of)| !of.retired && of.task.is_some()) {
            Others::Unwell
        } else {
            Others::None
        }
    }

    /// Sends what can be sent, each unit to its replica.
    pub(super) fn send_ready(&mut self, now: Instant) {
        if now < self.settles && self.endpoints.iter().any(|replica| !replica.tried) {
            return;
        }
        self.settles = now;
        loop {
            let replicas = self.replicas();
            let late_after = self.late_after();
            let sending = self.pipeline.send(now, late_after, |held, units| {
                let first = held.job.index;
                if held.whole || replicas.len() < 2 {
                    let whole = router::whole(&replicas, first);
                    return whole.map(|endpoint| (endpoint, units.to_vec())).into_iter().collect();
                }
                let hashes = held.hashes.get_or_init(|| units::hashes(&held.job.inputs));
                let hash = |&unit: &u32| (unit, hashes[unit as usize]);
                router::share(&replicas, &units.iter().map(hash).collect::<Vec<_>>())
            });
            if sending.is_empty() {
                return;
            }
            for sending in sending {
                self.transmit(&sending, now);
            }
        }
    }

    /// How long an answer may take before it is late: far longer than any has of late.
    pub(super) fn late_after(&self) -> Duration {
        let timeout = self.pipeline.timeout();
        let late = self.slowest.map_or(LATE_AT_FIRST, |slowest| (slowest * 4).max(LATE_AT_LEAST));
        late.min(timeout)
    }

    /// Notes who is late, and asks others for what they owe.
    pub(super) fn ask_elsewhere(&mut self, now: Instant) {
        for endpoint in self.pipeline.late(now) {
            if !self.others_are_well(endpoint, now) {
                continue;
            }
            let replica = &mut self.endpoints[endpoint];
            if let Some(live) = replica.live.as_mut().filter(|live| !live.suspect) {
                tracing::warn!(teacher = replica.name, "answers are late; asking others");
                live.suspect = true;
                self.pipeline.all_late(endpoint, now);
            }
        }
        loop {
            let replicas = self.replicas();
            let sending = self.pipeline.send_late(now, |held, units, late| {
                let others: Vec<router::Replica> =
                    replicas.iter().filter(|replica| replica.endpoint != late).cloned().collect();
                let hashes = held.hashes.get().map_or(&[][..], Vec::as_slice);
                let hash = units.first().and_then(|&unit| hashes.get(unit as usize));
                router::whole(&others, *hash.unwrap_or(&held.job.index))
            });
            let Some(sending) = sending else { return };
            self.transmit(&sending, now);
        }
    }

    pub(super) fn transmit(&mut self, sending: &Sending, now: Instant) {
        let Sending { request, endpoint, units } = sending;
        let Some((held, _)) = self.pipeline.job(*request) else { return };
        let inputs = match units.len() == held.labels.len() {
            true => held.job.inputs.clone(),
            false => units::some(&held.job.inputs, units),
        };
        let mut message = self.gate.wanted.request(*request, &held.job, inputs);
        let replica = &mut self.endpoints[*endpoint];
        let Some(live) = &mut replica.live else { return };
        let sum = RequestSum::new(&message);
        let mut span = Span::begin("request", Role::Client, &Trace::default(), []);
        span.word("server.address", &replica.name);
        span.number("stillhouse.request", held.job.index);
        span.number("stillhouse.units", units.len() as u64);
        message.traceparent = span.context().traceparent();
        live.in_flight.insert(*request, InFlight { sent: now, units: units.len(), sum, span });
        let message = on_stream(message);
        if live.link.requests.try_send(message).is_err() {
            // The stream has ended; word of it is on its way.
            self.drop_link(*endpoint, now);
        }
    }

    /// A teacher that has not even said that it is late is not there: its stream is closed, and
    /// what was in flight on it goes elsewhere.
    pub(super) fn give_up_overdue(&mut self, now: Instant) {
        let waited = self.pipeline.timeout();
        // Of requests that were answered elsewhere meanwhile, too: who owes an answer for so long is
        // connected to anew, and shows by the probe whether it is there.
        let owes = |replica: &Replica| {
            let mut requests = replica.live.iter().flat_map(|live| live.in_flight.values());
            requests.any(|request| now.saturating_duration_since(request.sent) >= waited)
        };
        let mut overdue = self.pipeline.overdue(now);
        overdue.extend((0..self.endpoints.len()).filter(|&at| owes(&self.endpoints[at])));
        for endpoint in overdue {
            let name = &self.endpoints[endpoint].name;
            self.last_failure = format!("{name}: no answer within {waited:?}");
            tracing::warn!(reason = self.last_failure, "teacher given up; connecting anew");
            self.drop_link(endpoint, now);
        }
    }

    /// Leaves retired endpoints that owe no answer.
    pub(super) fn let_go(&mut self) {
        if !self.endpoints.iter().any(|replica| !replica.retired && replica.live.is_some()) {
            // Better one that is about to go than none.
            return;
        }
        for replica in self.endpoints.iter_mut().filter(|replica| replica.retired) {
            if replica.live.as_ref().is_none_or(|live| live.in_flight.is_empty())
                && let Some(task) = replica.task.take()
            {
                task.abort();
                replica.live = None;
                replica.gone = Some(clock::now());
            }
        }
    }
}
