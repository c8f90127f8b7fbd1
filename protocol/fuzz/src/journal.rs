//! A journal gives its last whole record and counts the bytes behind it; what it gives can be
//! written and read again.
//!
//! An input is read as a journal, and then as the body of a record, for no input would find the
//! check of one.

use blake3::derive_key;
use volferry_protocol::journal::{JOURNAL_MAGIC, Replay, replay};

const CHECK_CONTEXT: &str = "volferry 2026-11-21 journal v1";

pub fn run(data: &[u8]) {
    if let Ok(replayed) = replay(data) {
        check(data, &replayed);
    }
    let mut sealed = JOURNAL_MAGIC.to_vec();
    sealed.extend((data.len() as u32).to_be_bytes());
    sealed.extend(data);
    sealed.extend(derive_key(CHECK_CONTEXT, data));
    let replayed = replay(&sealed).expect("it starts as a journal");
    check(&sealed, &replayed);
}

fn check(journal: &[u8], replayed: &Replay) {
    let whole_len = journal.len() - replayed.torn_len;
    assert!(whole_len >= JOURNAL_MAGIC.len());
    let whole = &journal[..whole_len];
    let of_whole = Replay {
        checkpoint: replayed.checkpoint.clone(),
        torn_len: 0,
    };
    assert_eq!(replay(whole).as_ref(), Ok(&of_whole));
    let is_empty = whole_len == JOURNAL_MAGIC.len();
    assert_eq!(replayed.checkpoint.is_none(), is_empty);
    let Some(checkpoint) = &replayed.checkpoint else {
        return;
    };
    // A record may hold more than this version writes.
    let mut again = JOURNAL_MAGIC.to_vec();
    again.extend(checkpoint.encode());
    let again = replay(&again).expect("it starts as a journal");
    assert_eq!(again.torn_len, 0);
    let again = again.checkpoint.expect("what was read can be written");
    assert!(checkpoint.generation.starts_with(&again.generation));
    assert!(checkpoint.witnesses.starts_with(&again.witnesses));
    assert!(checkpoint.durable.starts_with(&again.durable));
    assert_eq!(again.clone_id, checkpoint.clone_id);
    assert_eq!(again.epoch, checkpoint.epoch);
    let mut appended = whole.to_vec();
    appended.extend(again.encode());
    let appended = replay(&appended).expect("it starts as a journal");
    assert_eq!(appended.checkpoint, Some(again), "the last record counts");
}
