// SPDX-License-Identifier: Apache-2.0
//! The command line as typed.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

#[derive(Debug, Parser)]
#[command(name = "selvedge", version, about = "Controls a fleet of edge nodes", propagate_version = true)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the controller is. On its own host the data directory is enough.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Connection {
    /// Data directory of the controller on this host
    #[arg(
        long,
        global = true,
        env = "SELVEDGE_DATA",
        default_value = "/var/lib/selvedge",
        value_name = "DIR"
    )]
    pub(crate) data: PathBuf,
    /// Controller, https://host:port; default: the one of the data directory
    #[arg(long, global = true, env = "SELVEDGE_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Token; default: the admin token of the data directory
    #[arg(long, global = true, env = "SELVEDGE_TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Root certificate of the controller (PEM)
    #[arg(long, global = true, env = "SELVEDGE_CA", value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
}

/// In the order of the help; see `help` for the groups.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the controller
    Serve(ServeArgs),
    /// Prepare nodes
    #[command(subcommand)]
    Node(NodeCommand),
    /// Make, prepare and run the disk of a node
    #[command(subcommand)]
    Image(crate::image::ImageCommand),
    /// Show what a change would do; exit code 2 when it would do something
    Plan(ChangeArgs),
    /// Change what is wanted, all of it or nothing
    Apply(ApplyArgs),
    /// List objects, or show one
    Get(GetArgs),
    /// Show everything about an object
    Describe(DescribeArgs),
    /// Delete objects
    Delete(DeleteArgs),
    /// Restart or purge an app
    #[command(subcommand)]
    App(AppCommand),
    /// What happened
    Events(EventsArgs),
    /// Log lines of an app or of a device's own services
    #[command(alias = "app-log")]
    Logs(LogsArgs),
    /// Tokens of operators, machines and scrapers
    #[command(subcommand)]
    Token(crate::access::TokenCommand),
    /// Who changed what
    #[command(subcommand)]
    Audit(crate::access::AuditCommand),
    /// Write everything that cannot be made anew to one file, while the controller runs
    Backup(crate::backup::BackupArgs),
    /// Bring a backup back into a data directory, with no controller running on it
    Restore(crate::backup::RestoreArgs),
    /// Wait until a condition is true; exit code 2 when it is not in time
    Wait(WaitArgs),
    /// What a kind and its fields mean, with an example
    Explain(crate::explain::ExplainArgs),
    /// Set and take away labels
    Label(crate::label::LabelArgs),
    /// Change an object in your editor
    Edit(crate::edit::EditArgs),
    /// Objects as files that can be applied again
    Export(crate::export::ExportArgs),
    /// Who changed an object, when and how
    History(crate::history::HistoryArgs),
    /// Processor, memory and traffic of devices and apps
    Top(crate::top::TopArgs),
    /// Find out what is wrong, and what to do about it
    Doctor(crate::doctor::DoctorArgs),
    /// Look after the controller's image registry
    #[command(subcommand)]
    Registry(crate::registry::RegistryCommand),
    /// Completion for your shell
    Completion(crate::completion::CompletionArgs),
    /// Write the manual pages
    Man(crate::completion::ManArgs),
    /// Make a support bundle of a device: what the controller knows of it, and flight records; no secrets
    Collect(crate::collect::CollectArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct ServeArgs {
    /// Address to listen on; a port alone listens on all addresses
    #[arg(long, default_value = "0.0.0.0:8443", value_name = "ADDR:PORT", value_parser = crate::serve::listen)]
    pub(crate) listen: SocketAddr,
    /// host:port by which nodes reach this controller; default: this host's address
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) advertise: Option<String>,
    /// How long an answer without news is held, e.g. 35s or 500ms; 0 answers at once
    #[arg(long, default_value = "35s", value_parser = crate::serve::duration)]
    pub(crate) hold: std::time::Duration,
    /// More names and addresses for the TLS certificate
    #[arg(long = "san", value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Connections at once; a node with a held answer keeps one
    #[arg(long, default_value_t = 20_000)]
    pub(crate) max_connections: usize,
    /// Collector of OpenTelemetry to send figures and logs to (OTLP over HTTP), e.g. http://host:4318
    #[arg(long, value_name = "URL")]
    pub(crate) otlp: Option<String>,
    /// Certificates to trust the collector by (PEM); default: the system's
    #[arg(long, value_name = "FILE", requires = "otlp")]
    pub(crate) otlp_ca: Option<PathBuf>,
    /// Serve /metrics here too, over plain HTTP and without a token: for a network where only the scraper is
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) metrics_listen: Option<SocketAddr>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Write the configuration directory of a node: server, certificates, onboarding key
    Bundle(BundleArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct BundleArgs {
    /// Directory to write, made when missing
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Join token the node comes with
    #[arg(long, default_value = "default")]
    pub(crate) join_token: String,
    /// Make the join token for these serials when it does not exist; * allows any
    #[arg(long)]
    pub(crate) serial: Vec<String>,
    /// The same for soft serials
    #[arg(long)]
    pub(crate) soft_serial: Vec<String>,
    /// Controller as the node reaches it; default: what the controller advertises
    #[arg(long = "node-server", value_name = "HOST:PORT")]
    pub(crate) node_server: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ChangeArgs {
    /// YAML or JSON file, directory of such, or - for stdin
    #[arg(short, long = "file", value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Objects to delete in the same change
    #[arg(long, value_name = "KIND/NAME")]
    pub(crate) delete: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
    /// Do only what the plan of this hash has shown, exit code 3 when that is no longer so; files are not needed
    #[arg(long, value_name = "HASH")]
    pub(crate) plan: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    /// KIND, KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND[/NAME]", add = crate::completion::objects())]
    pub(crate) object: Vec<String>,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
    /// Go on with every change until interrupted; with -o json one document a line
    #[arg(short, long, conflicts_with_all = ["history", "info", "metrics", "config"])]
    pub(crate) watch: bool,
    /// Only objects with these labels: key=value,key=value
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Every info message a device has sent, as far as kept (JSON)
    #[arg(long)]
    pub(crate) history: bool,
    /// The newest info of each object of a device (JSON)
    #[arg(long, conflicts_with = "history")]
    pub(crate) info: bool,
    /// The newest metrics of a device (JSON)
    #[arg(long, conflicts_with_all = ["history", "info"])]
    pub(crate) metrics: bool,
    /// The config as the device gets it (JSON)
    #[arg(long, conflicts_with_all = ["history", "info", "metrics"])]
    pub(crate) config: bool,
    /// What an app talked to and which names it looked up, where its networks record that (JSON)
    #[arg(long, conflicts_with_all = ["history", "info", "metrics", "config"])]
    pub(crate) flows: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DescribeArgs {
    /// KIND/NAME or KIND NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME", add = crate::completion::objects())]
    pub(crate) object: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DeleteArgs {
    /// KIND/NAME, several of them, or KIND with -l
    #[arg(required = true, value_name = "KIND/NAME", add = crate::completion::objects())]
    pub(crate) objects: Vec<String>,
    /// All objects of the kind with these labels: key=value,key=value
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Only show what would be deleted; exit code 2 when something would
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum AppCommand {
    /// Restart the app on all its devices
    Restart { name: String },
    /// Build the app's volumes anew on all its devices; what it wrote is lost
    Purge { name: String },
}

#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Only of this object
    #[arg(value_name = "KIND/NAME", add = crate::completion::objects())]
    pub(crate) object: Option<String>,
    /// Go on with every event until interrupted
    #[arg(short, long)]
    pub(crate) watch: bool,
    /// The same
    #[arg(short, long, hide = true)]
    pub(crate) follow: bool,
    /// Of a device: every info message it has sent instead (JSON)
    #[arg(long)]
    pub(crate) history: bool,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LogsArgs {
    /// app/NAME or device/NAME
    #[arg(value_name = "KIND/NAME", add = crate::completion::objects())]
    pub(crate) object: String,
    /// Go on until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// The last so many lines
    #[arg(long, default_value_t = 200)]
    pub(crate) tail: usize,
    /// Of an app: only on this device
    #[arg(long)]
    pub(crate) device: Option<String>,
    /// Form of the output; wide shows time, device and source
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WaitArgs {
    /// KIND/NAME, which need not exist yet, or KIND with -l
    #[arg(value_name = "KIND/NAME", add = crate::completion::objects())]
    pub(crate) object: String,
    /// All objects of the kind with these labels: key=value,key=value
    #[arg(short = 'l', long, value_name = "LABELS")]
    pub(crate) selector: Option<String>,
    /// Condition (Ready, Registered, Connected, Attested, ConfigApplied), or TYPE=False, or `exists`, or `deleted`
    #[arg(long = "for", value_name = "CONDITION", add = crate::completion::conditions())]
    pub(crate) condition: String,
    /// At most so long
    #[arg(long, default_value = "300s", value_parser = crate::serve::duration)]
    pub(crate) timeout: std::time::Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Table,
    Wide,
    Json,
    Yaml,
    Name,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
