//! The programs' debug lines, when they are asked for: aya-log into `tracing`.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;

const INTERVAL: Duration = Duration::from_millis(100);

/// Starts a task that hands the lines on. Without a runtime there are none.
pub fn start(ebpf: &mut Ebpf) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(e) => {
            tracing::warn!("no debug lines from the kernel programs: {e}");
            return;
        }
    };
    runtime.spawn(async move {
        let mut logger = logger;
        let mut tick = tokio::time::interval(INTERVAL);
        loop {
            tick.tick().await;
            logger.flush();
        }
    });
}
