//! Keeping what the responder knows of its interface true while it is attached (`--watch-addresses`).

use std::time::Duration;

use super::attach::{EchoError, Shown, view};
use super::datapath::{LAYOUT, Maps, View};
use crate::instance::{AttachError, Attached, Port, Record};
use crate::kernel::addresses;
use crate::kernel::interface::Interface;
use crate::kernel::netns;
use crate::kernel::pins::{Instance, Root};

/// Word of changes, from before an attach on: none between the two is missed.
#[derive(Debug)]
pub struct Changes {
    netns: Option<String>,
    words: addresses::Watch,
}

impl Changes {
    /// Listens from now on, in the network namespace that was given on the command line.
    ///
    /// # Errors
    ///
    /// Where the namespace cannot be entered, or the kernel refuses.
    pub fn listen(netns: Option<&str>, dev: &str) -> Result<Self, AttachError> {
        let words = netns::within(netns, addresses::Watch::new)?
            .map_err(|source| EchoError::Addresses { dev: dev.into(), source })?;
        Ok(Self { netns: netns.map(Into::into), words })
    }
}

/// Follows the interface of an instance.
#[derive(Debug)]
pub struct Watcher<'a> {
    root: &'a Root,
    instance: &'a Instance,
    maps: &'a Maps,
    interface: Interface,
    changes: Changes,
    last: Option<View>,
}

impl<'a> Watcher<'a> {
    /// Follows what `attached` says was attached.
    pub fn new(root: &'a Root, attached: &'a Attached, maps: &'a Maps, changes: Changes) -> Self {
        let interface = attached.interface.clone();
        Self { root, instance: &attached.instance, maps, interface, changes, last: None }
    }

    /// Waits for a change, at most for `limit`, and tells the responder. Returns what it knows now if that is something else than
    /// before.
    ///
    /// # Errors
    ///
    /// Where the interface is gone, and what the kernel says.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<View>, AttachError> {
        let failed = |source| EchoError::Addresses { dev: self.interface.name.clone(), source };
        if !self.changes.words.wait(limit).map_err(failed)? && self.last.is_some() {
            return Ok(None);
        }
        let view = self.refresh()?;
        if self.last.as_ref() == Some(&view) {
            return Ok(None);
        }
        self.last = Some(view.clone());
        Ok(Some(view))
    }

    /// Tells the responder what its interface is like now. Holds the lock, as whoever replaces the instance does so too.
    fn refresh(&self) -> Result<View, AttachError> {
        let _lock = self.root.lock()?;
        let index = self.interface.index;
        // What --address and --any have said may have been replaced since.
        let record = Record::<Shown>::read(self.instance, LAYOUT)?;
        // Found by its number: its name may have changed. Whether the number is still that interface's, the link knows.
        let interface = netns::within(self.changes.netns.as_deref(), || Interface::by_index(index))?;
        let is_attached = record.ports.first().is_some_and(|port: &Port| port.is_attached(self.instance));
        let Some(interface) = interface.filter(|_| is_attached) else {
            return Err(EchoError::Gone { dev: self.interface.name.clone() }.into());
        };
        let Shown { any, addresses, .. } = record.settings;
        let (view, _) = netns::within(self.changes.netns.as_deref(), || view(&interface, any, &addresses))??;
        if self.last.as_ref() != Some(&view) {
            self.maps.set_view(&view).map_err(EchoError::from)?;
        }
        Ok(view)
    }
}
