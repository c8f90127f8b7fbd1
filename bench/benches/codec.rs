//! What the wire format costs: the header of a chunk, there and back, and its zero map. A header
//! travels with each MiB, so that a microsecond here would be a thousandth of a clone.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use volferry_protocol::compression::Codecs;
use volferry_protocol::digest::Digest;
use volferry_protocol::frame::DataFrame;
use volferry_protocol::geometry::{BLOCK_SIZE, ChunkIndex, ChunkSize, Geometry};
use volferry_protocol::zero_map::ZeroMap;

fn header(criterion: &mut Criterion) {
    let geometry = geometry();
    let frame = DataFrame::Chunk {
        index: ChunkIndex(42),
        digest: Digest::of_chunk(b"any"),
        payload_len: ChunkSize::DEFAULT.bytes(),
        compressed: None,
    };
    let mut group = criterion.benchmark_group("codec/header");
    let mut bytes = Vec::with_capacity(DataFrame::HEADER_LEN);
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            bytes.clear();
            black_box(frame).encode(&mut bytes);
        });
    });
    let mut header = [0; DataFrame::HEADER_LEN];
    header.copy_from_slice(&bytes);
    group.bench_function("decode", |bencher| {
        bencher.iter(|| DataFrame::decode(black_box(&header), &geometry, Codecs::NONE));
    });
    group.finish();
}

fn zero_map(criterion: &mut Criterion) {
    let len = ChunkSize::DEFAULT.bytes();
    let alternating = (0..len).map(|index| u8::from((index / BLOCK_SIZE).is_multiple_of(2)));
    let map = ZeroMap::scan(&alternating.collect::<Vec<_>>());
    let mut group = criterion.benchmark_group("codec/zero_map");
    let mut bytes = Vec::new();
    group.bench_function("encode", |bencher| {
        bencher.iter(|| {
            bytes.clear();
            black_box(&map).encode(&mut bytes);
        });
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| ZeroMap::decode(black_box(&bytes), len));
    });
    group.finish();
}

#[expect(
    clippy::expect_used,
    reason = "the volume is far smaller than the largest"
)]
fn geometry() -> Geometry {
    Geometry::new(4 << 30, ChunkSize::DEFAULT).expect("a volume of some GiB has a geometry")
}

criterion_group!(benches, header, zero_map);
criterion_main!(benches);
