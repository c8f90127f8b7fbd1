//! What proves a clone by agents, and what stays of the proof.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use volferry_protocol::receipt::{Receipt, Verified};
use volferry_protocol::waits::Limited;

use super::status::{rate, whole};
use super::{Planner, Stop};
use crate::agent_pod::{Ended, Seen};
use crate::api::{ReceiptStatus, Strategy, Verify};
use crate::names::End;
use crate::reason::Reason;

impl Planner<'_> {
    /// Keeps the receipt that the target's pod shows, and says whether it is a new one. The target has it only
    /// when all is durable and both digests agree. The source shows the same one, but whoever may make pods
    /// in its namespace can have it show any.
    pub(super) fn take_proof(&mut self) -> Result<bool, Stop> {
        let is_by_agents = self.status.strategy == Some(Strategy::HostAssisted);
        if self.status.receipt.is_some() || !is_by_agents {
            return Ok(false);
        }
        let target = self.world.pod(End::Target).map(Seen::of);
        let Some(Ended::Proven(receipt, json)) = target.and_then(|seen| seen.last_end) else {
            return Ok(false);
        };
        self.check_receipt(&receipt)?;
        // Of a short clone nobody may have seen both pods run; that of the target keeps the claim until it goes.
        self.note_filled();
        self.prove(&receipt, &json);
        Ok(true)
    }

    /// Whether what the target shows proves this clone, and as much as was asked for.
    fn check_receipt(&self, receipt: &Receipt) -> Result<(), Stop> {
        let clone = &self.world.clone;
        let wanted = match clone.spec.verify {
            Verify::None => Verified::None,
            Verify::Digest => Verified::Digest,
            Verify::Readback => Verified::Readback,
        };
        let is_enough = match wanted {
            Verified::None => true,
            Verified::Digest => receipt.verified != Verified::None,
            Verified::Readback => receipt.verified == Verified::Readback,
        };
        if is_enough && receipt.clone_id.to_string() == clone.uid() {
            return Ok(());
        }
        let message = format!(
            "the target agent's receipt is of clone {}, verified by {}; it should be of clone {}, by {}",
            receipt.clone_id,
            word(receipt.verified),
            clone.uid(),
            word(wanted),
        );
        Err(Stop::fail(Reason::AgentFailed, message))
    }

    /// The clone is proven: the receipt is kept, the pods may go.
    fn prove(&mut self, receipt: &Receipt, json: &str) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        self.status.receipt = Some(ReceiptStatus {
            clone_id: receipt.clone_id.to_string(),
            digest: receipt.digest.to_string(),
            verified: word(receipt.verified).to_owned(),
            logical_bytes: number(receipt.logical_bytes),
            data_bytes: number(receipt.data_bytes),
            sent_bytes: number(receipt.sent_bytes),
            resent_bytes: number(receipt.resent_bytes),
            sessions: number(receipt.sessions),
            json: json.to_owned(),
        });
        self.status.checkpoint = None;
        let progress = self.status.progress.get_or_insert_default();
        progress.stage = "done".to_owned();
        progress.logical_bytes = number(receipt.logical_bytes);
        progress.durable_bytes = number(receipt.logical_bytes);
        progress.percent = "100%".to_owned();
        // Of the whole clone, since what the last look saw says little of a short one.
        progress.rate = rate(receipt.bytes_per_second);
        progress.bytes_per_second = whole(receipt.bytes_per_second);
        let limited = receipt.limit.unwrap_or(Limited::UNKNOWN);
        progress.limit = limited.limit.label().to_owned();
        progress.eta_seconds = None;
        progress.updated_at = Some(Time(self.world.now));
    }
}

/// As a receipt has it.
const fn word(verified: Verified) -> &'static str {
    match verified {
        Verified::None => "none",
        Verified::Digest => "digest",
        Verified::Readback => "readback",
    }
}
