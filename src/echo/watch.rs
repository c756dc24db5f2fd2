//! Keeping what the responder knows of its interface true while it is attached (`--watch-addresses`).

use std::time::Duration;

use super::attach::{self, Request};
use super::datapath::{Maps, View};
use crate::instance::AttachError;
use crate::kernel::addresses;
use crate::kernel::interface::Interface;
use crate::kernel::netns;

/// Word of changes, and what to do about them.
#[derive(Debug)]
pub struct Watcher {
    request: Request,
    changes: addresses::Watch,
    last: Option<View>,
}

/// What a look at the interface has shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Nothing that the responder did not know.
    Nothing,
    /// Something else, which it knows now.
    Changed(View),
}

impl Watcher {
    /// Listens from now on: a change between this and the attach is not missed.
    ///
    /// # Errors
    ///
    /// Where the namespace cannot be entered, or the kernel refuses.
    pub fn new(request: &Request) -> Result<Self, AttachError> {
        let changes = netns::within(request.netns.as_deref(), addresses::Watch::new)?
            .map_err(|source| attach::EchoError::Addresses { dev: request.dev.clone(), source })?;
        Ok(Self { request: request.clone(), changes, last: None })
    }

    /// Waits for a change, at most for `limit`, and tells the responder.
    ///
    /// # Errors
    ///
    /// Where the interface is gone, and what the kernel says.
    pub fn wait(&mut self, maps: &Maps, limit: Duration) -> Result<Seen, AttachError> {
        let failed = |source| attach::EchoError::Addresses { dev: self.request.dev.clone(), source };
        if !self.changes.wait(limit).map_err(failed)? && self.last.is_some() {
            return Ok(Seen::Nothing);
        }
        let request = &self.request;
        let (view, _) = netns::within(request.netns.as_deref(), || {
            attach::view(&Interface::find(&request.dev)?, request)
        })??;
        if self.last.as_ref() == Some(&view) {
            return Ok(Seen::Nothing);
        }
        maps.set_view(&view).map_err(attach::EchoError::from)?;
        self.last = Some(view.clone());
        Ok(Seen::Changed(view))
    }
}
