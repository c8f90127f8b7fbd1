//! The admin port: `/healthz`, `/readyz`, `/metrics`, `/progress` and `/bandwidth-limit`, plain HTTP. The target
//! tells the same to observers of its clone, over their connections.
//!
//! It carries no content of the volume. It tells and changes nothing, but for the bandwidth limit: of this agent
//! where it was told to allow that, of the source where an observer asks the target for it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
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
use crate::options::parse_size;
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
    allows_control: Arc<AtomicBool>,
    /// Whether it is an observer of the clone that asks: it showed credentials, where the port has anybody.
    is_for_observers: bool,
}

impl Admin {
    /// Tells of these metrics and this progress; not ready yet.
    #[must_use]
    pub fn new(metrics: Metrics, progress: Arc<Progress>) -> Self {
        Self {
            metrics,
            progress,
            ready: Arc::default(),
            allows_control: Arc::default(),
            is_for_observers: false,
        }
    }

    /// The same for an observer of the clone, at the target.
    #[must_use]
    pub fn for_observers(&self) -> Self {
        Self {
            is_for_observers: true,
            ..self.clone()
        }
    }

    /// The agent does its work now (or no more).
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether whoever reaches the port may change the bandwidth limit; at first nobody may.
    pub fn allow_control(&self, allows: bool) {
        self.allows_control.store(allows, Ordering::Relaxed);
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
            let admin = self.clone();
            async move { Ok::<_, Infallible>(admin.respond(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        // An error here is a scraper that went away: its own business.
        let _ended = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let method = request.method().clone();
        let path = request.uri().path().to_owned();
        let (status, content_type, body) = match (path.as_str(), &method) {
            ("/bandwidth-limit", &Method::PUT) => {
                let (status, text) = self.change_limit(request.into_body()).await;
                (status, TEXT, text)
            }
            (path, &Method::GET | &Method::HEAD) => self.tell(path),
            _ => (
                StatusCode::METHOD_NOT_ALLOWED,
                TEXT,
                "only GET\n".to_owned(),
            ),
        };
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = status;
        response.headers_mut().insert(CONTENT_TYPE, content_type);
        response
    }

    fn tell(&self, path: &str) -> (StatusCode, HeaderValue, String) {
        match path {
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
            "/bandwidth-limit" => {
                let throttle = &self.progress.throttle;
                let limit = match self.is_for_observers {
                    true => throttle.asked(),
                    false => Some(throttle.bytes_per_second()),
                };
                match limit {
                    Some(limit) => (StatusCode::OK, TEXT, format!("{limit}\n")),
                    None => (
                        StatusCode::NOT_FOUND,
                        TEXT,
                        "none was asked for\n".to_owned(),
                    ),
                }
            }
            _ => (StatusCode::NOT_FOUND, TEXT, "no such page\n".to_owned()),
        }
    }

    /// Sets the bandwidth limit to the size that the body says.
    async fn change_limit(&self, body: Incoming) -> (StatusCode, String) {
        if !self.is_for_observers && !self.allows_control.load(Ordering::Relaxed) {
            let text = "the agent was not started with --admin-control\n";
            return (StatusCode::FORBIDDEN, text.to_owned());
        }
        let read = Limited::new(body, LIMIT_TEXT_LEN_MAX).collect().await;
        let bytes = read.map_or_else(|_| Bytes::new(), http_body_util::Collected::to_bytes);
        match parse_size(String::from_utf8_lossy(&bytes).trim()) {
            Ok(limit) => {
                let throttle = &self.progress.throttle;
                if !self.is_for_observers {
                    throttle.set(limit);
                    tracing::info!(bytes_per_second = limit, "the bandwidth limit was changed");
                } else {
                    // The controller says at first that there is none.
                    if limit != throttle.asked().unwrap_or(0) {
                        tracing::info!(
                            bytes_per_second = limit,
                            "an observer asks the source for a bandwidth limit"
                        );
                    }
                    throttle.ask(limit);
                }
                (StatusCode::OK, format!("{limit}\n"))
            }
            Err(error) => (StatusCode::BAD_REQUEST, error + "\n"),
        }
    }
}

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Longer than any size that can be read.
const LIMIT_TEXT_LEN_MAX: usize = 64;

/// Binds the admin port.
///
/// # Errors
/// When the address is taken or isn't this machine's.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    volferry_transport::listen(address)
}
