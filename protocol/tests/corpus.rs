//! Replays every input of the fuzz targets' corpora: what one of them once found stays fixed,
//! also where nobody fuzzes.

#[path = "../fuzz/src/lib.rs"]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::cast_possible_truncation,
    reason = "code of the fuzz workspace, which is its own and small"
)]
mod fuzz;

use std::fs;
use std::path::Path;

#[test]
#[expect(
    clippy::print_stdout,
    reason = "a panic doesn't say which input it is about"
)]
fn every_input_of_the_corpora_holds() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (name, run) in fuzz::TARGETS {
        let inputs = fs::read_dir(corpora.join(name)).expect("a target has a corpus");
        let mut count = 0;
        for input in inputs {
            let path = input.expect("a corpus can be read").path();
            let bytes = fs::read(&path).expect("an input can be read");
            println!("{}", path.display());
            run(&bytes);
            count += 1;
        }
        assert!(count > 0, "the corpus of {name} is empty");
    }
}
