//! iperf3 in both directions at once, ten seconds at a time.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use ztseg_tests::policies::ALLOWED;
use ztseg_tests::process::{Place, Process};

/// Of each direction: enough to be always on the way, and not all that two processors can do.
const RATE: &str = "500M";
const SECONDS: u64 = 10;
const PATIENCE: Duration = Duration::from_secs(SECONDS + 30);

/// What came through.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Throughput {
    /// Bytes that the client sent and received.
    pub(crate) bytes: [f64; 2],
    pub(crate) seconds: f64,
    pub(crate) retransmits: u64,
    /// How many connections of the client stood till their end.
    pub(crate) runs: u64,
}

/// A client that goes on, and its server.
#[derive(Debug)]
pub(crate) struct Iperf {
    _server: Process,
    stop: Arc<AtomicBool>,
    client: JoinHandle<Result<Throughput>>,
}

impl Iperf {
    /// Starts a server at an address of `server`, and a client at `client`.
    pub(crate) fn start(server: &Place, at: IpAddr, client: &Place) -> Result<Self> {
        let (at, port) = (at.to_string(), ALLOWED.to_string());
        let mut listening = server
            .spawn("iperf3", &["--server", "--forceflush", "--bind", &at, "--port", &port])?;
        listening.wait_for_output("Server listening", Duration::from_secs(20))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (Arc::clone(&stop), client.clone());
        let client = thread::spawn(move || {
            let mut all = Throughput::default();
            while !stopped.load(Ordering::Relaxed) {
                run(&client, &at, &port, &mut all)?;
            }
            Ok(all)
        });
        Ok(Self { _server: listening, stop, client })
    }

    /// Ends it after the current ten seconds.
    pub(crate) fn finish(self) -> Result<Throughput> {
        self.stop.store(true, Ordering::Relaxed);
        self.client.join().map_err(|_| anyhow::anyhow!("the client's thread panicked"))?
    }
}

fn run(client: &Place, at: &str, port: &str, all: &mut Throughput) -> Result<()> {
    let time = SECONDS.to_string();
    let args =
        ["--client", at, "--port", port, "--bidir", "--bitrate", RATE, "--time", &time, "-J"];
    let (status, out, err) = client.spawn("iperf3", &args)?.wait(PATIENCE)?;
    let report: Value = serde_json::from_str(&out).with_context(|| format!("{out}\n{err}"))?;
    ensure!(status.success(), "iperf3 to {at}: {} {err}", report["error"]);
    let end = &report["end"];
    let number = |sum: &str, field: &str| end[sum][field].as_f64().unwrap_or_default();
    all.bytes[0] += number("sum_received", "bytes");
    all.bytes[1] += number("sum_received_bidir_reverse", "bytes");
    all.seconds += number("sum_received", "seconds");
    for sum in ["sum_sent", "sum_sent_bidir_reverse"] {
        all.retransmits += end[sum]["retransmits"].as_u64().unwrap_or_default();
    }
    all.runs += 1;
    Ok(())
}
