//! `hashfinder config`: what is set, and what can be.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{Kind, Origin, Setting, Settings, Sources, command, literal, usual_path};
use crate::{
    exit::Exit,
    terminal::{self, as_text, print, say},
};

/// How long the lines of the file are that we write, as the texts in it are wrapped.
const WIDTH: usize = 100;

/// Show the configuration, or print a file to begin one with.
///
/// Nearly every flag is a setting, which can also be given by an environment variable or in a file;
/// what only concerns one call, as --json and --resume do, cannot. The command line decides; then the
/// environment does, then the file, then the default.
#[derive(Args, Debug)]
#[command(after_help = "\
The file is the one that --config or HASHFINDER_CONFIG names, or else
$XDG_CONFIG_HOME/hashfinder/config.toml (~/.config/hashfinder/config.toml), if there is one.
--config /dev/null goes without. In the file, a command is a table and a flag is a key:

  kernel = \"avx2\"                  # for every command that has --kernel

  [find]
  quiet = true                     # --no-quiet on the command line takes it back

  [serve]
  maximum-hashes = 1_000_000_000
  client-weight = [\"10.0.0.7=4\"]  # a flag that can be given more than once is a list

The same in the environment is HASHFINDER_KERNEL=avx2, HASHFINDER_FIND_QUIET=true (or 1, yes, on;
the opposite is false, 0, no, off), HASHFINDER_SERVE_MAXIMUM_HASHES=1000000000 and
HASHFINDER_SERVE_CLIENT_WEIGHT=10.0.0.7=4, with commas between the parts of a list. An empty
variable counts as none. What is for one command goes before what is for all that have the flag;
only flags that several have can be set for all.

A setting that another one excludes is left out if that one comes from a place that goes before it,
and a line on stderr says so. A key that is no setting is an error; a variable that is none is only
told, for it may be meant for somebody else.

Examples:
  hashfinder config show
  mkdir -p ~/.config/hashfinder
  hashfinder config default > ~/.config/hashfinder/config.toml

Exit codes:
  0  printed
  2  the command line, the file or a variable is wrong
  5  the output failed")]
pub(crate) struct ConfigArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Print every setting, its value, and where that comes from
    Show {
        /// Print one JSON object for each setting: command, setting, value (null: none), source
        /// (default, environment or file), and the variable, or the file and line
        #[arg(long)]
        json: bool,
    },
    /// Print a file with every setting and its default, all of them commented out
    Default,
}

/// Prints what was asked for, about the file that the command line names, or the one in use.
pub(crate) fn run(arguments: &ConfigArguments, file: Option<&PathBuf>) -> Result<Exit> {
    let settings = Settings::of(&command());
    let text = match arguments.what {
        What::Show { json } => match show(&settings, file, json) {
            Ok(text) => text,
            // As it is for every command that has settings.
            Err(wrong) => {
                say(format_args!("{wrong:#}"));
                return Ok(Exit::Usage);
            }
        },
        What::Default => default(&settings),
    };
    print(text)?;
    Ok(Exit::Success)
}

/// Every setting with its values and their origin.
///
/// # Errors
///
/// If the file or a variable is wrong.
fn show(settings: &Settings, file: Option<&PathBuf>, as_json: bool) -> Result<String> {
    let sources = Sources::read(file, settings)?;
    sources.unknown_variables(settings).iter().for_each(say);
    if sources.file.is_none() {
        match usual_path() {
            Some(path) => say(format_args!("there is no file {}", path.display())),
            None => say("there is no file, for neither XDG_CONFIG_HOME nor HOME is set"),
        }
    }
    let root = command();
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
        let name = setting.path.iter().chain([&setting.name]);
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

/// As JSON has it: null where there is none.
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

/// A file that sets nothing, and tells what could be.
fn default(settings: &Settings) -> String {
    let mut text = format!(
        "# The configuration of hashfinder {}. A line that begins with # and a name is a setting\n\
         # with its default: take the # away and change it. `hashfinder config --help` tells more.\n",
        env!("CARGO_PKG_VERSION")
    );
    let shared = settings.of_table(&[]).join(", ");
    text += "\n";
    text += &comment(&format!(
        "At the top, before the first [command], can stand what is for every command that has it: \
         {shared}."
    ));
    for path in settings.paths() {
        text += &format!("\n[{}]\n", path.join("."));
        for setting in settings.0.iter().filter(|setting| setting.path == path) {
            text += "\n";
            text += &comment(&setting.help);
            let name = &setting.name;
            text += &match (&setting.defaults[..], setting.kind) {
                ([], Kind::Many) => format!("# {name} = [{:?}, ...]\n", setting.value_name),
                ([], _) => format!("# {name} = {}\n", setting.value_name),
                (values, _) => format!("#{name} = {}\n", literal(setting, values)),
            };
        }
    }
    text
}

/// The text as lines of a comment.
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
