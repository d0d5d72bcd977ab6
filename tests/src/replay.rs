// SPDX-License-Identifier: Apache-2.0
//! Power cuts without a machine: the writes of a disk, recorded in order with their flushes, played back up to any moment.
//!
//! A recording is in the format of dm-log-writes, as QEMU's driver blklogwrites makes it. At a cut everything is on the disk that a
//! later flush had confirmed; of what came after it each write is there, is not there, or is torn at a sector, by the seed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const SECTOR: u64 = 512;
const PAGE: u64 = 4096;
const HEAD_BYTES: usize = 32;
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;

/// What reached the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// All before it is kept.
    Flush,
    /// Offsets in bytes; the content lies in the recording. A forced one is kept as soon as it is done.
    Write { at: u64, bytes: u64, content: u64, is_forced: bool },
}

#[derive(Debug)]
pub struct Recording {
    file: File,
    pub steps: Vec<Step>,
}

impl Recording {
    pub fn open(path: &Path) -> anyhow::Result<Recording> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let number = |at: u64| -> io::Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_le_bytes(bytes))
        };
        if number(0)? != MAGIC {
            bail!("{} is no recording", path.display());
        }
        let count = number(16)?;
        let mut steps = Vec::new();
        let mut at = SECTOR;
        for _ in 0..count {
            let mut head = [0; HEAD_BYTES];
            file.read_exact_at(&mut head, at)?;
            let field =
                |index: usize| head[index * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            let (sector, sectors, flags) = (field(0), field(1), field(2));
            at += SECTOR;
            if flags & FLUSH != 0 {
                steps.push(Step::Flush);
            }
            // what was discarded may read as anything: as it was is the worst of it
            if flags & DISCARD == 0 && sectors > 0 {
                let is_forced = flags & FORCED != 0;
                steps.push(Step::Write {
                    at: sector * SECTOR,
                    bytes: sectors * SECTOR,
                    content: at,
                    is_forced,
                });
                at += sectors * SECTOR;
            }
        }
        Ok(Recording { file, steps })
    }

    /// The same disk, had nobody ever flushed: what a checker must find fault with.
    pub fn without_flushes(mut self) -> Recording {
        self.steps.retain(|step| *step != Step::Flush);
        for step in &mut self.steps {
            if let Step::Write { is_forced, .. } = step {
                *is_forced = false;
            }
        }
        self
    }

    /// Plays it `rounds` times, each with another seed, and shows the disk at every `stride`th step to the judge. The first
    /// round keeps every write before the cut. Gives the number of cuts.
    pub fn cuts(
        &self,
        base: Option<&File>,
        (rounds, stride): (u64, usize),
        mut judge: impl FnMut(&View<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<u64> {
        let mut count = 0;
        for round in 0..rounds {
            let mut kept = Disk { base, pages: BTreeMap::new() };
            // what came since the last flush: all of it, and what of it is on the disk
            let mut pending: Vec<(u64, Vec<u8>)> = Vec::new();
            let mut over: Pages<Moment> = BTreeMap::new();
            for (index, step) in self.steps.iter().enumerate() {
                let moment = (round, index as u64);
                match step {
                    Step::Flush => {
                        over.clear();
                        for (at, bytes) in pending.drain(..) {
                            kept.write(at, &bytes, moment.1);
                        }
                    }
                    Step::Write { at, bytes, content, is_forced } => {
                        let mut buffer = vec![0; usize::try_from(*bytes)?];
                        self.file.read_exact_at(&mut buffer, *content)?;
                        let fate = if *is_forced { Fate::There } else { Fate::of(moment, *bytes) };
                        let there = match fate {
                            Fate::There => &buffer[..],
                            Fate::Missing => &[],
                            Fate::Torn { sectors } => &buffer[..(sectors * SECTOR) as usize],
                        };
                        put(&mut over, *at, there, moment, |page| kept.page(page));
                        if *is_forced {
                            kept.write(*at, &buffer, moment.1);
                        }
                        // a forced one again, behind what came before it
                        pending.push((*at, buffer));
                    }
                }
                // each round at other steps
                if (index + round as usize).is_multiple_of(stride) {
                    let what = || format!("round {round}, step {index} of {}", self.steps.len());
                    judge(&View { kept: &kept, over: &over }).with_context(what)?;
                    count += 1;
                }
            }
        }
        Ok(count)
    }
}

/// What becomes of a write that no flush has confirmed.
enum Fate {
    There,
    Missing,
    Torn { sectors: u64 },
}

impl Fate {
    fn of((round, step): (u64, u64), bytes: u64) -> Fate {
        let mut chance = Chance(round.wrapping_mul(0x9e37_79b9) ^ step);
        match (round, chance.next() % 8) {
            (0, _) | (_, 0..=3) => Fate::There,
            (_, 4..=6) => Fate::Missing,
            _ => Fate::Torn { sectors: chance.next() % (bytes / SECTOR) },
        }
    }
}

/// A splitmix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

type Page = Box<[u8; PAGE as usize]>;
/// Round and step.
pub type Moment = (u64, u64);
/// With the moment of the last change.
type Pages<M> = BTreeMap<u64, (M, Page)>;

/// What is kept, over the disk as it was before.
#[derive(Debug)]
struct Disk<'b> {
    base: Option<&'b File>,
    /// The same in every round.
    pages: Pages<u64>,
}

impl Disk<'_> {
    fn page(&self, page: u64) -> Page {
        if let Some((_, content)) = self.pages.get(&page) {
            return content.clone();
        }
        let mut content = Box::new([0; PAGE as usize]);
        if let Some(base) = self.base {
            // behind its end there is nothing
            let _ = base.read_exact_at(&mut content[..], page * PAGE);
        }
        content
    }

    fn write(&mut self, at: u64, bytes: &[u8], step: u64) {
        let mut fresh = BTreeMap::new();
        put(&mut fresh, at, bytes, step, |page| self.page(page));
        self.pages.extend(fresh);
    }
}

fn put<M: Copy>(pages: &mut Pages<M>, at: u64, bytes: &[u8], moment: M, old: impl Fn(u64) -> Page) {
    let (mut at, mut rest) = (at, bytes);
    while !rest.is_empty() {
        let (page, inside) = (at / PAGE, (at % PAGE) as usize);
        let length = rest.len().min(PAGE as usize - inside);
        let (last, content) = pages.entry(page).or_insert_with(|| (moment, old(page)));
        *last = moment;
        content[inside..inside + length].copy_from_slice(&rest[..length]);
        (at, rest) = (at + length as u64, &rest[length..]);
    }
}

/// The last changes of a part, kept and not yet kept.
pub type State = (Option<u64>, Option<Moment>);

/// The disk at a cut.
#[derive(Debug)]
pub struct View<'d> {
    kept: &'d Disk<'d>,
    over: &'d Pages<Moment>,
}

impl View<'_> {
    pub fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        let (mut at, mut done) = (at, 0);
        while done < length {
            let (page, inside) = (at / PAGE, (at % PAGE) as usize);
            let count = (length - done).min(PAGE as usize - inside);
            let place = &mut out[done..done + count];
            if let Some((_, content)) = self.over.get(&page) {
                place.copy_from_slice(&content[inside..inside + count]);
            } else if let Some((_, content)) = self.kept.pages.get(&page) {
                place.copy_from_slice(&content[inside..inside + count]);
            } else if let Some(base) = self.kept.base {
                let _ = base.read_exact_at(place, at);
            }
            (at, done) = (at + count as u64, done + count);
        }
        out
    }

    /// Equal only for equal content of these bytes: what was judged once needs no second look.
    pub fn state(&self, bytes: &Range<u64>) -> State {
        let pages = bytes.start / PAGE..bytes.end.div_ceil(PAGE);
        let kept = self.kept.pages.range(pages.clone()).map(|(_, (moment, _))| *moment).max();
        (kept, self.over.range(pages).map(|(_, (moment, _))| *moment).max())
    }

    /// A part as a file of its own, with holes where nothing was written.
    pub fn extract(&self, bytes: &Range<u64>, path: &Path) -> anyhow::Result<()> {
        let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        file.set_len(bytes.end - bytes.start)?;
        let pages = bytes.start / PAGE..bytes.end / PAGE;
        let kept = self.kept.pages.range(pages.clone()).map(|(page, (_, content))| (page, content));
        let over = self.over.range(pages).map(|(page, (_, content))| (page, content));
        for (page, content) in kept.chain(over) {
            file.write_all_at(&content[..], page * PAGE - bytes.start)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    /// Writes of one sector each, and flushes.
    fn recording(dir: &Path, steps: &[Option<(u64, u8)>]) -> Recording {
        let mut out = Vec::new();
        let head = |numbers: [u64; 4]| {
            let mut sector: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            sector.resize(SECTOR as usize, 0);
            sector
        };
        out.extend(head([MAGIC, 1, steps.len() as u64, SECTOR]));
        for step in steps {
            match step {
                None => out.extend(head([0, 0, FLUSH, 0])),
                Some((sector, byte)) => {
                    out.extend(head([*sector, 1, 0, SECTOR]));
                    out.extend([*byte; SECTOR as usize]);
                }
            }
        }
        let path = dir.join("log");
        std::fs::write(&path, out).unwrap();
        Recording::open(&path).unwrap()
    }

    #[test]
    fn what_was_flushed_is_there_and_the_rest_may_be() {
        let dir = tempfile::tempdir().unwrap();
        let steps = [Some((0, 1)), None, Some((1, 2)), Some((9, 3))];
        let seen = |recording: &Recording| {
            let mut seen = BTreeSet::new();
            let judge = |view: &View<'_>| {
                seen.insert((view.read(0, 1)[0], view.read(512, 1)[0], view.read(9 * 512, 1)[0]));
                Ok(())
            };
            assert_eq!(recording.cuts(None, (50, 1), judge).unwrap(), 50 * steps.len() as u64);
            seen
        };
        let flushed = seen(&recording(dir.path(), &steps));
        // before the flush the first may be missing; then it never is, and the others come in any order
        assert!(!flushed.iter().any(|(a, b, c)| *a == 0 && (*b != 0 || *c != 0)), "{flushed:?}");
        assert!(flushed.contains(&(1, 0, 3)) && flushed.contains(&(1, 2, 3)) && flushed.contains(&(1, 2, 0)));
        let planted = seen(&recording(dir.path(), &steps).without_flushes());
        assert!(planted.contains(&(0, 2, 3)), "{planted:?}");
    }
}
