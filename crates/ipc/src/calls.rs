// SPDX-License-Identifier: Apache-2.0
//! Calls between two processes over their own socket pair: questions with an answer, file descriptors, bulk, secrets.
//!
//! Every request is idempotent: a caller that lost the answer asks again.

use model::desired::{ContentSource, FileSource};
use model::flow::{FlowCounters, FlowReport};
use model::id::{AppId, Digest};
use model::log::LogEntry;
use model::reason::Fault;
use model::secret::SecretHandle;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// What one service offers to its callers.
pub trait Call: 'static {
    type Request: Serialize + DeserializeOwned + core::fmt::Debug;
    type Reply: Serialize + DeserializeOwned + core::fmt::Debug;
    /// The service that answers.
    const CALLEE: &'static str;
}

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident: $callee:literal, $request:ty => $reply:ty;)*) => {$(
        $(#[$doc])* #[derive(Debug)] pub enum $name {}
        impl Call for $name {
            type Request = $request;
            type Reply = $reply;
            const CALLEE: &'static str = $callee;
        }
    )*};
}

calls! {
    /// Keys and secrets.
    Vault: "vault", VaultRequest => Result<VaultReply, Fault>;
    /// Downloads. [`FetchReply::Stream`] comes with one file descriptor: the reading end of a pipe.
    Fetch: "fetch", FetchRequest => Result<FetchReply, Fault>;
    /// Logs for upload.
    Log: "log", LogRequest => LogReply;
    /// Joining an app's network namespace: the request comes with three file descriptors, the namespace, a netlink route
    /// socket and a datagram socket opened inside it. And what apps talked to.
    Net: "net", NetRequest => Result<NetReply, Fault>;
    /// Shims, started from their template manifest. A shim that was spawned shows itself to run as a channel of
    /// kind `shim`, its key the app id; run gets the channels of all live shims again when it was restarted itself.
    Init: "init", InitRequest => Result<InitReply, Fault>;
}

#[derive(Serialize, Deserialize)]
pub enum VaultRequest {
    /// The node's public identity.
    Identity,
    /// Signature of the device key over SHA-256 of the data: raw r‖s.
    SignAsDevice { data: Vec<u8> },
    /// The same with the onboarding key of CONFIG.
    SignAsOnboarding { data: Vec<u8> },
    /// A quote over the nonce; without a TPM there is none.
    Quote { nonce: Vec<u8> },
    /// Seals clear text so that it may be published.
    Seal { clear: Vec<u8> },
    /// PEM of the controller's ECDH certificates, kept for [`VaultRequest::OpenUserData`] and its kin.
    TrustControllerCerts { ecdh_pems: Vec<String> },
    /// User data of an app: the text, not its base64.
    OpenUserData { handle: SecretHandle },
    /// User name and password of a datastore.
    OpenCredentials { handle: SecretHandle },
}

impl core::fmt::Debug for VaultRequest {
    /// Shows which request it is and nothing of its content.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            VaultRequest::Identity => "Identity",
            VaultRequest::SignAsDevice { .. } => "SignAsDevice",
            VaultRequest::SignAsOnboarding { .. } => "SignAsOnboarding",
            VaultRequest::Quote { .. } => "Quote",
            VaultRequest::Seal { .. } => "Seal",
            VaultRequest::TrustControllerCerts { .. } => "TrustControllerCerts",
            VaultRequest::OpenUserData { .. } => "OpenUserData",
            VaultRequest::OpenCredentials { .. } => "OpenCredentials",
        })
    }
}

#[derive(Serialize, Deserialize)]
pub enum VaultReply {
    Identity(NodeIdentity),
    Signature(Vec<u8>),
    Quote(Option<TpmQuote>),
    Sealed(SecretHandle),
    Done,
    UserData(String),
    Credentials { user: String, password: String },
}

impl core::fmt::Debug for VaultReply {
    /// Shows which reply it is and nothing of its content.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            VaultReply::Identity(_) => "Identity",
            VaultReply::Signature(_) => "Signature",
            VaultReply::Quote(_) => "Quote",
            VaultReply::Sealed(_) => "Sealed",
            VaultReply::Done => "Done",
            VaultReply::UserData(_) => "UserData",
            VaultReply::Credentials { .. } => "Credentials",
        })
    }
}

/// Certificates of the node, byte for byte as first made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeIdentity {
    /// PEM with its trailing newline, as the node's own file holds it.
    pub device_cert_pem: String,
    pub onboarding_cert_pem: Option<String>,
    pub node_certs: Vec<NodeCert>,
    /// From CONFIG `soft_serial`.
    pub soft_serial: Option<String>,
    /// From CONFIG `server`: `host[:port]`.
    pub server: String,
    /// From CONFIG `root-certificate.pem`: trust for the controller's signing and ECDH certificates.
    pub root_certs_pem: String,
    /// From CONFIG `v2tlsbaseroot-certificates.pem`, else the root certificates.
    pub tls_root_certs_pem: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCert {
    /// `ZCertType` number: 11 quote, 12 endorsement, 13 ECDH.
    pub kind: i32,
    pub pem: String,
    /// TPM2B_PUBLIC of the endorsement key.
    pub tpm_public: Option<Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TpmQuote {
    pub attest_data: Vec<u8>,
    /// DER.
    pub signature: Vec<u8>,
    /// Index and SHA-256 value.
    pub pcrs: Vec<(u32, [u8; 32])>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchRequest {
    Image(ImageRequest),
    File(FileRequest),
}

/// A part of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRequest {
    pub source: ContentSource,
    pub object: FetchObject,
    /// Where to go on after an interruption. A server that cannot resume makes the reply start at 0 again.
    pub offset: u64,
    /// No more than so many bytes are wanted. A server that cannot send parts sends more.
    pub length: Option<u64>,
}

/// A file of a web server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRequest {
    pub source: FileSource,
    /// As in [`ImageRequest`].
    pub offset: u64,
    /// As in [`ImageRequest`].
    pub length: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchObject {
    /// The manifest or index behind a tag or digest.
    Manifest {
        reference: String,
    },
    Blob {
        digest: Digest,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FetchReply {
    Stream {
        media_type: String,
        /// Bytes that follow in the pipe, when the server said so.
        size: Option<u64>,
        /// Offset of the first byte in the pipe.
        offset: u64,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogRequest {
    /// The oldest batch not yet taken. Asked again before it was taken, the same one comes.
    Next,
    /// The controller has the batch: forget it.
    Taken { batch: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogReply {
    Nothing,
    Batch { batch: u64, app: Option<(AppId, String)>, entries: Vec<LogEntry> },
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetRequest {
    /// Give the namespace all interfaces of the app.
    Attach { app: AppId },
    /// The oldest flow report not yet taken. Asked again before it was taken, the same one comes.
    NextFlows,
    /// The controller has the report, or nobody will ever take it: forget it.
    FlowsTaken { batch: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetReply {
    /// All interfaces stand and are configured. Name servers and search names for the app's resolv.conf.
    Attached {
        dns: Vec<core::net::Ipv4Addr>,
        hosts: Vec<(core::net::Ipv4Addr, String)>,
    },
    Flows {
        batch: u64,
        report: FlowReport,
        /// What nobody took in time, since the start.
        lost: FlowCounters,
    },
    NoFlows,
    Done,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitRequest {
    /// Starts the shim of an app in its own control groups; done when it already lives.
    SpawnShim { app: AppId, limits: AppLimits },
    /// Ends the shim and whatever is left in its control groups, and removes those; done when there is none.
    KillShim { app: AppId },
    /// All shims that live.
    Shims,
    /// The slot that does not run, to be written by store; its boot entry goes first. The reply [`InitReply::Slot`] comes with
    /// four descriptors: its partitions of the root and of the hash tree, and those of the slot that runs to read.
    OpenSlot,
    /// The idle slot holds this version, which is to be tried. Where the kernel image lies in the partition of the root, and
    /// its sha256: init copies it from there to the ESP.
    InstallSlot { version: String, root: Digest, kernel: Digest, kernel_at: u64, kernel_bytes: u64 },
}

/// Limits of the control group an app runs in. The shim itself is outside of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppLimits {
    /// 0: no limit.
    pub memory_bytes: u64,
    /// CPUs' worth of time; 0: no limit.
    pub vcpus: u32,
    /// 0: no limit.
    pub pids_max: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitReply {
    Done,
    Shims(Vec<LiveShim>),
    Slot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LiveShim {
    pub app: AppId,
    pub pid: i32,
}
