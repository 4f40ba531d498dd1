//! The HTTP listener that metrics are scraped from, `GET /metrics`, and that shows pages beside them.

use std::{io, net::SocketAddr, sync::Arc};

use axum::{Router, http::header, routing::get};
use tokio::net::TcpListener;

use crate::telemetry::Metrics;

/// Something to look at, made whenever it is asked for.
#[derive(Clone)]
pub struct Page {
    /// Where, such as `/`.
    pub path: &'static str,
    /// What it is, such as `text/html; charset=utf-8`.
    pub content_type: &'static str,
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
        for Page { path, content_type, body } in pages {
            let show = move || {
                let text = body();
                // Read by other replicas' pages; nothing in it is secret.
                let headers = [
                    (header::CONTENT_TYPE, content_type),
                    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
                ];
                async move { (headers, text) }
            };
            router = router.route(path, get(show));
        }
        axum::serve(self.listener, router).await
    }
}
