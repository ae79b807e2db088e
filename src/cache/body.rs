//! The layer's response body, and its error.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::oneshot;

use super::audience::Listener;
use super::log::{End, Next, Reader};

/// Any error, boxed.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a response body broke off.
///
/// [`source`](std::error::Error::source) is the inner body's own error for the request that was forwarded; for others
/// that shared its response there is none.
#[derive(Debug)]
pub struct BodyError {
    source: Option<BoxError>,
}

impl BodyError {
    pub(super) fn new(source: BoxError) -> Self {
        Self { source: Some(source) }
    }

    fn cut() -> Self {
        Self { source: None }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.source {
            Some(_) => "the response body failed",
            None => "the shared response ended before it was complete",
        })
    }
}

impl std::error::Error for BodyError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &**source as _)
    }
}

/// What is left of a body that can no longer be collected: for the request that was forwarded.
pub(super) struct Handover<B> {
    pub(super) first: Option<Result<Frame<Bytes>, BodyError>>,
    pub(super) rest: Option<Pin<Box<B>>>,
}

pin_project! {
    /// The body of every response that passes the layer.
    ///
    /// The inner service's own; a stored one; or one that is being collected for the store while it streams. Dropping
    /// it never cancels a collection that others share.
    pub struct ResponseBody<B> {
        #[pin]
        source: Source<B>,
    }
}

pin_project! {
    #[project = SourceProjection]
    enum Source<B> {
        Inner { #[pin] body: B },
        Own { bytes: Bytes },
        Shared { shared: Shared<B> },
        Rest { rest: Handover<B> },
    }
}

/// A reader of a body that is being collected.
struct Shared<B> {
    reader: Reader,
    handover: Option<oneshot::Receiver<Handover<B>>>,
    left: Option<u64>,
    /// The body goes on beyond what is left.
    is_part: bool,
    _listener: Listener,
}

impl<B> ResponseBody<B> {
    pub(super) fn inner(body: B) -> Self {
        Self { source: Source::Inner { body } }
    }

    pub(super) fn own(bytes: Bytes) -> Self {
        Self { source: Source::Own { bytes } }
    }

    /// For the request that was forwarded: whatever cannot be collected comes through `handover`.
    pub(super) fn leading(
        reader: Reader,
        handover: oneshot::Receiver<Handover<B>>,
        length: Option<u64>,
        listener: Listener,
    ) -> Self {
        let shared = Shared { reader, handover: Some(handover), left: length, is_part: false, _listener: listener };
        Self { source: Source::Shared { shared } }
    }

    /// For those who share its response.
    pub(super) fn following(reader: Reader, length: Option<u64>, listener: Listener) -> Self {
        Self {
            source: Source::Shared {
                shared: Shared { reader, handover: None, left: length, is_part: false, _listener: listener },
            },
        }
    }
}

impl<B> ResponseBody<B> {
    /// For one who asked for a part, which `reader` starts at.
    pub(super) fn part(reader: Reader, part: &Range<u64>, listener: Listener) -> Self {
        let left = Some(part.end.saturating_sub(part.start));
        let shared = Shared { reader, handover: None, left, is_part: true, _listener: listener };
        Self { source: Source::Shared { shared } }
    }
}

enum Read<B> {
    Frame(Option<Result<Frame<Bytes>, BodyError>>),
    Rest(Handover<B>),
}

impl<B> Shared<B> {
    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Read<B>> {
        if self.is_part && self.left == Some(0) {
            return Poll::Ready(Read::Frame(None));
        }
        Poll::Ready(match ready!(self.reader.poll_next(cx)) {
            Next::Chunk(mut chunk) => {
                if self.is_part {
                    chunk.truncate(self.left.and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX));
                }
                self.left = self.left.map(|left| left.saturating_sub(chunk.len() as u64));
                Read::Frame(Some(Ok(Frame::data(chunk))))
            }
            // Sent before the log ended, if at all.
            Next::End(end) => match self.handover.take().and_then(|mut handover| handover.try_recv().ok()) {
                Some(rest) => Read::Rest(rest),
                None => Read::Frame((end == End::Cut).then(|| Err(BodyError::cut()))),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        // The forwarded request may still get trailers, which only another poll can tell.
        self.handover.is_none() && (self.reader.is_complete() || self.is_part && self.left == Some(0))
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut source = self.project().source;
        loop {
            let rest = match source.as_mut().project() {
                SourceProjection::Inner { body } => return body.poll_frame(cx).map_err(|e| BodyError::new(e.into())),
                SourceProjection::Own { bytes } => {
                    let bytes = std::mem::take(bytes);
                    return Poll::Ready((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))));
                }
                SourceProjection::Shared { shared } => match ready!(shared.poll_read(cx)) {
                    Read::Frame(frame) => return Poll::Ready(frame),
                    Read::Rest(rest) => rest,
                },
                SourceProjection::Rest { rest } => {
                    if let Some(first) = rest.first.take() {
                        return Poll::Ready(Some(first));
                    }
                    let Some(body) = &mut rest.rest else { return Poll::Ready(None) };
                    return body.as_mut().poll_frame(cx).map_err(|e| BodyError::new(e.into()));
                }
            };
            source.set(Source::Rest { rest });
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Inner { body } => body.is_end_stream(),
            Source::Own { bytes } => bytes.is_empty(),
            Source::Shared { shared } => shared.is_end_stream(),
            Source::Rest { rest } => rest.first.is_none() && rest.rest.as_ref().is_none_or(Body::is_end_stream),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Inner { body } => body.size_hint(),
            Source::Own { bytes } => SizeHint::with_exact(bytes.len() as u64),
            Source::Shared { shared } => shared.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Source::Rest { .. } => SizeHint::default(),
        }
    }
}

impl<B: Default> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::inner(B::default())
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
