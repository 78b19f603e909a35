//! The worker that is always there: it shows that everything works.

use std::time::Duration;

use serde_json::Value;

use crate::outcome::Outcome;
use crate::queue::Queue;
use crate::task::Task;

/// The queue handler `default` with the worker `test`, as the first system came with. It logs the task's `message`, or
/// the start of data that has none; the data may also ask it to `sleep` so many seconds, and to end with an `outcome`: `done`, `retry`, `hold`, `discard`, `error`, `panic`.
pub fn test_queue() -> Queue {
    Queue::new("default", ()).label("The default queue").worker("test", |_, task: Task<Value>| test(task)).into()
}

async fn test(task: Task<Value>) -> Outcome {
    let text = |key: &str| task.data.get(key).and_then(Value::as_str);
    let message = text("message").map_or_else(|| start_of(&task.data), str::to_owned);
    tracing::info!("{message}");
    if let Some(seconds) = task.data.get("sleep").and_then(Value::as_f64) {
        tokio::time::sleep(Duration::try_from_secs_f64(seconds).unwrap_or_default()).await;
    }
    match text("outcome") {
        Some("retry") => Outcome::retry(),
        Some("hold") => Outcome::hold(message),
        Some("discard") => Outcome::discard(message),
        Some("error") => Outcome::failed(message),
        Some("panic") => panic!("{message}"),
        _ => Outcome::done(),
    }
}

/// The data as JSON, cut where a line of a log would get long.
fn start_of(data: &Value) -> String {
    const MOST: usize = 200;
    let text = data.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
