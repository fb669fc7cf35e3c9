//! The output of `hashfinder config`: the values of all settings, or a file that describes them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Command;
use serde_json::{Value, json};

use super::{
    command::with_switch_values,
    settings::{Kind, Origin, Setting, Settings, literal},
    sources::{Sources, usual_path},
};
use crate::terminal::{self, as_text, say};

/// Width at which the texts in the default file are wrapped.
const WIDTH: usize = 100;

/// Returns a line for each setting of `program`, with its values and their origin. `file` is the
/// file that the command line names, if any.
///
/// # Errors
///
/// If the file or a variable is wrong.
pub(crate) fn show(program: Command, file: Option<&PathBuf>, as_json: bool) -> Result<String> {
    let root = with_switch_values(program);
    let settings = Settings::of(&root);
    let sources = Sources::read(file, &settings)?;
    sources.unknown_variables(&settings).iter().for_each(say);
    if sources.file.is_none() {
        match usual_path() {
            Some(path) => say(format_args!(
                "no configuration file: {} does not exist",
                path.display()
            )),
            None => {
                say("no configuration file: neither XDG_CONFIG_HOME nor HOME has an absolute path");
            }
        }
    }
    let mut rows = Vec::new();
    for path in settings.paths() {
        let resolved = settings.resolve(path, &sources, &[], &root)?;
        resolved.notes.iter().for_each(say);
        for setting in settings.0.iter().filter(|setting| setting.path == path) {
            let mut given = resolved.given.iter();
            let given = given.find(|given| given.setting.id == setting.id);
            let default = || (setting.defaults.clone(), None);
            let (values, origin) = given.map_or_else(default, |given| {
                (given.values.clone(), Some(given.origin.clone()))
            });
            rows.push((setting, values, origin));
        }
    }
    if as_json {
        let objects = rows.into_iter().map(|(setting, values, origin)| {
            let mut object = json!({
                "command": setting.path.join(" "),
                "setting": setting.name,
                "value": value(setting, &values),
                "source": match &origin {
                    None => "default",
                    Some(Origin::Variable { .. }) => "environment",
                    Some(Origin::File { .. }) => "file",
                },
            });
            match origin {
                None => {}
                Some(Origin::Variable { name, .. }) => object["variable"] = json!(name),
                Some(Origin::File { path, line }) => {
                    object["file"] = json!(path.to_string_lossy());
                    object["line"] = json!(line);
                }
            }
            terminal::json(&object) + "\n"
        });
        return Ok(objects.collect());
    }
    let rows = rows.into_iter().map(|(setting, values, origin)| {
        let name = setting.tables[0].iter().chain([&setting.name]);
        let name = name.map(String::as_str).collect::<Vec<_>>().join(".");
        let value = match value(setting, &values) {
            Value::Null => "-".to_owned(),
            _ => literal(setting, &values),
        };
        let origin = origin.map_or_else(
            || "default".to_owned(),
            |origin| as_text(&origin.to_string()),
        );
        (name, value, origin)
    });
    let rows: Vec<(String, String, String)> = rows.collect();
    let longest = |column: fn(&(String, String, String)) -> &String| {
        let lengths = rows.iter().map(|row| column(row).chars().count());
        lengths.max().unwrap_or_default()
    };
    let (names, values) = (longest(|row| &row.0), longest(|row| &row.1));
    let lines = rows
        .iter()
        .map(|(name, value, origin)| format!("{name:names$}  {value:values$}  {origin}\n"));
    Ok(lines.collect())
}

/// Returns the setting's value in JSON; null if it has none.
fn value(setting: &Setting, values: &[String]) -> Value {
    let one = |text: &String| match text.parse().map(Value::Number) {
        Ok(number) => number,
        Err(_) => Value::from(text.as_str()),
    };
    match (setting.kind, values) {
        (Kind::Switch, [value, ..]) => json!(value == "true"),
        (Kind::One, [value, ..]) => one(value),
        (Kind::Many, [_, ..]) => values.iter().map(one).collect(),
        (_, []) => Value::Null,
    }
}

/// Returns the text of a file that sets nothing, and describes every setting of `program`.
pub(crate) fn default_file(program: Command) -> String {
    let settings = Settings::of(&with_switch_values(program));
    let mut text = format!(
        "# Configuration of hashfinder {}. To change a setting, remove the # before its name and\n\
         # edit the value. Values in capitals are placeholders: these settings have no default. See\n\
         # `hashfinder config --help`.\n",
        env!("CARGO_PKG_VERSION")
    );
    let shared = settings.of_table(&[]).join(", ");
    text += "\n";
    text += &comment(&format!(
        "These settings can also be set here, before the first table, for all commands that have \
         them: {shared}."
    ));
    let mut table = None;
    for setting in &settings.0 {
        let own = &setting.tables[0];
        if table.replace(own) != Some(own) {
            text += &format!("\n[{}]\n", own.join("."));
        }
        text += "\n";
        text += &comment(&setting.help);
        let name = &setting.name;
        text += &match (&setting.defaults[..], setting.kind) {
            ([], Kind::Many) => format!("# {name} = [{:?}, ...]\n", setting.value_name),
            ([], _) => format!("# {name} = {}\n", setting.value_name),
            (values, _) => format!("#{name} = {}\n", literal(setting, values)),
        };
    }
    text
}

/// Returns the text as a TOML comment, wrapped at [`WIDTH`].
fn comment(text: &str) -> String {
    let mut lines = String::new();
    let mut line = "#".to_owned();
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > WIDTH {
            lines += &line;
            lines += "\n";
            line = "#".to_owned();
        }
        line += " ";
        line += word;
    }
    lines + &line + "\n"
}
