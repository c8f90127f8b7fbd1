//! What has to hold after every step.

use std::collections::HashSet;

use volferry_protocol::digest::{Digest, Subtree};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::journal::{Checkpoint, replay};
use volferry_protocol::message::Watermark;
use volferry_protocol::range_set::ChunkSet;
use volferry_protocol::receipt::Receipt;

use super::content;
use super::disk::Disk;
use crate::fencing::{Checked, Fencing, check};
use crate::journal_file::JournalFile;
use crate::tag::Tag;

/// What is known of the source, and what was said of the target.
#[derive(Debug)]
pub(crate) struct Checker {
    geometry: Geometry,
    has_journal: bool,
    /// The source's content, by generation.
    contents: Vec<Vec<Tag>>,
    /// What a source sent of another content than that of the generation that it had said: it
    /// changed meanwhile, and no receipt will follow.
    strays: HashSet<(usize, usize, Tag)>,
    /// Chunks that a source was told to be durable, and of which generation.
    told: ChunkSet,
    told_generation: usize,
    told_bytes: u64,
    pub(crate) fencing: Fencing,
    /// What the journal says, as it would be read now and after a loss of power.
    records: [Option<Record>; 2],
}

#[derive(Debug)]
struct Record {
    generation: usize,
    durable: ChunkSet,
}

impl Checker {
    pub(crate) fn new(geometry: Geometry, has_journal: bool, content: Vec<Tag>) -> Self {
        Self {
            geometry,
            has_journal,
            contents: vec![content],
            strays: HashSet::new(),
            told: ChunkSet::default(),
            told_generation: 0,
            told_bytes: 0,
            fencing: Fencing::default(),
            records: [None, None],
        }
    }

    pub(crate) fn generation(&self) -> usize {
        self.contents.len() - 1
    }

    /// The source's content as it is now.
    pub(crate) fn content(&self) -> &[Tag] {
        &self.contents[self.generation()]
    }

    pub(crate) fn source_changed(&mut self, content: Vec<Tag>) {
        self.contents.push(content);
    }

    /// A source that said `generation` sends a chunk.
    pub(crate) fn source_sends(&mut self, generation: usize, index: usize, tag: Tag) {
        if self.contents[generation][index] != tag {
            self.strays.insert((generation, index, tag));
        }
    }

    /// What was told holds no longer: the target lost it, or found it to be wrong.
    pub(crate) fn forget(&mut self) {
        self.told = ChunkSet::default();
        self.told_bytes = 0;
    }

    /// The target agent runs anew; it may have lost its journal, which knows of sessions up to `epoch`.
    pub(crate) fn target_restarted(&mut self, is_journal_lost: bool, epoch: u64) {
        self.fencing.target_restarted(is_journal_lost, epoch);
        if is_journal_lost || !self.has_journal {
            self.forget();
        }
    }

    /// A session welcomes its source, which was told of these chunks.
    pub(crate) fn welcomed(
        &mut self,
        epoch: u64,
        generation: usize,
        durable: &[Subtree],
    ) -> Checked {
        self.fencing.welcomed(epoch, self.has_journal)?;
        let durable = chunks_of(&self.geometry, durable);
        let bytes = bytes_of(&self.geometry, &durable);
        check(bytes >= self.told_bytes, || {
            format!("{bytes} bytes are durable where {} were", self.told_bytes)
        })?;
        if self.has_journal {
            let record = self.records[1].as_ref();
            let is_covered = record.is_some_and(|record| covers(&record.durable, &durable));
            check(is_covered, || {
                "a welcome tells what the journal lacks".to_owned()
            })?;
        }
        self.told = durable;
        self.told_bytes = bytes;
        self.told_generation = generation;
        Ok(())
    }

    /// A source is told of progress. `ledger` is what the target holds to be durable; without, it
    /// repairs what it has told before.
    pub(crate) fn told(&mut self, watermark: Watermark, ledger: Option<ChunkSet>) -> Checked {
        let bytes = watermark.durable_bytes;
        check(bytes >= self.told_bytes, || {
            format!(
                "{bytes} bytes are told where {} were before",
                self.told_bytes
            )
        })?;
        let Some(ledger) = ledger else { return Ok(()) };
        let durable = match &self.records[1] {
            Some(record) if self.has_journal => record.durable.clone(),
            None if self.has_journal => ChunkSet::default(),
            _ => ledger,
        };
        let is_covered = bytes_of(&self.geometry, &durable) >= bytes
            && durable.watermark() >= watermark.watermark;
        check(is_covered, || {
            format!("{watermark:?} is told, and durable is {durable:?}")
        })?;
        self.told = durable;
        self.told_bytes = bytes;
        Ok(())
    }

    /// A chunk arrives that is to be written.
    pub(crate) fn arrives(&self, index: u64) -> Checked {
        check(!self.told.contains(ChunkIndex(index)), || {
            format!("chunk {index} comes again, and was told to be durable")
        })
    }

    pub(crate) fn journal_changed(&mut self, journal: &JournalFile) -> Checked {
        for (record, bytes) in self
            .records
            .iter_mut()
            .zip([&journal.cached, &journal.durable])
        {
            let checkpoint = replay(bytes).ok().and_then(|replay| replay.checkpoint);
            *record = checkpoint.map(|checkpoint: Checkpoint| Record {
                generation: generation_of(&checkpoint.generation),
                durable: chunks_of(&self.geometry, &checkpoint.durable),
            });
        }
        Ok(())
    }

    /// Durable implies right.
    pub(crate) fn check_disk(&self, disk: &Disk) -> Checked {
        let told = (self.told_generation, &self.told, "told");
        let records = self.records.iter().flatten();
        let recorded = records.map(|record| (record.generation, &record.durable, "journaled"));
        for (generation, chunks, how) in recorded.chain([told]) {
            for index in chunks
                .ranges()
                .flat_map(|range| range.start.0..range.end.0)
                .map(|index| index as usize)
            {
                let tag = disk.durable()[index];
                let is_right = self.contents[generation][index] == tag
                    || self.strays.contains(&(generation, index, tag))
                    || disk.is_rotten(index);
                check(is_right, || {
                    format!("chunk {index} was {how} as durable and holds {tag:x}")
                })?;
            }
        }
        Ok(())
    }

    /// A receipt is the proof.
    pub(crate) fn check_receipt(
        &self,
        receipt: &Receipt,
        generation: usize,
        disk: &Disk,
    ) -> Checked {
        let content = &self.contents[generation];
        check(disk.durable() == content.as_slice(), || {
            "there is a receipt, and the volumes differ".to_owned()
        })?;
        if self.has_journal {
            let record = self.records[1].as_ref();
            let count = record.map_or(0, |record| record.durable.count());
            check(count == self.geometry.chunk_count(), || {
                "there is a receipt, and the journal lacks something".to_owned()
            })?;
        }
        let digest = content::volume_digest(&self.geometry, content);
        check(receipt.digest == digest, || {
            "the receipt's digest is wrong".to_owned()
        })?;
        let data_bytes: u64 = (0..content.len())
            .map(|index| u64::from(content::data_len(&self.geometry, index, content[index])))
            .sum();
        check(receipt.data_bytes == data_bytes, || {
            format!("{} of {data_bytes} bytes of data", receipt.data_bytes)
        })?;
        check(receipt.matched_bytes <= data_bytes, || {
            format!("{} of {data_bytes} bytes matched", receipt.matched_bytes)
        })?;
        let come_bytes = receipt.sent_bytes + receipt.matched_bytes;
        check(come_bytes >= data_bytes, || {
            format!("{come_bytes} of {data_bytes} bytes were sent or matched")
        })
    }

    /// The digest of the source as `generation`.
    pub(crate) fn digest(&self, generation: usize) -> Digest {
        content::volume_digest(&self.geometry, &self.contents[generation])
    }
}

pub(crate) fn chunks_of(geometry: &Geometry, durable: &[Subtree]) -> ChunkSet {
    let mut chunks = ChunkSet::default();
    for subtree in durable {
        chunks.insert(subtree.chunks(geometry));
    }
    chunks
}

fn bytes_of(geometry: &Geometry, chunks: &ChunkSet) -> u64 {
    let bytes = |range: ChunkRange| geometry.bytes_of(range).len();
    chunks.ranges().map(bytes).sum()
}

fn covers(all: &ChunkSet, some: &ChunkSet) -> bool {
    some.ranges().all(|range| {
        all.range_end(range.start)
            .is_some_and(|end| end >= range.end)
    })
}

/// A generation as text: `g` and its number.
pub(crate) fn generation_text(generation: usize) -> String {
    format!("g{generation}")
}

pub(crate) fn generation_of(text: &str) -> usize {
    text[1..].parse().expect("a generation of this test")
}
