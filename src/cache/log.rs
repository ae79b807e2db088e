//! A body while it is collected: chunks that many readers follow, each at its own pace.
//!
//! It ends in [`End::Complete`] or [`End::Cut`]; a writer that goes away without a word has cut it. So no reader ever
//! takes a part for the whole.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

/// What one chunk costs beside its bytes.
const CHUNK_OVERHEAD: usize = 64;

/// Bytes that all unfinished copies together may hold.
pub(super) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(super) fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// Sets `bytes` aside. `None`: there is not that much left.
    pub(super) fn reserve(self: &Arc<Self>, bytes: usize) -> Option<Reservation> {
        let mut reservation = Reservation { budget: self.clone(), bytes: 0 };
        reservation.grow(bytes).then_some(reservation)
    }

    #[cfg(test)]
    fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A part of a [`Budget`], given back when dropped.
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Reservation {
    fn grow(&mut self, bytes: usize) -> bool {
        let add = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.budget.limit);
        let grown = self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }

    fn cover(&mut self, bytes: usize) -> bool {
        bytes <= self.bytes || self.grow(bytes - self.bytes)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// How a log ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The chunks are the whole body.
    Complete,
    /// There was more, or there should have been.
    Cut,
}

/// The readers' side.
pub(super) struct Log(Mutex<State>);

struct State {
    chunks: Vec<Bytes>,
    end: Option<End>,
    readers: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Set with the end: from then on the readers alone keep the bytes.
    reserved: Option<Reservation>,
}

impl Log {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the log, then wakes every reader, outside the lock.
    fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers: Vec<Waker> = {
            let mut state = self.lock();
            change(&mut state);
            state.readers.iter_mut().filter_map(Option::take).collect()
        };
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// The writer's side: there is one.
pub(super) struct Writer {
    log: Arc<Log>,
    length: usize,
    chunks: usize,
    cap: usize,
    reservation: Option<Reservation>,
}

impl Writer {
    /// A log of at most `cap` bytes, which may grow beyond `reservation` while the budget lasts.
    pub(super) fn new(reservation: Reservation, cap: usize) -> Self {
        let state = State { chunks: Vec::new(), end: None, readers: Vec::new(), free: Vec::new(), reserved: None };
        Self { log: Arc::new(Log(Mutex::new(state))), length: 0, chunks: 0, cap, reservation: Some(reservation) }
    }

    pub(super) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// # Errors
    /// Hands the chunk back if it does not fit.
    pub(super) fn push(&mut self, chunk: Bytes) -> Result<(), Bytes> {
        let length = self.length.saturating_add(chunk.len());
        let cost = length.saturating_add((self.chunks + 1) * CHUNK_OVERHEAD);
        if length > self.cap || !self.reservation.as_mut().is_some_and(|reserved| reserved.cover(cost)) {
            return Err(chunk);
        }
        (self.length, self.chunks) = (length, self.chunks + 1);
        self.log.change(|state| state.chunks.push(chunk));
        Ok(())
    }

    /// The whole body, in one piece that owns exactly its bytes, and the log's end.
    pub(super) fn complete(mut self) -> Bytes {
        let mut body = Vec::with_capacity(self.length);
        for chunk in &self.log.lock().chunks {
            body.extend_from_slice(chunk);
        }
        self.end(End::Complete);
        body.into()
    }

    /// Ends the log. Only the first end counts.
    pub(super) fn end(&mut self, end: End) {
        let reservation = self.reservation.take();
        if let Some(reservation) = reservation {
            // The bytes stay until the last reader is through.
            self.log.change(|state| {
                state.end = Some(end);
                state.reserved = Some(reservation);
            });
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end(End::Cut);
    }
}

/// What a reader finds next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Chunk(Bytes),
    End(End),
}

/// One reader, from the first chunk on.
pub(super) struct Reader {
    log: Arc<Log>,
    at: usize,
    slot: usize,
}

impl Reader {
    pub(super) fn new(log: &Arc<Log>) -> Self {
        let slot = {
            let mut state = log.lock();
            state.free.pop().unwrap_or_else(|| {
                state.readers.push(None);
                state.readers.len() - 1
            })
        };
        Self { log: log.clone(), at: 0, slot }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.log.lock();
        if let Some(chunk) = state.chunks.get(self.at) {
            self.at += 1;
            return Poll::Ready(Next::Chunk(chunk.clone()));
        }
        if let Some(end) = state.end {
            return Poll::Ready(Next::End(end));
        }
        if let Some(waker) = state.readers.get_mut(self.slot) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether everything has been read, and it was all.
    pub(super) fn is_complete(&self) -> bool {
        let state = self.log.lock();
        state.end == Some(End::Complete) && self.at == state.chunks.len()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.log.lock();
        if let Some(waker) = state.readers.get_mut(self.slot) {
            *waker = None;
        }
        state.free.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn writer(budget: &Arc<Budget>, cap: usize) -> Writer {
        Writer::new(budget.reserve(0).unwrap(), cap)
    }

    fn next(reader: &mut Reader) -> Option<Next> {
        std::future::poll_fn(|cx| reader.poll_next(cx)).now_or_never()
    }

    #[test]
    fn a_writer_that_goes_away_has_cut_the_body() {
        let budget = Arc::new(Budget::new(1000));
        let mut writer = writer(&budget, 100);
        let mut reader = Reader::new(writer.log());
        writer.push(Bytes::from_static(b"a")).unwrap();
        assert_eq!(next(&mut reader), Some(Next::Chunk(Bytes::from_static(b"a"))));
        assert_eq!(next(&mut reader), None);
        drop(writer);
        assert_eq!(next(&mut reader), Some(Next::End(End::Cut)));
        assert!(!reader.is_complete());
    }

    #[test]
    fn a_whole_body_keeps_no_larger_buffer_alive() {
        let buffer = Bytes::from(vec![b'a'; 1 << 16]);
        let mut writer = writer(&Arc::new(Budget::new(1000)), 100);
        writer.push(buffer.slice(..5)).unwrap();
        let whole = writer.complete();
        assert!(whole == "aaaaa" && buffer.is_unique());
    }

    #[test]
    fn caps_hand_the_chunk_back_and_the_budget_returns_to_zero() {
        let budget = Arc::new(Budget::new(500));
        let mut first = writer(&budget, 100);
        first.push(Bytes::from(vec![0; 100])).unwrap();
        assert_eq!(first.push(Bytes::from_static(b"x")), Err(Bytes::from_static(b"x")));
        let mut second = writer(&budget, 1000);
        assert!(second.push(Bytes::from(vec![0; 400])).is_err(), "beyond the shared budget");
        second.push(Bytes::from(vec![0; 200])).unwrap();
        assert!(budget.used() >= 300);
        let late = Reader::new(first.log());
        drop((first, second));
        assert!(budget.used() >= 100, "a reader keeps the bytes");
        drop(late);
        assert_eq!(budget.used(), 0);
    }

    proptest! {
        #[test]
        fn every_reader_reads_the_whole(chunks: Vec<Vec<u8>>, join_at in 0usize..8) {
            let budget = Arc::new(Budget::new(1 << 20));
            let mut writer = writer(&budget, 1 << 20);
            let (mut readers, mut texts) = (vec![Reader::new(writer.log())], vec![Vec::new()]);
            for (at, chunk) in chunks.iter().enumerate() {
                if at == join_at {
                    readers.push(Reader::new(writer.log()));
                    texts.push(Vec::new());
                }
                writer.push(chunk.clone().into()).unwrap();
                while let Some(Next::Chunk(chunk)) = next(&mut readers[0]) {
                    texts[0].extend_from_slice(&chunk);
                }
            }
            let whole = writer.complete();
            prop_assert_eq!(&whole, &chunks.concat());
            for (reader, text) in readers.iter_mut().zip(&mut texts) {
                while let Some(Next::Chunk(chunk)) = next(reader) {
                    text.extend_from_slice(&chunk);
                }
                prop_assert_eq!(next(reader), Some(Next::End(End::Complete)));
                prop_assert!(reader.is_complete());
                prop_assert_eq!(&*text, &whole);
            }
        }
    }
}
