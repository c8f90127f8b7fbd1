//! `/healthz`, `/readyz` and `/metrics`, plain HTTP, for the kubelet and for Prometheus.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::metrics::Metrics;

/// Connections at once: a kubelet's probes are few.
const CONNECTIONS_MAX: usize = 8;
/// How long a connection may live.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves on `address` until dropped. A controller that waits for its turn to lead is ready: it does
/// what it should. One that leads and never learns what there is is not alive.
///
/// # Errors
/// When the address can't be had.
#[expect(clippy::infinite_loop, reason = "it is said by the type")]
pub async fn serve(address: SocketAddr, metrics: Arc<Metrics>) -> std::io::Result<Infallible> {
    let listener = volferry_transport::listen(address)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            continue;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let metrics = Arc::clone(&metrics);
        tokio::spawn(async move {
            let answer = service_fn(|request: Request<Incoming>| {
                let (status, text) = match (request.uri().path(), metrics.is_lost()) {
                    ("/healthz", Some(since)) => {
                        let text = format!(
                            "leads for {} s and has not learnt what there is: the log says which watch fails\n",
                            since.as_secs()
                        );
                        (StatusCode::SERVICE_UNAVAILABLE, text)
                    }
                    ("/healthz" | "/readyz", _) => (StatusCode::OK, "ok\n".to_owned()),
                    ("/metrics", _) => (StatusCode::OK, metrics.render()),
                    (_, _) => (StatusCode::NOT_FOUND, "no such page\n".to_owned()),
                };
                let mut response = Response::new(Full::new(Bytes::from(text)));
                *response.status_mut() = status;
                std::future::ready(Ok::<_, Infallible>(response))
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), answer);
            let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(place);
        });
    }
}
