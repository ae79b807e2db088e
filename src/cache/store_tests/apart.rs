//! Keys that stores confuse.

use super::Suite;
use crate::cache::key::{Key, MAX_KEY_BYTES};

pub(super) async fn keys_are_apart(suite: &Suite) {
    let keys = alike(suite);
    let mut records = Vec::new();
    for key in &keys {
        suite.expect_nothing(key, "a key that was never put, though one like it was").await;
        let record = suite.samples.small();
        suite.put(key, &record).await;
        records.push(record);
    }
    for (key, record) in keys.iter().zip(&records) {
        suite.expect(key, record, "the record of another key").await;
    }
    for (key, record) in keys.iter().zip(&records).step_by(2) {
        suite.remove(key).await;
        suite.expect_nothing(key, "a removed key, though one like it was not").await;
        suite.put(key, record).await;
    }
    for (key, record) in keys.iter().zip(&records) {
        suite.expect(key, record, "the record of another key, after some were removed").await;
    }
}

/// They differ in case, in white space, in bytes that end strings or lines, in bytes that are no text, in length, and
/// in their last byte alone.
fn alike(suite: &Suite) -> Vec<Key> {
    let tails: [&[u8]; 22] = [
        b"",
        b"a",
        b"A",
        b"a ",
        b" a",
        b"a\0",
        b"\0a",
        b"a\0b",
        b"a\n",
        b"a\r\n",
        b"a\t",
        b"a%20",
        b"a/",
        b"a//",
        b"a*",
        b"a?",
        b"a:",
        b"\xff",
        b"\xfe",
        b"\xc3\xa4",
        b"a\xcc\x88",
        b"\\x61",
    ];
    let mut keys: Vec<_> = tails.iter().map(|tail| suite.samples.key_with(tail)).collect();
    for length in [200, 231, 232, 250, 255, 256, 1000, MAX_KEY_BYTES - 32] {
        for last in *b"xy" {
            let mut tail = vec![b'x'; length];
            tail.push(last);
            keys.push(suite.samples.key_with(&tail));
        }
    }
    // As long as a key can be, and different in the middle.
    for byte in *b"xy" {
        let mut tail = vec![b'x'; MAX_KEY_BYTES];
        if let Some(middle) = tail.get_mut(MAX_KEY_BYTES / 2) {
            *middle = byte;
        }
        keys.push(suite.samples.key_with(&tail));
    }
    keys
}
