// SPDX-License-Identifier: Apache-2.0
//! The one catalogue of reasons: why something is not as ordered.
//!
//! A reason renders to `ErrorInfo` on the wire, to a condition's reason in the operator API, to the type of a
//! problem+json document and to a log field. Codes are stable CamelCase.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// How bad it is (eve-api `Severity`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Severity {
    Notice,
    Warning,
    Error,
}

/// Whether waiting helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Retry {
    /// Tried again by itself.
    Automatic,
    /// Only a change of the config or of the box helps.
    AfterChange,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $code:ident, $severity:ident, $retry:ident, $next:literal;)*) => {
        /// A stable code. The next step is what the operator should do about it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason { $($(#[$doc])* $code),* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$code),*];
            /// The stable CamelCase code.
            pub const fn code(self) -> &'static str {
                match self { $(Reason::$code => stringify!($code)),* }
            }
            pub const fn severity(self) -> Severity {
                match self { $(Reason::$code => Severity::$severity),* }
            }
            pub const fn retry(self) -> Retry {
                match self { $(Reason::$code => Retry::$retry),* }
            }
            /// What to do about it.
            pub const fn next_step(self) -> &'static str {
                match self { $(Reason::$code => $next),* }
            }
            /// The reason of a code, as read back from the wire.
            pub fn from_code(code: &str) -> Option<Reason> {
                Reason::ALL.iter().copied().find(|reason| reason.code() == code)
            }
        }
    };
}

reasons! {
    /// The config names an object it does not contain.
    MissingReference, Error, AfterChange, "add the missing object to the config, or remove the reference";
    /// A field of the config has a value that cannot be used.
    InvalidConfig, Error, AfterChange, "correct the field named in the message";
    /// The config asks for something this node cannot do.
    Unsupported, Error, AfterChange, "remove the option, or use a node that supports it";
    /// The isolation asked for cannot be had here; the app does not run less isolated.
    IsolationUnavailable, Error, AfterChange, "choose a virtualization mode this node offers (NOHYPER runs containers)";
    /// The image is not in the registry.
    ImageNotFound, Error, Automatic, "check the image reference; push the image to the registry";
    /// The registry refused the credentials.
    RegistryAuthRefused, Error, Automatic, "check the user name and password of the registry";
    /// The registry cannot be reached or answers with errors.
    RegistryUnreachable, Warning, Automatic, "check the registry's address and the node's uplinks";
    /// The registry's certificate is not trusted.
    RegistryUntrusted, Error, AfterChange, "add the registry's CA certificate to the registry";
    /// The file is not on the server.
    FileNotFound, Error, Automatic, "check the path of the file; put it on the server";
    /// The server of a datastore refused the credentials.
    DatastoreAuthRefused, Error, Automatic, "check the user name and password of the datastore";
    /// The server of a datastore cannot be reached or answers with errors.
    DatastoreUnreachable, Warning, Automatic, "check the datastore's URL and the node's uplinks";
    /// The certificate of a datastore's server is not trusted.
    DatastoreUntrusted, Error, AfterChange, "add the CA certificate of the server to the datastore";
    /// The controller does not answer.
    ControllerUnreachable, Warning, Automatic, "check the node's uplinks, and that the controller runs at this address";
    /// The controller's certificate is not trusted.
    ControllerUntrusted, Error, Automatic, "check the clocks of node and controller, and that the node's bundle is this controller's";
    /// Content does not have the digest it was named by.
    DigestMismatch, Error, Automatic, "push the image again; if it persists suspect the registry or the path to it";
    /// The image has no variant for this machine.
    ArchitectureMismatch, Error, AfterChange, "push an image that contains this node's architecture";
    /// The image breaks the OCI rules or a limit.
    ImageInvalid, Error, AfterChange, "rebuild the image; the message names what is wrong";
    /// No room on the disk.
    DiskFull, Error, Automatic, "remove apps or volumes, or give the node a larger disk";
    /// An app wrote more into a volume than its size.
    VolumeFull, Error, AfterChange, "raise the volume's size, or purge the volume or its app";
    /// A writable volume is used by another app.
    VolumeInUse, Error, AfterChange, "make the volume read-only, or use it in one app only";
    /// More memory asked for than the box has left.
    MemoryExceeded, Error, AfterChange, "lower the memory of this or another app";
    /// Reading or writing the node's own storage failed.
    StorageFailed, Error, Automatic, "check the disk's health";
    /// Network instance could not be set up.
    NetworkFailed, Error, Automatic, "check the network instance's subnet and port";
    /// Another object already uses the address or port.
    AddressConflict, Error, AfterChange, "choose another address or port";
    /// The app could not be started.
    StartFailed, Error, Automatic, "check the image's entrypoint and the app's log";
    /// The app ended by itself.
    AppExited, Warning, Automatic, "check the app's log";
    /// The app was killed for using more memory than its limit.
    AppOutOfMemory, Error, Automatic, "raise the app's memory";
    /// The app was refused more processes than its limit.
    AppProcessLimit, Warning, Automatic, "check what the app starts; with more memory it may have more processes";
    /// The app runs, and does not answer its probe.
    AppUnhealthy, Warning, Automatic, "check the app's log and the probe's port and path";
    /// A secret of the config cannot be decrypted.
    SecretUndecryptable, Error, AfterChange, "send the secret again; the node's or the controller's key changed";
    /// User data is neither KEY=VALUE lines nor a supported cloud-config.
    UserDataInvalid, Error, AfterChange, "use KEY=VALUE lines, or #cloud-config with write_files";
    /// Volumes or adapters changed without a purge.
    PurgeNeeded, Error, AfterChange, "raise the app's purge counter";
    /// Resources changed without a restart.
    RestartNeeded, Error, AfterChange, "raise the app's restart counter";
    /// An update of the operating system is not signed by the release key of the one that runs.
    UpdateUntrusted, Error, AfterChange, "order an update that was built with the device's release key";
    /// What was ordered as an update of the operating system is none, or not the version that was ordered.
    UpdateInvalid, Error, AfterChange, "build the image again and order its update file; the message names what is wrong";
    /// A new version of the operating system did not pass its test; the one before it runs again.
    UpdateRolledBack, Error, AfterChange, "see why in the message; raise the retry counter to have it tried again";
    /// The node is in maintenance mode.
    Maintenance, Notice, AfterChange, "leave maintenance mode";
    /// A service of the node is not answering.
    ServiceUnavailable, Warning, Automatic, "wait; the node restarts the service";
    /// Reported by a node that does not speak in these codes; the message is its own text.
    NodeReported, Error, Automatic, "read the node's message";
    /// Something this software did not expect.
    Internal, Error, Automatic, "report it with a support bundle";
}

/// A reason, and in a sentence on what it struck.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub reason: Reason,
    /// Lower case, names the object; does not repeat the reason's next step.
    pub message: String,
}

impl Fault {
    pub fn new(reason: Reason, message: impl Into<String>) -> Fault {
        Fault { reason, message: message.into() }
    }
}

impl core::fmt::Display for Fault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.reason.code(), self.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_found_by_its_code_and_says_what_to_do() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(*reason));
            assert!(!reason.next_step().is_empty());
        }
    }
}
