//! Tokens: each names one request that was allowed, works once, and not for long.
//!
//! What must never happen: a token that is guessed (128 random bits), used twice, used for another kind of request, or
//! kept for a client that never comes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rand::TryRngCore as _;
use rand::rngs::OsRng;

use crate::{Refusal, RefusalKind};

/// Requests that wait for their client.
pub(crate) struct Tokens<T> {
    life: Duration,
    most: usize,
    waiting: Mutex<Waiting<T>>,
}

struct Waiting<T> {
    requests: HashMap<String, T>,
    /// By age, oldest first; those that were used are still in it.
    order: VecDeque<(Instant, String)>,
}

impl<T> Tokens<T> {
    /// Each token lives for `life`; there are at most `most` of them.
    pub(crate) fn new(life: Duration, most: usize) -> Tokens<T> {
        Tokens {
            life,
            most,
            waiting: Mutex::new(Waiting { requests: HashMap::new(), order: VecDeque::new() }),
        }
    }

    /// A new token for `request`.
    ///
    /// # Errors
    /// `Busy` when too many wait, `Internal` when the kernel gives no random bytes.
    pub(crate) fn insert(&self, request: T) -> Result<String, Refusal> {
        let mut random = [0; 16];
        OsRng.try_fill_bytes(&mut random).map_err(|e| {
            Refusal::new(RefusalKind::Internal, format!("make a token for the streaming URL: {e}"))
        })?;
        let token: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut waiting = self.lock();
        waiting.forget(self.life);
        if waiting.requests.len() >= self.most {
            return Err(Refusal::new(
                RefusalKind::Busy,
                format!(
                    "{} streaming URLs wait for their client already; each is dropped after {:?}",
                    self.most, self.life
                ),
            ));
        }
        waiting.requests.insert(token.clone(), request);
        waiting.order.push_back((Instant::now(), token.clone()));
        Ok(token)
    }

    /// The request of a token, which is used up by this; `None`: never given out, used already, or too old.
    pub(crate) fn take(&self, token: &str) -> Option<T> {
        let mut waiting = self.lock();
        waiting.forget(self.life);
        waiting.requests.remove(token)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Waiting<T> {
    fn forget(&mut self, life: Duration) {
        while let Some((made, token)) = self.order.front() {
            let used = !self.requests.contains_key(token);
            if !used && made.elapsed() < life {
                break;
            }
            self.requests.remove(token);
            self.order.pop_front();
        }
        // used ones behind one that waits would else pile up
        if self.order.len() > 2 * self.requests.len() + 64 {
            self.order.retain(|(_, token)| self.requests.contains_key(token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_works_once() {
        let tokens = Tokens::new(Duration::from_secs(3600), 10);
        let (one, two) = (tokens.insert(1).expect("room"), tokens.insert(2).expect("room"));
        assert_ne!(one, two);
        assert_eq!(one.len(), 32);
        assert_eq!((tokens.take(&two), tokens.take(&two)), (Some(2), None));
        assert_eq!((tokens.take(&one), tokens.take("")), (Some(1), None));
    }

    #[test]
    fn a_token_expires() {
        let tokens = Tokens::new(Duration::ZERO, 1);
        let token = tokens.insert(()).expect("room");
        assert_eq!(tokens.take(&token), None);
        tokens.insert(()).expect("the old one makes room");
    }

    #[test]
    fn their_number_is_bounded() {
        let tokens = Tokens::new(Duration::from_secs(3600), 2);
        let first = tokens.insert(()).expect("room");
        tokens.insert(()).expect("room");
        assert_eq!(tokens.insert(()).expect_err("full").kind, RefusalKind::Busy);
        tokens.take(&first).expect("it waits");
        tokens.insert(()).expect("room again");
    }

    #[test]
    fn used_tokens_leave_nothing() {
        let tokens = Tokens::new(Duration::from_secs(3600), 10);
        let _waits = tokens.insert(0).expect("room");
        for n in 0..1000 {
            let token = tokens.insert(n).expect("room");
            assert_eq!(tokens.take(&token), Some(n));
        }
        assert!(tokens.lock().order.len() < 100);
    }
}
