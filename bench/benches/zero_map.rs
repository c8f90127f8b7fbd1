//! Finding the zero blocks of a chunk: what it costs when there are none, when there is nothing
//! else, and when they alternate.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use volferry_protocol::geometry::BLOCK_SIZE;
use volferry_protocol::zero_map::ZeroMap;

/// The usual chunk.
const CHUNK: usize = 1 << 20;

fn scan(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("zero_map/scan");
    group.throughput(Throughput::Bytes(CHUNK as u64));
    for (name, chunk) in chunks() {
        group.bench_with_input(
            BenchmarkId::from_parameter(name),
            &chunk,
            |bencher, chunk| {
                bencher.iter(|| ZeroMap::scan(black_box(chunk)));
            },
        );
    }
    group.finish();
}

fn runs(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("zero_map/runs");
    for (name, chunk) in chunks() {
        let map = ZeroMap::scan(&chunk);
        group.bench_with_input(BenchmarkId::from_parameter(name), &map, |bencher, map| {
            bencher.iter(|| black_box(map).runs().count());
        });
    }
    group.finish();
}

fn chunks() -> [(&'static str, Vec<u8>); 4] {
    let block = BLOCK_SIZE as usize;
    let alternating = (0..CHUNK).map(|index| u8::from((index / block).is_multiple_of(2)));
    // The worst case: every block has to be read to its end to be known as data.
    let late = (0..CHUNK).map(|index| u8::from(index % block == block - 1));
    [
        ("data", vec![0xA5; CHUNK]),
        ("zero", vec![0; CHUNK]),
        ("alternating", alternating.collect()),
        ("data at the end of blocks", late.collect()),
    ]
}

criterion_group!(benches, scan, runs);
criterion_main!(benches);
