//! Fills the corpus with the recorded files: each whole, and each of its items (a key, a field, a library of functions) as a small
//! file of its own, which a fuzzer changes a thousand times while it reads a whole one once.

use std::error::Error;
use std::fs;
use std::path::Path;

use shakedeck::rdb::{Decoder, Limits};

/// Larger items are in the whole files only.
const LARGEST: usize = 4096;
/// The end of a file without a checksum.
const END: [u8; 9] = [0xff, 0, 0, 0, 0, 0, 0, 0, 0];

fn main() -> Result<(), Box<dyn Error>> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (whole, small) = (home.join("corpus/rdb-whole"), home.join("corpus/rdb"));
    fs::create_dir_all(&whole)?;
    fs::create_dir_all(&small)?;
    for file in fs::read_dir(home.join("../tests/fixtures/rdb"))? {
        let path = file?.path();
        let (Some(name), true) = (path.file_stem(), path.extension().is_some_and(|ext| ext == "rdb")) else {
            continue;
        };
        let bytes = fs::read(&path)?;
        fs::write(whole.join(name), &bytes)?;
        let mut decoder = Decoder::new(bytes.as_slice(), Limits::default());
        let mut from = 0;
        while decoder.next()?.is_some() {
            let to = decoder.position() as usize;
            if from > 0 && to - from <= LARGEST {
                let item = [&bytes[..9], &bytes[from..to], &END].concat();
                fs::write(small.join(format!("{}-{from}", name.display())), item)?;
            }
            from = to;
        }
    }
    Ok(())
}
