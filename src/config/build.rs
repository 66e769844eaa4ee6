//! From the values that were chosen to a configuration: what one option alone cannot tell.

use super::kind::Value;
use super::options::Key;
use super::settings::{Origin, Settings};
use super::{Config, ConfigError, READ_AHEAD_POOL_SHARE, buffers_min};
use crate::memory;
use crate::units::format_exact;

impl Settings {
    /// The checked configuration.
    pub fn build(mut self) -> Result<Config, ConfigError> {
        self.size_pool();
        self.round_pool();
        self.check_pool()?;
        self.check_listen()?;
        self.size_read_ahead()?;
        Ok(Config::read(self))
    }

    /// Unless a size was chosen, the pool follows DeepSpeed's buffers where the file has them.
    fn size_pool(&mut self) {
        let Some(offload) = &self.offload else { return };
        let (_, chosen) = self.get(Key::pool_size);
        let is_default =
            matches!(chosen, Origin::BuiltIn | Origin::Defaults(_) | Origin::Variable(_));
        if is_default
            && let Some((bytes, origin)) =
                offload.pool(self.field(Key::block_size), memory::available())
        {
            self.set(Key::pool_size, Value::Size(bytes), origin);
        }
    }

    /// A pool is whole buffers: what is over is left out, and not shown as if it were there.
    fn round_pool(&mut self) {
        let (size, block_size) = self.pool_and_block_size();
        if !size.is_multiple_of(block_size) {
            let (_, origin) = self.get(Key::pool_size);
            self.set(Key::pool_size, Value::Size(size / block_size * block_size), origin);
        }
    }

    fn check_pool(&self) -> Result<(), ConfigError> {
        let (pool_size, block_size) = self.pool_and_block_size();
        let buffers_min = buffers_min(block_size);
        match pool_size / block_size >= buffers_min {
            true => Ok(()),
            false => Err(ConfigError::PoolTooSmall { pool_size, block_size, buffers_min }),
        }
    }

    /// Others are only shown the metrics where that was said.
    fn check_listen(&self) -> Result<(), ConfigError> {
        let address: Option<std::net::SocketAddr> = self.field(Key::metrics_listen);
        match address.filter(|address| !address.ip().is_loopback()) {
            Some(address) if !self.field::<bool>(Key::metrics_public) => Err(ConfigError::Value {
                place: self.get(Key::metrics_listen).1.place("metrics_listen"),
                value: address.to_string(),
                accepted: "a port, or an address of this machine's own as 127.0.0.1:9550; \
                           any with metrics_public"
                    .to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// A read-ahead that nobody chose follows from other options; a chosen one fits the pool.
    fn size_read_ahead(&mut self) -> Result<(), ConfigError> {
        let (pool_size, block_size) = self.pool_and_block_size();
        match self.get(Key::read_ahead) {
            (Some(Value::Size(bytes)), origin) if bytes > pool_size => Err(ConfigError::Value {
                place: origin.place("read_ahead"),
                value: format_exact(bytes),
                accepted: format!("at most the pool_size ({})", format_exact(pool_size)),
            }),
            (Some(_), _) => Ok(()),
            (None, origin) => {
                let wanted = u64::from(self.field::<u32>(Key::queue_depth)) * block_size;
                let bytes = wanted.min(pool_size / READ_AHEAD_POOL_SHARE);
                self.set(Key::read_ahead, Value::Size(bytes), origin);
                Ok(())
            }
        }
    }

    fn pool_and_block_size(&self) -> (u64, u64) {
        (self.field(Key::pool_size), self.field(Key::block_size))
    }
}
