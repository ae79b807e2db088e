//! What is checked of an exchange, in this order; the first finding decides.

use http::{Method, StatusCode};

use crate::case::{Case, Expected, Literal, Step, Want};
use crate::client::{self, Answer};
use crate::clock;
use crate::fields;
use crate::origin::{self, Place, Seen};
use crate::report::Outcome;
use crate::status;

/// The name of a check, and what it found.
type Finding = Result<(), (&'static str, String)>;

/// One element, and everything that became of it.
struct Exchange<'a> {
    number: usize,
    step: &'a Step,
    place: &'a Place,
    answer: &'a Answer,
    /// The last request with this number at the origin.
    seen: Option<&'a Seen>,
    /// The last one before, of another number.
    previous: Option<&'a Seen>,
    asked_twice: bool,
}

pub fn judge(case: &Case, place: &Place, answers: &[Answer], seen: &[Seen]) -> Outcome {
    for (index, (step, answer)) in case.requests.iter().zip(answers).enumerate() {
        let number = index + 1;
        let of = |number: usize| seen.iter().filter(move |seen| seen.number == number);
        let (own, previous) = (of(number).next_back(), origin::before(seen, number));
        let exchange =
            Exchange { number, step, place, answer, seen: own, previous, asked_twice: of(number).count() > 1 };
        if let Err((check, found)) = exchange.check() {
            let found = format!("element {number}: {found}");
            let setup = step.setup || step.setup_tests.iter().any(|name| name == check);
            return if setup { Outcome::Setup(found) } else { Outcome::Failed(found) };
        }
    }
    Outcome::Passed
}

fn fail(check: &'static str, found: impl Into<String>) -> Finding {
    Err((check, found.into()))
}

impl Exchange<'_> {
    fn check(&self) -> Finding {
        if self.asked_twice {
            return fail("retry", "asked the origin twice");
        }
        self.expected_type()?;
        self.expected_answer()?;
        self.expected_status()?;
        self.expected_fields()?;
        self.scripted_fields()?;
        self.expected_cache_status()?;
        self.expected_text()?;
        self.expected_request()?;
        if self.step.expected_interim_responses.is_empty() {
            Ok(())
        } else {
            fail("expected_interim_responses", "1xx cannot be sent")
        }
    }

    fn number_in(&self, name: &str) -> Option<usize> {
        self.answer.headers.get(name)?.to_str().ok()?.parse().ok()
    }

    fn expected_type(&self) -> Finding {
        let count = self.number_in("server-request-count");
        let none = http::HeaderMap::new();
        let (request, previous) =
            (self.seen.map_or(&none, |seen| &seen.headers), self.previous.map_or(&none, |previous| &previous.sent));
        let (good, found) = match self.step.expected_type {
            None => return Ok(()),
            Some(Expected::Cached) => {
                let bare = self.answer.status == StatusCode::NOT_MODIFIED && count.is_none();
                (bare || count.is_some_and(|count| count < self.number), "does not come from the cache")
            }
            Some(Expected::NotCached) => (count == Some(self.number), "comes from the cache"),
            Some(Expected::EtagValidated) => {
                (origin::has_etag(request, previous), "the origin was not asked for the ETag")
            }
            Some(Expected::LmValidated) => {
                (origin::has_date(request, previous), "the origin was not asked for the date")
            }
        };
        if good { Ok(()) } else { fail("expected_type", format!("{found} (status {})", self.answer.status)) }
    }

    fn expected_answer(&self) -> Finding {
        let (wanted, got) = (self.step.expected_answer_of, self.number_in("client-request-count"));
        if wanted.is_some() && wanted != got {
            return fail("expected_answer_of", format!("has the answer to {got:?} instead of {wanted:?}"));
        }
        match self.step.expected_origin_requests {
            Some(wanted) if wanted != self.answer.origin_requests => fail(
                "expected_origin_requests",
                format!("the origin has seen {} requests instead of {wanted}", self.answer.origin_requests),
            ),
            _ => Ok(()),
        }
    }

    fn expected_status(&self) -> Finding {
        let scripted = self.step.response_status.as_ref().map_or(200, |(code, _)| *code);
        let wanted = match self.step.expected_status {
            Some(None) => return Ok(()),
            Some(Some(wanted)) => wanted,
            None => scripted,
        };
        let got = self.answer.status.as_u16();
        if got == wanted { Ok(()) } else { fail("expected_status", format!("status {got} instead of {wanted}")) }
    }

    fn expected_fields(&self) -> Finding {
        for want in &self.step.expected_response_headers {
            if let Err(found) = self.has_field(want) {
                return fail("expected_response_headers", found);
            }
        }
        for want in &self.step.expected_response_headers_missing {
            let (name, part) = unwanted(want);
            if let Some(value) = fields::joined(&self.answer.headers, name)
                && value.contains(&self.place.fill(part))
            {
                return fail("expected_response_headers_missing", format!("{name} is there: {value:?}"));
            }
        }
        Ok(())
    }

    fn has_field(&self, want: &Want) -> Result<(), String> {
        let headers = &self.answer.headers;
        let (Want::Present(name) | Want::Value(name, _) | Want::Same(name, ..) | Want::Above(name, ..)) = want;
        let Some(value) = fields::joined(headers, name) else { return Err(format!("{name} is missing")) };
        let good = match want {
            Want::Present(_) => true,
            Want::Value(_, Literal::Text(wanted)) => value == self.place.fill(wanted),
            Want::Value(_, Literal::Offset(offset)) => {
                client::server_now(self.answer).is_some_and(|now| value == clock::imf(now, *offset))
            }
            Want::Same(_, _, other) => fields::joined(headers, other).is_some_and(|other| other == value),
            Want::Above(_, _, bound) => value.parse::<i64>().is_ok_and(|value| value > *bound),
        };
        if good { Ok(()) } else { Err(format!("{name} is {value:?}, wanted {want:?}")) }
    }

    /// What the origin wrote and the script does not mark `false` reaches the client.
    fn scripted_fields(&self) -> Finding {
        let Some(seen) = self.seen else { return Ok(()) };
        let script = &self.step.response_headers;
        for field in script.iter().filter(|field| field.checked) {
            let (wanted, got) =
                (fields::joined(&seen.sent, &field.name), fields::joined(&self.answer.headers, &field.name));
            if wanted.is_some() && got != wanted {
                return fail("response_headers", format!("{} is {got:?} instead of {wanted:?}", field.name));
            }
        }
        Ok(())
    }

    fn expected_cache_status(&self) -> Finding {
        let (wanted, unwanted) = (&self.step.expected_cache_status, &self.step.expected_cache_status_missing);
        if wanted.is_empty() && unwanted.is_empty() {
            return Ok(());
        }
        let said = match status::last_member(&self.answer.headers) {
            Ok(said) => said,
            Err(error) => return fail("expected_cache_status", error),
        };
        let has = |name: &String| said.iter().any(|one| one.split('=').next() == Some(name));
        if wanted.iter().all(|one| said.contains(one)) && !unwanted.iter().any(has) {
            return Ok(());
        }
        fail("expected_cache_status", format!("says {said:?}, wanted {wanted:?} without {unwanted:?}"))
    }

    fn expected_text(&self) -> Finding {
        let step = self.step;
        let has_none =
            origin::has_no_content(self.answer.status) || step.request_method.as_deref() == Some(Method::HEAD.as_str());
        let (check, wanted) = match (&step.expected_response_text, &step.response_body) {
            _ if step.check_body == Some(false) => return Ok(()),
            (Some(text), _) => ("expected_response_text", text),
            _ if has_none => return Ok(()),
            (None, Some(text)) => ("response_body", text),
            (None, None) => ("response_body", &self.place.token),
        };
        let got = String::from_utf8_lossy(&self.answer.body);
        if self.answer.broken {
            return fail(check, format!("the body broke off after {got:?}"));
        }
        if got == *wanted { Ok(()) } else { fail(check, format!("body {got:?} instead of {wanted:?}")) }
    }

    fn expected_request(&self) -> Finding {
        let step = self.step;
        let silent = step.expected_method.is_none()
            && step.expected_request_headers.is_empty()
            && step.expected_request_headers_missing.is_empty();
        if silent {
            return Ok(());
        }
        let Some(seen) = self.seen else { return fail("expected_request_headers", "the origin was not asked") };
        if let Some(method) = &step.expected_method
            && seen.method.as_str() != method
        {
            return fail("expected_method", format!("{} at the origin instead of {method}", seen.method));
        }
        for want in &step.expected_request_headers {
            let (name, part) = unwanted(want);
            let value = fields::joined(&seen.headers, name);
            if value.is_none() || (!part.is_empty() && value.as_deref() != Some(part)) {
                return fail("expected_request_headers", format!("{name} is {value:?} at the origin"));
            }
        }
        for want in &step.expected_request_headers_missing {
            let (name, part) = unwanted(want);
            if fields::joined(&seen.headers, name).is_some_and(|value| part.is_empty() || value == part) {
                return fail("expected_request_headers_missing", format!("{name} is there at the origin"));
            }
        }
        Ok(())
    }
}

/// A name, and a value or part of it that may be empty.
fn unwanted(want: &Want) -> (&str, &str) {
    match want {
        Want::Present(name) => (name, ""),
        Want::Value(name, Literal::Text(part)) => (name, part),
        Want::Value(_, Literal::Offset(_)) | Want::Same(..) | Want::Above(..) => {
            panic!("no comparison is possible here: {want:?}")
        }
    }
}
