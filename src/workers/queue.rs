//! The thread of a scale set's queue: asks what [`Queue`] wants to know.

use super::{Shared, random_seed};
use crate::github::queue::JobQueue;
use crate::pool::queue::{Answer, Ask, Queue};
use crossbeam_channel::Receiver;
use log::{debug, info, warn};
use std::sync::Arc;
use std::time::Duration;

/// Starts the thread, if there is a queue. It ends when the pool stops, or with the process.
pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let Some(queue) = shared.queue.clone() else { return Ok(()) };
    let shared = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("queue".into()).stack_size(512 * 1024);
    thread.spawn(move || run(&shared, &*queue)).map(|_| ())
}

fn run(shared: &Arc<Shared>, queue: &dyn JobQueue) {
    let mut asker = Queue::new(random_seed());
    let mut answer = Answer::Paused;
    loop {
        let ask = shared.apply(|state| asker.next(answer, state));
        answer = match ask {
            Ask::Open => Answer::Opened(queue.open()),
            Ask::Next { after, capacity } => {
                let next = queue.next(after, capacity);
                debug!("the scale set's queue: {next:?}");
                Answer::Next(next)
            }
            Ask::Refresh => Answer::Refreshed(queue.refresh()),
            Ask::Acquire(requests) => Answer::Done(queue.acquire(&requests)),
            Ask::Acknowledge(message) => Answer::Done(queue.acknowledge(message)),
            Ask::Close => Answer::Done(queue.close()),
            Ask::Pause(wait) => {
                std::thread::sleep(Duration::from_millis(u64::try_from(wait).unwrap_or(0)));
                Answer::Paused
            }
            Ask::End => return,
        };
    }
}

/// Closes the session while the thread most likely waits for a message: another
/// start can open its own at once. Beside the slots, which need not wait for it.
/// What it answers with is disconnected when that is done.
pub(super) fn close(shared: &Arc<Shared>) -> Option<Receiver<()>> {
    let queue = shared.queue.clone()?;
    let (closes, closing) = crossbeam_channel::bounded(0);
    let close = move || {
        match queue.close() {
            Ok(()) => info!("the scale set's queue is closed"),
            Err(error) => {
                warn!("the scale set's queue is not closed, and ends by itself in a minute: {error}");
            }
        }
        drop(closes);
    };
    std::thread::Builder::new().name("queue-close".into()).spawn(close).ok()?;
    Some(closing)
}
