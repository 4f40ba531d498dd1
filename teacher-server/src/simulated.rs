//! A server without sockets, threads or a clock of its own, for simulated networks: everything from the
//! connection to the batch is what a [`Server`](crate::Server) runs, and the forward pass is run in between
//! by the same task.

use std::{io, sync::Arc, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use crate::{
    access::Access,
    cache::RowCache,
    device,
    ensemble::{Ensemble, Rule},
    output::Layout,
    server::{Parts, StartError, router},
    settings::Settings,
};

/// Between two looks for something to run.
const IDLE: Duration = Duration::from_millis(1);

/// A server that is not served yet.
pub struct Simulated {
    parts: Parts,
    settings: Settings,
}

impl Simulated {
    /// A server of models that are loaded already. Nothing is kept on the disk.
    ///
    /// # Errors
    /// If a setting is out of range.
    pub fn new(settings: Settings, ensemble: Ensemble) -> Result<Self, StartError> {
        settings.validate()?;
        let ensemble = Arc::new(ensemble);
        let mut cache = settings.cache.clone();
        cache.disk_dir = None;
        let cache =
            RowCache::open(&cache, ensemble.fingerprint(Rule::Arithmetic), Layout::of(&ensemble))?;
        let name = ensemble.name();
        let access = Arc::new(Access::new(None, name.clone()));
        let parts = Parts::new(&settings, (name, ensemble), Arc::new(cache), access)?;
        Ok(Self { parts, settings })
    }

    /// Serves connections until dropped. Each batch takes `forward` of the simulation's time.
    ///
    /// # Errors
    /// If the transport fails.
    pub async fn serve<I>(
        self,
        incoming: impl Stream<Item = io::Result<I>> + Send + 'static,
        forward: Duration,
    ) -> Result<(), tonic::transport::Error>
    where
        I: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let core = Arc::clone(&self.parts.core);
        let computing = async {
            loop {
                match self.parts.scheduler.try_batch() {
                    Some(batch) => {
                        tokio::time::sleep(forward).await;
                        let shared = (&*core.cache, &*core.scheduler, &*core.status);
                        device::run(&core.ensemble, shared, batch);
                    }
                    None => tokio::time::sleep(IDLE).await,
                }
            }
        };
        let serving = router(&core, &self.settings, 0.9).serve_with_incoming(incoming);
        tokio::select! {
            served = serving => served,
            () = computing => Ok(()),
        }
    }
}
