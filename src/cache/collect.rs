//! Copies a body while its client reads along.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::oneshot;

use super::audience::Listener;
use super::body::{BodyError, BoxError, Handover, ResponseBody};
use super::entry::Entry;
use super::flight::Stream;
use super::log::{End, Reader, Writer};

/// What became of a body.
pub(super) enum Collected {
    Whole(Arc<Entry>),
    /// More than may be stored, or with trailers.
    Unstorable,
    /// It failed, or ended too early.
    Broken,
}

/// The copying side.
pub(super) struct Collector<B> {
    stream: Arc<Stream>,
    body: Pin<Box<B>>,
    writer: Writer,
    client: oneshot::Sender<Handover<B>>,
}

impl<B: Body> Collector<B> {
    /// The copying side, and the body of the client whose request was forwarded.
    pub(super) fn new(stream: Arc<Stream>, body: B, writer: Writer, listener: Listener) -> (Self, ResponseBody<B>) {
        let (client, handover) = oneshot::channel();
        let leading = if body.is_end_stream() {
            ResponseBody::own(Bytes::new())
        } else {
            ResponseBody::leading(Reader::new(writer.log()), handover, body.size_hint().exact(), listener)
        };
        (Self { stream, body: Box::pin(body), writer, client }, leading)
    }

    pub(super) fn stream(&self) -> &Arc<Stream> {
        &self.stream
    }
}

impl<B> Collector<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    /// Reads the body to its end, or as far as it may be stored.
    pub(super) async fn collect(mut self) -> Collected {
        loop {
            let body = &mut self.body;
            let frame = poll_fn(|cx| body.as_mut().poll_frame(cx).map_err(|e| BodyError::new(e.into()))).await;
            match frame.map(|frame| frame.map(Frame::into_data)) {
                None if self.is_short() => return self.fail(None),
                None => return self.complete(),
                Some(Ok(Ok(chunk))) if chunk.is_empty() => {}
                Some(Ok(Ok(chunk))) => {
                    if let Err(chunk) = self.writer.push(chunk) {
                        return self.give_up(Frame::data(chunk), End::Cut);
                    }
                }
                Some(Ok(Err(trailers))) => {
                    // An intermediary may discard trailers (RFC 9110 §6.5.1): those who share the data have all of it.
                    let end = if self.is_short() { End::Cut } else { End::Complete };
                    return self.give_up(trailers, end);
                }
                Some(Err(error)) => return self.fail(Some(Err(error))),
            }
        }
    }

    fn is_short(&self) -> bool {
        self.stream.length.is_some_and(|length| length != self.writer.length() as u64)
    }

    fn complete(self) -> Collected {
        let body = self.writer.complete();
        Collected::Whole(Arc::new(Entry::new(self.stream.head.clone(), body)))
    }

    /// Leaves the rest to the forwarded request's client; if that has gone, the rest goes too.
    fn give_up(mut self, first: Frame<Bytes>, end: End) -> Collected {
        // Before the log ends: its reader looks for the rest only then, and once.
        let _ = self.client.send(Handover { first: Some(Ok(first)), rest: Some(self.body) });
        self.writer.end(end);
        Collected::Unstorable
    }

    /// Ends as the inner body did, with its error or too early, for the forwarded request's client.
    fn fail(mut self, first: Option<Result<Frame<Bytes>, BodyError>>) -> Collected {
        let _ = self.client.send(Handover { first, rest: None });
        self.writer.end(End::Cut);
        Collected::Broken
    }
}
