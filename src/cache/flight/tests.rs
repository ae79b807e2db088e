use super::course::{MAX_SUCCESSORS, MAX_WAITERS};
use super::*;

pub(super) fn flights() -> Arc<Flights> {
    Arc::new(Flights::new(Arc::new(Metrics::new()), Arc::new(Stripes::new())))
}

pub(super) fn key(path: &str) -> Key {
    Key::new(path.as_bytes()).unwrap()
}

fn lead(flights: &Arc<Flights>, key: &Key) -> Seat {
    match flights.join(key, key, flights.stored(key), 0) {
        Join::Lead(seat) => seat,
        _ => panic!("nobody else is there"),
    }
}

pub(super) fn response() -> (Arc<Stream>, Arc<Landed>) {
    let now = std::time::SystemTime::now();
    let head = Arc::new(crate::cache::entry::tests::head(now, now));
    let budget = Arc::new(crate::cache::log::Budget::new(0));
    let log = crate::cache::log::Writer::new(budget.reserve(0).unwrap(), 0).log().clone();
    let entry = Arc::new(Entry::new(head.clone(), bytes::Bytes::new()));
    let landed = Landed { entry, variant: None, voided: 0 };
    (Arc::new(Stream { head, variant: None, log, length: None, since: Instant::now(), voided: 0 }), Arc::new(landed))
}

fn wait(flights: &Arc<Flights>, key: &Key) -> Ticket {
    match flights.join(key, key, flights.stored(key), 0) {
        Join::Wait(ticket) => ticket,
        _ => panic!("somebody leads"),
    }
}

#[test]
fn a_lookup_older_than_the_last_store_is_repeated() {
    let (flights, key) = (flights(), key("/"));
    let seen = flights.stored(&key);
    let seat = lead(&flights, &key);
    flights.note_stored(&key, true);
    seat.land();
    assert!(matches!(flights.join(&key, &key, seen, 0), Join::LookAgain));
    assert!(flights.is_empty());
}

#[test]
fn a_fetch_older_than_an_invalidation_or_a_purge_is_not_joined() {
    let (flights, key) = (flights(), key("/"));
    let seen = flights.stored(&key);
    let (old, _waiting) = (lead(&flights, &key), wait(&flights, &key));
    flights.note_voided(&key);
    let Join::Lead(voided) = flights.join(&key, &key, seen, 0) else { panic!("the old one is void") };
    let Join::Lead(purged) = flights.join(&key, &key, seen, 1) else { panic!("the old one is purged") };
    assert!(matches!(flights.join(&key, &key, seen, 0), Join::Wait(_)), "it is newer than need be");
    drop((old, voided));
    assert_eq!(flights.len(), 1, "who was left out of the table takes nobody out of it");
    drop(purged);
    assert!(flights.is_empty());
}

#[test]
fn nothing_stays_when_everybody_leaves() {
    let (flights, key) = (flights(), key("/"));
    lead(&flights, &key).fail();
    assert!(flights.is_empty(), "a failure that nobody waits for");
    let seat = lead(&flights, &key);
    let (first, second) = (wait(&flights, &key), wait(&flights, &key));
    drop(seat);
    drop(first);
    assert_eq!(flights.len(), 1);
    drop(second);
    assert!(flights.is_empty(), "a vacancy that nobody waits for");
}

#[test]
fn who_waits_for_a_complete_response_keeps_it_when_storing_is_given_up() {
    let (flights, key) = (flights(), key("/"));
    let seat = lead(&flights, &key);
    let mut ticket = wait(&flights, &key);
    seat.complete(response().1);
    drop(seat);
    assert!(matches!(ticket.phase(), Phase::Complete(..)));
    assert!(flights.is_empty());
}

#[test]
fn one_successor_is_elected_twice_at_most() {
    let (flights, key) = (flights(), key("/"));
    let mut seat = lead(&flights, &key);
    let mut waiting = [wait(&flights, &key), wait(&flights, &key)];
    for _ in 0..MAX_SUCCESSORS {
        drop(seat);
        assert!(waiting.iter_mut().all(|ticket| matches!(ticket.phase(), Phase::Vacant)));
        seat = waiting[0].claim().unwrap();
        assert!(waiting[1].claim().is_none());
    }
    drop(seat);
    assert!(waiting.iter_mut().all(|ticket| matches!(ticket.phase(), Phase::Failed)));
    assert!(flights.is_empty());
}

#[test]
fn flights_and_waiters_are_bounded() {
    let flights = flights();
    let seats: Vec<_> = (0..MAX_FLIGHTS).map(|n| lead(&flights, &key(&format!("/{n}")))).collect();
    assert!(matches!(flights.join(&key("/x"), &key("/x"), flights.stored(&key("/x")), 0), Join::Full));
    let popular = key("/0");
    let tickets: Vec<_> = (0..MAX_WAITERS).map(|_| wait(&flights, &popular)).collect();
    assert!(matches!(flights.join(&popular, &popular, flights.stored(&popular), 0), Join::Full));
    drop((seats, tickets));
    assert!(flights.is_empty());
}
