// SPDX-License-Identifier: Apache-2.0
//! An image of many files, as large as those of common runtimes: three layers, made once, packed by umoci.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::command::{root, run};
use tests::progress::step;

/// Reference inside the layout.
pub(super) const TAG: &str = "many";

const LAYERS: usize = 3;
const FILES: usize = 20_000;
const FILES_PER_DIR: usize = 40;
/// Sizes vary from nothing to twice this: 200 MB in all.
const MEAN_FILE_BYTES: u64 = 10_000;
/// One file of so many has bytes that do not compress, as pictures and archives have.
const RANDOM_EVERY: usize = 8;

/// Directory of an OCI layout with the image under [`TAG`].
pub(super) fn many_files(cache: &Path) -> anyhow::Result<PathBuf> {
    let layout = cache.join("many-image");
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    step(format_args!("making an image of {FILES} files"));
    let work = cache.join("many-image.work");
    run(root("rm").arg("-rf").arg(&work))?;
    fs::create_dir_all(&work)?;
    let image = format!("{}:{TAG}", work.join("layout").display());
    run(Command::new("umoci").arg("init").arg("--layout").arg(work.join("layout")))?;
    run(Command::new("umoci").args(["new", "--image", &image]))?;
    let bundle = work.join("bundle");
    run(root("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let words: Vec<String> = (0..4_000).map(|_| word(&mut noise)).collect();
    for layer in 0..LAYERS {
        let files = work.join(format!("files{layer}"));
        write_files(&files, layer, &words, &mut noise)?;
        run(root("cp").arg("-r").arg(format!("{}/.", files.display())).arg(bundle.join("rootfs")))?;
        run(root("umoci").args(["repack", "--refresh-bundle", "--image", &image]).arg(&bundle))?;
    }
    run(root("chmod").args(["-R", "a+rX"]).arg(work.join("layout")))?;
    fs::rename(work.join("layout"), &layout)?;
    run(root("rm").arg("-rf").arg(&work))?;
    Ok(layout)
}

fn write_files(top: &Path, layer: usize, words: &[String], noise: &mut Noise) -> anyhow::Result<()> {
    for number in 0..FILES / LAYERS {
        let dir = top.join(format!("usr/lib{layer}/package{}", number / FILES_PER_DIR));
        fs::create_dir_all(&dir)?;
        let size = noise.next() % (2 * MEAN_FILE_BYTES);
        let mut content = Vec::with_capacity(size as usize);
        while (content.len() as u64) < size {
            if number % RANDOM_EVERY == 0 {
                content.extend_from_slice(&noise.next().to_le_bytes());
            } else {
                // Small numbers are frequent, as frequent words are.
                let bits = noise.next() % 12 + 1;
                let index = (noise.next() % (1 << bits)) as usize % words.len();
                write!(content, "{} ", words[index])?;
            }
        }
        content.truncate(size as usize);
        fs::write(dir.join(format!("file{number}")), content)?;
    }
    Ok(())
}

fn word(noise: &mut Noise) -> String {
    (0..2 + noise.next() % 8).map(|_| char::from(b'a' + (noise.next() % 26) as u8)).collect()
}

/// The same bytes in every run: xorshift.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}
