// SPDX-License-Identifier: Apache-2.0
//! A small app that does as it is told: images of Debian's static busybox with a web server that runs commands.
//!
//! `GET /` answers with the version of the image, `GET /cgi-bin/sh?COMMAND` with what the command printed inside the app.
//! `MODE` in the app's environment makes it end (`exit`) or take all memory (`hog`) at its start; `SCRIPT` is run there.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;

use crate::command::{root, run};
use crate::http;
use crate::progress::step;

/// Directory in the cache; another one for each change of what is in the images.
const NAME: &str = "toolbox-2";

/// Runs as first process: it must hand on the signal that ends it, a shell alone would not hear it.
const START: &str = "\
#!/bin/sh
echo \"toolbox $(cat /version) starts\"
[ \"$MODE\" = exit ] && exit 7
[ \"$MODE\" = hog ] && exec tail /dev/zero
eval \"$SCRIPT\"
trap 'kill $server; exit 0' TERM
httpd -f -p 80 -h /srv &
server=$!
wait $server
";

const CGI: &str = "\
#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
eval \"$(httpd -d \"$QUERY_STRING\")\" 2>&1
";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nworker:x:1234:2345:worker:/home/worker:/bin/sh\n";
const GROUP: &str = "root:x:0:\nworkers:x:2345:\n";

/// Programs of busybox that commands use.
const APPLETS: &[&str] = &[
    "cat", "echo", "env", "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ls", "mkdir", "nc",
    "nslookup", "ping", "printf", "pwd", "rm", "sh", "sleep", "stat", "tail", "tr", "true", "wget",
];

/// What an image of the layout says of itself.
#[derive(Debug)]
pub struct Variant {
    pub tag: &'static str,
    /// What `GET /` answers.
    pub version: &'static str,
    /// More arguments for `umoci config`.
    pub config: &'static [&'static str],
}

/// Version 1 and 2, one with a user and directory of its own, one for machines that are not this one.
pub const VARIANTS: &[Variant] = &[
    Variant { tag: "1", version: "one", config: &[] },
    Variant { tag: "2", version: "two", config: &[] },
    Variant {
        tag: "worker",
        version: "worker",
        config: &[
            "--config.user=worker:workers",
            "--config.workingdir=/work/place",
            "--config.env=FROM_IMAGE=yes",
            "--config.env=BOTH=image",
        ],
    },
    Variant { tag: "foreign", version: "foreign", config: &["--architecture=s390x"] },
];

/// Directory of an OCI layout with all [`VARIANTS`]; made once per cache directory.
pub fn layout(cache: &Path) -> anyhow::Result<PathBuf> {
    let layout = cache.join(NAME);
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    step("making OCI images of busybox");
    // tests of one file run at the same time; each makes its own and the first one stays
    let work = tempfile::Builder::new().prefix("toolbox.work").tempdir_in(cache)?;
    run(Command::new("apt-get").args(["-qq", "download", "busybox-static"]).current_dir(work.path()))
        .context("cannot download busybox: is the package index there? (apt-get update)")?;
    let packages = fs::read_dir(work.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    for package in packages.filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(work.path().join("package")))?;
    }
    let busybox = ["bin/busybox", "usr/bin/busybox"].map(|path| work.path().join("package").join(path));
    let busybox = busybox.iter().find(|path| path.exists()).context("the package has no busybox")?;
    let made = work.path().join("layout");
    run(Command::new("umoci").args(["init", "--layout"]).arg(&made))?;
    for variant in VARIANTS {
        pack(work.path(), &made, busybox, variant)?;
    }
    fs::copy(busybox, made.join("busybox"))?;
    run(root("chmod").args(["-R", "a+rX"]).arg(&made))?;
    if let Err(error) = fs::rename(&made, &layout)
        && !layout.join("index.json").exists()
    {
        return Err(error).context("cannot keep the images");
    }
    let _ = run(root("rm").arg("-rf").arg(work.path()));
    Ok(layout)
}

/// The program itself, for use outside of apps.
pub fn busybox(cache: &Path) -> anyhow::Result<PathBuf> {
    Ok(layout(cache)?.join("busybox"))
}

fn pack(work: &Path, layout: &Path, busybox: &Path, variant: &Variant) -> anyhow::Result<()> {
    let image = format!("{}:{}", layout.display(), variant.tag);
    let bundle = work.join(variant.tag);
    run(Command::new("umoci").args(["new", "--image", &image]))?;
    run(root("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
    let tree = work.join(format!("{}.tree", variant.tag));
    for dir in ["bin", "dev", "etc", "home/worker", "proc", "root", "srv/cgi-bin", "sys", "tmp", "work/place"]
    {
        fs::create_dir_all(tree.join(dir))?;
    }
    fs::copy(busybox, tree.join("bin/busybox"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
    }
    for (path, text, mode) in [
        ("start", START, 0o755),
        ("srv/cgi-bin/sh", CGI, 0o755),
        ("srv/index.html", variant.version, 0o644),
        ("version", variant.version, 0o644),
        ("etc/passwd", PASSWD, 0o644),
        ("etc/group", GROUP, 0o644),
    ] {
        fs::write(tree.join(path), text)?;
        fs::set_permissions(tree.join(path), fs::Permissions::from_mode(mode))?;
    }
    fs::set_permissions(tree.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    run(root("cp")
        .args(["-a", "--no-preserve=ownership"])
        .arg(format!("{}/.", tree.display()))
        .arg(bundle.join("rootfs")))?;
    run(root("umoci").args(["repack", "--image", &image]).arg(&bundle))?;
    let mut config = root("umoci");
    config.args(["config", "--image", &image, "--config.env=PATH=/bin", "--config.entrypoint=/bin/sh"]);
    config.args(["--config.cmd=/start"]).args(variant.config);
    run(&mut config).map(drop)
}

/// Longest time a command inside an app may take.
const COMMAND_S: u64 = 8;

/// Runs a command inside the app behind an address; what it printed, without the last line feed.
pub fn sh(app: SocketAddr, command: &str) -> Option<String> {
    let query: String = command.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let text = http::get(app, &format!("/cgi-bin/sh?{query}"), Duration::from_secs(COMMAND_S))?;
    Some(text.trim_end_matches('\n').to_owned())
}
