//! What a handler says.

use std::time::Duration;

/// Response extension: how long the layer may answer with this response, whatever `max-age`, `Expires` and `Age` say.
///
/// It does not overrule `no-store`, `no-cache`, `private`, `Set-Cookie` and the like, nor does it permit sharing with
/// requests that carry credentials. Zero: not stored. It is invisible to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheTtl(pub Duration);
