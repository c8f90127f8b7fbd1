//! Who of several controllers leads: the one that holds the Lease.
//!
//! A holder renews it every few seconds. Another takes it over when it has not changed for its whole
//! duration by the other's own clock, so that clocks need not agree. Each write names the version that it
//! replaces, so of two that try one wins. Two leaders for a moment would decide nothing both, since a status
//! is written in the place of the version that was read, and so are credentials. Still a holder ends before
//! another may begin, however slow the API server answers, and what it has under way ends with it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use crate::names::MANAGER;

/// How long a lease is good without being renewed.
const LEASE_TIME: Duration = Duration::from_secs(15);
/// How often it is renewed, or looked at: a few times within its duration.
const LOOK_EVERY: Duration = Duration::from_secs(4);
/// How long a holder that can't renew it goes on: it ends before another may begin.
const HOLD_TIME: Duration = Duration::from_secs(11);

/// A candidate.
#[derive(Debug)]
pub struct Candidate {
    leases: Api<Lease>,
    identity: String,
}

impl Candidate {
    /// A candidate named `identity` for the lease in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str, identity: String) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            identity,
        }
    }

    /// Waits until this one leads.
    pub async fn lead(&self) {
        // The version that was seen last, and since when.
        let mut seen: Option<(String, Instant)> = None;
        loop {
            match self.try_lead(&mut seen).await {
                Ok(true) => return,
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, "the lease could not be looked at"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn try_lead(&self, seen: &mut Option<(String, Instant)>) -> kube::Result<bool> {
        let Some(lease) = self.call(self.leases.get_opt(MANAGER)).await? else {
            let (lease, params) = (self.held(None), PostParams::default());
            return self.write(self.leases.create(&params, &lease)).await;
        };
        let version = lease.resource_version().unwrap_or_default();
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        let is_free = holder.is_none_or(str::is_empty) || holder == Some(&*self.identity);
        let since = match seen {
            Some((known, since)) if *known == version => *since,
            _ => seen.insert((version, Instant::now())).1,
        };
        if !is_free && since.elapsed() < LEASE_TIME {
            return Ok(false);
        }
        let (taken, params) = (self.held(Some(&lease)), PostParams::default());
        let written = self.leases.replace(MANAGER, &params, &taken);
        self.write(written).await
    }

    /// Goes on leading until `work` is done, and says whether it came to that. What is under way when this one
    /// no longer leads is dropped: it must not go on beside another's.
    pub async fn keep_while(&self, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = self.keep() => false,
            () = work => true,
        }
    }

    /// Goes on leading; returns when that is over.
    async fn keep(&self) {
        let mut renewed_at = Instant::now();
        loop {
            let renewed = async {
                tokio::time::sleep(LOOK_EVERY).await;
                (Instant::now(), self.renew().await)
            };
            let renewed = tokio::time::timeout_at(renewed_at + HOLD_TIME, renewed).await;
            match renewed {
                // Others count from when they see it, which is later.
                Ok((began_at, Ok(true))) => renewed_at = began_at,
                Ok((_, Ok(false))) | Err(_) => return,
                Ok((_, Err(error))) => tracing::warn!(%error, "the lease could not be renewed"),
            }
        }
    }

    async fn renew(&self) -> kube::Result<bool> {
        let Some(lease) = self.call(self.leases.get_opt(MANAGER)).await? else {
            return Ok(false);
        };
        let holder = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.holder_identity.as_deref());
        if holder != Some(&*self.identity) {
            return Ok(false);
        }
        let (renewed, params) = (self.held(Some(&lease)), PostParams::default());
        let written = self.leases.replace(MANAGER, &params, &renewed);
        self.write(written).await
    }

    /// Lets another lead at once. If that fails, it waits for the lease to end.
    pub async fn release(&self) {
        let Ok(Some(mut lease)) = self.call(self.leases.get_opt(MANAGER)).await else {
            return;
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(&self.identity) {
            spec.holder_identity = None;
            let params = PostParams::default();
            let written = self.leases.replace(MANAGER, &params, &lease);
            let _lost = self.call(written).await;
        }
    }

    /// The lease as this one holds it, in place of `present`.
    fn held(&self, present: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let before = present
            .and_then(|lease| lease.spec.clone())
            .unwrap_or_default();
        let is_ours = before.holder_identity.as_deref() == Some(&self.identity);
        Lease {
            metadata: ObjectMeta {
                name: Some(MANAGER.to_owned()),
                resource_version: present.and_then(ResourceExt::resource_version),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(LEASE_TIME.as_secs()).ok(),
                acquire_time: before
                    .acquire_time
                    .filter(|_| is_ours)
                    .or_else(|| Some(now.clone())),
                renew_time: Some(now),
                lease_transitions: Some(
                    before.lease_transitions.unwrap_or(0) + i32::from(!is_ours),
                ),
                ..LeaseSpec::default()
            }),
        }
    }

    /// Whether the write went through: another may have been faster.
    async fn write(
        &self,
        written: impl Future<Output = kube::Result<Lease>>,
    ) -> kube::Result<bool> {
        match self.call(written).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn call<T>(&self, asked: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        tokio::time::timeout(LOOK_EVERY, asked)
            .await
            .unwrap_or_else(|late| Err(kube::Error::Service(late.into())))
    }
}
