//! Dictionaries of RFC 9651 (those of RFC 8941 among them): as much of their values as RFC 9213 needs.

use std::borrow::Cow;

/// A member's value; parameters are checked and dropped (RFC 9213 §2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    Boolean(bool),
    Integer(i64),
    /// What is inside of the quotes, without escapes.
    String(Cow<'a, [u8]>),
    /// Of a type that no cache directive has.
    Other,
}

/// The members in the order of the field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dictionary<'a>(Vec<(&'a [u8], Item<'a>)>);

impl<'a> Dictionary<'a> {
    /// Parses all lines of a field, joined with commas. `None`: the field as a whole is to be ignored (RFC 9651 §4.2).
    pub(super) fn parse(field: &'a [u8]) -> Option<Self> {
        let mut input = Input(field);
        input.take(|byte| byte == b' ');
        let mut members = Vec::new();
        while !input.0.is_empty() {
            members.push(input.member()?);
            input.take(is_whitespace);
            if input.0.is_empty() {
                break;
            }
            input.expect(b',')?;
            input.take(is_whitespace);
            // A comma at the end is an error.
            input.peek()?;
        }
        Some(Self(members))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of several members with one key, the last counts.
    pub(super) fn get(&self, key: &str) -> Option<&Item<'a>> {
        self.0.iter().rev().find(|(name, _)| *name == key.as_bytes()).map(|(_, item)| item)
    }
}

/// What is left to read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn peek(&self) -> Option<u8> {
        self.0.first().copied()
    }

    fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        self.eat(byte).then_some(())
    }

    fn take(&mut self, matching: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|byte| !matching(*byte)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at_checked(end).unwrap_or_default();
        self.0 = rest;
        taken
    }

    fn member(&mut self) -> Option<(&'a [u8], Item<'a>)> {
        let key = self.key()?;
        let item = match (self.eat(b'='), self.peek()) {
            (false, _) => Item::Boolean(true),
            (true, Some(b'(')) => self.inner_list()?,
            (true, _) => self.bare_item()?,
        };
        self.parameters()?;
        Some((key, item))
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        self.peek().filter(|byte| byte.is_ascii_lowercase() || *byte == b'*')?;
        Some(self.take(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)))
    }

    fn parameters(&mut self) -> Option<()> {
        while self.eat(b';') {
            self.take(|byte| byte == b' ');
            self.key()?;
            if self.eat(b'=') {
                self.bare_item()?;
            }
        }
        Some(())
    }

    fn inner_list(&mut self) -> Option<Item<'a>> {
        self.expect(b'(')?;
        loop {
            self.take(|byte| byte == b' ');
            if self.eat(b')') {
                return Some(Item::Other);
            }
            self.bare_item()?;
            self.parameters()?;
            self.peek().filter(|byte| matches!(byte, b' ' | b')'))?;
        }
    }

    fn bare_item(&mut self) -> Option<Item<'a>> {
        match self.peek()? {
            b'"' => self.string().map(Item::String),
            b'-' | b'0'..=b'9' => self.number(),
            b'?' => self.boolean().map(Item::Boolean),
            b':' => self.byte_sequence(),
            b'@' => self.date(),
            b'%' => self.display_string(),
            byte if byte.is_ascii_alphabetic() || byte == b'*' => {
                self.take(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
                Some(Item::Other)
            }
            _ => None,
        }
    }

    fn boolean(&mut self) -> Option<bool> {
        self.expect(b'?')?;
        match self.next()? {
            b'0' => Some(false),
            b'1' => Some(true),
            _ => None,
        }
    }

    fn number(&mut self) -> Option<Item<'a>> {
        let sign = if self.eat(b'-') { -1 } else { 1 };
        let whole = self.take(|byte| byte.is_ascii_digit());
        if self.eat(b'.') {
            let fraction = self.take(|byte| byte.is_ascii_digit());
            let fits = (1..=12).contains(&whole.len()) && (1..=3).contains(&fraction.len());
            return fits.then_some(Item::Other);
        }
        let magnitude = || whole.iter().fold(0, |sum: i64, digit| sum * 10 + i64::from(digit - b'0'));
        (1..=15).contains(&whole.len()).then(|| Item::Integer(sign * magnitude()))
    }

    fn date(&mut self) -> Option<Item<'a>> {
        self.expect(b'@')?;
        matches!(self.number()?, Item::Integer(_)).then_some(Item::Other)
    }

    fn string(&mut self) -> Option<Cow<'a, [u8]>> {
        self.expect(b'"')?;
        let mut text = Cow::Borrowed(self.take(is_plain));
        loop {
            match self.next()? {
                b'"' => return Some(text),
                b'\\' => text.to_mut().push(self.next().filter(|byte| matches!(byte, b'"' | b'\\'))?),
                _ => return None,
            }
            text.to_mut().extend_from_slice(self.take(is_plain));
        }
    }

    /// Base64 with padding or without; bits that are left over may be anything (RFC 9651 §4.2.7).
    fn byte_sequence(&mut self) -> Option<Item<'a>> {
        self.expect(b':')?;
        let symbols = self.take(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/')).len();
        let padding = self.take(|byte| byte == b'=').len();
        self.expect(b':')?;
        let most = match symbols % 4 {
            0 => 0,
            2 => 2,
            3 => 1,
            _ => return None,
        };
        (padding <= most).then_some(Item::Other)
    }

    fn display_string(&mut self) -> Option<Item<'a>> {
        self.expect(b'%')?;
        self.expect(b'"')?;
        let mut text = Vec::new();
        loop {
            match self.next()? {
                b'"' => return std::str::from_utf8(&text).is_ok().then_some(Item::Other),
                b'%' => text.push(self.hex_digit()? << 4 | self.hex_digit()?),
                byte @ b' '..=b'~' => text.push(byte),
                _ => return None,
            }
        }
    }

    fn hex_digit(&mut self) -> Option<u8> {
        match self.next()? {
            digit @ b'0'..=b'9' => Some(digit - b'0'),
            digit @ b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        }
    }
}

fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// Stands for itself in a string.
fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sfv::{BareItem, ListEntry, Parser};

    use super::*;

    /// What the oracle makes of the field, in our words.
    fn oracle(field: &[u8]) -> Option<Vec<(Vec<u8>, Item<'static>)>> {
        let members: sfv::Dictionary = Parser::new(field).parse().ok()?;
        let ours = |entry: &ListEntry| match entry {
            ListEntry::InnerList(_) => Item::Other,
            ListEntry::Item(item) => match &item.bare_item {
                BareItem::Boolean(value) => Item::Boolean(*value),
                BareItem::Integer(value) => Item::Integer((*value).into()),
                BareItem::String(value) => Item::String(value.as_str().as_bytes().to_vec().into()),
                _ => Item::Other,
            },
        };
        Some(members.iter().map(|(key, entry)| (key.as_str().as_bytes().to_vec(), ours(entry))).collect())
    }

    fn agrees(field: &[u8]) -> bool {
        match (Dictionary::parse(field), oracle(field)) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => {
                ours.0.iter().all(|(key, _)| theirs.iter().any(|(name, _)| name == key))
                    && theirs.iter().all(|(key, item)| ours.get(std::str::from_utf8(key).unwrap()) == Some(item))
            }
            (None, Some(_)) | (Some(_), None) => false,
        }
    }

    #[test]
    fn values() {
        let field = br#"a=1;x;y="z, b=9", b , c=?0,	d="q\"\\", e=tok/en, f=(1 "a";p  :aGk=:), g=-0, a=2"#;
        let members = Dictionary::parse(field).unwrap();
        for (key, expected) in [
            ("a", Some(Item::Integer(2))),
            ("b", Some(Item::Boolean(true))),
            ("c", Some(Item::Boolean(false))),
            ("d", Some(Item::String(br#"q"\"#.as_slice().into()))),
            ("e", Some(Item::Other)),
            ("f", Some(Item::Other)),
            ("g", Some(Item::Integer(0))),
            ("x", None),
            ("B", None),
        ] {
            assert_eq!(members.get(key), expected.as_ref(), "{key}");
        }
        assert!(agrees(field));
        assert!(Dictionary::parse(b"").unwrap().is_empty() && Dictionary::parse(b"  ").unwrap().is_empty());
    }

    #[test]
    fn one_error_spoils_the_whole_field() {
        assert_eq!(Dictionary::parse(b"\ta"), None);
        assert!(agrees(b"\ta") && agrees(b"a\t"));
        for member in [
            "A=1",
            "1=1",
            "=1",
            "a=",
            "a= 1",
            "a =1",
            "a=1 2",
            "a=1;",
            "a=1; =2",
            "a=-",
            "a=1.",
            "a=.5",
            "a=1.2345",
            "a=1234567890123456",
            "a=1234567890123.5",
            "a=?",
            "a=?2",
            "a=\"",
            "a=\"\\x\"",
            "a=\"\u{7f}\"",
            "a=\"é\"",
            "a=(",
            "a=(1",
            "a=(1,2)",
            "a=(1\"b\")",
            "a=:a:",
            "a=:aGk",
            "a=:aGk==:",
            "a=:a Gk:",
            "a=@1.5",
            "a=@",
            "a=%x",
            "a=%\"%4\"",
            "a=%\"%FF\"",
            "a=%\"%ff\"",
            "&&&&&",
            ",",
            "a,",
            ",a",
            "a,,b",
            "a;\tb",
            "a=é",
        ] {
            for field in [member.to_owned(), format!("max-age=60, {member}"), format!("{member}, max-age=60")] {
                assert_eq!(Dictionary::parse(field.as_bytes()), None, "{field}");
                assert!(agrees(field.as_bytes()), "{field}");
            }
        }
    }

    #[test]
    fn every_legal_type_is_read() {
        for value in [
            "-999999999999999",
            "123456789012.123",
            "-0.0",
            "0099",
            "?1",
            "\"\"",
            "\" ~\"",
            "*",
            "a:/*!",
            "()",
            "(  )",
            "( 1 (\"",
            "(a;b=1 c);d",
            "::",
            ":aGk=:",
            ":aGk:",
            ":aGl=:",
            ":aA==:",
            ":aA=:",
            "@-1",
            "@0",
            "%\"\"",
            "%\"%e2%82%ac %25\"",
            "1;a;b=?0;c=(",
            "1; a;  *b=%\"x\"",
        ] {
            assert!(agrees(format!("a={value}, b").as_bytes()), "{value}");
        }
        assert!(Dictionary::parse(b"a=%\"%e2%82%ac\", b=@1, c=:aA=:, d=(a b)").is_some());
    }

    fn item() -> impl Strategy<Value = String> {
        prop_oneof![
            "-?[0-9]{1,16}",
            "-?[0-9]{1,13}\\.[0-9]{0,4}",
            "\\?[0-2]",
            "\"([ !#-\\[\\]-~]|\\\\[\"\\\\]){0,6}\"",
            "[A-Za-z*][!-~]{0,5}",
            ":[A-Za-z0-9+/]{0,6}={0,3}:",
            "@-?[0-9]{1,5}",
            "%\"([a-z ]|%[0-9a-f]{2}){0,4}\"",
        ]
    }

    fn field() -> impl Strategy<Value = String> {
        let parameters =
            || proptest::collection::vec((" {0,2}[a-z*][a-z0-9_.*-]{0,2}", proptest::option::of(item())), 0..3);
        let value = prop_oneof![
            4 => item(),
            1 => proptest::collection::vec(item(), 0..4).prop_map(|items| format!("({})", items.join(" "))),
        ];
        let member =
            ("[a-e*][a-z0-9_.*-]{0,2}", proptest::option::of(value), parameters()).prop_map(|(key, value, rest)| {
                let assigned = |value: Option<String>| value.map(|value| format!("={value}")).unwrap_or_default();
                let rest = rest.into_iter().map(|(key, value)| format!(";{key}{}", assigned(value)));
                format!("{key}{}{}", assigned(value), rest.collect::<String>())
            });
        proptest::collection::vec(member, 0..5).prop_map(|members| members.join(", "))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]

        #[test]
        fn it_agrees_with_the_oracle_on_what_is_mostly_legal(field in field()) {
            prop_assert!(agrees(field.as_bytes()), "{}", field);
        }

        #[test]
        fn it_agrees_with_the_oracle_on_what_is_nearly_legal(
            field in field(),
            changes in proptest::collection::vec((any::<proptest::sample::Index>(), prop_oneof![
                "[ \t,;=()\"\\\\?:@%*.0-9a-zA-Z-]".prop_map(|text| text.into_bytes()[0]), any::<u8>()], 0u8..3), 1..4),
        ) {
            let mut bytes = field.into_bytes();
            for (at, byte, change) in changes {
                let at = at.index(bytes.len() + 1);
                match change {
                    0 => bytes.insert(at, byte),
                    1 if at < bytes.len() => bytes[at] = byte,
                    _ => bytes.truncate(at),
                }
            }
            prop_assert!(agrees(&bytes), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }
}
