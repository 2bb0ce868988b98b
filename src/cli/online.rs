//! `larder check-config --online`: asks every upstream of the configuration, all at once, and tells in a few lines each what
//! was found and what to change. `words` makes the lines.

mod advice;
mod words;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::config::{Config, UpstreamConfig};
use crate::exit::ExitError;
use crate::metrics::Metrics;
use crate::rng::Rng;
use crate::upstream::connect::{Connect, Network, TcpConnect};
use crate::upstream::{Questions, Upstream};

/// For all questions to one upstream.
const DEADLINE: Duration = Duration::from_secs(25);

/// What was found.
#[derive(Debug)]
pub struct Checked {
    /// A block for each upstream, in order.
    pub text: String,
    /// How many were asked.
    pub upstreams: usize,
    /// Those that do not work as they are configured.
    pub failing: Vec<String>,
}

impl Checked {
    /// Succeeds when all that is configured works.
    ///
    /// # Errors
    /// With the names of the upstreams that do not.
    pub fn verdict(&self) -> Result<(), ExitError> {
        match self.failing.len() {
            0 => Ok(()),
            failing => {
                let names = self.failing.join(", ");
                let does = if failing == 1 { "does" } else { "do" };
                Err(ExitError::Failed(format!("{failing} of {} upstreams {does} not work as configured: {names}", self.upstreams)))
            }
        }
    }
}

/// From this machine, as the daemon would ask.
///
/// # Errors
/// When an upstream's files cannot be used, as `serve` would not start.
pub fn run(config: &Config) -> Result<Checked, ExitError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ExitError::Failed(format!("cannot start the runtime: {error}")))?;
    let checked = runtime.block_on(check(config, Arc::new(TcpConnect), Arc::new(Rng::from_entropy())));
    // A resolver that never answers must not keep the command from ending.
    runtime.shutdown_background();
    checked
}

/// Asks all upstreams at once.
///
/// # Errors
/// When an upstream's files cannot be used.
pub async fn check(config: &Config, connect: Arc<dyn Connect>, rng: Arc<Rng>) -> Result<Checked, ExitError> {
    let metrics = Arc::new(Metrics::new(config.upstreams.keys()));
    let network = Network::new(connect);
    let mut asking = JoinSet::new();
    let questions = Questions::new(config.limits.questions, config.limits.questions_per_upstream);
    for (place, upstream) in config.upstreams.values().enumerate() {
        let client = Upstream::new(upstream, &network, Arc::clone(&questions), &metrics, Arc::clone(&rng))
            .map_err(|error| ExitError::Usage(format!("upstreams.{}: {error}", upstream.name)))?;
        asking.spawn(async move { (place, client.probe(Instant::now() + DEADLINE).await) });
    }
    let mut found = asking.join_all().await;
    found.sort_by_key(|(place, _)| *place);
    let blocks: Vec<_> =
        config.upstreams.values().zip(&found).map(|(upstream, (_, reports))| (upstream, words::block(upstream, reports))).collect();
    let failing = |(upstream, block): &(&UpstreamConfig, words::Block)| (!block.works).then(|| upstream.name.clone());
    let text = blocks.iter().map(|(_, block)| block.to_string()).collect::<Vec<_>>().join("\n");
    Ok(Checked { text, upstreams: blocks.len(), failing: blocks.iter().filter_map(failing).collect() })
}
