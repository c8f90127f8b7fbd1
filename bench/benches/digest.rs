//! What proving a clone costs: hashing a chunk, and folding the digests of chunks into the
//! volume's, in the order of the volume and in an order that leaves every subtree open for long.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use volferry_protocol::digest::{Digest, DigestTree};
use volferry_protocol::geometry::{ChunkIndex, ChunkSize, Geometry};

fn chunk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("digest/chunk");
    for len in [64 << 10, 1 << 20, 8 << 20] {
        let chunk = vec![0xA5; len];
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_with_input(len.to_string(), &chunk, |bencher, chunk| {
            bencher.iter(|| Digest::of_chunk(black_box(chunk)));
        });
    }
    group.finish();
}

fn fold(criterion: &mut Criterion) {
    /// Chunks of a volume of 4 GiB.
    const CHUNKS: u64 = 4096;
    let geometry = geometry(CHUNKS);
    let digest = Digest::of_chunk(b"any");
    let mut group = criterion.benchmark_group("digest/fold");
    group.throughput(Throughput::Elements(CHUNKS));
    let evens_then_odds = (0..CHUNKS)
        .step_by(2)
        .chain((1..CHUNKS).step_by(2))
        .collect();
    let orders: [(&str, Vec<u64>); 2] = [
        ("in order", (0..CHUNKS).collect()),
        ("evens, then odds", evens_then_odds),
    ];
    for (name, order) in orders {
        group.bench_function(name, |bencher| {
            let fresh = || DigestTree::new(geometry);
            let insert_all = |mut tree: DigestTree| {
                for index in &order {
                    // Every index occurs once and lies in the volume.
                    let _ = tree.insert(ChunkIndex(*index), digest);
                }
                tree
            };
            bencher.iter_batched(fresh, insert_all, BatchSize::SmallInput);
        });
    }
    group.finish();
}

#[expect(
    clippy::expect_used,
    reason = "the volume is far smaller than the largest"
)]
fn geometry(chunks: u64) -> Geometry {
    let size = chunks * u64::from(ChunkSize::DEFAULT.bytes());
    Geometry::new(size, ChunkSize::DEFAULT).expect("a volume of some GiB has a geometry")
}

criterion_group!(benches, chunk, fold);
criterion_main!(benches);
