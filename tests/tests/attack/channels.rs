// SPDX-License-Identifier: Apache-2.0
//! Services that misuse what they may speak to: topics of others, calls that are not theirs, frames that are none. The
//! real bus and vault stand in the middle.

use std::collections::BTreeSet;

use ipc::manifest::{Instances, Manifest};
use ipc::topics;
use tests::lab::{comm, descendants};

use super::Caged;

const REAL: &[&str] = &["bus", "vault"];

#[test]
#[ignore = "needs root"]
fn channels_carry_what_manifests_allow_and_forged_frames_harm_nobody() {
    let mut caged = Caged::start("channels", 52, REAL, &|_| vec!["attack=channels".into()]);
    let all: Vec<Manifest> = caged.manifests.values().cloned().collect();
    let taken_over: Vec<&Manifest> =
        all.iter().filter(|m| m.instances == Instances::One && !REAL.contains(&&*m.name)).collect();
    // log listens; it misuses nothing itself
    let taken_over: Vec<&Manifest> = taken_over.into_iter().filter(|m| m.name != "log").collect();
    for service in REAL {
        pid_of(&mut caged, service);
    }
    let before: Vec<u32> = REAL.iter().map(|service| pid_of(&mut caged, service)).collect();
    let mut problems = Vec::new();
    for manifest in &taken_over {
        caged.wait_line(&manifest.name, "listened");
        let lines = caged.lines(&manifest.name);
        problems.extend(channel_differences(manifest, &all, &lines));
        problems.extend(topic_differences(manifest, &taken_over, &lines));
        problems.extend(vault_differences(manifest, &lines));
    }
    let said = caged.lines("agent");
    assert!(said.iter().any(|line| line == "vault still answers: true"), "{said:#?}");
    assert!(caged.lines("fetch").iter().any(|line| line == "flooded"));
    let after: Vec<u32> = REAL.iter().map(|service| pid_of(&mut caged, service)).collect();
    assert_eq!(before, after, "the bus or the vault did not survive");
    caged.init.check().unwrap();
    caged.stop();
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

fn pid_of(caged: &mut Caged, service: &str) -> u32 {
    let name = format!("selvedge-{service}");
    tests::progress::wait_for(&format!("{service} runs"), super::TRIED, || {
        let all = descendants(caged.init.pid()).unwrap();
        all.into_iter().find(|pid| comm(*pid).as_deref() == Some(&name[..name.len().min(15)]))
    })
    .unwrap()
}

/// To the bus when it reads or writes, to log, to those it calls, from those that call it.
fn channel_differences(manifest: &Manifest, all: &[Manifest], lines: &[String]) -> Vec<String> {
    let mut wanted: BTreeSet<String> = manifest.calls.iter().map(|callee| format!("call {callee}")).collect();
    wanted.insert("log".into());
    if !manifest.reads.is_empty() || !manifest.writes().is_empty() {
        wanted.insert("bus".into());
    }
    let callers = all.iter().filter(|m| m.instances == Instances::One && m.calls.contains(&manifest.name));
    wanted.extend(callers.map(|caller| format!("answer {}", caller.name)));
    let said = lines.iter().find_map(|line| line.strip_prefix("channels ")).unwrap_or("");
    let seen: BTreeSet<String> = said.split(',').map(str::to_owned).collect();
    // run is given the channel of the shim it asked for
    let differs = seen.symmetric_difference(&wanted).filter(|role| !role.starts_with("raw shim"));
    differs.map(|role| format!("{}: channel {role:?}, should have {wanted:?}", manifest.name)).collect()
}

/// Of the topics it may read it sees what their writers wrote, and nothing else of anybody.
fn topic_differences(manifest: &Manifest, taken_over: &[&Manifest], lines: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let seen: BTreeSet<&str> = lines.iter().filter_map(|line| line.strip_prefix("seen ")).collect();
    for (topic, writer) in topics::ALL {
        let is_readable = manifest.reads.iter().any(|own| own == topic);
        let right = format!("{topic}/of-{writer}");
        let is_written = taken_over.iter().any(|other| other.name == *writer);
        if is_readable && is_written && !seen.contains(&*right) {
            out.push(format!("{}: may read {topic} and does not see it", manifest.name));
        }
        for one in seen.iter().filter(|one| one.split('/').next() == Some(topic)) {
            if !is_readable {
                out.push(format!("{}: sees {one}", manifest.name));
            } else if one.contains("/of-") && **one != *right {
                out.push(format!("{}: sees the forged {one}", manifest.name));
            }
        }
    }
    out
}

/// Who calls the vault gets what is its own.
fn vault_differences(manifest: &Manifest, lines: &[String]) -> Vec<String> {
    let own: &[&str] = match &*manifest.name {
        "agent" => &["identity", "sign", "seal", "trust"],
        "fetch" => &["credentials"],
        _ => &[],
    };
    let head = format!("vault {} ", manifest.name);
    let answers = lines.iter().filter_map(|line| line.strip_prefix(&head)?.split_once(" = "));
    let wrong = answers.filter(|(what, answer)| own.contains(what) == answer.contains("may not ask"));
    let mut out: Vec<String> =
        wrong.map(|(what, answer)| format!("{}: {what} of the vault: {answer}", manifest.name)).collect();
    let asked = lines.iter().filter(|line| line.starts_with(&head)).count();
    if asked != if manifest.calls.iter().any(|callee| callee == "vault") { 6 } else { 0 } {
        out.push(format!("{}: asked the vault {asked} times", manifest.name));
    }
    out
}
