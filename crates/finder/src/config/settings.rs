//! The settings: flags that the environment and the file can also set, and settings that are not
//! flags.

use std::{collections::BTreeMap, fmt, path::PathBuf};

use clap::{Arg, ArgAction, Command};

use crate::terminal;

/// Flags that are not settings, whichever command they belong to.
pub(super) const ONLY_ON_THE_COMMAND_LINE: [&str; 18] = [
    // It names the file that contains the settings.
    "config",
    // It belongs to one installation of the manual.
    "directory",
    // It applies to one stamp, or to the start of one server.
    "check",
    // It belongs to one stamp.
    "date",
    // They belong to one key.
    "comment",
    "expires",
    "role",
    // They belong to one commit.
    "drop-signature",
    "from",
    "repository",
    "write",
    // It describes the secret on the command line.
    "hex",
    // It depends on what reads the output of one run.
    "json",
    // It belongs to one cancellation.
    "reason",
    // They belong to one search.
    "detach",
    "exec",
    "resume",
    "session",
];

/// Settings that have no value for all commands at once. `state` is a folder for some commands and
/// a filter for others, and `operations wait --exec` sets `HASHFINDER_STATE` for its command.
const NOT_FOR_ALL: [&str; 1] = ["state"];

/// Prefix of the program's environment variables.
pub(super) const PREFIX: &str = "HASHFINDER_";

/// Minimum similarity of an unknown name and the name that is suggested for it, from 0 to 1.
pub(super) const ALIKE: f64 = 0.8;

/// A value that the file or the environment can set.
#[derive(Debug)]
pub(super) struct Setting {
    /// Path of the command that the setting belongs to, such as `searches`, `list`.
    pub(super) path: Vec<String>,
    pub(super) id: String,
    /// The flag's name, without its dashes.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) defaults: Vec<String>,
    /// The flag's help, and the placeholder of its value.
    pub(super) help: String,
    pub(super) value_name: String,
    /// Tables of the file in which it can be set, from the innermost outwards. There is at least
    /// one.
    pub(super) tables: Vec<Vec<String>>,
    /// Name of its table within its command's table, if the setting is not a flag.
    pub(super) section: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Switch,
    One,
    Many,
}

impl Setting {
    /// Returns the name of the environment variable that has the same effect as the key in `table`.
    pub(super) fn variable(&self, table: &[String]) -> String {
        let commands = table.iter().take(self.path.len());
        let parts = commands.chain([&self.name]);
        let parts: Vec<String> = parts.map(|part| part.replace('-', "_")).collect();
        format!("{PREFIX}{}", parts.join("_").to_uppercase())
    }
}

/// Every flag of the command line that can be set elsewhere, and every setting that is not a flag.
pub(super) struct Settings(pub(super) Vec<Setting>);

impl Settings {
    pub(super) fn of(command: &Command) -> Settings {
        fn collect(command: &Command, path: &[String], all: &mut Vec<Setting>) {
            for arg in command.get_arguments().filter(|arg| is_setting(arg)) {
                let defaults = arg.get_default_values().iter();
                all.push(Setting {
                    path: path.to_vec(),
                    id: arg.get_id().to_string(),
                    name: arg.get_long().unwrap_or_default().to_owned(),
                    kind: match arg.get_action() {
                        ArgAction::SetTrue => Kind::Switch,
                        ArgAction::Append => Kind::Many,
                        _ => Kind::One,
                    },
                    defaults: match arg.get_action() {
                        ArgAction::SetTrue => vec!["false".to_owned()],
                        _ => defaults
                            .map(|value| value.to_string_lossy().into_owned())
                            .collect(),
                    },
                    help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
                    value_name: match arg.get_value_names() {
                        Some([name, ..]) => name.to_string(),
                        _ => "VALUE".to_owned(),
                    },
                    tables: Vec::new(),
                    section: match arg.is_hide_set() {
                        true => arg.get_help_heading().map(str::to_owned),
                        false => None,
                    },
                });
            }
            for inner in command.get_subcommands() {
                let path = [path, &[inner.get_name().to_owned()]].concat();
                collect(inner, &path, all);
            }
        }
        let mut all = Vec::new();
        collect(command, &[], &mut all);
        // Flags of the same name whose values mean something else are different settings.
        let key_in = |setting: &Setting, length: usize| {
            let table = setting.path[..length].to_vec();
            (table, setting.name.clone(), setting.value_name.clone())
        };
        let mut in_table = BTreeMap::new();
        for setting in &all {
            for length in 0..=setting.path.len() {
                *in_table.entry(key_in(setting, length)).or_insert(0) += 1;
            }
        }
        for setting in &mut all {
            if let Some(section) = &setting.section {
                setting.tables = vec![[&setting.path[..], std::slice::from_ref(section)].concat()];
                continue;
            }
            // An outer table is useful only if it serves more commands than the inner one. This
            // rule also avoids HASHFINDER_PORT, which Kubernetes sets if a service is called
            // hashfinder.
            let mut served = 0;
            for length in (0..=setting.path.len()).rev() {
                let serves = in_table[&key_in(setting, length)];
                let is_allowed = length > 0 || !NOT_FOR_ALL.contains(&&*setting.name);
                if serves > served && is_allowed {
                    setting.tables.push(setting.path[..length].to_vec());
                    served = serves;
                }
            }
        }
        Settings(all)
    }

    /// Returns the settings of the command and of its parent commands.
    pub(super) fn of_command<'a>(
        &'a self,
        path: &'a [String],
    ) -> impl Iterator<Item = &'a Setting> {
        self.0
            .iter()
            .filter(|setting| path.starts_with(&setting.path))
    }

    /// Returns the ids of a command's settings that are not flags.
    pub(super) fn not_flags<'a>(&'a self, path: &'a [String]) -> impl Iterator<Item = &'a String> {
        let own = self.0.iter().filter(move |setting| setting.path == path);
        own.filter(|setting| setting.section.is_some())
            .map(|setting| &setting.id)
    }

    /// Returns the paths of the commands that have settings.
    pub(super) fn paths(&self) -> Vec<&[String]> {
        let mut paths: Vec<&[String]> = self.0.iter().map(|setting| &setting.path[..]).collect();
        paths.dedup();
        paths
    }

    /// Returns the names of the settings that a table can have, in alphabetical order.
    pub(super) fn of_table(&self, table: &[String]) -> Vec<&str> {
        let fits = self
            .0
            .iter()
            .filter(|setting| setting.tables.iter().any(|one| one == table));
        let mut names: Vec<&str> = fits.map(|setting| setting.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Returns the names of the tables that are directly within a table and have settings or
    /// further tables.
    pub(super) fn tables_in(&self, table: &[String]) -> Vec<&str> {
        let tables = self.0.iter().map(|setting| &setting.tables[0]);
        let inside = tables.filter(|inner| inner.starts_with(table));
        let mut names: Vec<&str> = inside
            .filter_map(|inner| inner.get(table.len()).map(String::as_str))
            .collect();
        names.dedup();
        names
    }
}

pub(super) fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

pub(super) fn is_setting(arg: &Arg) -> bool {
    let Some(long) = arg.get_long() else {
        return false;
    };
    let takes = matches!(
        arg.get_action(),
        ArgAction::Set | ArgAction::Append | ArgAction::SetTrue
    );
    takes && !ONLY_ON_THE_COMMAND_LINE.contains(&long)
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// An environment variable, with its value as it was written.
    Variable {
        name: String,
        value: String,
    },
    File {
        path: PathBuf,
        line: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Variable { name, .. } => f.write_str(name),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
        }
    }
}

/// Returns the values in TOML.
pub(super) fn literal(setting: &Setting, values: &[String]) -> String {
    match (setting.kind, values) {
        (Kind::Many, _) | (_, []) => {
            let values: Vec<String> = values.iter().map(|value| scalar(value)).collect();
            format!("[{}]", values.join(", "))
        }
        (Kind::Switch, [value, ..]) => value.clone(),
        (Kind::One, [value, ..]) => scalar(value),
    }
}

/// Returns a value in TOML: a number unchanged, and any other text in quotes. A JSON string is also
/// a TOML string if all its control characters are escaped.
pub(super) fn scalar(text: &str) -> String {
    match serde_json::from_str::<serde_json::Number>(text) {
        Ok(_) => text.to_owned(),
        Err(_) => terminal::json(&text.into()),
    }
}

/// Returns the name that was probably meant; `None` if none is similar enough.
pub(super) fn nearest<'a>(name: &str, all: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let alike = all.into_iter().map(|one| (strsim::jaro(name, one), one));
    let best = alike.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(alike, _)| *alike >= ALIKE)
        .map(|(_, one)| one)
}
