// SPDX-License-Identifier: Apache-2.0
//! A box: an image of ours under QEMU, as `selvedge image` builds and runs it.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::command::{Background, run};
use crate::http;
use crate::lab::{Controller, Place, fingerprint};
use crate::progress::{step, wait_for};

/// How the host looks from inside, through QEMU's own network.
const HOST_INSIDE: &str = "10.0.2.2";
/// A boot takes 15 to 50 s in software emulation, depending on what else the machine does.
pub const BOOT: Duration = Duration::from_secs(240);
/// What a kernel says that goes on no more.
const CRASHES: [&str; 2] = ["Kernel panic", "selvedge: cannot start"];

/// The files of an image.
#[derive(Clone, Debug)]
pub struct Image {
    pub dir: PathBuf,
}

impl Image {
    /// Builds one from the project's recipe, with more arguments for `image build`.
    pub fn build(place: &Place, dir: &Path, arguments: &[&str]) -> anyhow::Result<Image> {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../image/node.yml");
        let mut command = Command::new(place.program("selvedge"));
        command.args(["image", "build"]).arg(recipe).arg("--out").arg(dir).args(arguments);
        run(command.env("SELVEDGE_IMAGE_CACHE", place.cache.join("image")))?;
        Ok(Image { dir: dir.to_owned() })
    }

    /// One that several tests start from, built once in a run; each gets a copy of its own.
    pub fn shared(place: &Place, dir: &Path, arguments: &[&str]) -> anyhow::Result<Image> {
        static BUILT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
        let name = fingerprint(&arguments);
        let common = place.dir.with_file_name("box-images").join(name);
        {
            let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
            if !built.contains(&common) {
                run(Command::new("rm").arg("-rf").arg(&common))?;
                Image::build(place, &common, arguments)?;
                built.insert(common.clone());
            }
        }
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        run(Command::new("cp").args(["-r", "--sparse=always"]).arg(common.join(".")).arg(dir))?;
        Ok(Image { dir: dir.to_owned() })
    }

    pub fn file(&self, end: &str) -> PathBuf {
        self.dir.join(format!("node.{end}"))
    }

    /// What the builder says of it.
    pub fn description(&self) -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(&fs::read_to_string(self.file("json"))?)?)
    }

    /// The disk with an onboarding bundle of a controller.
    pub fn with_bundle(&self, place: &Place, controller: &Controller) -> anyhow::Result<()> {
        let bundle = place.dir.join("bundle");
        controller.bundle(&bundle)?;
        let mut command = Command::new(place.program("selvedge"));
        command.args(["image", "bundle"]).arg(self.file("raw")).arg("--config").arg(bundle);
        run(&mut command).map(drop)
    }
}

/// A controller that boxes of this machine reach.
pub fn controller(place: &Place) -> anyhow::Result<Controller> {
    let port = free_port()?;
    let address: SocketAddr = format!("127.0.0.1:{port}").parse()?;
    Controller::start_at(place, address, &["--advertise", &format!("{HOST_INSIDE}:{port}")])
}

/// One that nobody listens at.
pub fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A running box. Switched off hard when dropped.
#[derive(Debug)]
pub struct Machine {
    process: Background,
    console: PathBuf,
    monitor: PathBuf,
    /// Where port 8080 of the box is reached.
    pub app: SocketAddr,
}

impl Machine {
    /// Switches a box on. What it keeps lies in `state` of the laboratory.
    pub fn start(place: &Place, image: &Path, arguments: &[&str]) -> anyhow::Result<Machine> {
        let (console, monitor) = (place.dir.join("console"), place.dir.join("monitor"));
        let _ = fs::remove_file(&console);
        let app = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut command = Command::new(place.program("selvedge"));
        command.args(["image", "run"]).arg(image).arg("--state").arg(place.dir.join("box"));
        command.arg("--serial").arg(&console).arg("--monitor").arg(&monitor);
        command.args(["--memory", "512", "--forward", &format!("{}:8080", app.port())]).args(arguments);
        let process = Background::start("the box", &place.dir.join("qemu.log"), &mut command)?;
        Ok(Machine { process, console, monitor, app })
    }

    /// All it has said.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Waits until the console has a line with this text; gives the line.
    pub fn wait_line(&mut self, text: &str, timeout: Duration) -> anyhow::Result<String> {
        self.wait_any(&[text], timeout)
    }

    /// Waits for the first line that has one of these texts.
    pub fn wait_any(&mut self, texts: &[&str], timeout: Duration) -> anyhow::Result<String> {
        self.wait(texts, &CRASHES, timeout)
    }

    /// The same where a panic is no end: the box starts again.
    pub fn wait_through_panics(&mut self, text: &str, timeout: Duration) -> anyhow::Result<String> {
        self.wait(&[text], &[], timeout)
    }

    fn wait(&mut self, texts: &[&str], ends: &[&str], timeout: Duration) -> anyhow::Result<String> {
        let line = wait_for(&format!("the box says one of {texts:?}"), timeout, || {
            let said = self.console();
            let is_it = |line: &&str| texts.iter().any(|text| line.contains(text));
            let found = said.lines().find(is_it).map(str::to_owned);
            let is_over = ends.iter().any(|end| said.contains(end)) || self.process.check().is_err();
            found.or(is_over.then(String::new))
        });
        match line {
            Ok(line) if !line.is_empty() => Ok(line),
            Ok(_) => bail!("the box is over before it says one of {texts:?}:\n{}", self.tail()),
            Err(error) => bail!("{error:#}:\n{}", self.tail()),
        }
    }

    pub fn wait_app(&mut self, timeout: Duration) -> anyhow::Result<String> {
        let address = self.app;
        let answer = wait_for("the app answers", timeout, || {
            let answer = http::get(address, "/", Duration::from_secs(2));
            answer.or_else(|| self.process.check().is_err().then(String::new))
        });
        match answer {
            Ok(text) if !text.is_empty() => Ok(text),
            Ok(_) => bail!("the box is over:\n{}", self.tail()),
            Err(error) => bail!("{error:#}:\n{}", self.tail()),
        }
    }

    /// Presses the power button and waits until the box is off.
    pub fn press_power_button(&mut self) -> anyhow::Result<()> {
        self.order("system_powerdown")?;
        self.wait_off(Duration::from_secs(60))
    }

    /// Waits until QEMU has ended.
    pub fn wait_off(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let over = wait_for("the box is off", timeout, || self.process.check().err().map(drop));
        over.map_err(|error| anyhow::anyhow!("{error:#}:\n{}", self.tail()))
    }

    /// The power goes, at once.
    pub fn cut_power(&mut self) -> anyhow::Result<()> {
        self.process.signal("KILL")?;
        self.wait_off(Duration::from_secs(10))
    }

    /// Processor time that QEMU has used: the same whatever else this machine does.
    pub fn cpu_s(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))?;
        let fields = stat.rsplit_once(") ").context("a line of proc(5)")?.1.split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / rustix::param::clock_ticks_per_second() as f64)
    }

    fn order(&self, what: &str) -> anyhow::Result<()> {
        let mut stream = UnixStream::connect(&self.monitor).context("QEMU's control socket")?;
        let mut answers = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        answers.read_line(&mut line)?;
        for order in ["qmp_capabilities", what] {
            writeln!(stream, "{{\"execute\":\"{order}\"}}")?;
            answers.read_line(&mut line)?;
        }
        Ok(())
    }

    fn tail(&self) -> String {
        let said = self.console();
        let lines: Vec<&str> = said.lines().collect();
        format!("{}\n{}", lines[lines.len().saturating_sub(60)..].join("\n"), self.process.log_tail())
    }
}

/// A controller with the web server's image and its app ordered for every device, and an image that knows the controller.
pub fn prepared(place: &Place, arguments: &[&str]) -> anyhow::Result<(Controller, Image)> {
    let layout = crate::image::web_server(&place.cache)?;
    step("building an image");
    let image = Image::shared(place, &place.dir.join("image"), arguments)?;
    step("starting the controller");
    let controller = controller(place)?;
    image.with_bundle(place, &controller)?;
    controller.push(&layout, crate::image::TAG, "hello/web:1")?;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/hello");
    controller.cli(&["apply", "-f", &examples.to_string_lossy()])?;
    Ok((controller, image))
}
