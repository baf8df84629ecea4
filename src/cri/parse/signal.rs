//! Stop signals: the interface has numbers of its own, the kernel others.

use engine::Result;

use super::enumeration;
use crate::proto::runtime::v1::Signal;

/// Number of the first real-time signal that programs may use (the C library keeps two below it).
const RTMIN: i32 = 34;

/// Kernel number of each named signal, in the order of the interface's enumeration: 1 is `SIGABRT`, 34 `SIGXFSZ`.
/// The numbers are those of all architectures that we build for.
const NAMED: [i32; 34] = [
    6, 14, 7, 17, 17, 18, 8, 1, 4, 2, 29, 6, 9, 13, 29, 27, 30, 3, 11, 16, 19, 31, 15, 5, 20, 21, 22, 23, 10,
    12, 26, 28, 24, 25,
];

/// Kernel number of a stop signal of the interface; `None`: the request names none.
pub(crate) fn stop_signal(number: i32, field: &str) -> Result<Option<i32>> {
    let signal: Signal = enumeration(number, field)?;
    let index = signal as i32;
    Ok(match index {
        0 => None,
        1..=34 => Some(NAMED[index as usize - 1]),
        _ => Some(RTMIN + index - Signal::Sigrtmin as i32),
    })
}

/// The interface's name of a kernel signal number; `RuntimeDefault` for a number that it has no name for.
pub(crate) fn name_of(kernel: i32) -> Signal {
    let index = match NAMED.iter().position(|&n| n == kernel) {
        Some(at) => at as i32 + 1,
        None if (RTMIN..=RTMIN + 30).contains(&kernel) => kernel - RTMIN + Signal::Sigrtmin as i32,
        None => 0,
    };
    Signal::try_from(index).unwrap_or(Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree_with_the_kernel() {
        for (signal, kernel) in [
            (Signal::Sighup, 1),
            (Signal::Sigint, 2),
            (Signal::Sigquit, 3),
            (Signal::Sigill, 4),
            (Signal::Sigtrap, 5),
            (Signal::Sigabrt, 6),
            (Signal::Sigbus, 7),
            (Signal::Sigfpe, 8),
            (Signal::Sigkill, 9),
            (Signal::Sigusr1, 10),
            (Signal::Sigsegv, 11),
            (Signal::Sigusr2, 12),
            (Signal::Sigpipe, 13),
            (Signal::Sigalrm, 14),
            (Signal::Sigterm, 15),
            (Signal::Sigstkflt, 16),
            (Signal::Sigchld, 17),
            (Signal::Sigcont, 18),
            (Signal::Sigstop, 19),
            (Signal::Sigtstp, 20),
            (Signal::Sigttin, 21),
            (Signal::Sigttou, 22),
            (Signal::Sigurg, 23),
            (Signal::Sigxcpu, 24),
            (Signal::Sigxfsz, 25),
            (Signal::Sigvtalrm, 26),
            (Signal::Sigprof, 27),
            (Signal::Sigwinch, 28),
            (Signal::Sigio, 29),
            (Signal::Sigpwr, 30),
            (Signal::Sigsys, 31),
            (Signal::Sigrtmin, 34),
            (Signal::Sigrtminplus15, 49),
            (Signal::Sigrtmaxminus14, 50),
            (Signal::Sigrtmaxminus1, 63),
            (Signal::Sigrtmax, 64),
        ] {
            assert_eq!(stop_signal(signal as i32, "stop_signal").unwrap(), Some(kernel), "{signal:?}");
            assert_eq!(name_of(kernel), signal);
        }
    }

    #[test]
    fn older_names_stand_for_the_same_numbers() {
        for (signal, kernel) in [(Signal::Sigcld, 17), (Signal::Sigiot, 6), (Signal::Sigpoll, 29)] {
            assert_eq!(stop_signal(signal as i32, "stop_signal").unwrap(), Some(kernel));
        }
    }

    #[test]
    fn none_is_none_and_nonsense_is_refused() {
        assert_eq!(stop_signal(0, "stop_signal").unwrap(), None);
        assert_eq!(name_of(0), Signal::RuntimeDefault);
        assert_eq!(name_of(33), Signal::RuntimeDefault);
        let refusal = stop_signal(66, "config.stop_signal").unwrap_err();
        assert_eq!(refusal.context, "config.stop_signal: 66 is not one of its values");
    }
}
