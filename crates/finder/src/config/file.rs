//! The configuration file: TOML, with a table for each command.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use hashfinder_system::files;
use toml::de::{DeTable, DeValue};

use super::settings::{
    Kind, ONLY_ON_THE_COMMAND_LINE, Origin, Setting, Settings, literal, nearest,
};

/// Maximum length of the file, in bytes: hundreds of times the length of a file with every setting.
const LONGEST: u64 = 1 << 20;

/// The content of a file, in which every key is a known setting.
pub(super) struct File {
    path: PathBuf,
    /// The entries, by table and key.
    entries: BTreeMap<(Vec<String>, String), Entry>,
}

struct Entry {
    value: Value,
    /// TOML's name for the value's type.
    kind: &'static str,
    line: usize,
}

enum Value {
    Switch(bool),
    One(String),
    Many(Vec<String>),
    /// A value of a type that no setting has.
    Other,
}

impl File {
    /// Reads and parses the file at `path`.
    ///
    /// # Errors
    ///
    /// If it cannot be read, is not TOML, or has an unknown table or key.
    pub(super) fn read(path: &Path, settings: &Settings) -> Result<File> {
        let read = || {
            let text = files::read_any_kind(path, LONGEST)?;
            String::from_utf8(text).context("it is not UTF-8")
        };
        let text = read()
            .with_context(|| format!("cannot read the configuration file {}", path.display()))?;
        File::of(path, &text, settings)
    }

    /// Parses the text of a file.
    ///
    /// # Errors
    ///
    /// If it is not TOML, or has an unknown table or key.
    pub(super) fn of(path: &Path, text: &str, settings: &Settings) -> Result<File> {
        let mut reader = Reader {
            path,
            text,
            settings,
            entries: BTreeMap::new(),
        };
        match DeTable::parse(text) {
            Ok(table) => reader.table(&[], table.get_ref())?,
            Err(error) => {
                let start = error.span().map_or(0, |span| span.start);
                let (origin, message) = (reader.origin(start), error.message());
                bail!("invalid TOML in {origin}: {message}");
            }
        }
        Ok(File {
            path: path.to_owned(),
            entries: reader.entries,
        })
    }

    /// Returns whether the file sets nothing.
    #[cfg(fuzzing)]
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the values that `table` gives to a setting, and where they are in the file; `None`
    /// if the table does not have the setting.
    ///
    /// # Errors
    ///
    /// If the values are not of the setting's type.
    pub(super) fn given(
        &self,
        setting: &Setting,
        table: &[String],
    ) -> Result<Option<(Vec<String>, Origin)>> {
        let key = (table.to_vec(), setting.name.clone());
        let Some(Entry { value, kind, line }) = self.entries.get(&key) else {
            return Ok(None);
        };
        let origin = Origin::File {
            path: self.path.clone(),
            line: *line,
        };
        let values = match (setting.kind, value) {
            (Kind::Switch, Value::Switch(on)) => vec![on.to_string()],
            (Kind::One, Value::One(value)) => vec![value.clone()],
            (Kind::Many, Value::Many(values)) => values.clone(),
            (wanted, value) => {
                let name = &setting.name;
                let wanted = match (wanted, value) {
                    (Kind::Switch, _) => "true or false".to_owned(),
                    (Kind::One, _) => "a number or a string".to_owned(),
                    (Kind::Many, Value::One(value)) => {
                        let list = literal(setting, std::slice::from_ref(value));
                        format!("an array: {name} = {list}")
                    }
                    (Kind::Many, _) => format!("an array, such as {name} = [\"...\"]"),
                };
                bail!("{name} in {origin} has the type {kind}; expected {wanted}");
            }
        };
        Ok(Some((values, origin)))
    }
}

struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    settings: &'a Settings,
    entries: BTreeMap<(Vec<String>, String), Entry>,
}

impl Reader<'_> {
    fn line(&self, offset: usize) -> usize {
        let before = &self.text.as_bytes()[..offset.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    fn origin(&self, offset: usize) -> Origin {
        Origin::File {
            path: self.path.to_owned(),
            line: self.line(offset),
        }
    }

    fn table(&mut self, table: &[String], content: &DeTable<'_>) -> Result<()> {
        let keys = self.settings.of_table(table);
        let tables = self.settings.tables_in(table);
        for (key, value) in content {
            let name = key.get_ref().as_ref();
            let origin = self.origin(key.span().start);
            match value.get_ref() {
                DeValue::Table(inner) if tables.contains(&name) => {
                    self.table(&[table, &[name.to_owned()]].concat(), inner)?;
                }
                _ if tables.contains(&name) => {
                    let path = [table, &[name.to_owned()]].concat().join(".");
                    bail!("{name} in {origin} is a table; write [{path}]");
                }
                value if keys.contains(&name) => {
                    let entry = Entry {
                        value: read(value),
                        kind: value.type_str(),
                        line: self.line(key.span().start),
                    };
                    self.entries
                        .insert((table.to_vec(), name.to_owned()), entry);
                }
                value => {
                    let what = match value {
                        DeValue::Table(_) => "table",
                        _ => "setting",
                    };
                    let hint = self.hint(name, keys.into_iter().chain(tables));
                    bail!("unknown {what} \"{name}\" in {origin} ({hint})");
                }
            }
        }
        Ok(())
    }

    /// Returns a hint for an unknown name: what the user may have meant. `here` lists the names
    /// that the table may contain.
    fn hint<'b>(&self, name: &str, here: impl Iterator<Item = &'b str>) -> String {
        let elsewhere = self
            .settings
            .0
            .iter()
            .filter(|setting| setting.name == name);
        let elsewhere: Vec<String> = elsewhere
            .map(|setting| format!("[{}]", setting.tables[0].join(".")))
            .collect();
        match nearest(name, here) {
            _ if ONLY_ON_THE_COMMAND_LINE.contains(&name) => {
                format!("--{name} can only be given on the command line")
            }
            _ if !elsewhere.is_empty() => format!("it belongs in {}", elsewhere.join(" or ")),
            Some(nearest) => format!("did you mean \"{nearest}\"?"),
            None => "`hashfinder config default` prints all settings".to_owned(),
        }
    }
}

fn read(value: &DeValue<'_>) -> Value {
    match value {
        DeValue::Boolean(on) => Value::Switch(*on),
        DeValue::Array(values) => {
            let texts: Option<_> = values.iter().map(|value| text(value.get_ref())).collect();
            texts.map_or(Value::Other, Value::Many)
        }
        value => text(value).map_or(Value::Other, Value::One),
    }
}

/// Returns a number or a string as it would be written after a flag; `None` for other types.
fn text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => {
            let number = i128::from_str_radix(number.as_str(), number.radix());
            number.ok().map(|number| number.to_string())
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        _ => None,
    }
}
