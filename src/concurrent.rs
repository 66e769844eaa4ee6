//! Locks, threads and channels of the swap engine and of the device in memory, so that tests may schedule
//! them: with the feature `shuttle` they are shuttle's, which runs one thread at a time and chooses at each of
//! them who goes on. Everywhere else they are parking_lot's, crossbeam's and std's own.

#[cfg(not(feature = "shuttle"))]
pub(crate) use self::real::*;
#[cfg(feature = "shuttle")]
pub(crate) use self::scheduled::*;

#[cfg(not(feature = "shuttle"))]
mod real {
    pub(crate) use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
    pub(crate) use parking_lot::{Condvar, Mutex};
    pub(crate) use std::thread;
    pub(crate) use std::thread_local;

    use std::time::Instant;

    /// Time since a beginning.
    #[derive(Debug)]
    pub(crate) struct Clock(Instant);

    impl Clock {
        pub(crate) fn start() -> Clock {
            Clock(Instant::now())
        }

        /// Milliseconds since the start.
        pub(crate) fn now_ms(&self) -> u64 {
            self.0.elapsed().as_millis() as u64
        }
    }
}

#[cfg(feature = "shuttle")]
mod scheduled {
    use std::collections::VecDeque;
    use std::ops::{Deref, DerefMut};
    use std::sync::Arc;
    use std::sync::PoisonError;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    pub(crate) use shuttle::{thread, thread_local};

    /// parking_lot's face of shuttle's mutex.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    /// `inner` is `None` only while something is waited for.
    #[derive(Debug)]
    pub(crate) struct Guard<'a, T> {
        mutex: &'a Mutex<T>,
        inner: Option<shuttle::sync::MutexGuard<'a, T>>,
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Mutex<T> {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> Guard<'_, T> {
            let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Guard { mutex: self, inner: Some(inner) }
        }
    }

    impl<T> Deref for Guard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.inner.as_ref().expect("nothing is waited for")
        }
    }

    impl<T> DerefMut for Guard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.inner.as_mut().expect("nothing is waited for")
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Condvar {
            Condvar::default()
        }

        pub(crate) fn wait<T>(&self, guard: &mut Guard<'_, T>) {
            let inner = guard.inner.take().expect("nothing is waited for");
            guard.inner = Some(self.0.wait(inner).unwrap_or_else(PoisonError::into_inner));
        }

        /// Its time is up as soon as others have had a turn.
        pub(crate) fn wait_for<T>(&self, guard: &mut Guard<'_, T>, _time: Duration) {
            guard.inner = None;
            thread::yield_now();
            guard.inner = guard.mutex.lock().inner.take();
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }

    /// Nobody is left at the other end.
    #[derive(Debug)]
    pub(crate) struct Disconnected;

    #[derive(Debug)]
    struct Queue<T> {
        items: Mutex<(VecDeque<T>, usize)>,
        changed: Condvar,
    }

    /// crossbeam's face of a queue; its senders are counted.
    #[derive(Debug)]
    pub(crate) struct Sender<T>(Arc<Queue<T>>);

    #[derive(Debug)]
    pub(crate) struct Receiver<T>(Arc<Queue<T>>);

    pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
        let items = Mutex::new((VecDeque::new(), 1));
        let queue = Arc::new(Queue { items, changed: Condvar::new() });
        (Sender(queue.clone()), Receiver(queue))
    }

    /// The engine sends no more than fit.
    pub(crate) fn bounded<T>(_length: usize) -> (Sender<T>, Receiver<T>) {
        unbounded()
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, item: T) -> Result<(), Disconnected> {
            self.0.items.lock().0.push_back(item);
            self.0.changed.notify_one();
            Ok(())
        }
    }

    impl<T> Drop for Sender<T> {
        fn drop(&mut self) {
            self.0.items.lock().1 -= 1;
            self.0.changed.notify_all();
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, Disconnected> {
            let mut items = self.0.items.lock();
            loop {
                match (items.0.pop_front(), items.1) {
                    (Some(item), _) => return Ok(item),
                    (None, 0) => return Err(Disconnected),
                    (None, _) => self.0.changed.wait(&mut items),
                }
            }
        }

        pub(crate) fn try_recv(&self) -> Result<T, Disconnected> {
            self.0.items.lock().0.pop_front().ok_or(Disconnected)
        }
    }

    /// Time that goes on when somebody looks at it.
    #[derive(Debug)]
    pub(crate) struct Clock(AtomicU64);

    impl Clock {
        pub(crate) fn start() -> Clock {
            Clock(AtomicU64::new(0))
        }

        /// Milliseconds since the start.
        pub(crate) fn now_ms(&self) -> u64 {
            self.0.fetch_add(1, Ordering::Relaxed)
        }
    }
}
