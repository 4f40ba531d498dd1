//! The HTTP listener that metrics are scraped from, `GET /metrics`, and that shows pages beside them.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{
    Router,
    http::{HeaderMap, HeaderValue, header},
    routing::get,
};
use tokio::net::TcpListener;

use crate::telemetry::Metrics;

/// Something to look at, made whenever it is asked for.
#[derive(Clone)]
pub struct Page {
    /// Where, such as `/`.
    pub path: &'static str,
    /// What it is, such as `text/html; charset=utf-8`.
    pub content_type: &'static str,
    /// Whether pages of other origins may read it.
    pub shared: bool,
    /// Makes it.
    pub body: Arc<dyn Fn() -> String + Send + Sync>,
}

/// A bound listener, not yet served.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
    address: SocketAddr,
}

impl MetricsServer {
    /// Takes the port.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The address, with the port that was chosen where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until the task is dropped.
    ///
    /// # Errors
    /// If the listener fails.
    pub async fn serve(self, metrics: Metrics, pages: Vec<Page>) -> io::Result<()> {
        let scrape = move || {
            let text = metrics.render();
            async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
        };
        let mut router = Router::new().route("/metrics", get(scrape));
        for Page { path, content_type, shared, body } in pages {
            let show = move || {
                let text = body();
                let mut headers = HeaderMap::new();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
                if shared {
                    let any = HeaderValue::from_static("*");
                    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, any);
                }
                async move { (headers, text) }
            };
            router = router.route(path, get(show));
        }
        axum::serve(self.listener, router).await
    }
}
