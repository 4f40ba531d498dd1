//! What connections tell: streams that open and end, answers, refusals.

use super::*;

/// Answers that cannot be used are one kind of refusal: what is wrong may be other rows each time.
const UNUSABLE: &str = "its labels cannot be used";

impl<I: Iterator<Item = Job> + Send> Driver<I> {
    pub(super) fn on(&mut self, event: Event) -> Result<(), ClientError> {
        let now = clock::now();
        let event = match event {
            Event::Endpoints(addresses) => {
                self.endpoints_are(addresses);
                return Ok(());
            }
            Event::Of(endpoint, event) if self.endpoints[endpoint].task.is_some() => {
                (endpoint, event)
            }
            // Sent before its endpoint was refused.
            Event::Of(..) => return Ok(()),
        };
        let (endpoint, event) = event;
        let replica = &mut self.endpoints[endpoint];
        replica.tried = true;
        match event {
            Happened::Up(link) => {
                tracing::info!(teacher = replica.name, "teacher connected");
                let in_flight = HashMap::new();
                replica.failures = 0;
                replica.live = Some(Live { link, in_flight, serving: true, suspect: false });
                self.connected = true;
                Ok(())
            }
            Happened::Answer(answer) => self.answer(endpoint, answer, now),
            Happened::Serving(serving) => {
                if let Some(live) = &mut replica.live {
                    if live.serving != serving {
                        tracing::info!(teacher = replica.name, serving, "teacher's health");
                    }
                    live.serving = serving;
                }
                Ok(())
            }
            Happened::Down(reason) => {
                replica.failures = replica.failures.saturating_add(1);
                if let Some(reason) = reason {
                    tracing::warn!(reason, "teacher not connected; trying again");
                    self.last_failure = reason;
                }
                self.drop_link(endpoint, now);
                Ok(())
            }
            Happened::Refused(error) => self.refuse(endpoint, error, now),
        }
    }

    pub(super) fn answer(
        &mut self,
        endpoint: usize,
        answer: LabelStreamResponse,
        now: Instant,
    ) -> Result<(), ClientError> {
        let replica = &mut self.endpoints[endpoint];
        let (mut asked, mut has_checksums) = (None, false);
        if let Some(live) = &mut replica.live {
            live.suspect = false;
            asked = live.in_flight.remove(&answer.id);
            has_checksums = live.link.has_checksums;
        }
        // Only of this stream: nothing else answers here, unless it was changed on the way.
        let Some(InFlight { sent, sum, mut span, .. }) = asked else { return Ok(()) };
        // The slowest fades, so that one slow answer is forgotten after some hundred others.
        let took = now.saturating_duration_since(sent);
        self.slowest = Some(self.slowest.unwrap_or_default().mul_f64(0.99).max(took));
        // Of a request that was given up, too: for want of labels none waits to be answered.
        if let Some(Answer::Response(response)) = &answer.result
            && self.lost
            && response.row_errors.is_empty()
            && sum.agrees(response) != Some(false)
            && self.gate.same_fingerprint(&replica.name, &response.fingerprint).is_ok()
        {
            tracing::info!(teacher = replica.name, "labels again");
            self.lost = false;
            self.pipeline.heard(now);
        }
        if let Some(Answer::Error(error)) = &answer.result {
            let code = Code::from_i32(error.code);
            span.failed(&format_args!("{}: {}", status::name(code), error.message));
            self.note_failure(endpoint, code, now);
        }
        let request = answer.id;
        // The request may have been given up; its answer came all the same.
        let Some((held, units)) = self.pipeline.job(request) else { return Ok(()) };
        let name = self.endpoints[endpoint].name.clone();
        // Believed in time for the run to end by it, and not for want of labels.
        let patience = OTHERS_MAY_COME.min(self.pipeline.budget() / 2);
        let by = By { endpoint, others: self.others(endpoint, now), patience, now };
        let (job, described) = (&held.job, describe(&held.job));
        let first = units.first().copied().unwrap_or(0);
        let rows = units.iter().map(|&unit| held.labels[unit as usize]).sum();
        match answer.result {
            Some(Answer::Response(response)) => {
                let checked = sum.agrees(&response);
                if checked == Some(false) || (checked.is_none() && has_checksums) {
                    self.last_failure =
                        format!("{name}: {described}: the answer was changed on the way");
                    span.failed(&self.last_failure);
                    tracing::warn!(reason = self.last_failure, "trying again");
                    self.note_failure(endpoint, Code::DataLoss, now);
                    self.pipeline.failed(request, Duration::ZERO, now);
                    return Ok(());
                }
                match self.labels((&name, &described), job, rows, &response) {
                    Ok(batch) => {
                        self.pipeline.answered(request, batch, now);
                        self.endpoints[endpoint].record.labelled();
                        Ok(())
                    }
                    // Another model stands at this address now; the others are as they were.
                    Err(error @ ClientError::Fingerprint { .. }) => {
                        span.failed(&error);
                        self.refuse(endpoint, error, now)
                    }
                    Err(error) => {
                        span.failed(&error);
                        let ClientError::Answer { reason, .. } = &error else { return Err(error) };
                        // As a refusal: another teacher may do better.
                        if held.refusals.repeated(first, UNUSABLE, by) {
                            return Err(error);
                        }
                        tracing::warn!(teacher = name, request = described, reason, "asking again");
                        self.last_failure = error.to_string();
                        self.note_failure(endpoint, Code::Internal, now);
                        self.pipeline.failed(request, Duration::ZERO, now);
                        Ok(())
                    }
                }
            }
            Some(Answer::Error(error)) => {
                let code = Code::from_i32(error.code);
                let after = Duration::from_millis(error.retry_after_ms.into());
                let words = format!("{}: {}", status::name(code), error.message);
                match judge_code(code, after) {
                    Verdict::Retry(after) => {
                        tracing::debug!(teacher = name, request = described, words, "trying again");
                        self.last_failure = format!("{name}: {described}: {words}");
                        self.pipeline.failed(request, after, now);
                        Ok(())
                    }
                    Verdict::Final if held.refusals.repeated(first, &words, by) => {
                        Err(ClientError::Refused {
                            endpoint: name,
                            request: described,
                            code: status::name(code),
                            message: error.message,
                        })
                    }
                    Verdict::Final => {
                        tracing::warn!(teacher = name, request = described, words, "asking again");
                        self.last_failure = format!("{name}: {described}: {words}");
                        self.pipeline.failed(request, Duration::ZERO, now);
                        Ok(())
                    }
                }
            }
            None => {
                let reason = "it holds neither labels nor an error".to_owned();
                span.failed(&reason);
                if held.refusals.repeated(first, UNUSABLE, by) {
                    let (endpoint, request) = (name, described);
                    return Err(ClientError::Answer { endpoint, request, reason });
                }
                self.last_failure = format!("{name}: {described}: {reason}");
                self.note_failure(endpoint, Code::Internal, now);
                self.pipeline.failed(request, Duration::ZERO, now);
                Ok(())
            }
        }
    }

    /// Sets a replica aside that fails again and again, where others can do its work. One that is full or
    /// late has not failed.
    fn note_failure(&mut self, endpoint: usize, code: Code, now: Instant) {
        let is_load =
            matches!(code, Code::ResourceExhausted | Code::DeadlineExceeded | Code::Cancelled);
        if is_load || !self.others_are_well(endpoint, now) {
            return;
        }
        let replica = &mut self.endpoints[endpoint];
        if let Some(time) = replica.record.failed(now) {
            let seconds = time.as_secs();
            tracing::warn!(teacher = replica.name, seconds, "it fails again and again; set aside");
        }
    }

    /// Checks an answer of `rows` labels against its request and decodes it.
    pub(super) fn labels(
        &self,
        (endpoint, request): (&str, &str),
        job: &Job,
        rows: usize,
        response: &LabelResponse,
    ) -> Result<LabelBatch, ClientError> {
        self.gate.same_fingerprint(endpoint, &response.fingerprint)?;
        let unusable = |reason: String| ClientError::Answer {
            endpoint: endpoint.to_owned(),
            request: request.to_owned(),
            reason,
        };
        if let Some(first) = response.row_errors.first() {
            let count = response.row_errors.len();
            let (row, message) = (first.row, &first.message);
            return Err(unusable(format!(
                "{count} of its rows without a label; row {row}: {message}"
            )));
        }
        let [labels] = response.labels.as_slice() else {
            let found = response.labels.len();
            return Err(unusable(format!("it has labels of {found} temperatures, expected 1")));
        };
        let batch = decode(labels).map_err(|error| unusable(error.to_string()))?;
        self.gate.wanted.check(rows, job.temperature, &batch).map_err(unusable)?;
        Ok(batch)
    }

    /// Leaves an endpoint for good. The run ends with its error when no other is left.
    pub(super) fn refuse(
        &mut self,
        endpoint: usize,
        error: ClientError,
        now: Instant,
    ) -> Result<(), ClientError> {
        if let Some(task) = self.endpoints[endpoint].task.take() {
            task.abort();
        }
        self.drop_link(endpoint, now);
        if self.endpoints.iter().all(|replica| replica.task.is_none()) {
            return Err(error);
        }
        tracing::error!(%error, "teacher refused; going on with the others");
        self.last_failure = error.to_string();
        Ok(())
    }

    /// Closes the stream to an endpoint; what was in flight on it goes elsewhere.
    pub(super) fn drop_link(&mut self, endpoint: usize, now: Instant) {
        if let Some(mut live) = self.endpoints[endpoint].live.take() {
            live.give_up("the stream ended before its answer");
        }
        self.pipeline.lost(endpoint, now);
    }
}
