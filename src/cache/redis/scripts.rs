//! What Redis does in one step: each script on names of one hash slot.

use crate::redis::Script;

pub(super) struct Scripts {
    pub(super) put: Script,
    pub(super) remove: Script,
    pub(super) invalidate: Script,
    pub(super) claim: Script,
    pub(super) renew: Script,
    pub(super) end: Script,
    pub(super) ensure: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            put: Script::new(include_str!("lua/put.lua")),
            remove: Script::new(include_str!("lua/remove.lua")),
            invalidate: Script::new(include_str!("lua/invalidate.lua")),
            claim: Script::new(include_str!("lua/claim.lua")),
            renew: Script::new(include_str!("lua/renew.lua")),
            end: Script::new(include_str!("lua/end.lua")),
            ensure: Script::new(include_str!("lua/ensure.lua")),
        }
    }
}
