//! Reads `Cache-Status` (RFC 9211) with a parser that is not ours.

use http::HeaderMap;
use sfv::{BareItem, List, ListEntry, Parser};

use crate::fields;

/// The parameters of the last member, each as `name` or `name=value`.
pub fn last_member(headers: &HeaderMap) -> Result<Vec<String>, String> {
    let field = fields::joined(headers, "cache-status").ok_or("no Cache-Status")?;
    let list: List = Parser::new(&field).parse().map_err(|error| format!("Cache-Status {field:?}: {error}"))?;
    let Some(ListEntry::Item(item)) = list.last() else {
        return Err(format!("Cache-Status {field:?} ends in no item"));
    };
    let said = item.params.iter().map(|(name, value)| match value {
        BareItem::Boolean(true) => name.as_str().to_owned(),
        BareItem::Integer(number) => format!("{}={}", name.as_str(), i64::from(*number)),
        BareItem::Token(token) => format!("{}={}", name.as_str(), token.as_str()),
        other => format!("{}={other:?}", name.as_str()),
    });
    Ok(said.collect())
}

#[test]
fn the_last_member_counts() {
    let mut headers = HeaderMap::new();
    assert!(last_member(&headers).is_err());
    headers.append("cache-status", "far; hit".parse().unwrap());
    headers.append("cache-status", "near; fwd=stale; fwd-status=304; ttl=-5; stored".parse().unwrap());
    assert_eq!(last_member(&headers).unwrap(), ["fwd=stale", "fwd-status=304", "ttl=-5", "stored"]);
    headers.append("cache-status", "near; hit=".parse().unwrap());
    assert!(last_member(&headers).is_err());
}
