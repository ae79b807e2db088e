//! A body while it is collected: chunks that many readers follow, each at its own pace.
//!
//! It ends in [`End::Complete`] or [`End::Cut`]; a writer that goes away without a word has cut it. So no reader ever
//! takes a part for the whole.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;

use super::block;
use super::wakers::{Watched, Watcher};

/// What one chunk costs beside its bytes.
const CHUNK_OVERHEAD: usize = 64;
/// Two neighbours smaller than this become one.
const SMALL_CHUNK: usize = 1024;

/// The most that a body of `length` bytes costs, however it is cut: no two neighbours are small.
pub(super) fn cost_of(length: usize) -> usize {
    length.saturating_add((length / SMALL_CHUNK * 2 + 1) * CHUNK_OVERHEAD)
}

/// The longest body of which even the worst cut costs no more than `budget`.
pub(super) fn longest(budget: usize) -> usize {
    let most = budget.saturating_sub(CHUNK_OVERHEAD);
    most / (SMALL_CHUNK + 2 * CHUNK_OVERHEAD) * SMALL_CHUNK
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
pub(super) type Log = Watched<State>;

#[derive(Default)]
pub(super) struct State {
    /// Each with the number of bytes before it.
    chunks: Vec<(usize, Bytes)>,
    end: Option<End>,
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

    fn next(&self, at: usize) -> Option<Next> {
        self.beyond(at).map(Next::Chunk).or_else(|| self.end.map(Next::End))
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
        Self { log: Arc::default(), length: 0, cap, reservation: Some(reservation) }
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
        let body = self.log.look(|state| block::copy(self.length, state.chunks.iter().map(|(_, chunk)| chunk)));
        if self.reservation.take().is_some() {
            let whole = vec![(0, body.clone())];
            let _parts = self.log.change(|state| {
                state.end = Some(End::Complete);
                std::mem::replace(&mut state.chunks, whole)
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
    log: Watcher<State>,
    /// Bytes read.
    at: usize,
}

impl Reader {
    pub(super) fn new(log: &Arc<Log>) -> Self {
        Self { log: log.watch(), at: 0 }
    }

    /// A reader of what comes from the part's start on.
    pub(super) fn starting_at(log: &Arc<Log>, part: &Range<u64>) -> Self {
        let mut reader = Self::new(log);
        reader.at = usize::try_from(part.start).unwrap_or(usize::MAX);
        reader
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let next = self.log.poll(cx, |state| state.next(self.at));
        if let Poll::Ready(Next::Chunk(chunk)) = &next {
            self.at += chunk.len();
        }
        next
    }

    /// Whether everything has been read, and it was all.
    pub(super) fn is_complete(&self) -> bool {
        self.log.look(|state| state.next(self.at) == Some(Next::End(End::Complete)))
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
        assert!(writer.log().look(|state| state.chunks.len()) <= 10);
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

    #[test]
    fn the_longest_body_fits_and_little_room_is_lost() {
        for budget in [0, 63, 64, 2000, 100_000, 12_345_678] {
            let longest = longest(budget);
            assert!(longest == 0 || cost_of(longest) <= budget, "{budget}");
            assert!(cost_of(longest + 2 * SMALL_CHUNK) > budget, "{budget}");
        }
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
