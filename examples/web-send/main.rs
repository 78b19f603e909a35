//! A web handler that answers at once and leaves the work to the queue.
//!
//! ```text
//! cargo run -p anyqueue-examples --bin web-send -- 127.0.0.1:8080
//! curl -d '{"to":"ann@example.com"}' -H 'content-type: application/json' http://127.0.0.1:8080/welcome
//! ```

use anyqueue::{ErrorKind, NewTask, Queues, Sender, Settings};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[derive(Debug, Serialize, Deserialize)]
struct Welcome {
    to: String,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:0".into());
    let queues = Queues::connect(Settings::load()?).await?;
    // A sender is cheap to clone, and requests that come at the same time share one write to the broker.
    let app = Router::new().route("/welcome", post(welcome)).with_state(queues.queue("default")?);
    let listener = TcpListener::bind(address).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    Ok(())
}

async fn welcome(State(queue): State<Sender>, Json(data): Json<Welcome>) -> (StatusCode, Json<Value>) {
    match queue.send(NewTask::new("welcome", &data)).await {
        // 202 Accepted: the broker has it, somebody will do it.
        Ok(sent) => (StatusCode::ACCEPTED, Json(json!({"id": sent.id}))),
        Err(e) if matches!(e.kind(), ErrorKind::TooLarge { .. }) => (StatusCode::PAYLOAD_TOO_LARGE, refusal(&e)),
        // The broker is down and stayed so for as long as `send_timeout` says. The client should try again.
        Err(e) => (StatusCode::SERVICE_UNAVAILABLE, refusal(&e)),
    }
}

fn refusal(error: &anyqueue::Error) -> Json<Value> {
    Json(json!({"error": error.to_string()}))
}
