// SPDX-License-Identifier: Apache-2.0
//! The operator's day at the command line: the program itself against a controller of its own on loopback.

#![allow(clippy::unwrap_used)]

mod lab;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{Controller, PATIENCE, PROGRAM, Ran, serve};

const INTENT: &str = "\
apiVersion: selvedge/v1alpha1
kind: Device
metadata: { name: berlin-07, labels: { site: berlin } }
spec: { serial: SN-4711 }
---
apiVersion: selvedge/v1alpha1
kind: Secret
metadata: { name: shop-db }
spec: { data: { password: hunter2 } }
---
apiVersion: selvedge/v1alpha1
kind: App
metadata: { name: shop, labels: { team: retail } }
spec:
  image: team/shop:1
  selector: { site: berlin }
  env: { LOG: 'yes', PORT: '80' }
  secretEnv: { DB: { name: shop-db, key: password } }
";

fn with_intent() -> Controller {
    let controller = Controller::start();
    controller.write("intent.yaml", INTENT);
    controller.does(&["apply", "-f", "intent.yaml"]);
    controller
}

#[test]
#[ignore = "opens a port"]
fn an_export_applied_again_changes_nothing_and_keeps_secrets() {
    let controller = with_intent();
    let export = controller.does(&["export"]);
    assert!(!export.contains("hunter2") && export.contains("# keys: password"), "{export}");
    assert!(!export.contains("uid:") && !export.contains("status:"), "{export}");
    controller.write("export.yaml", &export);
    let plan = controller.run(&["plan", "-f", "export.yaml"]);
    assert_eq!((plan.code, plan.out.lines().next()), (0, Some("nothing changes")), "{}", plan.out);
    controller.does(&["apply", "-f", "export.yaml"]);
    let keys = controller.does(&["get", "secret/shop-db", "-o", "yaml"]);
    assert!(keys.contains("- password"), "{keys}");
    assert_eq!(controller.does(&["export", "app", "-l", "team=retail", "-o", "name"]), "app/shop\n");
    assert_eq!(controller.does(&["export", "app", "-l", "team=none", "-o", "name"]), "");
}

#[test]
#[ignore = "opens a port"]
fn labels_choose_and_are_changed_with_what_they_do_to_devices_shown() {
    let controller = with_intent();
    let plan = controller.run(&["label", "device/berlin-07", "site-", "rack=7", "--dry-run"]);
    assert_eq!(plan.code, 2);
    assert!(plan.out.contains("- app shop"), "without the label the app goes: {}", plan.out);
    controller.does(&["label", "device/berlin-07", "rack=7"]);
    assert_eq!(
        controller.does(&["get", "devices", "-l", "rack=7,site=berlin", "-o", "name"]),
        "device/berlin-07\n"
    );
    assert_eq!(controller.does(&["get", "devices", "-l", "rack=8", "-o", "name"]), "");
    let refused = controller.run(&["get", "devices", "-l", "rack"]);
    assert!(refused.code == 1 && refused.err.contains("write key=value"), "{}", refused.err);
    controller.does(&["label", "app", "-l", "team=retail", "tier=gold"]);
    assert_eq!(controller.does(&["get", "app", "-l", "tier=gold", "-o", "name"]), "app/shop\n");
    // A secret keeps its values when its labels change.
    controller.does(&["label", "secret/shop-db", "owner=ann"]);
    assert!(controller.does(&["get", "secret/shop-db", "-o", "yaml"]).contains("- password"));
    let waited = controller.run(&["wait", "app", "-l", "tier=gold", "--for", "exists", "--timeout", "1s"]);
    assert_eq!(waited.code, 0, "{}", waited.err);
    let mistyped = controller.run(&["get", "app/shpo", "-w"]);
    assert!(mistyped.code == 1 && mistyped.err.contains("does not exist"), "{}", mistyped.err);
    let nothing = controller.run(&["delete", "app", "-l", "tier=iron"]);
    assert!(nothing.code == 1 && nothing.err.contains("no app carries tier=iron"), "{}", nothing.err);
    assert_eq!(controller.run(&["delete", "app", "-l", "tier=gold", "--dry-run"]).code, 2);
    controller.does(&["delete", "app", "-l", "tier=gold"]);
    assert_eq!(controller.does(&["get", "apps", "-o", "name"]), "");
}

#[test]
#[ignore = "opens a port"]
fn the_history_of_an_object_tells_who_when_and_what_also_after_its_end() {
    let controller = with_intent();
    controller.does(&["label", "app/shop", "tier=gold"]);
    controller.does(&["delete", "app/shop"]);
    let history = controller.does(&["history", "app/shop"]);
    let lines: Vec<&str> = history.lines().collect();
    assert_eq!(lines.len(), 4, "{history}");
    for (line, text) in
        lines.iter().zip(["created by ", "changed by ", "metadata.labels.tier: (none) → gold", "deleted by "])
    {
        assert!(line.contains(text), "{text} in {history}");
    }
    assert_eq!(controller.does(&["history", "app/shop", "-n", "1"]).lines().count(), 1);
    let secret = controller.does(&["history", "secret/shop-db", "-o", "yaml"]);
    assert!(!secret.contains("hunter2"), "{secret}");
    let unknown = controller.run(&["history", "app/none"]);
    assert!(unknown.code == 1 && unknown.err.contains("does not exist"), "{}", unknown.err);
}

#[test]
#[ignore = "opens a port"]
fn an_edit_is_applied_and_a_refused_one_comes_back_with_the_reason() {
    let controller = with_intent();
    let edited = controller.edit("app/shop", "sed -i 's/shop:1/shop:2/' \"$1\"");
    assert_eq!(
        (edited.code, edited.out.contains("team/shop:1 → team/shop:2")),
        (0, true),
        "{}{}",
        edited.out,
        edited.err
    );
    let same = controller.edit("app/shop", "true");
    assert!(same.code == 0 && same.err.contains("is unchanged"), "{}", same.err);
    // First a typing error, then, once the reason stands in the file, the right field.
    let script = "if grep -q 'unknown field' \"$1\"; then cp \"$1\" seen; sed -i 's/imgae:/image:/' \"$1\"; \
        else sed -i 's/image: .*/imgae: team\\/shop:3/' \"$1\"; fi";
    let mended = controller.edit("app/shop", script);
    assert_eq!(
        (mended.code, mended.out.contains("→ team/shop:3")),
        (0, true),
        "{}{}",
        mended.out,
        mended.err
    );
    let seen = std::fs::read_to_string(controller.path().join("seen")).unwrap();
    assert!(seen.contains("#! ") && seen.contains("spec.imgae: unknown field"), "{seen}");
    // Given up after a refusal: the text is kept.
    let script = "grep -q '^#! .*unknown' \"$1\" || sed -i 's/image:/imgae:/' \"$1\"";
    let given_up = controller.edit("app/shop", script);
    assert_eq!(given_up.code, 3);
    let kept = given_up.err.trim().rsplit(' ').next().unwrap();
    assert!(std::fs::read_to_string(kept).unwrap().contains("imgae: team/shop:3"), "{}", given_up.err);
    std::fs::remove_dir_all(Path::new(kept).parent().unwrap()).unwrap();
    // Somebody else writes while the editor is open.
    let other = format!(
        "if grep -q meanwhile \"$1\"; then cp \"$1\" seen; sed -i '/^#!/d' \"$1\"; else \
         {PROGRAM} --data data label app/shop by=other >/dev/null && sed -i 's/shop:3/shop:4/' \"$1\"; fi"
    );
    let merged = controller.edit("app/shop", &other);
    assert_eq!(merged.code, 0, "{}{}", merged.out, merged.err);
    let seen = std::fs::read_to_string(controller.path().join("seen")).unwrap();
    assert!(seen.contains("metadata.labels.by: null → \"other\""), "{seen}");
    let editor_missing = controller.command(&["edit", "app/shop"]).env("EDITOR", "no-such-editor").output();
    let editor_missing = Ran::from(editor_missing.unwrap());
    assert!(editor_missing.code == 1 && editor_missing.err.contains("EDITOR"), "{}", editor_missing.err);
}

/// Lines of a program that goes on, until one contains a text.
fn until(lines: &mut impl Iterator<Item = std::io::Result<String>>, text: &str) -> Vec<String> {
    let (mut seen, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while Instant::now() < deadline {
        let line = lines.next().unwrap().unwrap();
        let is_it = line.contains(text);
        seen.push(line);
        if is_it {
            return seen;
        }
    }
    panic!("no {text} in {seen:?}");
}

#[test]
#[ignore = "opens a port"]
fn a_watch_goes_on_over_a_restart_of_the_controller() {
    let mut controller = with_intent();
    let watch = |words: &[&str]| {
        let mut process =
            controller.command(words).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        (process, lines)
    };
    let (mut apps, mut app_lines) = watch(&["get", "apps", "-w", "-l", "team=retail"]);
    let (mut events, mut event_lines) = watch(&["events", "-w"]);
    assert_eq!(until(&mut app_lines, "shop").len(), 2, "a head and a line");
    until(&mut event_lines, "app/shop");
    controller.does(&["label", "app/shop", "site=x"]);
    until(&mut event_lines, "Changed");
    controller.stop();
    controller.start_again();
    controller
        .write("new.yaml", &INTENT.rsplit("---\n").next().unwrap().replace("name: shop,", "name: kiosk,"));
    controller.does(&["apply", "-f", "new.yaml"]);
    until(&mut app_lines, "kiosk");
    until(&mut event_lines, "app/kiosk");
    controller.does(&["delete", "app/kiosk"]);
    let last = until(&mut app_lines, "(deleted)").pop().unwrap();
    assert!(last.starts_with("kiosk"), "{last}");
    for process in [&mut apps, &mut events] {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

#[test]
#[ignore = "opens a port"]
fn the_doctor_finds_what_is_wrong_and_says_what_to_do() {
    let mut controller = with_intent();
    let well = controller.run(&["doctor"]);
    assert_eq!(well.code, 0, "{}{}", well.out, well.err);
    for topic in ["data", "database", "certificates", "registry", "connection", "TLS", "clock", "token"] {
        assert!(well.out.contains(&format!("ok   {topic}: ")), "{topic} in {}", well.out);
    }
    assert!(well.out.contains("odd  devices: 1 of 1 are silent: berlin-07"), "{}", well.out);
    let data = controller.path().join("data");
    let chmod = |mode: &str| {
        assert!(Command::new("chmod").arg(mode).arg(data.join("admin-token")).status().unwrap().success())
    };
    chmod("644");
    let open = controller.run(&["doctor", "-o", "name"]);
    assert!(open.code == 1 && open.out.contains("next: chmod 600 "), "{}", open.out);
    chmod("600");
    let wrong = controller.run(&["--token", "wrong", "doctor", "-o", "name"]);
    assert!(wrong.code == 1 && wrong.out.contains("bad  token: "), "{}", wrong.out);
    let server = format!("https://{}", controller.listen);
    let other = root_of_another(controller.path());
    let foreign = controller.run(&["--server", &server, "--ca", &other, "doctor", "-o", "name"]);
    assert!(foreign.out.contains("root certificate is of another controller"), "{}", foreign.out);
    controller.stop();
    let stopped = controller.run(&["doctor", "-o", "name"]);
    assert!(stopped.code == 1 && stopped.out.contains("start it with 'selvedge serve'"), "{}", stopped.out);
    // The controller is started again so that dropping it finds one.
    controller.start_again();
}

/// The root certificate of another controller, made by starting one.
fn root_of_another(directory: &Path) -> String {
    let other = directory.join("other");
    std::fs::create_dir(&other).unwrap();
    let (mut process, _) = serve(&other, "127.0.0.1:0");
    process.kill().unwrap();
    process.wait().unwrap();
    other.join("data/pki/root-certificate.pem").display().to_string()
}

#[test]
#[ignore = "opens a port"]
fn garbage_of_the_registry_is_collected_by_command() {
    let controller = with_intent();
    let nothing = controller.run(&["registry", "gc", "--dry-run"]);
    assert_eq!(
        (nothing.code, nothing.out.as_str()),
        (0, "would free 0 B: 0 manifests, 0 blobs\n"),
        "{}",
        nothing.err
    );
    let short = controller.run(&["registry", "gc", "--grace", "1m"]);
    assert!(short.code == 1 && short.err.contains("next:  give at least 3600 s"), "{}", short.err);
    // Content that nothing links, from long ago.
    let content = controller.path().join("data/registry/blobs/sha256/00");
    std::fs::create_dir_all(&content).unwrap();
    let file = content.join("00".repeat(32));
    std::fs::File::create(&file).unwrap().write_all(&[0; 5000]).unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(7 * 86_400);
    std::fs::File::open(&file).unwrap().set_modified(long_ago).unwrap();
    let planned = controller.run(&["registry", "gc", "--dry-run"]);
    assert_eq!((planned.code, planned.out.as_str()), (2, "would free 4.9 KiB: 0 manifests, 1 blobs\n"));
    assert_eq!(controller.does(&["registry", "gc"]), "freed 4.9 KiB: 0 manifests, 1 blobs\n");
    assert!(!file.exists());
    let audit = controller.does(&["audit", "tail", "-n", "1"]);
    assert!(audit.contains("collectImages") && audit.contains("0 manifests, 1 blobs, 5000 bytes"), "{audit}");
}

#[test]
#[ignore = "opens a port"]
fn shells_complete_kinds_and_names() {
    let controller = with_intent();
    let complete = |words: &[&str]| {
        let data = controller.path().join("data");
        let mut all = vec!["selvedge", "--data", data.to_str().unwrap()];
        all.extend(words);
        let index = (all.len() - 1).to_string();
        let output = Command::new(PROGRAM)
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", index)
            .env("_CLAP_COMPLETE_COMP_TYPE", "9")
            .env("_CLAP_IFS", "\n")
            .arg("--")
            .args(&all)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(complete(&["get", "devic"]), "device");
    assert_eq!(complete(&["describe", "app/s"]), "app/shop");
    assert_eq!(complete(&["exp"]).lines().count(), 2, "explain and export");
    assert!(complete(&["wait", "app/shop", "--f"]).contains("--for"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(controller.does(&["completion", shell]).contains("COMPLETE"), "{shell}");
    }
}

#[test]
#[ignore = "needs groff"]
fn manual_pages_render_without_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("man");
    let made = Command::new(PROGRAM).arg("man").arg("--out").arg(&out).output().unwrap();
    assert!(made.status.success());
    let pages: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(pages.len() > 20, "{}", pages.len());
    for page in pages {
        let rendered =
            Command::new("groff").args(["-man", "-Tutf8", "-ww", "-z"]).arg(&page).output().unwrap();
        let said = String::from_utf8_lossy(&rendered.stderr).into_owned();
        assert!(rendered.status.success() && said.is_empty(), "{}: {said}", page.display());
    }
}
