// SPDX-License-Identifier: Apache-2.0
//! One controller, one hosted node, a namespace between them.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::command::{Background, root, run};
use crate::http;
use crate::image;
use crate::netns::Netns;
use crate::progress::{step, wait_for};

/// Where a laboratory works and what it takes its programs from.
#[derive(Clone, Debug)]
pub struct Place {
    /// Directory of our executables.
    pub bin: PathBuf,
    /// Emptied at the start, taken away at the end.
    pub dir: PathBuf,
    /// Kept from run to run: images, environments.
    pub cache: PathBuf,
    /// Names the namespace; several laboratories may stand at once.
    pub name: String,
    /// Chooses the addresses, see [`Netns::create`].
    pub number: u8,
}

impl Place {
    /// Below the build directory of this workspace: `target/lab/NAME`, programs of the release profile.
    pub fn new(name: &str, number: u8) -> anyhow::Result<Place> {
        let target = target_dir()?;
        let name_on_machine = match lab_number() {
            0 => format!("selvedge-{name}"),
            lab => format!("selvedge-{name}-{lab}"),
        };
        Ok(Place {
            bin: bin_dir()?,
            dir: target.join("lab").join(name),
            cache: target.join("cache"),
            name: name_on_machine,
            number,
        })
    }

    /// Empties the directory and makes it. What an earlier laboratory of this name left running is ended.
    pub fn clear(&self) -> anyhow::Result<()> {
        sweep(&self.name);
        // a tmpfs of an earlier laboratory, see below
        let _ = crate::command::output(root("umount").args(["-q", "-l"]).arg(&self.dir));
        run(root("rm").arg("-rf").arg(&self.dir))?;
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        // In a container the build directory may lie on an overlay, where a node can keep nothing writable for its apps.
        if rustix::fs::statfs(&self.dir)?.f_type == OVERLAYFS_MAGIC {
            step("the build directory is an overlay: the laboratory gets a tmpfs");
            run(root("mount").args(["-t", "tmpfs", "-o", TMPFS, "selvedge-lab"]).arg(&self.dir))?;
        }
        fs::create_dir_all(&self.cache).with_context(|| format!("cannot make {}", self.cache.display()))
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }
}

/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAYFS_MAGIC: rustix::fs::FsWord = 0x794c_7630;
/// Room for the images and volumes of any test; whoever runs it writes there, as it would in a directory of its own.
const TMPFS: &str = "size=4g,mode=1777";

/// `SELVEDGE_LAB`, 0 to [`LAB_MAX`]: several checkouts may test on one machine at once, each with names, addresses and ports
/// of its own.
pub fn lab_number() -> u8 {
    let number = std::env::var("SELVEDGE_LAB").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    std::cmp::min(number, LAB_MAX)
}

/// The last `10.x` network a laboratory may take is `10.255`.
const LAB_MAX: u8 = 24;

/// A short name for a value: what was made for another value is told from what was made for this one.
pub fn fingerprint(value: &impl std::hash::Hash) -> String {
    let mut hasher = std::hash::DefaultHasher::new();
    value.hash(&mut hasher);
    format!("{:016x}", std::hash::Hasher::finish(&hasher))
}

/// Build directory of the workspace.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CARGO_TARGET_DIR") {
        return Ok(PathBuf::from(dir));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the package lies in the workspace")?;
    Ok(root.join("target"))
}

/// Directory of our executables: `SELVEDGE_BIN`, else the release build.
pub fn bin_dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os("SELVEDGE_BIN") {
        return Ok(PathBuf::from(dir));
    }
    release_dir()
}

/// Directory of what is built optimized.
pub fn release_dir() -> anyhow::Result<PathBuf> {
    Ok(target_dir()?.join(format!("{}-unknown-linux-gnu", std::env::consts::ARCH)).join("release"))
}

/// A running controller.
#[derive(Debug)]
pub struct Controller {
    pub data: PathBuf,
    pub address: SocketAddr,
    place: Place,
    process: Background,
}

/// Port of the controller in a laboratory.
const CONTROLLER_PORT: u16 = 8443;

impl Controller {
    /// Starts one at the given address of the host, with more arguments for `serve`.
    pub fn start(place: &Place, host: &str, extra: &[&str]) -> anyhow::Result<Controller> {
        let address: SocketAddr = format!("{host}:{CONTROLLER_PORT}").parse()?;
        Controller::start_at(place, address, extra)
    }

    pub fn start_at(place: &Place, address: SocketAddr, extra: &[&str]) -> anyhow::Result<Controller> {
        let data = place.dir.join("controller");
        let log = place.dir.join("controller.log");
        let mut command = Command::new(place.program("selvedge"));
        command.arg("serve").arg("--data").arg(&data).args(["--listen", &address.to_string()]).args(extra);
        let process = Background::start("the controller", &log, &mut command)?;
        let mut controller = Controller { data, address, place: place.clone(), process };
        wait_for("controller answers", Duration::from_secs(20), || {
            let ready = controller.cli(&["get", "devices"]).is_ok();
            (ready || controller.process.check().is_err()).then_some(())
        })?;
        controller.process.check()?;
        Ok(controller)
    }

    /// The operator's command line against this controller.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.place.program("selvedge"));
        command.args(args).env("SELVEDGE_DATA", &self.data);
        command
    }

    /// Runs one and returns its standard output.
    pub fn cli(&self, args: &[&str]) -> anyhow::Result<String> {
        run(&mut self.command(args))
    }

    /// Whether some object of a kind has a condition with status True.
    pub fn has_condition(&self, kind: &str, condition: &str) -> bool {
        let text = self.cli(&["get", kind, "-o", "json"]).unwrap_or_default();
        let Ok(list) = serde_json::from_str::<serde_json::Value>(&text) else { return false };
        let objects = list["items"].as_array().cloned().unwrap_or_else(|| vec![list]);
        let conditions =
            objects.iter().flat_map(|object| object["status"]["conditions"].as_array().into_iter().flatten());
        conditions.into_iter().any(|c| c["type"] == condition && c["status"] == "True")
    }

    pub fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    /// Makes an onboarding bundle.
    pub fn bundle(&self, out: &Path) -> anyhow::Result<()> {
        self.cli(&["node", "bundle", "--serial", "*", "--out", &out.to_string_lossy()]).map(drop)
    }

    /// Pushes an image of an OCI layout into the built-in registry.
    pub fn push(&self, layout: &Path, tag: &str, to: &str) -> anyhow::Result<()> {
        let token = fs::read_to_string(self.data.join("admin-token"))
            .context("the controller wrote no admin token")?;
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"])
            .args(["--dest-creds", &format!("admin:{}", token.trim())])
            .arg(format!("oci:{}:{tag}", layout.display()))
            .arg(format!("docker://{}/{to}", self.address)))
        .map(drop)
    }

    /// Writes text to a file of the laboratory and applies it.
    pub fn apply(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.place.dir.join(name);
        fs::write(&path, text)?;
        self.cli(&["apply", "-f", &path.to_string_lossy()])
    }
}

/// A running hosted node.
#[derive(Debug)]
pub struct Node {
    place: Place,
    process: Background,
}

impl Node {
    /// Starts all services of a node in the namespace with the bundle at `config`.
    pub fn start(place: &Place, netns: &Netns, config: &Path) -> anyhow::Result<Node> {
        let log = place.dir.join("node.log");
        let mut command = netns.command(&place.program("selvedge-init"));
        command
            .arg("--hosted")
            .arg("--verbose")
            // several laboratories may stand at once
            .args(["--instance", &place.name])
            .arg("--config")
            .arg(config)
            .arg("--persist")
            .arg(place.dir.join("persist"))
            .arg("--run")
            .arg(place.dir.join("run"));
        Ok(Node { place: place.clone(), process: Background::start("the node", &log, &mut command)? })
    }

    pub fn process(&mut self) -> &mut Background {
        &mut self.process
    }

    /// Pids of all processes of a service's executable in this node.
    pub fn pids(&self, service: &str) -> anyhow::Result<Vec<u32>> {
        let name = format!("selvedge-{service}");
        let all = in_groups(&self.place.name)?;
        Ok(all.into_iter().filter(|pid| comm(*pid).as_deref() == Some(&name[..name.len().min(15)])).collect())
    }

    /// Pids of all processes in the node's control groups: services, shims, apps; whoever is their parent.
    pub fn all_pids(&self) -> anyhow::Result<Vec<u32>> {
        in_groups(&self.place.name)
    }

    /// The process init itself, which is in none of its groups.
    pub fn init_pid(&self) -> anyhow::Result<u32> {
        let top = self.process.pid();
        let is_init = |pid: &u32| comm(*pid).is_some_and(|name| name == "selvedge-init");
        let below = || Ok::<_, anyhow::Error>(descendants(top)?.into_iter().find(is_init));
        if is_init(&top) { Ok(top) } else { below()?.context("init does not run") }
    }

    /// Ends init as a fault does, and nothing else of the node.
    pub fn kill_init(&mut self) -> anyhow::Result<()> {
        crate::command::signal(self.init_pid()?, "KILL")?;
        self.process.stop().map(drop)
    }

    /// A new init where one was killed, with the same roots.
    pub fn start_again(&mut self, netns: &Netns) -> anyhow::Result<()> {
        *self = Node::start(&self.place, netns, &self.place.dir.join("config"))?;
        Ok(())
    }

    /// The last lines its init wrote.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    pub fn dir(&self) -> &Path {
        &self.place.dir
    }
}

/// All processes in the control groups of a node.
fn in_groups(instance: &str) -> anyhow::Result<Vec<u32>> {
    let group = format!("/selvedge-{instance}/");
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        if fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group)) {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Ends what runs in the control groups of a node, and removes them: where init was killed and no other took over.
fn sweep(instance: &str) {
    for _ in 0..SWEEPS {
        let left = in_groups(instance).unwrap_or_default();
        if left.is_empty() {
            break;
        }
        left.iter().for_each(|pid| drop(crate::command::signal(*pid, "KILL")));
        std::thread::sleep(Duration::from_millis(50));
    }
    let name = format!("selvedge-{instance}");
    let (own, below) = (format!("*/{name}"), format!("*/{name}/*"));
    let mut find = root("find");
    find.args(["/sys/fs/cgroup", "-depth", "-type", "d", "(", "-path", &own, "-o", "-path", &below, ")"]);
    let _ = run(find.args(["-exec", "rmdir", "{}", ";"]));
}

/// Processes that are started while others are ended are met in the next round.
const SWEEPS: u32 = 20;

/// All processes below one, in no order.
pub fn descendants(root: u32) -> anyhow::Result<Vec<u32>> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        if let Some(parent) = parent(pid) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.remove(0);
    Ok(found)
}

fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // the name may hold anything, parentheses too
    stat.rsplit_once(") ")?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Name of a process as the kernel keeps it: 15 bytes of its executable's.
pub fn comm(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// A controller and a node that is onboarded to it, with the web server in the controller's registry.
#[derive(Debug)]
pub struct Lab {
    // dropped in this order: the node first, the namespace last
    pub node: Node,
    pub controller: Controller,
    pub netns: Netns,
    pub place: Place,
}

/// Longest time a node may take from its start to being seen online.
const ONLINE_S: u64 = 60;

impl Lab {
    pub fn start(place: Place) -> anyhow::Result<Lab> {
        Lab::start_with(place, &[])
    }

    /// With more arguments for `serve`.
    pub fn start_with(place: Place, serve: &[&str]) -> anyhow::Result<Lab> {
        Lab::start_prepared(place, serve, |_| Ok(()))
    }

    /// With something done to the empty directory of the laboratory before anything runs.
    pub fn start_prepared(
        place: Place,
        serve: &[&str],
        prepare: impl FnOnce(&Place) -> anyhow::Result<()>,
    ) -> anyhow::Result<Lab> {
        place.clear()?;
        prepare(&place)?;
        let layout = image::web_server(&place.cache)?;
        let netns = Netns::create(&place.name, place.number)?;
        step(format_args!("starting the controller at https://{}:{CONTROLLER_PORT}", netns.host));
        let controller = Controller::start(&place, &netns.host, serve)?;
        let config = place.dir.join("config");
        step("making an onboarding bundle");
        controller.bundle(&config)?;
        step("starting a hosted node");
        let mut node = Node::start(&place, &netns, &config)?;
        step("pushing the web server's image into the controller's registry");
        controller.push(&layout, image::TAG, "hello/web:1")?;
        step("waiting for the node to come online");
        let online = wait_for("node is online", Duration::from_secs(ONLINE_S), || {
            let online = controller.has_condition("devices", "Connected");
            (online || node.process().check().is_err()).then_some(())
        });
        node.process().check()?;
        if let Err(error) = online {
            bail!("{error:#}\nnode:\n{}", node.process.log_tail());
        }
        Ok(Lab { node, controller, netns, place })
    }

    /// Address of the app's port map from outside.
    pub fn app_address(&self, port: u16) -> anyhow::Result<SocketAddr> {
        Ok(format!("{}:{port}", self.netns.node).parse()?)
    }

    /// Waits until a GET is answered and gives the body.
    pub fn wait_app(&mut self, port: u16, timeout: Duration) -> anyhow::Result<String> {
        let address = self.app_address(port)?;
        let answer = wait_for("app answers", timeout, || http::get(address, "/", Duration::from_secs(1)));
        answer.map_err(|error| {
            let apps = self.controller.cli(&["get", "apps", "-o", "wide"]).unwrap_or_default();
            anyhow::anyhow!("{error:#}\n{apps}\nnode:\n{}", self.node.process.log_tail())
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // in this order even when one of them hangs; what is left in the directory serves the reader of a failure
        let _ = self.node.process.stop();
        sweep(&self.place.name);
        let _ = self.controller.process.stop();
    }
}
