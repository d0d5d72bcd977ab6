// SPDX-License-Identifier: Apache-2.0
//! Where a start failed, small enough to travel from the child to its parent.

use rustix::io::Errno;

macro_rules! steps {
    ($($name:ident: $text:literal),* $(,)?) => {
        /// A step of starting a container, in order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Step { $($name),* }

        impl Step {
            const ALL: &'static [Step] = &[$(Step::$name),*];
            const fn text(self) -> &'static str {
                match self { $(Step::$name => $text),* }
            }
        }
    };
}

steps! {
    Network: "cannot make the network namespace",
    Channel: "the child and its parent lost each other",
    Clone: "cannot make the process",
    Cgroup: "cannot join the control group",
    Namespaces: "cannot make the namespaces",
    RootFs: "cannot mount the root file system",
    KernelFs: "cannot mount",
    Devices: "cannot make the devices",
    Volume: "cannot take the volume",
    MountPoint: "cannot mount a volume at",
    UserNamespace: "cannot make the user namespace",
    UserData: "user data:",
    Files: "cannot write",
    User: "the image's user cannot be used",
    WorkingDir: "cannot enter the working directory",
    Limits: "cannot set the limits",
    Privileges: "cannot drop privileges",
    Seccomp: "cannot install the system call filter",
    Exec: "cannot execute",
    TimedOut: "the container did not start in time",
    Panic: "the executor failed unexpectedly",
}

/// A start that failed, and at what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepError {
    pub step: Step,
    /// What it was doing it to: a path, a name; may be empty.
    pub subject: String,
    pub errno: Option<Errno>,
}

/// The kernel has no higher one.
const MAX_ERRNO: i32 = 4095;
/// Longest subject that travels.
const MAX_SUBJECT_BYTES: usize = 512;

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.step.text())?;
        if !self.subject.is_empty() {
            write!(f, " {}", self.subject)?;
        }
        match self.errno {
            Some(errno) => write!(f, ": {errno}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for StepError {}

impl StepError {
    pub(crate) fn new(step: Step, subject: impl Into<String>) -> StepError {
        StepError { step, subject: subject.into(), errno: None }
    }

    /// For `map_err`: the step and its subject, with the system's reason.
    pub(crate) fn at(step: Step, subject: &str) -> impl FnOnce(Errno) -> StepError + '_ {
        move |errno| StepError { step, subject: subject.to_owned(), errno: Some(errno) }
    }

    /// Step, errno (0: none), subject.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![self.step as u8];
        out.extend_from_slice(&self.errno.map_or(0, Errno::raw_os_error).to_le_bytes());
        let subject = self.subject.as_bytes();
        out.extend_from_slice(&subject[..subject.len().min(MAX_SUBJECT_BYTES)]);
        out
    }

    /// `None`: no such message.
    pub(crate) fn decode(bytes: &[u8]) -> Option<StepError> {
        let (step, rest) = bytes.split_first()?;
        let (errno, subject) = rest.split_first_chunk::<4>()?;
        let step = *Step::ALL.iter().find(|known| **known as u8 == *step)?;
        let errno = match i32::from_le_bytes(*errno) {
            0 => None,
            number @ 1..=MAX_ERRNO => Some(Errno::from_raw_os_error(number)),
            _ => return None,
        };
        let subject = &subject[..subject.len().min(MAX_SUBJECT_BYTES)];
        Some(StepError { step, subject: String::from_utf8_lossy(subject).into_owned(), errno })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_survives_the_way_to_the_parent() {
        for step in Step::ALL {
            let error = StepError { step: *step, subject: "/some/path".into(), errno: Some(Errno::NOENT) };
            assert_eq!(StepError::decode(&error.encode()), Some(error));
        }
        let long = StepError::new(Step::Exec, "x".repeat(10_000));
        assert_eq!(StepError::decode(&long.encode()).unwrap().subject.len(), MAX_SUBJECT_BYTES);
        for bad in [&[][..], &[0], &[0, 1, 2, 3], &[255, 0, 0, 0, 0]] {
            assert_eq!(StepError::decode(bad), None);
        }
    }

    #[test]
    fn the_text_names_step_subject_and_reason() {
        let error = StepError::at(Step::Exec, "/bin/none")(Errno::NOENT);
        assert_eq!(error.to_string(), "cannot execute /bin/none: No such file or directory (os error 2)");
    }
}
