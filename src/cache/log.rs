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
/// Two neighbours smaller than this become one.
const SMALL_CHUNK: usize = 1024;

/// The most that a body of `length` bytes costs, however it is cut: no two neighbours are small.
pub(super) fn cost_of(length: usize) -> usize {
    length.saturating_add((length / SMALL_CHUNK * 2 + 1) * CHUNK_OVERHEAD)
}

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
    /// Each with the number of bytes before it.
    chunks: Vec<(usize, Bytes)>,
    end: Option<End>,
    readers: Vec<Option<Waker>>,
    free: Vec<usize>,
    /// Set where the log is cut: from then on the readers alone keep the bytes.
    reserved: Option<Reservation>,
}

impl State {
    fn push(&mut self, at: usize, chunk: Bytes) {
        match self.chunks.last_mut() {
            Some((_, last)) if last.len() < SMALL_CHUNK && chunk.len() < SMALL_CHUNK => {
                *last = [&**last, &*chunk].concat().into();
            }
            _ => self.chunks.push((at, chunk)),
        }
    }

    /// What there is beyond the first `at` bytes, as far as it lies in one piece.
    fn beyond(&self, at: usize) -> Option<Bytes> {
        let last = self.chunks.partition_point(|(start, _)| *start <= at).checked_sub(1)?;
        let (start, chunk) = self.chunks.get(last)?;
        let read = at - start;
        (read < chunk.len()).then(|| chunk.slice(read..))
    }
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
    cap: usize,
    reservation: Option<Reservation>,
}

impl Writer {
    /// A log of at most `cap` bytes, which may grow beyond `reservation` while the budget lasts.
    pub(super) fn new(reservation: Reservation, cap: usize) -> Self {
        let state = State { chunks: Vec::new(), end: None, readers: Vec::new(), free: Vec::new(), reserved: None };
        Self { log: Arc::new(Log(Mutex::new(state))), length: 0, cap, reservation: Some(reservation) }
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
        let (at, length) = (self.length, self.length.saturating_add(chunk.len()));
        let covers = |reserved: &mut Reservation| reserved.cover(cost_of(length));
        if length > self.cap || !self.reservation.as_mut().is_some_and(covers) {
            return Err(chunk);
        }
        self.length = length;
        self.log.change(|state| state.push(at, chunk));
        Ok(())
    }

    /// The whole body, in one piece that owns exactly its bytes, and the log's end. From here on readers share that
    /// piece with the store: however slow they are, they hold no part of the budget.
    pub(super) fn complete(mut self) -> Bytes {
        let mut body = Vec::with_capacity(self.length);
        for (_, chunk) in &self.log.lock().chunks {
            body.extend_from_slice(chunk);
        }
        let body = Bytes::from(body);
        if self.reservation.take().is_some() {
            self.log.change(|state| {
                state.chunks = vec![(0, body.clone())];
                state.end = Some(End::Complete);
            });
        }
        body
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
    /// Bytes read.
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
        if let Some(chunk) = state.beyond(self.at) {
            self.at += chunk.len();
            return Poll::Ready(Next::Chunk(chunk));
        }
        if let Some(end) = state.end {
            return Poll::Ready(Next::End(end));
        }
        if let Some(waker) = state.readers.get_mut(self.slot) {
            match waker {
                Some(known) if known.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }

    /// Whether everything has been read, and it was all.
    pub(super) fn is_complete(&self) -> bool {
        let state = self.log.lock();
        state.end == Some(End::Complete) && state.beyond(self.at).is_none()
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
    fn a_complete_body_costs_nothing_however_slow_its_readers_are() {
        let budget = Arc::new(Budget::new(1 << 20));
        let mut writer = writer(&budget, 1 << 20);
        let mut reader = Reader::new(writer.log());
        writer.push(Bytes::from(vec![b'a'; 2000])).unwrap();
        writer.push(Bytes::from(vec![b'b'; 2000])).unwrap();
        assert_eq!(next(&mut reader), Some(Next::Chunk(Bytes::from(vec![b'a'; 2000]))));
        let whole = writer.complete();
        assert_eq!(budget.used(), 0);
        let Some(Next::Chunk(rest)) = next(&mut reader) else { panic!("half of it is left") };
        assert_eq!(rest.as_ptr(), whole.slice(2000..).as_ptr(), "shared with the store");
        assert_eq!(rest, vec![b'b'; 2000]);
    }

    #[test]
    fn a_body_cut_small_fits_into_what_its_length_reserved() {
        let length = 5000;
        let budget = Arc::new(Budget::new(cost_of(length)));
        let mut writer = Writer::new(budget.reserve(cost_of(length)).unwrap(), length);
        let mut reader = Reader::new(writer.log());
        for n in 0..length {
            writer.push(Bytes::from(vec![b'a'])).unwrap();
            if n % 3 == 0 {
                assert!(matches!(next(&mut reader), Some(Next::Chunk(_))));
            }
        }
        assert!(writer.log().lock().chunks.len() <= 10);
        assert_eq!(writer.complete().len(), length);
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
