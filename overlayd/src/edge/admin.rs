//! Health, readiness, metrics and status over HTTP, on a TCP address and on a unix socket. By the latter, which is root's alone,
//! another daemon also asks this one to hand over.
//!
//! Everything is answered from the [`Board`]: a control loop that hangs cannot make this hang. Status and metrics ask for a
//! new snapshot first; however many ask at once, the loop makes one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::{TcpListener, UnixListener};

use super::board::{Board, HEARTBEAT_LIMIT};
use super::metrics;

/// Name of the unix socket in the run directory.
pub const SOCKET_FILE: &str = "admin.sock";

/// The page that a daemon posts to which takes over.
pub const HAND_OVER: &str = "/hand-over";

/// How long to wait before trying the TCP address again when it is in use.
const BIND_RETRY: Duration = Duration::from_secs(1);

/// The pages.
pub fn router(board: Arc<Board>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics_page))
        .route("/status", get(status))
        .with_state(board)
}

/// Serves on the unix socket until dropped.
pub async fn serve_unix(listener: UnixListener, board: Arc<Board>) {
    let pages = router(Arc::clone(&board));
    let pages = pages.merge(Router::new().route(HAND_OVER, post(hand_over)).with_state(board));
    if let Err(error) = axum::serve(listener, pages).await {
        tracing::error!(%error, "the admin socket ended");
    }
}

/// Serves on the TCP address until dropped. An address in use is told once and tried again: packets matter more.
pub async fn serve_tcp(address: SocketAddr, board: Arc<Board>) {
    let mut told = false;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                told = false;
                tracing::info!(%address, "health, readiness and metrics are served");
                if let Err(error) = axum::serve(listener, router(Arc::clone(&board))).await {
                    tracing::error!(%address, %error, "the admin listener ended");
                }
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%address, %error, "cannot listen on admin_listen, trying again every second");
            }
            Err(_) => {}
        }
        tokio::time::sleep(BIND_RETRY).await;
    }
}

async fn healthz(State(board): State<Arc<Board>>) -> Response {
    match stalled(&board) {
        None => (StatusCode::OK, "ok\n").into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

async fn hand_over(State(board): State<Arc<Board>>) -> StatusCode {
    board.ask_to_hand_over();
    StatusCode::ACCEPTED
}

async fn readyz(State(board): State<Arc<Board>>) -> Response {
    let readiness = board.readiness();
    let reasons: Vec<String> = stalled(&board).into_iter().chain(readiness.reasons.clone()).collect();
    if readiness.ready && reasons.is_empty() {
        return (StatusCode::OK, "ok\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n").into_response()
}

async fn metrics_page(State(board): State<Arc<Board>>) -> Response {
    match metrics::render(&*board.fresh_status().await) {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn status(State(board): State<Arc<Board>>) -> Response {
    match serde_json::to_string_pretty(&*board.fresh_status().await) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

fn stalled(board: &Board) -> Option<String> {
    let age = board.heartbeat_age();
    (age > HEARTBEAT_LIMIT).then(|| format!("the control loop has not moved for {} s", age.as_secs()))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::super::bind_private;
    use super::*;
    use crate::core::status::{PeerStatus, Status};

    async fn get_page(status: Status, page: &str) -> String {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET_FILE);
        let server = tokio::spawn(serve_unix(bind_private(&path).unwrap(), Arc::new(Board::new(status))));
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(format!("GET {page} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        server.abort();
        answer
    }

    #[tokio::test]
    async fn a_ready_daemon_answers_200() {
        let answer = get_page(Status { ready: true, ..Status::default() }, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }

    #[tokio::test]
    async fn an_unready_daemon_answers_503_with_one_reason_a_line() {
        let reasons = vec!["no Node named a".to_owned(), "no device".to_owned()];
        let answer = get_page(Status { not_ready_reasons: reasons, ..Status::default() }, "/readyz").await;
        assert!(answer.starts_with("HTTP/1.0 503"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nno Node named a\nno device\n"), "{answer}");
    }

    #[tokio::test]
    async fn a_living_loop_is_healthy_even_if_not_ready() {
        let answer = get_page(Status::default(), "/healthz").await;
        assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    }

    #[tokio::test]
    async fn status_is_the_json_of_the_snapshot() {
        let status = Status { node: "a".to_owned(), ..Status::default() };
        let answer = get_page(status.clone(), "/status").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(serde_json::from_str::<Status>(body).unwrap(), status);
    }

    #[tokio::test]
    async fn metrics_are_openmetrics() {
        let peer = PeerStatus { name: "b".to_owned(), tx_packets: 7, ..PeerStatus::default() };
        let answer = get_page(Status { peers: vec![peer], ..Status::default() }, "/metrics").await;
        assert!(answer.contains("content-type: application/openmetrics-text"), "{answer}");
        assert!(answer.contains("overlayd_packets_total{direction=\"tx\",peer=\"b\"} 7"), "{answer}");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }
}
