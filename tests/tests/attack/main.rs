// SPDX-License-Identifier: Apache-2.0
//! A service or an app that was taken over: what it tries in vain, and that the same tries succeed where they may.
#![allow(clippy::unwrap_used)]

mod app;
mod channels;
mod services;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipc::manifest::Manifest;
use tests::command::Background;
use tests::confinement;
use tests::lab::{Place, bin_dir};
use tests::netns::Netns;
use tests::progress::wait_for;

/// Every service has made all its tries by then, on a machine four times slower than ours.
const TRIED: Duration = Duration::from_secs(240);

/// A hosted node whose services are the attacker, but for some.
struct Caged {
    manifests: BTreeMap<String, Manifest>,
    init: Background,
    netns: Netns,
    dir: PathBuf,
}

impl Caged {
    /// `real`: services that run as they are. `settings` reach all.
    fn start(name: &str, number: u8, real: &[&str], settings: &dyn Fn(&Netns) -> Vec<String>) -> Caged {
        let place = Place::new(name, number).unwrap();
        place.clear().unwrap();
        let netns = Netns::create(&place.name, number).unwrap();
        let manifests: BTreeMap<String, Manifest> =
            confinement::manifests().unwrap().into_iter().map(|m| (m.name.clone(), m)).collect();
        let bins = place.dir.join("bins");
        fs::create_dir_all(&bins).unwrap();
        for manifest in manifests.values() {
            let own = if real.contains(&&*manifest.name) { &*manifest.bin } else { "attacker" };
            std::os::unix::fs::symlink(bin_dir().unwrap().join(own), bins.join(&manifest.bin)).unwrap();
        }
        let config = place.dir.join("config");
        fs::create_dir_all(&config).unwrap();
        for (file, text) in [("server", "controller.example:8443\n"), ("root-certificate.pem", "PEM\n")] {
            fs::write(config.join(file), text).unwrap();
        }
        let mut command = netns.command(&place.program("selvedge-init"));
        command.args(["--hosted", "--instance", &place.name]);
        for (flag, dir) in
            [("--config", "config"), ("--persist", "persist"), ("--run", "run"), ("--bins", "bins")]
        {
            command.arg(flag).arg(place.dir.join(dir));
        }
        for setting in settings(&netns) {
            command.args(["--set", &setting]);
        }
        let init = Background::start("init", &place.dir.join("init.log"), &mut command).unwrap();
        Caged { manifests, init, netns, dir: place.dir }
    }

    /// What a service wrote, line by line: the one in place of log writes all down.
    fn lines(&self, service: &str) -> Vec<String> {
        let text = fs::read(self.dir.join("persist/log/lines")).unwrap_or_default();
        let head = format!("Service {{ name: {service:?} }} ");
        let text = String::from_utf8_lossy(&text).into_owned();
        text.lines().filter_map(|line| line.strip_prefix(&head).map(str::to_owned)).collect()
    }

    fn wait_line(&mut self, service: &str, wanted: &str) {
        let what = format!("{service} has {wanted}");
        let waited = wait_for(&what, TRIED, || {
            let is_there = self.lines(service).iter().any(|line| line == wanted);
            (is_there || self.init.check().is_err()).then_some(())
        });
        if waited.is_err() || self.init.check().is_err() {
            panic!("in vain: {what}\n{:#?}\n{}", self.lines(service), self.init.log_tail());
        }
    }

    fn stop(mut self) {
        self.init.stop().unwrap();
        assert!(Path::new("/proc/self").exists());
        drop(self.netns);
    }
}

/// `attack NAME = OUTCOME; NAME = OUTCOME…` of many lines.
fn outcomes<'l>(lines: impl IntoIterator<Item = &'l str>) -> BTreeMap<String, String> {
    let told =
        lines.into_iter().filter_map(|line| line.strip_prefix("attack ")).flat_map(|line| line.split("; "));
    let tries = told.filter_map(|one| one.split_once(" = "));
    tries.map(|(name, outcome)| (name.to_owned(), outcome.to_owned())).collect()
}

/// What differs from "exactly these succeed"; nothing is expected. A try that hung or was not made counts.
fn differences(who: &str, outcomes: &BTreeMap<String, String>, may: &dyn Fn(&str) -> bool) -> Vec<String> {
    let is_refused = |outcome: &str| {
        let signal =
            outcome.strip_prefix("signal ").is_some_and(|signal| ["31", "11", "9"].contains(&signal));
        signal || outcome.starts_with("errno ")
    };
    let mut out = Vec::new();
    for (name, outcome) in outcomes {
        let is_as_it_should = if may(name) { outcome == "done" } else { is_refused(outcome) };
        if !is_as_it_should {
            let should = if may(name) { "may" } else { "may not" };
            out.push(format!("{who} {should} {name:?}, but: {outcome}"));
        }
    }
    out
}
