//! Reports errors in the command line: clap's errors, escaped for a terminal, with suggestions for
//! unknown flags.

use std::ffi::OsString;

use clap::{
    Arg, Command, Error,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::settings::{ALIKE, Settings, is_switch};
use crate::terminal::as_text;

/// Maximum number of flags or commands in a suggestion. Users would have to search a longer list.
const SUGGESTIONS: usize = 3;

/// Minimum length, in characters, at which a part of a flag's name is recognised, such as `--max`
/// for `--maximum-time`.
const SHORTEST_PART: usize = 3;

/// Names of flags in other programs, each with this program's flags of the same purpose.
const OTHER_NAMES: [(&str, &[&str]); 3] = [
    ("jobs", &["threads"]),
    ("limit", &["count", "maximum-hashes", "maximum-time"]),
    ("number", &["count"]),
];

/// Prints an error in the command line, and ends the process as clap does. `path` is the command
/// that was found in the line.
pub(super) fn exit(
    error: Error,
    program: Command,
    settings: &Settings,
    path: &[String],
    line: &[OsString],
) -> ! {
    explained(error, program, settings, path, line).exit()
}

/// Prints the help that the command line requests, and ends the process. `help` is what clap would
/// print for the adapted command line, in which switches have values. If possible, prints the help
/// of `program` instead.
pub(super) fn exit_with_help(help: &Error, program: &Command, line: &[OsString]) -> ! {
    match program.clone().try_get_matches_from(line) {
        Err(plain) if plain.kind() == help.kind() => plain.exit(),
        _ => {}
    }
    // The line has a switch with a value, so `program` rejects it. Without any flags, it requests
    // the same help.
    let is_long = line.iter().any(|word| word == "--help");
    let mut words: Vec<&OsString> = line.iter().take(1).collect();
    let mut command = program;
    for word in line {
        let inner = word.to_str().and_then(|name| command.find_subcommand(name));
        if let Some(inner) = inner {
            words.push(word);
            command = inner;
        }
    }
    let asked = OsString::from(if is_long { "--help" } else { "-h" });
    words.push(&asked);
    match program.clone().try_get_matches_from(words) {
        Err(plain) if plain.kind() == help.kind() => plain.exit(),
        _ => help.exit(),
    }
}

fn explained(
    mut error: Error,
    mut program: Command,
    settings: &Settings,
    path: &[String],
    line: &[OsString],
) -> Error {
    if error.kind() == ErrorKind::UnknownArgument
        && let Some(ContextValue::String(given)) = error.get(ContextKind::InvalidArg)
    {
        let given = given.clone();
        program.build();
        suggest(&mut error, &mut program, settings, path, &given, line);
    }
    escape(&mut error);
    error
}

/// Replaces clap's suggestions for a flag that the command does not have. Clap suggests giving an
/// unknown flag as a name, after `--`.
fn suggest(
    error: &mut Error,
    program: &mut Command,
    settings: &Settings,
    path: &[String],
    given: &str,
    line: &[OsString],
) {
    let Some(name) = given.strip_prefix("--") else {
        // Clap reads `-json` as `-j`, `-s` and so on.
        let command = path
            .iter()
            .try_fold(&*program, |command, name| command.find_subcommand(name));
        let mut flags = command.into_iter().flat_map(visible_flags);
        let meant = flags.find(|flag| line.iter().any(|word| *word == *format!("-{flag}")));
        if let Some(flag) = meant {
            error.remove(ContextKind::Suggested);
            let flag = ContextValue::String(format!("--{flag}"));
            error.insert(ContextKind::SuggestedArg, flag);
        } else if line.iter().any(|word| *word == *given) {
            // The argument is probably a mistyped short flag. It is not suggested as a name,
            // because names such as `-n` are rare.
            error.remove(ContextKind::Suggested);
        }
        return;
    };
    let tip = elsewhere(settings, name).or_else(|| match &owners(program, name, line)[..] {
        [] => None,
        owners => Some(format!("'--{name}' is a flag of {}", listed(owners))),
    });
    let command = path
        .iter()
        .try_fold(program, |command, name| command.find_subcommand_mut(name));
    let Some(command) = command else { return };
    error.remove(ContextKind::Suggested);
    error.remove(ContextKind::SuggestedArg);
    let similar: Vec<String> = match negated_switch(command, name) {
        Some(switch) => vec![format!("--{switch}=false")],
        None if settings.0.iter().any(|setting| setting.name == name) => Vec::new(),
        None => {
            let similar = similar(command, name).into_iter();
            similar.map(|flag| format!("--{flag}")).collect()
        }
    };
    match &similar[..] {
        [] => {}
        [one] => {
            let one = ContextValue::String(one.clone());
            error.insert(ContextKind::SuggestedArg, one);
        }
        _ => {
            error.insert(ContextKind::SuggestedArg, ContextValue::Strings(similar));
        }
    }
    if let Some(tip) = tip {
        let tip = ContextValue::StyledStrs(vec![StyledStr::from(tip)]);
        error.insert(ContextKind::Suggested, tip);
    }
    // Clap's usage contains the flag that clap would have suggested.
    let usage = ContextValue::StyledStr(command.render_usage());
    error.insert(ContextKind::Usage, usage);
}

/// Returns where to set a setting that is not a flag; `None` for all other names.
fn elsewhere(settings: &Settings, name: &str) -> Option<String> {
    let mut settings = settings.0.iter();
    let setting = settings.find(|setting| setting.name == name && setting.section.is_some())?;
    let table = &setting.tables[0];
    Some(format!(
        "'{name}' is not a flag; set it in the configuration file under [{}], or by {}",
        table.join("."),
        setting.variable(table),
    ))
}

/// Returns the name of the command's switch that `no-SWITCH` negates.
fn negated_switch<'a>(command: &'a Command, name: &str) -> Option<&'a str> {
    let name = name.strip_prefix("no-")?;
    let mut switches = command.get_arguments().filter(|arg| is_switch(arg));
    switches.find_map(|arg| arg.get_long().filter(|long| *long == name))
}

/// Returns the names of a command's flags that its help shows.
fn visible_flags(command: &Command) -> impl Iterator<Item = &str> {
    let shown = command.get_arguments().filter(|arg| !arg.is_hide_set());
    shown.filter_map(Arg::get_long)
}

/// Returns the flags of the command that were probably meant: at most [`SUGGESTIONS`].
fn similar<'a>(command: &'a Command, given: &str) -> Vec<&'a str> {
    let name = given.to_lowercase().replace('_', "-");
    let mut found: Vec<(f64, &str)> = Vec::new();
    if let Some((_, flags)) = OTHER_NAMES.iter().find(|(other, _)| *other == name) {
        let meant = visible_flags(command).filter(|flag| flags.contains(flag));
        found.extend(meant.map(|flag| (1.0, flag)));
    }
    if found.is_empty() {
        let flags = command.get_arguments().filter_map(|arg| {
            let flag = arg.get_long()?;
            let aliases = arg.get_all_aliases().unwrap_or_default();
            let names = [flag].into_iter().chain(aliases);
            let likeness = names.map(|flag| likeness(&name, flag));
            Some((likeness.fold(0.0, f64::max), flag))
        });
        found.extend(flags.filter(|(likeness, _)| *likeness >= ALIKE));
    }
    let best = found.iter().map(|(likeness, _)| *likeness);
    let best = best.fold(0.0, f64::max);
    let found = found.into_iter().filter(|(likeness, _)| *likeness == best);
    found.map(|(_, flag)| flag).take(SUGGESTIONS).collect()
}

/// Returns the similarity of two names, from 0 to 1: at least [`ALIKE`] if one is a part of the
/// other and begins at the start of a word.
fn likeness(one: &str, other: &str) -> f64 {
    let is_part = |part: &str, whole: &str| {
        part.len() >= SHORTEST_PART && format!("-{whole}").contains(&format!("-{part}"))
    };
    let alike = strsim::jaro(one, other);
    match is_part(one, other) || is_part(other, one) {
        true => alike.max(ALIKE),
        false => alike,
    }
}

/// Returns the commands that have a flag of this name. If some of them are on the command line,
/// returns only those.
fn owners(program: &Command, flag: &str, line: &[OsString]) -> Vec<String> {
    fn collect(command: &Command, path: &[&str], flag: &str, owners: &mut Vec<Vec<String>>) {
        if visible_flags(command).any(|one| one == flag) {
            owners.push(path.iter().map(ToString::to_string).collect());
        }
        for inner in command.get_subcommands() {
            collect(inner, &[path, &[inner.get_name()]].concat(), flag, owners);
        }
    }
    let mut owners = Vec::new();
    collect(program, &[], flag, &mut owners);
    let is_asked = |path: &Vec<String>| {
        path.iter()
            .all(|name| line.iter().any(|word| word == name.as_str()))
    };
    if owners.iter().any(is_asked) {
        owners.retain(is_asked);
    }
    let called = owners
        .iter()
        .map(|path| format!("`hashfinder {}`", path.join(" ")));
    called.collect()
}

fn listed(all: &[String]) -> String {
    match all {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] if all.len() <= SUGGESTIONS => {
            format!("{} and {last}", first.join(", "))
        }
        _ => {
            let (first, others) = all.split_at(SUGGESTIONS);
            let commands = match others.len() {
                1 => "1 other command".to_owned(),
                count => format!("{count} other commands"),
            };
            format!("{} and {commands}", first.join(", "))
        }
    }
}

/// Escapes the control characters in the texts that the error quotes.
fn escape(error: &mut Error) {
    let escaped = error.context().filter_map(|(kind, value)| {
        let escaped = match value {
            ContextValue::String(text) => ContextValue::String(as_text(text)),
            ContextValue::Strings(texts) => {
                ContextValue::Strings(texts.iter().map(|text| as_text(text)).collect())
            }
            _ => return None,
        };
        (escaped != *value).then_some((kind, escaped))
    });
    let escaped: Vec<_> = escaped.collect();
    if !escaped.is_empty() {
        // Clap's suggestion would quote the argument, too.
        error.remove(ContextKind::Suggested);
    }
    for (kind, value) in escaped {
        error.insert(kind, value);
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{
        super::command::{of_command_line, with_switch_values},
        *,
    };
    use crate::cli::{Cli, with_file_settings};

    fn command() -> Command {
        with_switch_values(Cli::command())
    }

    fn settings() -> Settings {
        Settings::of(&with_switch_values(with_file_settings(Cli::command())))
    }

    /// Returns what is printed about a command line.
    fn explanation(line: &[&str]) -> String {
        let line = [&["hashfinder"][..], line].concat();
        let line: Vec<OsString> = line.into_iter().map(OsString::from).collect();
        let lenient = command().ignore_errors(true).try_get_matches_from(&line);
        let (path, _) = of_command_line(&lenient.unwrap());
        let error = command().try_get_matches_from(&line).unwrap_err();
        explained(error, Cli::command(), &settings(), &path, &line).to_string()
    }

    /// Returns the tips that are printed about a command line.
    fn suggested(line: &str) -> String {
        let printed = explanation(&line.split(' ').collect::<Vec<_>>());
        assert!(!printed.contains("as a value"), "{printed}");
        let tips = printed
            .lines()
            .filter_map(|line| line.trim().strip_prefix("tip: "));
        tips.collect::<Vec<_>>().join("; ")
    }

    /// Regression: for `find doctor --limit 3` the suggestion was `-- --limit`.
    #[test]
    fn a_mistyped_flag_gets_the_nearest_real_one_as_a_suggestion() {
        let one = |flag: &str| format!("a similar argument exists: '{flag}'");
        for (line, flag) in [
            ("find doctor --maximum-hash 5", "--maximum-hashes"),
            ("find doctor --max-hashes 5", "--maximum-hashes"),
            ("find doctor --max_time 5s", "--maximum-time"),
            ("find doctor --timout 5s", "--maximum-time"),
            ("find doctor --Json", "--json"),
            ("find doctor -json", "--json"),
            ("find doctor --distance=2", "--ideal-distance"),
            ("find doctor --colour never", "--color"),
            ("find doctor --no-color", "--color"),
            ("find doctor --no-quiet", "--quiet=false"),
            ("serve --no-reuse-port", "--reuse-port=false"),
            ("find doctor --jobs 3", "--threads"),
            ("find doctor --number 3", "--count"),
            ("find doctor --thread 3", "--threads"),
            ("find doctor --srever localhost:1", "--server"),
            ("find doctor --alg sha256", "--algorithm"),
            ("estimate doctor --ideal 1", "--ideal-distance"),
            ("verify pO0G doctor --hexadecimal", "--hex"),
            ("serve --portt 5", "--port"),
            ("searches list --stat ended", "--state"),
            ("git-commit c0ffee --writes", "--write"),
            ("hashcash me --bit 5", "--bits"),
        ] {
            assert_eq!(suggested(line), one(flag), "{line}");
        }
        assert_eq!(
            suggested("find doctor --limit 3"),
            "some similar arguments exist: '--count', '--maximum-hashes', '--maximum-time'"
        );
        assert_eq!(suggested("find doctor -n 3"), "");
        assert_eq!(
            suggested("git-commit c0ffee --limit 3"),
            one("--maximum-time")
        );
        for line in [
            "find doctor --xyzzy",
            "estimate doctor --limit 3",
            "config --xyzzy show",
        ] {
            assert_eq!(suggested(line), "", "{line}");
        }
    }

    #[test]
    fn a_flag_of_another_command_is_attributed_to_it() {
        for (line, tip) in [
            (
                "find doctor --metrics-address x",
                "'--metrics-address' is a flag of `hashfinder serve`",
            ),
            (
                "find doctor --rate 5",
                "'--rate' is a flag of `hashfinder estimate`",
            ),
            (
                "verify pO0G doctor --maximum-hashes 5",
                "'--maximum-hashes' is a flag of `hashfinder find` and `hashfinder serve`",
            ),
            (
                "completions bash --connect-timeout 5s",
                "'--connect-timeout' is a flag of `hashfinder find`, `hashfinder searches list`, \
                 `hashfinder searches watch` and 8 other commands",
            ),
            (
                "--quiet find doctor",
                "'--quiet' is a flag of `hashfinder find`",
            ),
            (
                "searches --state ended list",
                "'--state' is a flag of `hashfinder searches list`",
            ),
        ] {
            assert_eq!(suggested(line), tip, "{line}");
        }
    }

    #[test]
    fn a_setting_given_as_a_flag_is_reported_with_its_place() {
        for line in [
            "serve --idle-timeout 5s",
            "serve --idle-timeout=5s",
            "find a --idle-timeout 5s",
        ] {
            let tip = "'idle-timeout' is not a flag; set it in the configuration file under \
                       [serve.limits], or by HASHFINDER_SERVE_IDLE_TIMEOUT";
            assert_eq!(suggested(line), tip, "{line}");
        }
    }

    #[test]
    fn quoted_text_cannot_control_a_terminal() {
        let evil = "\x1b[31m\r\n\x07\u{9b}1m";
        for line in [
            &["find", "a", &format!("--{evil}")][..],
            &["find", "a", &format!("-{evil}")],
            &["find", "a", "--count", evil],
            &["find", "a", "--color", evil],
            &["find", "a", &format!("--json={evil}")],
            &["serve", evil],
            &["completions", evil],
            &[evil],
            &["hashcash", evil],
            &["git-commit", evil],
            &["help", evil],
        ] {
            let printed = explanation(line);
            let is_control = |c: char| c.is_control() && c != '\n';
            assert!(!printed.contains(is_control), "{line:?}: {printed:?}");
            assert!(printed.contains(r"\u{1b}"), "{line:?}: {printed:?}");
        }
    }
}
