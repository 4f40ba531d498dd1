//! What stands between the network and the service: certificates, the list of clients, the listener for
//! probes.

use std::{sync::Arc, time::Duration};

use stillhouse_runtime::{
    config::ConfigError,
    tls::{ClientCert, Handshakes, ServerTls},
    watched::Watched,
};
use tokio::{net::TcpListener, task::JoinSet};
use tracing::{info, warn};

use super::{StartError, listen};
use crate::{
    access::{self, List},
    metrics as names,
    settings::Settings,
};

/// All of it.
pub(super) struct Guarded {
    pub(super) tls: Option<Arc<Watched<Handshakes>>>,
    pub(super) list: Option<Arc<Watched<List>>>,
    /// Answers for the server's health without either.
    pub(super) health: Option<TcpListener>,
}

impl Guarded {
    pub(super) async fn open(settings: &Settings) -> Result<Self, StartError> {
        let tls = settings.tls.as_ref().map(ServerTls::open).transpose()?;
        let list = settings.access_file.clone().map(access::open_list).transpose()?;
        let cert = settings.tls.as_ref().and_then(|tls| tls.client_cert);
        if list.is_none() && cert == Some(ClientCert::Optional) {
            let key = "tls.client_cert".to_owned();
            let reason = "is \"optional\"; must be \"required\", or there must be an access_file: \
                          without one, who shows no certificate could ask for everything"
                .to_owned();
            return Err(ConfigError::Value { key, reason }.into());
        }
        if list.is_some() && tls.is_none() && !settings.listen.ip().is_loopback() {
            warn!("clients are known by tokens, which travel unencrypted without [tls]");
        }
        let knows = list.as_ref().is_some_and(|list| list.current().knows_certificates());
        if knows && settings.tls.as_ref().is_none_or(|tls| tls.client_ca.is_none()) {
            warn!("clients are known by certificates, which nobody shows without tls.client_ca");
        }
        let health = match settings.health_listen {
            Some(address) => {
                let listener = listen("health_listen", address).await?;
                if let Ok(address) = listener.local_addr() {
                    info!(%address, "health");
                }
                Some(listener)
            }
            None => None,
        };
        Ok(Self { tls: tls.map(Arc::new), list: list.map(Arc::new), health })
    }

    /// Looks for changes of the files until dropped.
    pub(super) fn watch(&self, every: Duration) -> JoinSet<()> {
        let mut watching = JoinSet::new();
        if let Some(tls) = &self.tls {
            let told = {
                let tls = Arc::clone(tls);
                move |read: Result<(), ConfigError>| {
                    reloaded("tls", read);
                    expires(&tls);
                }
            };
            expires(tls);
            watching.spawn(Arc::clone(tls).watch(every, told));
        }
        if let Some(list) = &self.list {
            watching.spawn(Arc::clone(list).watch(every, |read| reloaded("access", read)));
        }
        watching
    }
}

fn expires(tls: &Watched<Handshakes>) {
    metrics::gauge!(names::TLS_EXPIRES).set(tls.current().expires.unwrap_or(0) as f64);
}

fn reloaded(file: &'static str, read: Result<(), ConfigError>) {
    let unusable = if read.is_ok() { 0.0 } else { 1.0 };
    metrics::gauge!(names::FILE_UNUSABLE, "file" => file).set(unusable);
    let result = match read {
        Ok(()) => {
            info!(file, "read again");
            "done"
        }
        Err(error) => {
            warn!(file, %error, "what was read again cannot be used; the one before stays");
            "failed"
        }
    };
    metrics::counter!(names::RELOADS, "file" => file, "result" => result).increment(1);
}
