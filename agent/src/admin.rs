//! The admin port: `/healthz`, `/readyz`, `/metrics` and `/progress`, plain HTTP. The target tells the
//! same to observers of its clone, over their connections.
//!
//! It tells and changes nothing, and carries no content of the volume.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::progress::Progress;

/// Connections at once; one more waits in the kernel's queue. Kubelet, Prometheus, a controller
/// and a person together are far fewer.
const CONNECTIONS_MAX: usize = 16;

/// How long a request's header may take.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may live: a scraper comes back, and a forgotten one makes room.
pub const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);

/// What the admin port tells.
#[derive(Clone, Debug)]
pub struct Admin {
    metrics: Metrics,
    progress: Arc<Progress>,
    ready: Arc<AtomicBool>,
}

impl Admin {
    /// Tells of these metrics and this progress; not ready yet.
    #[must_use]
    pub fn new(metrics: Metrics, progress: Arc<Progress>) -> Self {
        Self {
            metrics,
            progress,
            ready: Arc::new(AtomicBool::new(false)),
        }
    }

    /// The agent does its work now (or no more).
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Serves on `listener` until dropped.
    #[expect(clippy::infinite_loop, reason = "it is said by the type")]
    pub async fn serve(self, listener: TcpListener) -> Infallible {
        let mut connections = JoinSet::new();
        loop {
            while connections.len() >= CONNECTIONS_MAX {
                connections.join_next().await;
            }
            match listener.accept().await {
                Ok((stream, _)) => {
                    let admin = self.clone();
                    connections.spawn(async move { admin.serve_stream(stream).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "the admin port can't accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            while connections.try_join_next().is_some() {}
        }
    }

    /// Answers what is asked on `stream`, until the peer leaves or [`CONNECTION_TIMEOUT`] is over.
    pub async fn serve_stream<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let service = service_fn(|request: Request<Incoming>| {
            let response = self.respond(request.method(), request.uri().path());
            async { Ok::<_, Infallible>(response) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        // An error here is a scraper that went away: its own business.
        let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
    }

    fn respond(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
        const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");
        const JSON: HeaderValue = HeaderValue::from_static("application/json");
        let (status, content_type, body) = match path {
            _ if method != Method::GET && method != Method::HEAD => (
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET\n".to_owned(),
            ),
            "/healthz" => (StatusCode::OK, TEXT, "ok\n".to_owned()),
            "/readyz" if self.ready.load(Ordering::Relaxed) => {
                (StatusCode::OK, TEXT, "ready\n".to_owned())
            }
            "/readyz" => (
                StatusCode::SERVICE_UNAVAILABLE,
                TEXT,
                "not ready\n".to_owned(),
            ),
            "/metrics" => (StatusCode::OK, METRICS, self.metrics.render()),
            "/progress" => {
                let report = serde_json::to_string(&self.progress.report()).unwrap_or_default();
                (StatusCode::OK, JSON, report + "\n")
            }
            _ => (StatusCode::NOT_FOUND, TEXT, "no such page\n".to_owned()),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }
}

/// Binds the admin port.
///
/// # Errors
/// When the address is taken or isn't this machine's.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}
