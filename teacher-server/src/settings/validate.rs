//! What settings must be, beyond their types. Checked before anything is opened.

use stillhouse_batcher::{MAX_WEIGHT, MAX_WEIGHTED_CLIENTS};
use stillhouse_proto::limits::MAX_MEMBERS;
use stillhouse_runtime::config::ConfigError;

use super::{Batching, ClientSettings, Limits, MAX_TEMPERATURES, Settings};

impl Settings {
    /// Checks every value against its range.
    ///
    /// # Errors
    /// Names the first key that is out of range, its value and the range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.model.is_empty() || self.model.iter().any(|folder| folder.as_os_str().is_empty()) {
            return Err(out_of_range("model", "none", "a folder (--model DIR)"));
        }
        if self.model.len() > MAX_MEMBERS {
            let found = format_args!("a list of {}", self.model.len());
            return Err(out_of_range("model", found, format_args!("1 to {MAX_MEMBERS} folders")));
        }
        if self.name.len() > 256 {
            let found = format_args!("{} bytes long", self.name.len());
            return Err(out_of_range("name", found, "at most 256 bytes"));
        }
        let Limits {
            max_rows,
            max_tokens,
            max_message_bytes,
            max_temperatures,
            max_stream_in_flight,
            max_connections,
            max_host_connections,
            max_connection_streams,
            max_connection_age_seconds: age,
            connection_grace_seconds: grace,
            held_bytes,
            client_held_bytes,
        } = self.limits;
        let Batching {
            max_batch_rows,
            max_queue_rows,
            max_client_rows,
            max_batch_tokens,
            max_queue_tokens,
            max_client_tokens,
            max_clients,
            ..
        } = self.batching;
        let most = u32::MAX;
        let counts = [
            ("batching.max_batch_rows", max_batch_rows, 1, most),
            ("limits.max_rows", max_rows, 1, max_batch_rows),
            ("batching.max_queue_rows", max_queue_rows, max_batch_rows, most),
            ("batching.max_client_rows", max_client_rows, max_batch_rows, most),
            ("batching.max_batch_tokens", max_batch_tokens, 1, most),
            ("limits.max_tokens", max_tokens, 1, max_batch_tokens),
            ("batching.max_queue_tokens", max_queue_tokens, max_batch_tokens, most),
            ("batching.max_client_tokens", max_client_tokens, max_batch_tokens, most),
            ("batching.max_clients", max_clients, 1, 1 << 20),
            ("limits.max_message_bytes", max_message_bytes, 1 << 16, i32::MAX as u32),
            ("limits.max_temperatures", max_temperatures, 1, MAX_TEMPERATURES),
            ("limits.max_stream_in_flight", max_stream_in_flight, 1, 1 << 16),
            ("limits.max_connections", max_connections, 1, 1 << 20),
            ("limits.max_host_connections", max_host_connections, 1, most),
            ("limits.max_connection_streams", max_connection_streams, 1, 1 << 16),
        ];
        let counts = counts.map(|(key, value, least, most)| {
            (key, u64::from(value), u64::from(least), u64::from(most))
        });
        let bytes = [
            ("limits.held_bytes", held_bytes, 1 << 20, 1 << 50),
            ("limits.client_held_bytes", client_held_bytes, 1 << 20, held_bytes),
            ("cache.memory_bytes", self.cache.memory_bytes, 0, 1 << 50),
            ("cache.disk_bytes", self.cache.disk_bytes, 1 << 24, 1 << 50),
        ];
        for (key, value, least, most) in counts.into_iter().chain(bytes) {
            if !(least..=most).contains(&value) {
                return Err(out_of_range(key, value, format_args!("{least} to {most}")));
            }
        }
        let target = self.batching.target_latency_ms;
        let least = f64::from(self.batching.max_wait_us) * 2e-3;
        if target != 0.0 && !(least.max(0.1)..=3.6e6).contains(&target) {
            let range = format_args!("0, or {} to 3600000", least.max(0.1));
            return Err(out_of_range("batching.target_latency_ms", target, range));
        }
        let is_page = |peer: &str| {
            let uri = peer.parse::<http::Uri>().ok();
            let known = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https"));
            uri.is_some_and(|uri| known(&uri) && uri.host().is_some_and(|host| !host.is_empty()))
        };
        if let Some(peer) = self.status_peers.iter().find(|peer| !is_page(peer)) {
            let found = format_args!("{peer:?}");
            return Err(out_of_range("status_peers", found, "addresses such as http://HOST:PORT"));
        }
        if !(0.05..=3600.0).contains(&self.reload_seconds) {
            return Err(out_of_range("reload_seconds", self.reload_seconds, "0.05 to 3600"));
        }
        if self.clients.len() > MAX_WEIGHTED_CLIENTS {
            let range = format_args!("at most {MAX_WEIGHTED_CLIENTS} clients");
            return Err(out_of_range("clients", self.clients.len(), range));
        }
        if self.cache.disk_dir.as_ref().is_some_and(|folder| folder.as_os_str().is_empty()) {
            return Err(out_of_range("cache.disk_dir", "empty", "a folder, or absent"));
        }
        for (name, client) in &self.clients {
            client.validate(name)?;
        }
        if age != 0.0 && !(1.0..=1e9).contains(&age) {
            let key = "limits.max_connection_age_seconds";
            return Err(out_of_range(key, age, "0 or 1 to 1000000000"));
        }
        if !(grace > 0.0 && grace <= 3600.0) {
            let key = "limits.connection_grace_seconds";
            return Err(out_of_range(key, grace, "above 0, at most 3600"));
        }
        let limit = self.drain.limit_seconds;
        if !(limit > 0.0 && limit <= 3600.0) {
            return Err(out_of_range("drain.limit_seconds", limit, "above 0, at most 3600"));
        }
        self.traces.validate()
    }
}

impl ClientSettings {
    fn validate(&self, name: &str) -> Result<(), ConfigError> {
        let key = |field: &str| format!("clients.{name}.{field}");
        if !(1..=MAX_WEIGHT).contains(&self.weight) {
            let range = format_args!("1 to {MAX_WEIGHT}");
            return Err(out_of_range(&key("weight"), self.weight, range));
        }
        for (field, rate, most) in [
            ("requests_per_second", self.requests_per_second, 1e9),
            ("rows_per_second", self.rows_per_second, 1e12),
        ] {
            if !(0.0..=most).contains(&rate) {
                return Err(out_of_range(&key(field), rate, format_args!("0 to {most}")));
            }
        }
        Ok(())
    }
}

fn out_of_range(
    key: &str,
    value: impl std::fmt::Display,
    range: impl std::fmt::Display,
) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), reason: format!("is {value}; must be {range}") }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use stillhouse_runtime::config;

    use super::*;
    use crate::ensemble::Rule;

    fn read(text: &str) -> Result<Settings, ConfigError> {
        let settings: Settings = config::read(text.parse().unwrap())?;
        settings.validate()?;
        Ok(settings)
    }

    #[test]
    fn defaults_are_valid_and_survive_a_round_trip() {
        let settings = Settings::embedded("m");
        settings.validate().unwrap();
        assert_eq!(read(&toml::to_string(&settings).unwrap()).unwrap(), settings);
    }

    #[test]
    fn a_model_is_a_folder_or_a_list_of_them() {
        let models = |text: &str| read(text).unwrap().model;
        assert_eq!(models("model = 'a'"), [PathBuf::from("a")]);
        assert_eq!(models("model = ['a']"), [PathBuf::from("a")]);
        let several = read("model = ['b', 'a']\nensemble = 'geometric'").unwrap();
        assert_eq!(several.model, ["b", "a"].map(PathBuf::from), "in that order");
        assert_eq!(several.ensemble, Rule::Geometric);
        assert_eq!(read(&toml::to_string(&several).unwrap()).unwrap(), several);
        assert!(toml::to_string(&Settings::embedded("m")).unwrap().contains("model = \"m\"\n"));
    }

    #[test]
    fn a_value_out_of_range_is_named_with_its_range() {
        for (text, expected) in [
            ("", "model: is none"),
            ("model = []", "model: is none"),
            ("model = ['a', '']", "model: is none"),
            ("model = 3", "model: invalid type: integer `3`, expected a folder or a list of"),
            ("model = ['a', 3]", "model"),
            ("model='m'\nensemble = 'mean'", "ensemble: unknown variant `mean`, expected `arith"),
            ("model='m'\n[limits]\nmax_rows = 0", "limits.max_rows: is 0; must be 1 to 1024"),
            ("model='m'\n[limits]\nmax_rows = 2000", "limits.max_rows: is 2000; must be 1 to 1024"),
            ("model='m'\n[limits]\nmax_temperatures = 9", "is 9; must be 1 to 8"),
            ("model='m'\n[batching]\nmax_queue_rows = 10", "is 10; must be 1024 to"),
            ("model='m'\n[limits]\nheld_bytes = 9", "is 9; must be 1048576 to"),
            (
                "model='m'\n[limits]\nheld_bytes = 2097152\nclient_held_bytes = 2097153",
                "limits.client_held_bytes: is 2097153; must be 1048576 to 2097152",
            ),
            (
                "model='m'\n[batching]\nmax_wait_us = 2000\ntarget_latency_ms = 3",
                "batching.target_latency_ms: is 3; must be 0, or 4 to 3600000",
            ),
            ("model='m'\n[clients.a]\npriority = 'top'", "clients.a.priority: unknown variant"),
            ("model='m'\nstatus_peers = ['http://']", "status_peers: is \"http://\"; must be addr"),
            ("model='m'\nreload_seconds = 0", "reload_seconds: is 0; must be 0.05 to 3600"),
            ("model='m'\n[tls]\ncert = 'a'", "tls: missing field `key`"),
            ("model='m'\n[limits]\nmax_connections = 0", "is 0; must be 1 to 1048576"),
            ("model='m'\n[limits]\nmax_host_connections = 0", "is 0; must be 1 to 4294967295"),
            ("model='m'\n[cache]\ndisk_bytes = 9", "cache.disk_bytes: is 9; must be 16777216 to"),
            ("model='m'\n[limits]\nmax_connection_age_seconds = 0.5", "is 0.5; must be 0 or 1 to"),
            ("model='m'\n[limits]\nconnection_grace_seconds = 0", "is 0; must be above 0"),
            ("model='m'\n[clients.a]\nweight = 0", "clients.a.weight: is 0; must be 1 to 65536"),
            (
                "model='m'\n[clients.b]\nrows_per_second = -1",
                "clients.b.rows_per_second: is -1; must be 0 to 1000000000000",
            ),
            ("model='m'\n[clients.c]\nrow = 1", "clients.c.row"),
            ("model='m'\n[drain]\nlimit_seconds = 0", "is 0; must be above 0"),
            ("model='m'\n[drain]\nlimit_seconds = nan", "is NaN; must be above 0"),
            ("model='m'\ndevice = 'tpu'", "device: unknown variant `tpu`"),
            ("model='m'\nlisten = 'here'", "listen: invalid socket address"),
            ("model='m'\n[limits]\nmax_row = 1", "did you mean `limits.max_rows`?"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text:?} gave {error:?}");
        }
        let mut many = Settings { model: vec!["m".into(); 64], ..Settings::default() };
        many.validate().unwrap();
        many.model.push("m".into());
        let error = many.validate().unwrap_err().to_string();
        assert_eq!(error, "model: is a list of 65; must be 1 to 64 folders");
    }
}
