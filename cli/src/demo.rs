//! `volferry demo`: a first clone that needs nothing prepared.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use volferry_agent::options::TransportOptions;
use volferry_benchmark::stop::Stop;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_source_agent::SourceConfig;
use volferry_source_agent::digest::OpenVolume;
use volferry_target_agent::TargetConfig;

use crate::output::{self, human_bytes};
use crate::pair;

/// Bytes of the sample volume.
const VOLUME_SIZE: u64 = 1 << 30;

/// How many islands of data it has.
const ISLANDS: u64 = 16;

/// Bytes of an island.
const ISLAND_LEN: usize = 6 << 20;

/// Runs the command.
pub(crate) fn run() -> Result<(), Failure> {
    let failed = |what: &str, error: std::io::Error| {
        Failure::new(
            FailureCode::Usage,
            format!("the demo can't {what}: {error}"),
        )
    };
    let directory = tempfile::Builder::new()
        .prefix("volferry-demo-")
        .tempdir()
        .map_err(|error| failed("make a temporary directory", error))?;
    let (source, target) = (
        directory.path().join("source.img"),
        directory.path().join("target.img"),
    );
    // Caught from here on, so that the directory is removed whatever comes.
    let stop = Stop::on_signal()?;
    make_sample(&source, &stop).map_err(|error| failed("make its sample volume", error))?;
    stop.check()?;
    let allocated = |path: &Path| {
        let metadata = path
            .metadata()
            .map_err(|error| failed("look at a volume", error))?;
        Ok::<_, Failure>(human_bytes(metadata.blocks() * 512))
    };
    output::line(&format!(
        "A sparse volume of {} with {} of data: {}",
        human_bytes(VOLUME_SIZE),
        allocated(&source)?,
        source.display()
    ))?;
    output::line("Two agents clone it over mutually authenticated TLS 1.3 on loopback ...\n")?;
    let receipt = pair::clone(
        uuid::Uuid::new_v4(),
        SourceConfig::new(source),
        TargetConfig::new(target.clone()),
        TransportOptions::default(),
        |_source, _target| {},
    )?;
    output::line(&output::describe_receipt(&receipt))?;

    let volume = OpenVolume::open(
        &target,
        true,
        receipt.chunk_size,
        Some(receipt.logical_bytes),
    )?;
    let defaults = SourceConfig::new(target.clone());
    let digest = volume.digest(defaults.readers, defaults.memory_bytes, |_found| {})?;
    if digest != receipt.digest {
        let text = format!(
            "the clone has digest {digest}, the receipt says {}",
            receipt.digest
        );
        return Err(Failure::new(FailureCode::Integrity, text));
    }
    output::line(&format!(
        "\nWhat the receipt says:\n\
         - The digest is a BLAKE3 tree over every chunk of the volume. The source computed it, the\n  \
           target checked each chunk before writing it, and the receipt was issued only after the\n  \
           last flush, when both had the same.\n\
         - Only blocks that hold data travelled; zeros are zeros at the target, whatever it held.\n\
         - The copy is as sparse as the original: {} are allocated.\n\
         - Read back just now, the target's digest is the same: this clone is proven.\n\n\
         To clone something of your own:  volferry copy SRC DST --receipt receipt.json\n\
         To prove it again at any time:   volferry verify DST --receipt receipt.json",
        allocated(&target)?
    ))
}

/// A sparse file with islands of bytes that don't compress, cut short when the end is asked for.
fn make_sample(path: &Path, stop: &Stop) -> std::io::Result<()> {
    let file = File::create_new(path)?;
    file.set_len(VOLUME_SIZE)?;
    let mut island = vec![0; ISLAND_LEN];
    for number in (0..ISLANDS).take_while(|_| !stop.is_requested()) {
        let start = VOLUME_SIZE / ISLANDS * number + (1 << 20);
        fill(&mut island, start);
        file.write_all_at(&island, start)?;
    }
    file.sync_all()
}

/// Fills `bytes` from a seed: a xorshift generator (Marsaglia, 2003) is random enough for a sample.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
}
