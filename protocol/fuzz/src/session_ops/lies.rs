//! What a peer may say that is well-formed and wrong.

use uuid::Uuid;
use volferry_protocol::digest::{Digest, Subtree};
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkIndex, ChunkSize, VOLUME_SIZE_MAX};
use volferry_protocol::message::{
    Finish, Hello, Message, Sent, TokenText, Want, Watermark, Welcome,
};
use volferry_protocol::range_set::ChunkSet;
use volferry_protocol::receipt::{AgentStats, Receipt, Verified};

use super::{CLONE, Input, TOKEN, model};

/// Any message; `truth` is the digest that would be believed.
pub fn message(input: &mut Input<'_>, truth: Digest) -> Message {
    match input.below(8) {
        0 => Message::Ping,
        1 => Message::Watermark(Watermark {
            watermark: ChunkIndex(number(input)),
            durable_bytes: number(input),
            ..Watermark::default()
        }),
        2 => Message::Error(Failure::new(input.pick(FailureCode::ALL), words(input))),
        3 => Message::Hello(hello(input)),
        4 => Message::Welcome(welcome(input)),
        5 => Message::Finish(Finish {
            digest: digest(input, truth),
            connections: input.pick(&[None, Some(0), Some(u16::MAX)]),
            sent: Sent {
                data_bytes: number(input),
                zero_bytes: number(input),
                wire_bytes: number(input),
            },
            source: Box::default(),
            tree: None,
        }),
        6 => Message::Receipt(Box::new(receipt(input, truth))),
        _ => {
            let mut chunks = ChunkSet::default();
            chunks.insert(model::chunks(input.range(16, 4)));
            let offer = input.bool();
            Message::Want(Want { chunks, offer })
        }
    }
}

fn hello(input: &mut Input<'_>) -> Hello {
    Hello {
        clone_id: clone_id(input),
        instance: Uuid::nil(),
        attempt: u32::MAX,
        take_over: true,
        volume_size: number(input),
        chunk_size: input.pick(&[ChunkSize::MIN, ChunkSize::MAX]),
        streams: input.pick(&[0, 1, u16::MAX]),
        streams_max: input.pick(&[None, Some(0), Some(u16::MAX)]),
        generation: String::new(),
        features: vec![],
        required_features: if input.bool() {
            vec![words(input)]
        } else {
            vec![]
        },
        agent: String::new(),
        tree: None,
    }
}

fn welcome(input: &mut Input<'_>) -> Welcome {
    let subtree = |input: &mut Input<'_>| Subtree {
        start: ChunkIndex(input.below(16)),
        level: input.pick(&[0, 1, 2, 3, 4, 63, 64, u32::MAX]),
        digest: model::leaf(0),
    };
    Welcome {
        epoch: number(input),
        token: TokenText::new(TOKEN),
        chunk_size: input.pick(&[ChunkSize::MIN, ChunkSize::MAX]),
        streams: input.pick(&[1, 0, u16::MAX]),
        streams_max: input.pick(&[None, Some(0), Some(u16::MAX)]),
        durable: (0..input.below(4)).map(|_| subtree(input)).collect(),
        offer: input.bool(),
        compare: input.bool(),
        features: vec![],
        agent: String::new(),
        tree: None,
    }
}

fn receipt(input: &mut Input<'_>, truth: Digest) -> Receipt {
    Receipt {
        receipt_version: Receipt::VERSION,
        clone_id: clone_id(input),
        digest: digest(input, truth),
        chunk_size: ChunkSize::MIN,
        verified: Verified::Digest,
        logical_bytes: number(input),
        data_bytes: 0,
        zero_bytes: 0,
        wire_bytes: 0,
        resumed_bytes: 0,
        sent_bytes: 0,
        resent_bytes: 0,
        matched_bytes: 0,
        repaired_bytes: 0,
        sessions: 0,
        seconds: 0.0,
        bytes_per_second: 0.0,
        finished_unix_seconds: 0,
        source: AgentStats::default(),
        target: AgentStats::default(),
        limit: None,
        tree: None,
    }
}

fn clone_id(input: &mut Input<'_>) -> Uuid {
    input.pick(&[CLONE, Uuid::nil()])
}

fn digest(input: &mut Input<'_>, truth: Digest) -> Digest {
    input.pick(&[truth, model::leaf(0)])
}

fn number(input: &mut Input<'_>) -> u64 {
    input.pick(&[0, 1, 4, VOLUME_SIZE_MAX, VOLUME_SIZE_MAX + 1, u64::MAX])
}

/// Nothing, or more control characters than a message holds once they are escaped.
fn words(input: &mut Input<'_>) -> String {
    "\u{1}".repeat(input.pick(&[0, 1, 1 << 18]))
}
