// SPDX-License-Identifier: Apache-2.0
//! The fuzzer: every group of package `fuzz` for a minute, as many at the same time as there are processors
//! (docs/decisions/0060). What it finds lies stripped and ready for the corpus in the build directory.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, bail};
use tests::command;
use tests::packages;
use tests::progress::step;

/// A minute of each must fit into CI.
const PER_PROCESSOR: usize = 2;
/// Time of one group.
const SECONDS: u32 = 60;
const LONG_SECONDS: u32 = 1800;
/// An input that takes this long is a finding: parsers are linear.
const TIMEOUT_S: u32 = 20;
/// Parsers bound their memory; the fuzzer's own tables are in it.
const MEMORY_MIB: u32 = 1536;
/// Archives have blocks of 512 bytes: room for a dozen of them.
const INPUT_BYTES_MAX: u32 = 16 * 1024;

/// Counters at every branch and the operands of comparisons: what cargo-fuzz asks of the compiler, all of it stable. Every
/// overflow and failed assertion is a finding. Little optimized, to be built soon.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
    "-Copt-level=1",
];
/// How all programs of the workspace are linked.
const STATIC: &str = "target-feature=+crt-static";
/// Says that this program is called by cargo in place of the compiler.
const AS_COMPILER: &str = "SELVEDGE_FUZZ_COMPILER";

/// The compiler with the flags of the fuzzer, when cargo calls this program in its place: cargo does so for packages of
/// this workspace alone, so that all others are taken as they were built for the products.
pub(crate) fn as_compiler() -> Option<std::io::Error> {
    use std::os::unix::process::CommandExt as _;
    std::env::var_os(AS_COMPILER)?;
    let mut arguments = std::env::args_os().skip(1);
    let mut compiler = Command::new(arguments.next()?);
    // the fuzzer is C++ that does not run linked statically
    let dynamic = |argument| if argument == STATIC { STATIC.replace('+', "-").into() } else { argument };
    let arguments: Vec<std::ffi::OsString> = arguments.map(dynamic).collect();
    // what is built for this machine while building (macros, build scripts) has no target and no fuzzer in it
    let is_for_target = arguments.iter().any(|argument| argument == "--target");
    compiler.args(&arguments).args(if is_for_target { FLAGS } else { &[] });
    Some(compiler.exec())
}

pub(super) fn run(filter: Option<&str>, is_long: bool) -> anyhow::Result<()> {
    packages::ensure(packages::FUZZ)?;
    step("building the fuzzer (the first time takes minutes)");
    let mut build = crate::cargo()?;
    build.args(["build", "--release", "--quiet", "--workspace", "--exclude", "xtask", "--exclude", "tests"]);
    build.args(["--exclude", "attacker", "--bin", "fuzz-*", "--features", "fuzz/libfuzzer"]);
    let target = tests::lab::target_dir()?;
    build.env("RUSTC_WORKSPACE_WRAPPER", compiler(&target.join("fuzz"))?).env(AS_COMPILER, "yes");
    command::show(&mut build)?;
    let bins = tests::lab::release_dir()?;
    let mut groups = sorted(&crate::workspace()?.join("fuzz/corpus"))?;
    groups.retain(|group| filter.is_none_or(|filter| name(group).contains(filter)));
    let seconds = if is_long { LONG_SECONDS } else { SECONDS };
    let at_once = PER_PROCESSOR * std::thread::available_parallelism()?.get();
    step(format_args!("fuzzing {} groups for {seconds} s each, {at_once} at a time", groups.len()));
    let waiting = Mutex::new(VecDeque::from(groups));
    let problems = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(group) = waiting.lock().ok().and_then(|mut waiting| waiting.pop_front()) {
                    match attack(&group, &bins, &target.join("fuzz"), seconds) {
                        Ok(figures) => step(format_args!("{}: {figures}", name(&group))),
                        Err(error) => problems.lock().expect("no holder panics").push(format!("{error:#}")),
                    }
                }
            });
        }
    });
    let problems = problems.into_inner().unwrap_or_default();
    if !problems.is_empty() {
        bail!("the fuzzer found {} problems:\n{}", problems.len(), problems.join("\n"));
    }
    Ok(())
}

/// This program under a name that holds the flags: cargo looks at the name alone to see whether things are built already.
fn compiler(dir: &Path) -> anyhow::Result<PathBuf> {
    let link = dir.join(format!("compiler-{}", tests::lab::fingerprint(&FLAGS)));
    fs::create_dir_all(dir)?;
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(std::env::current_exe()?, &link)?;
    Ok(link)
}

/// Runs one group; what it did, in figures.
fn attack(group: &Path, bins: &Path, work: &Path, seconds: u32) -> anyhow::Result<String> {
    let name = name(group);
    let work = work.join(&name);
    let seeds = work.join("seeds");
    let grown = work.join("grown");
    let _ = fs::remove_dir_all(&seeds);
    fs::create_dir_all(&seeds)?;
    fs::create_dir_all(&grown)?;
    let parsers = sorted(group)?;
    for (number, parser) in parsers.iter().enumerate() {
        for file in sorted(parser)? {
            let content = [&[u8::try_from(number)?][..], &fs::read(&file)?].concat();
            fs::write(seeds.join(format!("{number}-{}", self::name(&file))), content)?;
        }
    }
    let log = work.join("log");
    let mut fuzzer = command::mortal(bins.join(format!("fuzz-{name}")));
    fuzzer.arg(&grown).arg(&seeds).args([
        format!("-max_total_time={seconds}"),
        format!("-timeout={TIMEOUT_S}"),
        format!("-rss_limit_mb={MEMORY_MIB}"),
        format!("-max_len={INPUT_BYTES_MAX}"),
        format!("-artifact_prefix={}/found-", work.display()),
        "-print_final_stats=1".into(),
    ]);
    let out = fs::File::create(&log)?;
    fuzzer.stdout(out.try_clone()?).stderr(out);
    let status = fuzzer.status().with_context(|| format!("cannot run fuzz-{name}"))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if status.success() {
        return Ok(figures(&said));
    }
    let found = said
        .lines()
        .find_map(|line| line.split_once("written to "))
        .map(|(_, path)| PathBuf::from(path.trim()));
    let Some(found) = found else { bail!("fuzz-{name} ended with {status}: see {}", log.display()) };
    let input = fs::read(&found)?;
    let parser = &parsers[input.first().map_or(0, |choice| usize::from(*choice) % parsers.len())];
    let why = said.lines().find(|line| line.contains("panicked at") || line.contains("ERROR:")).unwrap_or("");
    let kept = work.join(format!("{}-{}", self::name(parser), self::name(&found)));
    fs::write(&kept, input.get(1..).unwrap_or_default())?;
    bail!(
        "{name}/{}: {why}\n  log: {}\n  mend it, and keep the input: cp {} {}/",
        self::name(parser),
        log.display(),
        kept.display(),
        parser.display()
    )
}

fn figures(said: &str) -> String {
    let number = |key: &str| {
        let line = said.lines().rev().find_map(|line| line.split_once(key))?;
        line.1.split_whitespace().next().map(str::to_owned)
    };
    let unknown = || "?".to_owned();
    format!(
        "{} runs, {} edges, {} inputs",
        number("stat::number_of_executed_units:").unwrap_or_else(unknown),
        number(" cov: ").unwrap_or_else(unknown),
        number(" corp: ").unwrap_or_else(unknown),
    )
}

fn sorted(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
