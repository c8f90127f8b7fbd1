//! Asks a target agent how far it is, and to have its source keep a bandwidth limit: HTTP over mutual TLS,
//! as an observer of its clone.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::request;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use volferry_transport::{Credentials, Dialer, IdentityError, TransportError};

use crate::credentials::ObserverCredentials;
use crate::objects::{CLONE_PORT, at_port};
use crate::world::TargetReport;

/// How long a target may take to answer: a reconcile waits for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// What an answer may hold. A checkpoint has a few KiB, at most some 430.
const ANSWER_LEN_MAX: usize = 1 << 20;

/// Whoever can ask targets for their progress.
pub trait Observe: Send + Sync + 'static {
    /// What the target at `address` says.
    ///
    /// # Errors
    /// When it can't be asked, or answers otherwise.
    fn progress(
        &self,
        address: IpAddr,
        credentials: &ObserverCredentials,
    ) -> impl Future<Output = Result<TargetReport, ObserveError>> + Send;

    /// Asks the target at `address` to have its source send no more than so many bytes each second; 0 for
    /// no limit.
    ///
    /// # Errors
    /// When it can't be asked, or refuses.
    fn limit(
        &self,
        address: IpAddr,
        credentials: &ObserverCredentials,
        bytes_per_second: u64,
    ) -> impl Future<Output = Result<(), ObserveError>> + Send;
}

/// Why a target could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The credentials in the Secret are not what they should be.
    #[error("the observer's credentials can't be used")]
    Credentials(#[from] IdentityError),
    /// It can't be reached, or one end refuses the other.
    #[error("the target agent can't be reached")]
    Transport(#[from] TransportError),
    /// The connection failed.
    #[error("the target agent did not answer")]
    Http(#[from] hyper::Error),
    /// The answer is not one.
    #[error("the target agent answered with {status}")]
    Status {
        /// The HTTP status.
        status: StatusCode,
    },
    /// The answer can't be read.
    #[error("the target agent's answer can't be read: {why}")]
    Answer {
        /// What is wrong with it.
        why: String,
    },
    /// It took too long.
    #[error("the target agent did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    Timeout,
}

/// Asks agents over the network.
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkObserver;

impl Observe for NetworkObserver {
    async fn progress(
        &self,
        address: IpAddr,
        credentials: &ObserverCredentials,
    ) -> Result<TargetReport, ObserveError> {
        in_time(ask(at_port(address, CLONE_PORT), credentials)).await
    }

    async fn limit(
        &self,
        address: IpAddr,
        credentials: &ObserverCredentials,
        bytes_per_second: u64,
    ) -> Result<(), ObserveError> {
        let target = at_port(address, CLONE_PORT);
        in_time(ask_limit(target, credentials, bytes_per_second)).await
    }
}

async fn in_time<T>(
    asked: impl Future<Output = Result<T, ObserveError>>,
) -> Result<T, ObserveError> {
    let answered = tokio::time::timeout(ANSWER_TIMEOUT, asked).await;
    answered.unwrap_or(Err(ObserveError::Timeout))
}

/// Asks the target that listens at `target`, written `HOST:PORT`, how far it is.
///
/// # Errors
/// When it can't be asked, or answers otherwise.
pub async fn ask(
    target: String,
    credentials: &ObserverCredentials,
) -> Result<TargetReport, ObserveError> {
    let answer = exchange(target, credentials, Request::get("/progress"), Bytes::new()).await?;
    serde_json::from_slice(&answer).map_err(|error| unreadable(&error))
}

/// Asks the target that listens at `target`, written `HOST:PORT`, to have its source send no more than so
/// many bytes each second; 0 for no limit.
///
/// # Errors
/// When it can't be asked, or refuses.
pub async fn ask_limit(
    target: String,
    credentials: &ObserverCredentials,
    bytes_per_second: u64,
) -> Result<(), ObserveError> {
    let limit = Bytes::from(bytes_per_second.to_string());
    let request = Request::put("/bandwidth-limit");
    exchange(target, credentials, request, limit)
        .await
        .map(|_limit| ())
}

fn unreadable(error: &dyn std::fmt::Display) -> ObserveError {
    let why = error.to_string();
    ObserveError::Answer { why }
}

/// Sends a request over a connection of its own: what the target answers.
async fn exchange(
    target: String,
    credentials: &ObserverCredentials,
    request: request::Builder,
    body: Bytes,
) -> Result<Bytes, ObserveError> {
    let credentials = Credentials::from_pem(
        Path::new("the Secret of the target"),
        &credentials.certificate,
        &credentials.key,
        &credentials.authorities,
    )?;
    let stream = Dialer::with_credentials(target, credentials).dial().await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = request
        .header(hyper::header::HOST, "target")
        .body(Full::new(body))
        .map_err(|error| unreadable(&error))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(ObserveError::Status { status });
        }
        let body = Limited::new(response.into_body(), ANSWER_LEN_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| unreadable(&error))?;
        Ok(body.to_bytes())
    };
    // The answer comes while the connection is driven, and often ends with it.
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        ended = connection => {
            ended?;
            answer.await
        }
    }
}
