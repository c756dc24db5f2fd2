//! `lb pass`: the program that lets everything pass.

use clap::Subcommand;

use super::companion::{Detach, On, Stats, report_attached};
use super::{Failure, Global};
use crate::pass::{self, GROUP, Request, VERDICTS, skeleton};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Put the program on an interface
    ///
    /// It gives every frame to the stack, and counts it. The far end of a veth needs one if the program at the near end sends frames
    /// back by XDP_TX in native mode, as `lb echo` does: without one the kernel loses them.
    Attach(On),
    /// Take it off again
    Detach(Detach),
    /// Show how much has passed
    Stats(Stats),
}

impl Command {
    pub(super) fn run(self, global: &Global) -> Result<(), Failure> {
        match self {
            Self::Attach(on) => {
                let request = Request {
                    name: on.name,
                    dev: on.dev,
                    mode: on.mode,
                    netns: global.netns.clone(),
                    replace: on.replace,
                };
                report_attached(global, &pass::attach(&global.root(), &request)?, request.mode);
                Ok(())
            }
            Self::Detach(detach) => detach.run(global, GROUP),
            Self::Stats(stats) => stats.run::<skeleton::types::counter>(global, GROUP, &VERDICTS),
        }
    }
}
