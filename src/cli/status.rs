//! `lb status`: what is attached, of all groups.

use super::{Failure, Global};
use crate::instance::{self, Status};
use crate::kernel::pins::Instance;
use crate::{echo, lb, output, pass};

/// The status of an instance; `None` of what is not lb's. One that cannot be read is one that is broken, and no error.
fn of(instance: &Instance) -> Option<Status> {
    match instance.group.as_str() {
        lb::GROUP => Some(Status::of(instance, lb::status::read)),
        echo::GROUP | pass::GROUP => Some(Status::of(instance, instance::status)),
        _ => None,
    }
}

pub(super) fn run(global: &Global) -> Result<(), Failure> {
    let instances = global.root().instances()?;
    let all: Vec<Status> = instances.iter().filter_map(of).collect();
    if global.json {
        output::json(&all);
        return Ok(());
    }
    if all.is_empty() {
        global.done("nothing is attached");
        return Ok(());
    }
    let rows = all.iter().flat_map(|status| {
        let title = [status.name.clone(), status.group.clone()];
        let state = serde_json::to_value(status.state).unwrap_or_default();
        let state = state.as_str().unwrap_or_default().to_owned();
        if status.interfaces.is_empty() {
            return vec![[title.to_vec(), vec![state], vec!["-".into(); 4]].concat()];
        }
        status
            .interfaces
            .iter()
            .map(|attachment| {
                [
                    title.to_vec(),
                    vec![
                        state.clone(),
                        attachment.dev.clone(),
                        attachment.role.clone(),
                        attachment.mode.map_or("-".into(), |mode| mode.to_string()),
                        attachment.program_id.map_or("gone".into(), |id| id.to_string()),
                    ],
                ]
                .concat()
            })
            .collect()
    });
    output::line(output::table(&["NAME", "GROUP", "STATE", "DEV", "ROLE", "MODE", "PROGRAM"], &[6], rows));
    for status in &all {
        if let Some(problem) = &status.problem {
            global.warn(&format!("{}: {problem}", status.name));
        }
    }
    Ok(())
}
