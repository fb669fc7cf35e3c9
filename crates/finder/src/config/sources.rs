//! Where settings come from: the environment and the file.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::{
    Command,
    builder::{BoolishValueParser, TypedValueParser},
    error::{ContextKind, ContextValue, ErrorKind},
};
use hashfinder_client::CREDENTIAL;

use super::{
    file::File,
    settings::{
        Kind, ONLY_ON_THE_COMMAND_LINE, Origin, PREFIX, Setting, Settings, literal, nearest,
    },
};

/// Variables that are not settings: the path of the file, the filter of the log, and a credential,
/// which neither a flag nor the file can contain.
pub(super) const OTHER_VARIABLES: [&str; 7] = [
    "HASHFINDER_CONFIG",
    "HASHFINDER_LOG",
    CREDENTIAL,
    // Those that `operations wait --exec` sets.
    "HASHFINDER_HASHED_NAME",
    "HASHFINDER_NAME",
    "HASHFINDER_SECRET_HEX",
    "HASHFINDER_STATE",
];

/// The sources of settings.
pub(super) struct Sources {
    pub(super) variables: BTreeMap<String, String>,
    pub(super) file: Option<File>,
}

impl Sources {
    /// Reads the environment and the file.
    ///
    /// The file is the one that the command line names (`named`), or else the environment. If
    /// neither does, it is the one at the usual path, if that exists.
    ///
    /// # Errors
    ///
    /// If the file is wrong, or a variable with the program's prefix is not UTF-8.
    pub(super) fn read(named: Option<&PathBuf>, settings: &Settings) -> Result<Sources> {
        let mut variables = BTreeMap::new();
        for (name, value) in env::vars_os() {
            let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
                continue;
            };
            let value = value
                .into_string()
                .ok()
                .with_context(|| format!("the environment variable {name} is not UTF-8"))?;
            // An empty variable counts as unset: some environments cannot remove a variable.
            if !value.is_empty() {
                variables.insert(name.to_owned(), value);
            }
        }
        let by_variable = variables.get("HASHFINDER_CONFIG").map(Path::new);
        let file = match named.map(PathBuf::as_path).or(by_variable) {
            Some(path) => Some(File::read(path, settings)?),
            None => match usual_path().filter(|path| path.exists()) {
                Some(path) => Some(File::read(&path, settings)?),
                None => None,
            },
        };
        Ok(Sources { variables, file })
    }

    /// Returns the values of a setting; `None` if it is not set. The environment takes precedence
    /// over the file. Within each of them, a value for one command takes precedence over a value
    /// for all.
    ///
    /// # Errors
    ///
    /// If the file has values of the wrong type.
    pub(super) fn given<'a>(&self, setting: &'a Setting) -> Result<Option<Given<'a>>> {
        // The variable with the credential itself takes precedence over the path of a file.
        if setting.name == "credential-file" && self.variables.contains_key(CREDENTIAL) {
            return Ok(None);
        }
        for (outwards, table) in setting.tables.iter().enumerate() {
            let name = setting.variable(table);
            if let Some(value) = self.variables.get(&name) {
                let values = match setting.kind {
                    Kind::Many => value.split(',').map(str::to_owned).collect(),
                    Kind::Switch => vec![true_or_false(value)],
                    Kind::One => vec![value.clone()],
                };
                let value = value.clone();
                return Ok(Some(Given {
                    setting,
                    values,
                    origin: Origin::Variable { name, value },
                    rank: (false, outwards),
                }));
            }
        }
        let Some(file) = &self.file else {
            return Ok(None);
        };
        for (outwards, table) in setting.tables.iter().enumerate() {
            if let Some((values, origin)) = file.given(setting, table)? {
                return Ok(Some(Given {
                    setting,
                    values,
                    origin,
                    rank: (true, outwards),
                }));
            }
        }
        Ok(None)
    }

    /// Returns a note about each unknown variable with the program's prefix.
    pub(super) fn unknown_variables(&self, settings: &Settings) -> Vec<String> {
        // A setting's variable does not contain its section, but users may expect that it does.
        let in_section = |name: &str| {
            let mut sections = settings.0.iter().filter(|one| one.section.is_some());
            let meant = sections.find(|setting| {
                let table = setting.tables[0].join("_");
                let guess = format!("{PREFIX}{table}_{}", setting.name).replace('-', "_");
                guess.to_uppercase() == name
            });
            meant.map(|setting| setting.variable(&setting.tables[0]))
        };
        let ours = settings.0.iter().flat_map(|setting| {
            let tables = setting.tables.iter();
            tables.map(|table| setting.variable(table))
        });
        let ours: Vec<String> = ours.chain(OTHER_VARIABLES.map(str::to_owned)).collect();
        let unknown = self.variables.keys().filter(|name| !ours.contains(name));
        let line = |name: &String| {
            // The common prefix must not count as similarity.
            let rest = &name[PREFIX.len()..];
            let mut names = ours.iter().map(|one| &one[PREFIX.len()..]);
            let without_command = format!("_{rest}");
            let with_command = names.clone().find(|one| one.ends_with(&without_command));
            let is_flag = |flag: &&str| {
                let flag = flag.replace('-', "_").to_uppercase();
                rest == flag || rest.ends_with(&format!("_{flag}"))
            };
            if let Some(flag) = ONLY_ON_THE_COMMAND_LINE.iter().find(|flag| is_flag(flag)) {
                return format!(
                    "warning: unknown variable {name} (--{flag} can only be given on the command \
                     line)"
                );
            }
            if let Some(meant) = in_section(name) {
                return format!("warning: unknown variable {name} (did you mean {meant}?)");
            }
            let hint = match with_command.or_else(|| nearest(rest, &mut names)) {
                Some(nearest) => format!("did you mean {PREFIX}{nearest}?"),
                None => "see `hashfinder config --help`".to_owned(),
            };
            format!("warning: unknown variable {name} ({hint})")
        };
        unknown.map(line).collect()
    }
}

/// Returns the path of the file that is read if none is named. Returns `None` if neither
/// XDG_CONFIG_HOME nor HOME is an absolute path.
pub(super) fn usual_path() -> Option<PathBuf> {
    let absolute = |name| {
        let path = env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    let folder = absolute("XDG_CONFIG_HOME");
    let folder = folder.or_else(|| Some(absolute("HOME")?.join(".config")));
    Some(folder?.join("hashfinder/config.toml"))
}

/// The values that the environment or the file gives to a setting.
pub(super) struct Given<'a> {
    pub(super) setting: &'a Setting,
    pub(super) values: Vec<String>,
    pub(super) origin: Origin,
    pub(super) rank: Rank,
}

/// Rank of the place where a setting is given: whether that is the file, and the position of its
/// table, from the command's own outwards. The lowest rank takes precedence.
pub(super) type Rank = (bool, usize);

impl fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Variable { name, value } => write!(f, "{name}={value}"),
            Origin::File { .. } => {
                let (name, origin) = (&self.setting.name, &self.origin);
                write!(
                    f,
                    "{name} = {} ({origin})",
                    literal(self.setting, &self.values)
                )
            }
        }
    }
}

impl Given<'_> {
    /// Checks the values with the flag's own parser.
    ///
    /// # Errors
    ///
    /// If the parser rejects a value.
    pub(super) fn check(&self, path: &[String], root: &Command) -> Result<()> {
        let Setting { name, kind, .. } = self.setting;
        if *kind == Kind::Switch {
            return match self.values[..] {
                [ref value] if value == "true" || value == "false" => Ok(()),
                _ => bail!("{self}: expected true or false, 1 or 0, yes or no, on or off"),
            };
        }
        let flags = self.values.iter().map(|value| format!("--{name}={value}"));
        let line = [root.get_name().to_owned()]
            .into_iter()
            .chain(path.iter().cloned());
        let Err(error) = root.clone().try_get_matches_from(line.chain(flags)) else {
            return Ok(());
        };
        let why = match error.kind() {
            ErrorKind::ValueValidation => error.source().map(ToString::to_string),
            ErrorKind::InvalidValue => match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(valid)) if !valid.is_empty() => {
                    Some(format!("expected one of {}", valid.join(", ")))
                }
                _ => Some("expected a value".to_owned()),
            },
            // Other errors of this line, such as a missing argument, are not about the value.
            _ => None,
        };
        why.map_or(Ok(()), |why| bail!("{self}: {why}"))
    }
}

/// Converts a switch's value in the environment, such as `yes`, `off` or `1`, to `true` or `false`.
/// Returns any other text unchanged.
pub(super) fn true_or_false(text: &str) -> String {
    let on = BoolishValueParser::new().parse_ref(&Command::default(), None, text.as_ref());
    on.map_or_else(|_| text.to_owned(), |on| on.to_string())
}
