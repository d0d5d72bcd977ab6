// SPDX-License-Identifier: Apache-2.0
//! Names of signals as images spell them.

/// What an app gets first when its image names no stop signal.
pub const DEFAULT_STOP: i32 = libc::SIGTERM;

const NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGIOT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGPOLL),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];
/// Of the kernel; the C library keeps the first two for itself and calls the third RTMIN.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of `SIGTERM`, `term`, `15`, `RTMIN+3`; empty text is [`DEFAULT_STOP`].
pub fn number(text: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(DEFAULT_STOP);
    }
    if let Ok(number) = text.parse::<i32>() {
        return (1..=RTMAX).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let real_time = match (name, name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX-")) {
        ("RTMIN", _, _) => Some(RTMIN),
        ("RTMAX", _, _) => Some(RTMAX),
        (_, Some(above), _) => above.parse::<u8>().ok().map(|above| RTMIN + i32::from(above)),
        (_, _, Some(below)) => below.parse::<u8>().ok().map(|below| RTMAX - i32::from(below)),
        _ => return NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number),
    };
    real_time.filter(|number| (RTMIN..=RTMAX).contains(number))
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, want) in [
            ("", Some(15)),
            ("SIGTERM", Some(15)),
            ("quit", Some(3)),
            ("SIGQUIT", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX", Some(64)),
            ("RTMAX-40", None),
            ("RTMIN+200", None),
            ("0", None),
            ("65", None),
            ("SIGNOPE", None),
        ] {
            assert_eq!(number(text), want, "{text}");
        }
    }
}
