//! A filter between a tar and a socket: `bench-snappy pack` and `bench-snappy unpack`, from standard
//! input to standard output, in snappy's framing format. It is what the peer `cdi` has where CDI has
//! Go's snappy writer and reader.

use std::io::{self, BufReader, Read, Write};
use std::process::ExitCode;

/// How much is read from a pipe at once.
const PIECE: usize = 64 << 10;

fn main() -> ExitCode {
    let outcome = match std::env::args().nth(1).as_deref() {
        Some("pack") => pack(io::stdin().lock(), io::stdout().lock()),
        Some("unpack") => unpack(io::stdin().lock(), io::stdout().lock()),
        Some("-V") => writeln!(io::stdout(), "snap {}", env!("CARGO_PKG_VERSION")),
        _ => Err(io::Error::other("usage: bench-snappy pack|unpack")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _nobody_reads = writeln!(io::stderr(), "bench-snappy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn pack(input: impl Read, output: impl Write) -> io::Result<()> {
    let mut packed = snap::write::FrameEncoder::new(output);
    io::copy(&mut BufReader::with_capacity(PIECE, input), &mut packed)?;
    packed.flush()
}

fn unpack(input: impl Read, mut output: impl Write) -> io::Result<()> {
    let packed = BufReader::with_capacity(PIECE, input);
    io::copy(
        &mut BufReader::with_capacity(PIECE, snap::read::FrameDecoder::new(packed)),
        &mut output,
    )?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        let bytes: Vec<u8> = (0..1_000_000_u32)
            .flat_map(|number| (number / 64).to_le_bytes())
            .collect();
        let (mut packed, mut unpacked) = (Vec::new(), Vec::new());
        pack(&bytes[..], &mut packed).unwrap();
        assert!(packed.len() < bytes.len());
        unpack(&packed[..], &mut unpacked).unwrap();
        assert!(unpacked == bytes);
    }
}
