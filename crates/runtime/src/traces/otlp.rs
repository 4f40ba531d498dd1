//! With the feature `otlp`: spans of the OpenTelemetry SDK, sent over gRPC.

use std::{error::Error as _, fmt::Display, path::Path, sync::OnceLock, thread, time::Duration};

use opentelemetry::{
    KeyValue, Value,
    trace::{
        Link, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags,
        TraceId, TraceState, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult,
        SdkTracer, SdkTracerProvider, ShouldSample,
    },
};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use super::{Role, Traces, no_endpoint, value};
use crate::{config::ConfigError, tls::certificates, watched::read_bounded};

/// Bytes of a `traceparent` of version 00.
const TRACEPARENT_BYTES: usize = 55;

/// How long a collector that does not answer is waited for.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(3);
/// Spans that wait for the collector; those beyond are dropped.
const WAITING_SPANS: usize = 4096;
/// Spans in one message.
const SENT_SPANS: usize = 512;
const SEND_EVERY: Duration = Duration::from_secs(2);
/// More than requests in a batch.
const MAX_LINKS: u32 = 1 << 16;
/// Bytes of a word, and of a reason for failure.
const MAX_WORD_BYTES: usize = 1024;

static TRACER: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// What names a span to others; of one that is not recorded, nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Context(Option<SpanContext>);

/// Something that takes time; it ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<opentelemetry_sdk::trace::Span>);

/// Sends spans to a collector from now on, if there is one. Within a tokio runtime, which sends them.
/// Headers, as of a collector that wants a token, are `OTEL_EXPORTER_OTLP_HEADERS`.
///
/// # Errors
/// As [`Traces::validate`], and if the endpoint is no address or the authorities cannot be read.
pub fn start(traces: &Traces, service: &'static str) -> Result<(), ConfigError> {
    traces.validate()?;
    let Some(endpoint) = &traces.endpoint else { return Ok(()) };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_channel(channel(endpoint, traces.ca.as_deref())?)
        .with_timeout(EXPORT_TIMEOUT)
        .build()
        .map_err(|error| no_endpoint(endpoint, &format!(": {error}")))?;
    let sending = BatchConfigBuilder::default()
        .with_max_queue_size(WAITING_SPANS)
        .with_max_export_batch_size(SENT_SPANS)
        .with_scheduled_delay(SEND_EVERY)
        .build();
    let processor = BatchSpanProcessor::builder(exporter).with_batch_config(sending).build();
    let provider = SdkTracerProvider::builder()
        .with_span_processor(processor)
        .with_max_links_per_span(MAX_LINKS)
        .with_sampler(Sampling(Sampler::TraceIdRatioBased(traces.ratio)))
        .with_resource(Resource::builder().with_service_name(service).build())
        .build();
    let tracer = provider.tracer("stillhouse");
    // Started twice, the first goes on.
    drop(TRACER.set((provider, tracer)));
    Ok(())
}

/// A connection that is made when it is needed, and given up when it is silent.
#[expect(clippy::disallowed_methods, reason = "the exporter's calls have no other deadline")]
fn channel(endpoint: &str, ca: Option<&Path>) -> Result<Channel, ConfigError> {
    let unusable = |error: tonic::transport::Error| {
        let why = error.source().map_or_else(|| error.to_string(), ToString::to_string);
        no_endpoint(endpoint, &format!(": {why}"))
    };
    let mut connection = Endpoint::from_shared(endpoint.to_owned())
        .map_err(unusable)?
        .connect_timeout(EXPORT_TIMEOUT)
        .timeout(EXPORT_TIMEOUT);
    if endpoint.starts_with("https://") {
        let tls = ClientTlsConfig::new().timeout(EXPORT_TIMEOUT);
        let tls = match ca {
            None => tls.with_native_roots(),
            Some(file) => {
                let pem = read_bounded(file).map_err(|error| value("ca", error.to_string()))?;
                // tonic would take a file without one.
                certificates("traces.ca", file, &pem)?;
                tls.ca_certificate(Certificate::from_pem(pem))
            }
        };
        connection = connection.tls_config(tls).map_err(|error| {
            let ca = ca.map_or_else(|| "not set".to_owned(), |file| format!("{file:?}"));
            let why = error.source().map_or_else(String::new, |why| format!(": {why}"));
            let expected = "expected authorities that can be used, there or in the system's store";
            value("ca", format!("is {ca}, {expected}{why}"))
        })?;
    }
    Ok(connection.connect_lazy())
}

/// Sends what has not been sent yet, and ends. Blocks, for some seconds at most.
pub fn stop() {
    let Some((provider, _)) = TRACER.get() else { return };
    // A collector that is gone must not keep a process from its end.
    if let Err(error) = provider.shutdown_with_timeout(EXPORT_TIMEOUT) {
        tracing::warn!(%error, "the last spans may be lost");
    }
}

/// Whether a span is recorded: as its parent; without one, if it is linked to one that is; without
/// these, at a ratio.
#[derive(Clone, Debug)]
struct Sampling(Sampler);

impl ShouldSample for Sampling {
    fn should_sample(
        &self,
        parent: Option<&opentelemetry::Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let parent = parent.map(|parent| parent.span().span_context().clone());
        let sampled = match parent.filter(SpanContext::is_valid) {
            Some(parent) => parent.is_sampled(),
            None if links.is_empty() => {
                return self.0.should_sample(None, trace, name, kind, attributes, links);
            }
            None => true,
        };
        let decision = match sampled {
            true => SamplingDecision::RecordAndSample,
            false => SamplingDecision::Drop,
        };
        let (attributes, trace_state) = (Vec::new(), TraceState::default());
        SamplingResult { decision, attributes, trace_state }
    }
}

impl Context {
    /// Reads a `traceparent`; nothing if it is none, or nothing is recorded here.
    pub fn of(traceparent: &str) -> Self {
        Self(TRACER.get().and_then(|_| parse(traceparent)))
    }

    /// Whether it names nothing.
    pub fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// As `traceparent`; empty if it names nothing.
    pub fn traceparent(&self) -> String {
        let Some(of) = &self.0 else { return String::new() };
        format!("00-{}-{}-{:02x}", of.trace_id(), of.span_id(), of.trace_flags().to_u8())
    }
}

impl Span {
    /// Begins one, within the span that `parent` names, and linked to others. Not recorded if its
    /// parent is not, or if none of the others is.
    pub fn begin<'a>(
        name: &'static str,
        role: Role,
        parent: &Context,
        links: impl IntoIterator<Item = &'a Context>,
    ) -> Self {
        let Some((_, tracer)) = TRACER.get() else { return Self(None) };
        let kind = match role {
            Role::Client => SpanKind::Client,
            Role::Server => SpanKind::Server,
            Role::Internal => SpanKind::Internal,
        };
        let mut others = links.into_iter().peekable();
        let is_linked = others.peek().is_some();
        let links: Vec<Link> = others.filter_map(to_link).collect();
        if parent.is_none() && is_linked && links.is_empty() {
            return Self(None);
        }
        let within = opentelemetry::Context::new();
        let within = match &parent.0 {
            Some(parent) => within.with_remote_span_context(parent.clone()),
            None => within,
        };
        let span = tracer.span_builder(name).with_kind(kind).with_links(links);
        Self(Some(span.start_with_context(tracer, &within)))
    }

    /// Links it to another.
    pub fn link(&mut self, other: &Context) {
        if let (Some(span), Some(link)) = (&mut self.0, to_link(other)) {
            span.add_link(link.span_context, link.attributes);
        }
    }

    /// Notes a number of it.
    pub fn number(&mut self, key: &'static str, value: u64) {
        self.note(key, i64::try_from(value).unwrap_or(i64::MAX));
    }

    /// Notes a word of it.
    pub fn word(&mut self, key: &'static str, value: &str) {
        if self.0.is_some() {
            self.note(key, cut(value.to_owned()));
        }
    }

    fn note(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Notes that what it did failed, and why.
    pub fn failed(&mut self, why: &dyn Display) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(cut(why.to_string())));
        }
    }

    /// Ends it before its scope does.
    pub fn end(self) {}

    /// What names it to others.
    pub fn context(&self) -> Context {
        Context(self.0.as_ref().map(|span| span.span_context().clone()))
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if thread::panicking() {
            self.failed(&"a panic");
        }
    }
}

/// To a span that is recorded.
fn to_link(context: &Context) -> Option<Link> {
    let recorded = context.0.as_ref().filter(|of| of.is_sampled())?;
    Some(Link::new(recorded.clone(), Vec::new(), 0))
}

/// Without what is beyond the most.
fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_WORD_BYTES));
    text
}

/// Of version 00 (section 3.2 of the recommendation).
fn parse(text: &str) -> Option<SpanContext> {
    if text.len() != TRACEPARENT_BYTES || !text.is_ascii() {
        return None;
    }
    let mut parts = text.split('-');
    let (version, trace, span) = (parts.next()?, parts.next()?, parts.next()?);
    let flags = parts.next()?;
    let digits = |part: &str| part.bytes().all(|digit| digit.is_ascii_hexdigit());
    let sizes = [version.len(), trace.len(), span.len(), flags.len()];
    if version != "00" || sizes != [2, 32, 16, 2] || parts.next().is_some() {
        return None;
    }
    if ![trace, span, flags].into_iter().all(digits) {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?),
        true,
        TraceState::default(),
    );
    context.is_valid().then_some(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_or_none() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let context = parse(good).unwrap();
        assert!(context.is_sampled() && context.is_remote());
        assert_eq!(context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(Context(Some(context)).traceparent(), good);
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c8031xx-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
            "00-0af7651916cd43dd8448eb211c80319-cb7ad6b7169203331-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn a_span_is_recorded_as_its_parent_its_links_or_the_ratio_say() {
        let context = |flags: &str| {
            Context(parse(&format!("00-{}-{}-{flags}", "1".repeat(32), "2".repeat(16))))
        };
        let (on, off) = (context("01"), context("00"));
        let sampled = |ratio: f64, parent: Option<&Context>, links: &[&Context]| {
            let links: Vec<Link> = links.iter().copied().filter_map(to_link).collect();
            let parent = parent.and_then(|parent| parent.0.clone());
            let parent =
                parent.map(|of| opentelemetry::Context::new().with_remote_span_context(of));
            let sampling = Sampling(Sampler::TraceIdRatioBased(ratio));
            let (trace, kind) = (TraceId::from(7_u128), SpanKind::Internal);
            let result = sampling.should_sample(parent.as_ref(), trace, "x", &kind, &[], &links);
            result.decision == SamplingDecision::RecordAndSample
        };
        assert!(sampled(1.0, None, &[]) && !sampled(0.0, None, &[]));
        assert!(sampled(0.0, Some(&on), &[]) && !sampled(1.0, Some(&off), &[&on]));
        assert!(sampled(0.0, None, &[&off, &on]));
    }

    #[test]
    fn long_words_are_cut_between_characters() {
        assert_eq!(cut("short".to_owned()), "short");
        assert_eq!(cut("ab".repeat(9999)).len(), MAX_WORD_BYTES);
        assert_eq!(cut(format!("a{}", "\u{20ac}".repeat(9999))).len(), 1 + 3 * 341);
    }

    #[tokio::test]
    async fn authorities_that_are_none_are_named() {
        let at = |ca: Option<&Path>| channel("https://collector:4317", ca);
        let error = at(Some(Path::new("/nowhere/ca.crt"))).unwrap_err().to_string();
        assert!(error.starts_with("traces.ca: ") && error.contains("/nowhere/ca.crt"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        std::fs::write(&file, "no certificate").unwrap();
        let error = at(Some(&file)).unwrap_err().to_string();
        assert!(error.contains("ca.crt: it holds no certificate"), "{error}");
    }
}
