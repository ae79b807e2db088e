//! One heartbeat: what was sent, and what has come back. Pure: `now` is an argument.

use std::time::Duration;

use tokio::time::Instant;

use super::trust::Moment;

/// Until the next one begins.
pub(super) const BEAT: Duration = Duration::from_millis(500);
/// Late by less is not late.
const GRACE: Duration = Duration::from_millis(50);

/// One heartbeat under way.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) begun: Moment,
    /// What its nonces begin with.
    number: u64,
    deadline: Instant,
    extended: bool,
    /// How often each attempt was heard, and when last.
    heard: Vec<(u64, usize, Instant)>,
    /// The attempt that went out, through how many masters, and when.
    sent: Option<Sent>,
}

/// An attempt that went out everywhere.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) nonce: u64,
    pub(super) masters: usize,
    pub(super) at: Instant,
}

/// What to do when its time is up.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// Begin the next one.
    Back,
    /// Wait a little: this process was late itself.
    Wait,
    Lost,
}

const ATTEMPTS: u32 = 8;

impl Round {
    pub(super) fn new(number: u64, begun: Moment, now: Instant) -> Self {
        Self { begun, number, deadline: now + BEAT, extended: false, heard: Vec::new(), sent: None }
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What its attempts are called.
    pub(super) fn nonces(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.number << ATTEMPTS;
        first..first | ((1 << ATTEMPTS) - 1)
    }

    /// One of ours has come back. Says how long it took, once that makes the round complete.
    pub(super) fn hear(&mut self, nonce: u64, now: Instant) -> Option<Duration> {
        if nonce >> ATTEMPTS != self.number & (u64::MAX >> ATTEMPTS) || self.is_back() {
            return None;
        }
        match self.heard.iter_mut().find(|(heard, ..)| *heard == nonce) {
            Some((_, times, last)) => (*times, *last) = (*times + 1, now),
            None => self.heard.push((nonce, 1, now)),
        }
        self.took()
    }

    /// An attempt has gone out, and no further one follows. As [`hear`](Self::hear).
    pub(super) fn sent(&mut self, sent: Sent) -> Option<Duration> {
        self.sent = Some(sent);
        self.took()
    }

    fn took(&self) -> Option<Duration> {
        let sent = self.sent?;
        let (_, _, last) =
            self.heard.iter().find(|(nonce, times, _)| *nonce == sent.nonce && *times >= sent.masters)?;
        Some(last.saturating_duration_since(sent.at))
    }

    pub(super) fn is_back(&self) -> bool {
        self.took().is_some()
    }

    /// When its deadline has passed.
    pub(super) fn judge(&mut self, now: Instant) -> Judged {
        if self.is_back() {
            return Judged::Back;
        }
        if std::mem::replace(&mut self.extended, true) {
            return Judged::Lost;
        }
        let late = now.saturating_duration_since(self.deadline);
        self.deadline = now + late.clamp(GRACE, BEAT);
        Judged::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    fn round(now: Instant) -> (Round, Vec<u64>) {
        let round = Round::new(u64::MAX / 3, Moment::now(), now);
        let nonces = round.nonces().take(2).collect();
        (round, nonces)
    }

    #[test]
    fn it_has_to_come_back_from_every_master() {
        let now = Instant::now();
        let (mut round, nonces) = round(now);
        assert_eq!(round.hear(nonces[0], now + MILLI), None);
        assert_eq!(round.hear(nonces[1], now + 2 * MILLI), None, "nobody knows yet how many there are");
        assert_eq!(round.hear(nonces[1] + 1000, now), None, "another round's");
        assert_eq!(round.sent(Sent { nonce: nonces[1], masters: 3, at: now + MILLI }), None);
        assert_eq!(round.hear(nonces[1], now + 3 * MILLI), None);
        assert_eq!(round.hear(nonces[0], now + 4 * MILLI), None, "an attempt that failed somewhere");
        assert!(!round.is_back());
        assert_eq!(round.hear(nonces[1], now + 5 * MILLI), Some(4 * MILLI));
        assert!(round.is_back());
        assert_eq!(round.hear(nonces[1], now + 6 * MILLI), None, "once is enough");
    }

    #[test]
    fn the_echo_may_be_faster_than_the_answer() {
        let now = Instant::now();
        let (mut round, nonces) = round(now);
        assert_eq!(round.hear(nonces[0], now + MILLI), None);
        assert_eq!(round.sent(Sent { nonce: nonces[0], masters: 1, at: now }), Some(MILLI));
    }

    #[test]
    fn rounds_do_not_share_nonces() {
        let now = Instant::now();
        let of = |number| Round::new(number, Moment::now(), now).nonces().collect::<Vec<_>>();
        let all = [of(1), of(2), of(u64::MAX), of(0)].concat();
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert!(distinct.len() == all.len() && of(5).len() > 20);
    }

    #[test]
    fn who_is_late_himself_waits_a_little() {
        let now = Instant::now();
        let (mut round, nonces) = round(now);
        assert_eq!(round.deadline(), now + BEAT);
        assert_eq!(round.judge(now + BEAT + 200 * MILLI), Judged::Wait);
        assert_eq!(round.deadline(), now + BEAT + 400 * MILLI);
        let mut other = Round::new(1, Moment::now(), now);
        assert_eq!((other.judge(now + 10 * BEAT), other.deadline()), (Judged::Wait, now + 11 * BEAT));
        assert_eq!(other.judge(other.deadline()), Judged::Lost);
        round.hear(nonces[0], now);
        round.sent(Sent { nonce: nonces[0], masters: 1, at: now });
        assert_eq!(round.judge(round.deadline()), Judged::Back);
    }
}
