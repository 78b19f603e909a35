//! What every verb needs: the settings, the screen, standard output.

use std::sync::Arc;

use anyqueue::core::{Admin, Broker, Error, QueueName};
use anyqueue::settings::QueueSettings;
use anyqueue::{Queue, Queues, Settings};

use crate::QueueRunner;
use crate::args::CommandLine;
use crate::failure::{Failure, Result, report};
use crate::out::Out;
use crate::screen::Screen;

/// What every verb needs.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    pub(crate) settings: Settings,
    /// Whether the settings need not know what is named.
    pub(crate) unchecked: bool,
    pub(crate) screen: Screen,
    pub(crate) out: &'a mut Out,
    /// Workers in Rust.
    pub(crate) handlers: Vec<Queue>,
}

impl Context<'_> {
    /// Connects lazily: a broker is asked when it is needed.
    pub(crate) async fn connect(&self) -> Result<Queues> {
        Ok(Queues::connect(self.settings.clone()).await?)
    }

    /// One queue's settings, and its broker, connected. A queue that is not there yet is set up where that is allowed,
    /// so that it can be looked at or paused before its first task.
    pub(crate) async fn open(&self, name: &str) -> Result<Opened> {
        let settings = self.queue(name)?.clone();
        let queues = self.connect().await?;
        let broker = queues.broker(&settings.name).await?;
        broker.declare(&settings.name).await?;
        Ok(Opened { settings, broker, queues })
    }

    /// Says what went wrong without ending; in its place among the other lines.
    pub(crate) fn complain(&mut self, text: &str) {
        self.out.flush();
        self.screen.above(|| report(text));
    }

    /// Takes a queue that the settings do not know: it has what `[defaults]` say.
    pub(crate) fn adopt(&mut self, name: &str) -> Result<()> {
        let queue = self.settings.queue_or_default(name)?;
        self.settings.queues.insert(queue.name.clone(), queue);
        Ok(())
    }

    /// A queue of the settings.
    fn queue(&self, name: &str) -> Result<&QueueSettings, Error> {
        let hint = |e: Error| Error::new(e.kind(), format!("{}; --unchecked takes it all the same", e.message()));
        self.settings.queue(name).map_err(|e| if QueueName::new(name).is_ok() { hint(e) } else { e })
    }

    /// The named queues, or all.
    pub(crate) fn chosen(&self, names: &[String]) -> Result<Vec<QueueName>> {
        if names.is_empty() {
            return Ok(self.settings.queues.keys().cloned().collect());
        }
        names.iter().map(|name| Ok(self.queue(name)?.name.clone())).collect()
    }
}

/// One queue, with its broker.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) settings: QueueSettings,
    broker: Arc<dyn Broker>,
    /// Kept, since the broker works on its threads.
    queues: Queues,
}

impl Opened {
    /// The operator's verbs.
    pub(crate) fn admin(&self) -> &dyn Admin {
        self.broker.admin()
    }

    /// The queue's name.
    pub(crate) fn name(&self) -> &QueueName {
        &self.settings.name
    }

    pub(crate) async fn close(&self) -> Result<()> {
        Ok(self.queues.close().await?)
    }
}

/// Loads the settings with what the command line says over them.
pub(crate) fn settings(line: &CommandLine, program: &QueueRunner) -> Result<Settings> {
    let mut builder = Settings::builder().drivers(program.drivers.clone());
    if let Some(file) = &line.global.config {
        builder = builder.file(file);
    }
    if let Some(broker) = &line.global.broker {
        builder = builder.broker(broker);
    }
    let work = &line.work;
    let flags = [
        ("runner.slots", work.slots.map(|slots| slots.to_string())),
        ("runner.max_tasks", work.limit.map(|tasks| tasks.to_string())),
        ("runner.max_time", work.max_time.map(|time| time.as_secs_f64().to_string())),
        ("runner.memory_limit", work.memory_limit.clone()),
    ];
    for (key, value) in flags {
        if let Some(value) = value {
            builder = builder.flag(key, value);
        }
    }
    builder = program.handlers.iter().fold(builder, |builder, handler| builder.handler(handler));
    builder.load().map_err(|e| match e.message().lines().all(|line| line.starts_with("command line: ")) {
        true => Failure::usage(e.message()),
        false => e.into(),
    })
}
