//! The proof of a tree as a file in the state directory: there from before the tree's journal goes until
//! its source has heard the receipt, or nobody waits for it any more.

use std::io;
use std::path::Path;

use uuid::Uuid;
use volferry_protocol::failure::Failure;
use volferry_protocol::tree::proof::{PROOF_LEN_MAX, Proof};

use crate::state_file::StateFile;

/// The proof of one clone.
#[derive(Debug)]
pub(crate) struct ProofFile(StateFile);

impl ProofFile {
    /// Opens the proof of `clone_id` in `directory`, which is made where it is missing, and gives what
    /// it says. One that is damaged, of another version or another clone's counts as absent.
    ///
    /// # Errors
    /// When the directory can't be used, or another target agent has it.
    pub(crate) fn open(directory: &Path, clone_id: Uuid) -> Result<(Self, Option<Proof>), Failure> {
        let file = StateFile::claim(directory, clone_id, "proof")?;
        // A larger file is not ours.
        let bytes = file.read(PROOF_LEN_MAX as u64)?;
        let path = file.path();
        let proof = match bytes.map(|bytes| Proof::decode(&bytes)) {
            None => None,
            Some(Ok(proof)) if proof.receipt.clone_id == clone_id => Some(proof),
            Some(Ok(proof)) => {
                let clone_id = proof.receipt.clone_id;
                tracing::warn!(path = %path.display(), %clone_id, "the proof is not used: it is of another clone");
                None
            }
            Some(Err(error)) => {
                tracing::warn!(path = %path.display(), %error, "the proof is not used");
                None
            }
        };
        Ok((Self(file), proof))
    }

    /// Writes the proof and makes it durable.
    ///
    /// # Errors
    /// When it can't be written.
    pub(crate) fn write(&self, proof: &Proof) -> Result<(), Failure> {
        let written = self.0.replace(&[&proof.encode()]);
        written
            .map(drop)
            .map_err(|error| self.0.cannot("write it", &error))
    }

    /// Removes the proof, where there is one, durably.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(crate) fn remove(&self) -> Result<(), Failure> {
        match self.0.remove() {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(self.0.cannot("remove it", &error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use volferry_protocol::failure::FailureCode;

    use super::*;

    const CLONE: Uuid = Uuid::from_u128(7);

    #[test]
    fn what_is_no_proof_counts_as_absent_and_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(format!("{CLONE}.proof"));
        for bytes in [&b""[..], b"VFPROOF\x02 of the future", &[0xff; 4096]] {
            std::fs::write(&path, bytes).unwrap();
            let (file, proof) = ProofFile::open(directory.path(), CLONE).unwrap();
            assert_eq!(proof, None);
            file.remove().unwrap();
            assert!(!path.exists());
            file.remove().unwrap();
        }
    }

    #[test]
    fn two_agents_do_not_share_a_proof() {
        let directory = tempfile::tempdir().unwrap();
        let _held = ProofFile::open(directory.path(), CLONE).unwrap();
        let failure = ProofFile::open(directory.path(), CLONE).unwrap_err();
        assert_eq!(failure.code, FailureCode::TargetInUse);
        let _other = ProofFile::open(directory.path(), Uuid::from_u128(8)).unwrap();
    }
}
