//! A body that runs something once, when it ends.
//!
//! 1. Permits, gauges and flights live in a guard: whatever the guard's `Drop` does happens when the body ends.
//! 2. A body ends in one of four ways: no more frames, trailers, an error, or being dropped. All four drop the guard
//!    once. A body that says `is_end_stream` has ended too, since its consumer may never poll it again.
//! 3. `size_hint` and `is_end_stream` are the inner body's: without them hyper would switch to chunked encoding.
//!
//! It never buffers, never boxes and never asks for `Sync`.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The inner service's body, or an answer of our own, with a guard that ends with it.
    pub(crate) struct GuardedBody<B, G = ()> {
        #[pin]
        source: Source<B>,
        guard: Option<G>,
    }
}

pin_project! {
    #[project = SourceProjection]
    enum Source<B> {
        Inner { #[pin] body: B },
        Own { bytes: Bytes },
    }
}

// === impl GuardedBody ===

impl<B: Body, G> GuardedBody<B, G> {
    pub(crate) fn inner(body: B, guard: G) -> Self {
        let guard = (!body.is_end_stream()).then_some(guard);
        Self { source: Source::Inner { body }, guard }
    }
}

impl<B, G> GuardedBody<B, G> {
    /// An answer that the layer made itself; it holds no guard, for no shared work is behind it.
    pub(crate) fn own(bytes: Bytes) -> Self {
        Self { source: Source::Own { bytes }, guard: None }
    }
}

impl<B: Default, G> Default for GuardedBody<B, G> {
    fn default() -> Self {
        Self { source: Source::Inner { body: B::default() }, guard: None }
    }
}

impl<B, G> Body for GuardedBody<B, G>
where
    B: Body<Data = Bytes>,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut this = self.project();
        let (frame, ended) = match this.source.as_mut().project() {
            SourceProjection::Inner { mut body } => {
                let frame = ready!(body.as_mut().poll_frame(cx));
                let more = matches!(&frame, Some(Ok(frame)) if frame.is_data()) && !body.is_end_stream();
                (frame, !more)
            }
            SourceProjection::Own { bytes } => {
                let bytes = std::mem::take(bytes);
                ((!bytes.is_empty()).then(|| Ok(Frame::data(bytes))), true)
            }
        };
        if ended {
            *this.guard = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Inner { body } => body.is_end_stream(),
            Source::Own { bytes } => bytes.is_empty(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Inner { body } => body.size_hint(),
            Source::Own { bytes } => SizeHint::with_exact(bytes.len() as u64),
        }
    }
}

/// Declares a module's public `ResponseBody<B>`: a [`GuardedBody`] whose guard stays private.
macro_rules! response_body {
    ($(#[$doc:meta])* $vis:vis struct ResponseBody<B, $guard:ty>;) => {
        pin_project_lite::pin_project! {
            $(#[$doc])*
            $vis struct ResponseBody<B> {
                #[pin]
                body: $crate::body::GuardedBody<B, $guard>,
            }
        }

        impl<B> From<$crate::body::GuardedBody<B, $guard>> for ResponseBody<B> {
            fn from(body: $crate::body::GuardedBody<B, $guard>) -> Self {
                Self { body }
            }
        }

        impl<B: Default> Default for ResponseBody<B> {
            fn default() -> Self {
                Self { body: $crate::body::GuardedBody::default() }
            }
        }

        impl<B> std::fmt::Debug for ResponseBody<B> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct("ResponseBody").finish_non_exhaustive()
            }
        }

        impl<B> http_body::Body for ResponseBody<B>
        where
            B: http_body::Body<Data = bytes::Bytes>,
        {
            type Data = bytes::Bytes;
            type Error = B::Error;

            fn poll_frame(
                self: std::pin::Pin<&mut Self>,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, B::Error>>> {
                self.project().body.poll_frame(cx)
            }

            fn is_end_stream(&self) -> bool {
                self.body.is_end_stream()
            }

            fn size_hint(&self) -> http_body::SizeHint {
                self.body.size_hint()
            }
        }
    };
}
pub(crate) use response_body;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use http_body_util::{BodyExt, Channel, Full};

    use super::*;

    fn alive(guard: &Arc<()>) -> bool {
        Arc::strong_count(guard) > 1
    }

    #[tokio::test]
    async fn guard_ends_with_the_last_frame() {
        let guard = Arc::new(());
        let mut body = GuardedBody::inner(Full::new(Bytes::from_static(b"x")), guard.clone());
        assert!(alive(&guard));
        assert_eq!(body.size_hint().exact(), Some(1));
        body.frame().await.unwrap().unwrap();
        assert!(!alive(&guard), "a full body has ended after its one frame");
    }

    #[tokio::test]
    async fn guard_ends_with_trailers() {
        let guard = Arc::new(());
        let (mut sender, channel) = Channel::<Bytes, Infallible>::new(2);
        sender.send_data(Bytes::from_static(b"x")).await.unwrap();
        sender.send_trailers(http::HeaderMap::new()).await.unwrap();
        let mut body = GuardedBody::inner(channel, guard.clone());
        body.frame().await.unwrap().unwrap();
        assert!(alive(&guard));
        assert!(body.frame().await.unwrap().unwrap().is_trailers());
        assert!(!alive(&guard));
    }

    #[tokio::test]
    async fn guard_ends_with_an_error() {
        let guard = Arc::new(());
        let (sender, channel) = Channel::<Bytes, &'static str>::new(1);
        let mut body = GuardedBody::inner(channel, guard.clone());
        sender.abort("broken");
        assert_eq!(body.frame().await.unwrap().unwrap_err(), "broken");
        assert!(!alive(&guard));
    }

    #[test]
    fn guard_ends_with_a_drop_and_with_an_empty_body() {
        let guard = Arc::new(());
        let (_sender, channel) = Channel::<Bytes, Infallible>::new(1);
        let body = GuardedBody::inner(channel, guard.clone());
        assert!(alive(&guard));
        drop(body);
        assert!(!alive(&guard));

        let _empty = GuardedBody::inner(Full::<Bytes>::default(), guard.clone());
        assert!(!alive(&guard));
    }

    #[tokio::test]
    async fn an_own_answer_is_whole_and_sized() {
        let body = GuardedBody::<Full<Bytes>>::own(Bytes::from_static(b"no"));
        assert_eq!(body.size_hint().exact(), Some(2));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "no");
    }
}
