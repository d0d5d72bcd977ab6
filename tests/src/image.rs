// SPDX-License-Identifier: Apache-2.0
//! A stock web server as an OCI image, made from Debian packages by standard tools: apt, dpkg-deb, umoci.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::command::{root, run};
use crate::progress::step;

/// Reference inside the layout.
pub const TAG: &str = "web";

/// nginx listens on 80 and shows one page; configuration and page are ours, programs and libraries Debian's.
const NGINX_CONF: &str = "\
daemon off;
user root;
worker_processes 1;
error_log /dev/stderr info;
pid /run/nginx.pid;
events { worker_connections 256; }
http {
  access_log /dev/stdout;
  types { text/html html; text/plain txt; }
  client_body_temp_path /tmp/body; proxy_temp_path /tmp/proxy; fastcgi_temp_path /tmp/fastcgi;
  uwsgi_temp_path /tmp/uwsgi; scgi_temp_path /tmp/scgi;
  server { listen 80 default_server; root /srv; }
}
";

/// Puts what the app was told at its start on the page, then becomes nginx.
const START: &str = "\
#!/bin/busybox sh
echo \"<h1>${GREETING:-hello}</h1>\" > /srv/index.html
exec /usr/sbin/nginx
";

/// Directory of an OCI layout with the web server under [`TAG`]; made once per cache directory.
pub fn web_server(cache: &Path) -> anyhow::Result<PathBuf> {
    let layout = cache.join("web-image");
    if layout.join("index.json").exists() {
        return Ok(layout);
    }
    step("making an OCI image of nginx from Debian packages");
    fs::create_dir_all(cache)?;
    let work = cache.join("web-image.work");
    let _ = run(root("rm").arg("-rf").arg(&work));
    let rootfs = work.join("rootfs");
    fs::create_dir_all(work.join("debs/partial"))?;
    fs::create_dir_all(&rootfs)?;
    download(&work)?;
    for entry in fs::read_dir(work.join("debs"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "deb") && is_wanted(&path) {
            run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&rootfs))?;
        }
    }
    slim(&rootfs)?;
    merge_usr(&rootfs)?;
    write(&rootfs.join("etc/nginx/nginx.conf"), NGINX_CONF)?;
    write(
        &rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    write(&rootfs.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    write(&rootfs.join("start"), START)?;
    fs::set_permissions(rootfs.join("start"), fs::Permissions::from_mode(0o755))?;
    for dir in ["run", "srv", "tmp", "var/log/nginx", "var/lib/nginx", "proc", "sys", "dev"] {
        fs::create_dir_all(rootfs.join(dir))?;
    }
    fs::set_permissions(rootfs.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    pack(&work, &rootfs)?;
    fs::rename(work.join("layout"), &layout)?;
    let _ = run(root("rm").arg("-rf").arg(&work));
    Ok(layout)
}

/// The package and all it depends on, as if nothing were installed.
fn download(work: &Path) -> anyhow::Result<()> {
    fs::write(work.join("status"), "")?;
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    run(root("apt-get")
        .args(["-qq", "-y", "--download-only", "--no-install-recommends"])
        .args(["-o", &option("Dir::State::status", &work.join("status"))])
        .args(["-o", &format!("{}/", option("Dir::Cache::archives", &work.join("debs")))])
        .args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"])
        .args(["install", "nginx", "busybox-static"]))
    .context("cannot download nginx and busybox: is the package index there? (apt-get update)")?;
    Ok(())
}

/// Packages nginx names as dependencies of its scripts only, which never run here.
fn is_wanted(deb: &Path) -> bool {
    let name = deb.file_name().unwrap_or_default().to_string_lossy().into_owned();
    !["debconf_", "iproute2_", "gcc-", "libbpf", "libelf", "libxtables", "libmnl", "libdb5"]
        .iter()
        .any(|p| name.starts_with(p))
}

fn slim(rootfs: &Path) -> anyhow::Result<()> {
    for dir in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/lintian", "etc/nginx"] {
        let path = rootfs.join(dir);
        if path.exists() {
            fs::remove_dir_all(path)?;
        }
    }
    Ok(())
}

/// Where a suite's packages hold everything below /usr, the top level needs the links that base-files would bring.
fn merge_usr(rootfs: &Path) -> anyhow::Result<()> {
    for dir in ["bin", "lib", "lib64", "sbin"] {
        if !rootfs.join(dir).exists() && rootfs.join("usr").join(dir).exists() {
            std::os::unix::fs::symlink(format!("usr/{dir}"), rootfs.join(dir))?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::create_dir_all(path.parent().context("a file has a directory")?)?;
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn pack(work: &Path, rootfs: &Path) -> anyhow::Result<()> {
    let layout = work.join("layout");
    let image = format!("{}:{TAG}", layout.display());
    let bundle = work.join("bundle");
    run(Command::new("umoci").arg("init").arg("--layout").arg(&layout))?;
    run(Command::new("umoci").args(["new", "--image", &image]))?;
    run(root("umoci").args(["unpack", "--image", &image]).arg(&bundle))?;
    run(root("cp")
        .arg("-a")
        .arg("--no-preserve=ownership")
        .arg(format!("{}/.", rootfs.display()))
        .arg(bundle.join("rootfs")))?;
    run(root("umoci").args(["repack", "--image", &image]).arg(&bundle))?;
    run(root("umoci").args(["config", "--image", &image, "--config.entrypoint", "/start"]).args([
        "--config.env",
        "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        "--config.stopsignal",
        "SIGQUIT",
    ]))?;
    run(root("chmod").args(["-R", "a+rX"]).arg(&layout)).map(drop)
}
