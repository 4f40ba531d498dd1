//! The HTTP listener that metrics are scraped from: `GET /metrics`.

use std::{io, net::SocketAddr};

use axum::{Router, http::header, routing::get};
use tokio::net::TcpListener;

use crate::telemetry::Metrics;

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
    pub async fn serve(self, metrics: Metrics) -> io::Result<()> {
        let scrape = move || {
            let text = metrics.render();
            async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text) }
        };
        axum::serve(self.listener, Router::new().route("/metrics", get(scrape))).await
    }
}
