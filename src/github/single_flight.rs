//! A value that all slots share and that one of them fetches at a time.

use super::Error;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The value, and how its last fetch ended.
///
/// Those who wait for a fetch that fails get its error too: if each of them
/// tried in turn, the last would wait as many times as there are slots.
pub(super) struct SingleFlight<T> {
    fetches: AtomicU64,
    last: Mutex<Option<Result<T, Error>>>,
}

impl<T> Default for SingleFlight<T> {
    fn default() -> SingleFlight<T> {
        SingleFlight { fetches: AtomicU64::new(0), last: Mutex::new(None) }
    }
}

impl<T: Clone> SingleFlight<T> {
    /// Returns the shared value if it is usable, and else fetches it.
    pub fn get(
        &self,
        usable: impl Fn(&T) -> bool,
        fetch: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.get_since(self.fetches.load(Ordering::SeqCst), usable, fetch)
    }

    /// The same for a caller who began to wait after so many fetches.
    fn get_since(
        &self,
        fetches: u64,
        usable: impl Fn(&T) -> bool,
        fetch: impl FnOnce() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut last = self.lock();
        let waited = self.fetches.load(Ordering::SeqCst) != fetches;
        match &*last {
            Some(Ok(value)) if usable(value) => return Ok(value.clone()),
            Some(Err(error)) if waited => return Err(error.clone()),
            _ => {}
        }
        let outcome = fetch();
        *last = Some(outcome.clone());
        self.fetches.fetch_add(1, Ordering::SeqCst);
        outcome
    }

    pub fn forget(&self, unless_replaced: impl Fn(&T) -> bool) {
        let mut last = self.lock();
        if matches!(&*last, Some(Ok(value)) if unless_replaced(value)) {
            *last = None;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Result<T, Error>>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_wait_for_a_failing_fetch_get_its_error_and_later_ones_fetch_again() {
        let shared = SingleFlight::<u64>::default();
        let no = Err(Error::Failed("no".to_owned()));
        assert_eq!(shared.get_since(0, |_| true, || no.clone()), no);
        assert_eq!(shared.get_since(0, |_| true, || panic!("fetched by one who waited")), no);
        assert_eq!(shared.get(|_| true, || Ok(7)), Ok(7));
        assert_eq!(shared.get(|_| true, || panic!("fetched though there is a value")), Ok(7));
        assert_eq!(shared.get(|value| *value != 7, || Ok(8)), Ok(8));
    }
}
