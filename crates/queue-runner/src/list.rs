//! `--list`: the queues and their workers.

use serde_json::json;

use crate::context::Context;
use crate::failure::OK;

pub(crate) fn show(context: &mut Context<'_>) -> u8 {
    let queues: Vec<_> = context.settings.queues.values().cloned().collect();
    if context.out.is_json() {
        for queue in &queues {
            let worker = |(task, worker): (&String, &anyqueue::settings::WorkerSettings)| json!({ "task": task, "exec": worker.exec, "elsewhere": queue.elsewhere.contains(task) });
            context.out.object(&json!({
                "queue": queue.name, "label": queue.label, "broker": &*queue.broker, "tasks": queue.tasks(),
                "workers": queue.workers.iter().map(worker).collect::<Vec<_>>(),
            }));
        }
        return OK;
    }
    let mut rows = Vec::new();
    for queue in &queues {
        let task = |task: &str| match queue.elsewhere.iter().any(|name| name == task) {
            true => format!("{task} (elsewhere)"),
            false => task.to_owned(),
        };
        let tasks = queue.tasks().into_iter().map(task).collect::<Vec<_>>().join(", ");
        rows.push(vec![queue.name.to_string(), queue.label.clone(), queue.broker.to_string(), tasks]);
    }
    context.out.table(&["QUEUE", "LABEL", "BROKER", "TASKS"], &rows);
    OK
}
