//! A manifest that is read and written anew says the same, and has a digest only as a whole.

use volferry_protocol::geometry::{ChunkIndex, ChunkRange};
use volferry_protocol::manifest::{Manifest, chunk_line, first_line};

pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else {
        return;
    };
    let Ok(manifest) = Manifest::parse(text.lines()) else {
        return;
    };
    let geometry = manifest.geometry();
    let mut again = first_line(&geometry);
    for line in text.lines().skip(1) {
        let index = line.split(' ').next().and_then(|index| index.parse().ok());
        let index = ChunkIndex(index.expect("a line starts with its chunk"));
        assert!(geometry.holds(ChunkRange::one(index)));
        let digest = manifest.chunk(index).expect("each line's chunk is held");
        again += &chunk_line(index, digest);
    }
    assert_eq!(Manifest::parse(again.lines()).as_ref(), Ok(&manifest));
    assert!(manifest.volume_digest().is_some());
}
