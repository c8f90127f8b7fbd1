//! The controller asks a target agent for its progress over mutual TLS, and believes no one else.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use uuid::Uuid;
use volferry_controller::credentials::ObserverCredentials;
use volferry_controller::observer::{ObserveError, ask, ask_limit};
use volferry_transport::mint::MintedIdentity;
use volferry_transport::{CredentialsDir, ListenLimits, Listener, Role, mint};

/// What a target agent says, in the middle of a clone.
const PROGRESS: &str = r#"{"clone_id":"24a99b35-cc1f-4736-8e9e-21267b73460d","end":"target",
    "stage":"transfer","logical_bytes":3221225472,"durable_bytes":571473920,"resumed_bytes":0,
    "data_bytes":673185792,"zero_bytes":0,"entries":0,"sent_bytes":673185792,"resent_bytes":0,
    "checked_bytes":0,"wire_bytes":673242464,"sessions":1,"seconds":7.96,
    "bytes_per_second":80156304.1,"eta_seconds":33.05,"limit":"peer","volume_wait_seconds":0.1,
    "peer_wait_seconds":14.0,"checkpoint":{"epoch":1}}"#;

fn minted() -> MintedIdentity {
    mint(Uuid::new_v4(), Duration::from_secs(3600)).unwrap()
}

fn observer(minted: &MintedIdentity, role: Role) -> ObserverCredentials {
    let leaf = minted.leaf(role);
    ObserverCredentials {
        certificate: leaf.certificate_pem.clone().into_bytes(),
        key: leaf.key_pem.clone().into_bytes(),
        authorities: minted.ca_pem().as_bytes().to_vec(),
    }
}

/// A target of the clone that answers everything with `answer`.
async fn target(minted: &MintedIdentity, answer: &'static str) -> SocketAddr {
    let dir = tempfile::tempdir().unwrap();
    minted.write_to(dir.path()).unwrap();
    let credentials = CredentialsDir::new(dir.path().join("target"), Role::Target);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let listener = Listener::bind(address, credentials, ListenLimits::default(), |_, _| {});
    let mut listener = listener.await.unwrap();
    let address = listener.local_address().network().unwrap();
    tokio::spawn(async move {
        let _credentials = dir;
        while let Ok(accepted) = listener.accept().await {
            let service = service_fn(move |request: Request<Incoming>| async move {
                if request.method() == Method::PUT {
                    assert_eq!(request.uri(), "/bandwidth-limit");
                    let limit = request.into_body().collect().await.unwrap().to_bytes();
                    let mut response = Response::new(Full::new(limit.clone()));
                    if limit != "4200" {
                        *response.status_mut() = StatusCode::FORBIDDEN;
                    }
                    return Ok(response);
                }
                assert_eq!(request.uri(), "/progress");
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(answer))))
            });
            let connection = http1::Builder::new();
            let stream = TokioIo::new(accepted.stream);
            tokio::spawn(connection.serve_connection(stream, service));
        }
    });
    address
}

#[tokio::test]
async fn a_target_tells_its_observer_how_far_it_is() {
    let clone = minted();
    let address = target(&clone, PROGRESS).await;
    let report = ask(address.to_string(), &observer(&clone, Role::Observer))
        .await
        .unwrap();
    assert_eq!(report.stage, "transfer");
    assert_eq!(
        (report.logical_bytes, report.durable_bytes),
        (3_221_225_472, 571_473_920)
    );
    assert_eq!(report.limit, "peer");
    assert_eq!(report.checkpoint.unwrap()["epoch"], 1);
}

#[tokio::test]
async fn a_target_takes_a_limit_or_refuses_it() {
    let clone = minted();
    let address = target(&clone, PROGRESS).await.to_string();
    let observer = observer(&clone, Role::Observer);
    ask_limit(address.clone(), &observer, 4200).await.unwrap();
    let refused = ask_limit(address, &observer, 1).await;
    assert!(
        matches!(refused, Err(ObserveError::Status { status }) if status == StatusCode::FORBIDDEN),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_stranger_at_the_targets_address_is_not_believed() {
    let address = target(&minted(), PROGRESS).await;
    let asked = ask(address.to_string(), &observer(&minted(), Role::Observer)).await;
    assert!(
        matches!(asked, Err(ObserveError::Transport(_))),
        "{asked:?}"
    );
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_an_error() {
    let clone = minted();
    for answer in ["", "{}", "<html>", "[1"] {
        let address = target(&clone, answer).await;
        let asked = ask(address.to_string(), &observer(&clone, Role::Observer)).await;
        assert!(
            matches!(asked, Err(ObserveError::Answer { .. })),
            "{answer}: {asked:?}"
        );
    }
}
