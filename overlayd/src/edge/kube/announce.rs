//! Writes what our own Node should say, when it does not say it.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Patch, PatchParams};
use kube::core::Request;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use super::connect::Connection;
use super::follow::NODES;
use super::words::{ANNOUNCING, explain, stalled};
use crate::core::backoff::Backoff;
use crate::core::cluster::Announcement;

/// How long a write may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a write is given to come back as a change of the Node before it is tried again, and how long it must be
/// quiet for the next write to go out at once.
const QUIET: Duration = Duration::from_secs(60);

/// Writes each wish, and tells what came of it. Wishes that follow one another quickly (somebody else writes the
/// opposite) are written ever more slowly. Ends when nobody wishes any more.
pub(super) async fn write(
    mut wishes: watch::Receiver<Option<Announcement>>,
    mut connection: watch::Receiver<Option<Connection>>,
    identity: String,
    results: mpsc::Sender<Result<(), String>>,
) {
    let mut backoff = Backoff::default();
    let mut written: Option<Instant> = None;
    loop {
        let wish = wishes.borrow_and_update().clone();
        let Some(wish) = wish else {
            if wishes.changed().await.is_err() {
                return;
            }
            continue;
        };
        let connected = connection.borrow_and_update().clone();
        let Some(Connection { client, server }) = connected else {
            if connection.changed().await.is_err() {
                return;
            }
            continue;
        };
        if written.is_some_and(|at| at.elapsed() >= QUIET) {
            backoff.succeeded();
        }
        let result = match timeout(LIMIT, patch(&client, &wish)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(explain(&error, &server, &identity, ANNOUNCING)),
            Err(_) => Err(stalled(&server, "our own Node cannot be written")),
        };
        written = Some(Instant::now());
        let pause = backoff.failed(fastrand::f64());
        let succeeded = result.is_ok();
        let _ = results.try_send(result);
        sleep(pause).await;
        if succeeded {
            // The change comes back by the watch and takes the wish away.
            match timeout(QUIET, wishes.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                Ok(Err(_)) => return,
            }
        }
    }
}

async fn patch(client: &Client, wish: &Announcement) -> Result<(), kube::Error> {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let params = PatchParams { field_manager: Some("overlayd".to_owned()), ..PatchParams::default() };
    // By the status alone: its writer may set annotations too, and needs no right to change what a Node is.
    let request = Request::new(NODES)
        .patch_subresource("status", &wish.node, &params, &Patch::Strategic(wish.patch(&now)))
        .map_err(kube::Error::BuildRequest)?;
    client.request_text(request).await.map(drop)
}
