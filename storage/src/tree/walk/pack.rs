//! Records on their way: what belongs together in a thread's way is packed together.

use std::sync::atomic::Ordering;

use volferry_protocol::tree::file_digest::PIECE_LEN;
use volferry_protocol::tree::frame::pack_digest;
use volferry_protocol::tree::path::{PATH_LEN_MAX, TreePath};
use volferry_protocol::tree::record::{INLINE_SIZE_MAX, Record};

use super::{Outgoing, Stop, WalkEnd, Worker};
use crate::buffer::Buffer;

/// A pack that is filled.
pub(super) struct Pack {
    pub(super) bytes: Buffer,
    pub(super) len: usize,
    pub(super) entered: Option<TreePath>,
    pub(super) large_records: usize,
}

impl<End: WalkEnd> Worker<'_, End> {
    /// Puts a record into the pack, which is sent when it is full.
    pub(super) fn emit(&mut self, directory: &TreePath, record: &Record<'_>) -> Result<(), Stop> {
        for _ in 0..2 {
            self.record.clear();
            let entered = self.pack.as_ref().and_then(|pack| pack.entered.as_ref());
            if entered != Some(directory) {
                Record::Enter(directory.clone()).encode(&mut self.record);
            }
            record.encode(&mut self.record);
            if self.pack.is_none() {
                let Some(bytes) = self.walk.pool.checkout_blocking() else {
                    return Err(Stop::Unwanted);
                };
                self.pack = Some(Pack {
                    bytes,
                    len: 0,
                    entered: None,
                    large_records: 0,
                });
            }
            let Some(pack) = &mut self.pack else { continue };
            let end = pack.len + self.record.len();
            let end_max = pack.bytes.capacity().min(PIECE_LEN as usize);
            if end <= end_max {
                pack.bytes.set_len(end);
                pack.bytes[pack.len..end].copy_from_slice(&self.record);
                pack.len = end;
                pack.entered = Some(directory.clone());
                return Ok(());
            }
            self.send_pack()?;
        }
        // A record is at most a path, attributes and an inline content: that fits an empty pack.
        unreachable!("every record fits an empty pack")
    }

    pub(super) fn send_pack(&mut self) -> Result<(), Stop> {
        let Some(Pack { mut bytes, len, .. }) = self.pack.take() else {
            return Ok(());
        };
        bytes.set_len(len);
        self.put(Outgoing::Pack {
            number: self.walk.next_pack.fetch_add(1, Ordering::Relaxed),
            digest: pack_digest(&bytes),
            bytes,
            compressed: None,
        })
    }
}

/// The largest record: a path, attributes, a content with its map, and what is fixed.
const RECORD_LEN_MAX: usize = PATH_LEN_MAX
    + volferry_protocol::tree::record::XATTRS_LEN_MAX
    + INLINE_SIZE_MAX as usize
    + (96 << 10);
const _: () = assert!(
    RECORD_LEN_MAX <= PIECE_LEN as usize,
    "every record fits an empty pack"
);
