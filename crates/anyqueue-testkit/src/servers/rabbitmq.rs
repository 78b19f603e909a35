//! A RabbitMQ node with its own epmd, both on 127.0.0.1 only.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyqueue_core::{BoxError, async_trait};

use crate::port::free_port;
use crate::server::{Launch, Process, Ready, Server};

/// A node and the port mapper that it needs. A start takes six seconds or more and 150 MB: share it where that is possible.
#[derive(Debug)]
pub struct Node {
    node: Process,
    /// Ends after the node. The nodes of a cluster share it.
    epmd: Arc<Process>,
}

/// Where the server's scripts are, unless `ANYQUEUE_TEST_RABBITMQ_SCRIPTS` names those of another release: the ones on the path
/// become another user.
const SCRIPTS: &str = "/usr/lib/rabbitmq/bin";

fn scripts() -> String {
    std::env::var("ANYQUEUE_TEST_RABBITMQ_SCRIPTS").unwrap_or_else(|_| SCRIPTS.into())
}

/// Six seconds are enough on a machine that does nothing else; on one with ten times the work, a minute is not.
const PATIENCE: Duration = Duration::from_secs(120);

/// Starts a node in a folder of its own, on a free port of this machine. What follows in `settings` are lines of
/// `rabbitmq.conf`: `["consumer_timeout = 7200000"]`, say.
///
/// # Errors
/// If RabbitMQ is not installed, or does not become ready; its output is in the text.
pub async fn start<T: AsRef<str>>(settings: impl IntoIterator<Item = T>) -> Result<Node, BoxError> {
    start_with("", settings).await
}

/// Starts a node with plugins, separated by commas: `rabbitmq_management`, say. Their ports are for `settings` to say.
///
/// # Errors
/// As [`start`].
pub async fn start_with<T: AsRef<str>>(plugins: &str, settings: impl IntoIterator<Item = T>) -> Result<Node, BoxError> {
    start_beside(mapper().await?, plugins, settings).await
}

/// Starts so many nodes as one cluster. Its queues have replicas on up to three of them.
///
/// # Errors
/// As [`start`], or if they do not come together.
pub async fn start_cluster(nodes: usize) -> Result<Vec<Node>, BoxError> {
    let (epmd, mut all) = (mapper().await?, Vec::<Node>::new());
    for _ in 0..nodes {
        let node = start_beside(epmd.clone(), "", [""; 0]).await?;
        if let Some(first) = all.first() {
            node.control(&["stop_app"]).await?;
            node.control(&["join_cluster", &first.name()]).await?;
            node.control(&["start_app"]).await?;
        }
        all.push(node);
    }
    Ok(all)
}

/// A port mapper. Started by hand: else a node starts one of its own, which outlives it.
async fn mapper() -> Result<Arc<Process>, BoxError> {
    Ok(Arc::new(Process::start(Launch::new("epmd").args(["-port", "{port}", "-address", "127.0.0.1"])).await?))
}

async fn start_beside<T: AsRef<str>>(
    epmd: Arc<Process>,
    plugins: &str,
    settings: impl IntoIterator<Item = T>,
) -> Result<Node, BoxError> {
    let mut conf = String::from("log.console = true\nlog.file = false\ndisk_free_limit.absolute = 50MB\n");
    // The log of quorum queues is kept in memory up to this size.
    conf.push_str("raft.wal_max_size_bytes = 33554432\n");
    for line in settings {
        conf.push_str(line.as_ref());
        conf.push('\n');
    }
    let distribution = free_port()?.to_string();
    let port_of_epmd = epmd.address().port().to_string();
    let mut launch = Launch::new("sh")
        .args(["-c", PREPARE, "sh", &conf, plugins, &port_of_epmd])
        .ready(Ready::Output("Server startup complete".into()))
        .patience(PATIENCE);
    for (name, value) in [
        ("HOME", "{dir}/home"),
        ("RABBITMQ_SCRIPTS", &scripts()),
        ("RABBITMQ_CONF_ENV_FILE", "/dev/null"),
        ("RABBITMQ_NODENAME", "anyqueue{port}@localhost"),
        ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1"),
        ("RABBITMQ_NODE_PORT", "{port}"),
        ("RABBITMQ_DIST_PORT", &distribution),
        ("RABBITMQ_MNESIA_BASE", "{dir}/mnesia"),
        ("RABBITMQ_LOG_BASE", "{dir}/logs"),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", "{dir}/enabled_plugins"),
        ("RABBITMQ_CONFIG_FILE", "{dir}/rabbitmq.conf"),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", "{dir}/advanced.config"),
        ("RABBITMQ_PID_FILE", "{dir}/pid"),
        ("RABBITMQ_GENERATED_CONFIG_DIR", "{dir}/conf"),
        ("RABBITMQ_FEATURE_FLAGS_FILE", "{dir}/feature_flags"),
        ("ERL_EPMD_PORT", &port_of_epmd),
        ("ERL_EPMD_ADDRESS", "127.0.0.1"),
        ("ERL_CRASH_DUMP", "/dev/null"),
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}"),
        // The script then becomes the node, so that it is the one that is killed.
        ("detached", "1"),
    ] {
        launch = launch.env(name, value);
    }
    Ok(Node { node: Process::start(launch).await?, epmd })
}

/// Makes the node's folders at its first start, then becomes the node. A quorum queue that cannot pass on a message, since the
/// next queue is not up yet after a restart, tries again after this long; its default are three minutes.
const PREPARE: &str = "mkdir -p home mnesia logs conf
[ -f home/.erlang.cookie ] || { echo cookie$3 > home/.erlang.cookie; chmod 400 home/.erlang.cookie; }
[ -f enabled_plugins ] || echo \"[$2].\" > enabled_plugins
printf %s \"$1\" > rabbitmq.conf
echo '[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 3000}]}].' > advanced.config
exec \"$RABBITMQ_SCRIPTS/rabbitmq-server\"";

impl Node {
    /// Its name in a cluster.
    fn name(&self) -> String {
        format!("anyqueue{}@localhost", self.address().port())
    }

    /// Its folder, which it keeps through restarts.
    pub fn folder(&self) -> PathBuf {
        self.node.folder().to_owned()
    }

    /// Runs `rabbitmqctl` with these arguments on this node.
    ///
    /// # Errors
    /// What it said, if it failed.
    pub async fn control(&self, arguments: &[&str]) -> Result<String, BoxError> {
        let run = tokio::process::Command::new(format!("{}/rabbitmqctl", scripts()))
            .args(["--node", &self.name()])
            .args(arguments)
            .env("HOME", self.folder().join("home"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("ERL_EPMD_PORT", self.epmd.address().port().to_string())
            .stdin(std::process::Stdio::null())
            .output()
            .await?;
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        if run.status.success() { Ok(said) } else { Err(said.into()) }
    }

    /// Its process, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.node.id()
    }

    /// What it has written since its last start.
    pub fn output(&self) -> String {
        self.node.output()
    }
}

#[async_trait]
impl Server for Node {
    fn address(&self) -> SocketAddr {
        self.node.address()
    }

    async fn start(&self) -> Result<(), BoxError> {
        Server::start(&self.node).await
    }

    async fn kill(&self) -> Result<(), BoxError> {
        self.node.kill().await
    }

    async fn stop(&self) -> Result<(), BoxError> {
        self.node.stop().await
    }

    fn pause(&self) -> Result<(), BoxError> {
        self.node.pause()
    }

    fn resume(&self) -> Result<(), BoxError> {
        self.node.resume()
    }
}
