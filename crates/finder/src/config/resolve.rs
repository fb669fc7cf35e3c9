//! Resolves the settings of a command from all sources.

use anyhow::{Context, Result, bail};
use clap::Command;

use super::{
    settings::Settings,
    sources::{Given, Rank, Sources},
};

#[derive(Default)]
pub(super) struct Resolved<'a> {
    pub(super) given: Vec<Given<'a>>,
    /// Notes for the user about settings that are ignored because of a conflict.
    pub(super) notes: Vec<String>,
}

impl Settings {
    /// Returns the settings that the sources give to the command at `path`, but not those of its
    /// parent commands. `explicit` lists the ids of the arguments that are on the command line.
    ///
    /// Leaves out settings that are on the command line, and every setting that conflicts with an
    /// argument there or with a setting that takes precedence.
    ///
    /// # Errors
    ///
    /// If a value is wrong, or two settings of the same rank conflict.
    pub(super) fn resolve<'a>(
        &'a self,
        path: &[String],
        sources: &Sources,
        explicit: &[String],
        root: &Command,
    ) -> Result<Resolved<'a>> {
        let command = path
            .iter()
            .try_fold(root, |command, name| command.find_subcommand(name));
        let command = command.context("unknown command")?;
        // The flags and settings that others may conflict with: the id, the name in messages, and
        // the rank (`None` for the command line).
        let mut present: Vec<(String, String, Option<Rank>)> = Vec::new();
        for arg in command.get_arguments() {
            let id = arg.get_id().to_string();
            if explicit.contains(&id) {
                let flag = arg.get_long().map(|long| format!("--{long}"));
                let known = flag.unwrap_or_else(|| id.to_uppercase());
                present.push((id, known, None));
            }
        }
        let mut all = Vec::new();
        for setting in &self.0 {
            if setting.path == path && !explicit.contains(&setting.id) {
                all.extend(sources.given(setting)?);
            }
        }
        all.sort_by_key(|given| given.rank);
        let mut resolved = Resolved::default();
        for given in all {
            // A value that equals the default conflicts with nothing.
            if given.values == given.setting.defaults {
                resolved.given.push(given);
                continue;
            }
            given.check(path, root)?;
            let id = given.setting.id.as_str();
            let other = present
                .iter()
                .find(|(other, ..)| exclude_each_other(command, id, other));
            match other {
                None => {
                    present.push((id.to_owned(), given.to_string(), Some(given.rank)));
                    resolved.given.push(given);
                }
                Some((_, other, rank)) if *rank == Some(given.rank) => {
                    bail!("{other} conflicts with {given}; remove one of them");
                }
                Some((_, other, _)) => {
                    let note = format!("ignoring {given}, which conflicts with {other}");
                    resolved.notes.push(note);
                }
            }
        }
        Ok(resolved)
    }
}

fn exclude_each_other(command: &Command, one: &str, other: &str) -> bool {
    let excludes = |one: &str, other: &str| {
        let arg = command.get_arguments().find(|arg| arg.get_id() == one);
        let excluded = arg.map(|arg| command.get_arg_conflicts_with(arg));
        excluded.is_some_and(|excluded| excluded.iter().any(|arg| arg.get_id() == other))
    };
    excludes(one, other) || excludes(other, one)
}

pub(super) fn set_default(command: Command, path: &[String], given: &Given<'_>) -> Command {
    match path {
        [] => command.mut_arg(&given.setting.id, |arg| {
            // The flag has a value now, so it is not required on the command line.
            arg.default_values(given.values.clone()).required(false)
        }),
        [first, rest @ ..] => {
            command.mut_subcommand(first, |inner| set_default(inner, rest, given))
        }
    }
}
