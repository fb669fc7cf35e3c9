//! The checks that the fuzz target runs on a configuration file.

use std::{collections::BTreeMap, path::Path};

use clap::{ArgMatches, Command};

use super::{
    command::{with_negative_numbers, with_switch_values},
    file::File,
    resolve::set_default,
    settings::{Settings, literal},
    sources::Sources,
};

/// The command line that files are checked against.
pub(crate) struct Program {
    command: Command,
    settings: Settings,
}

impl Program {
    pub(crate) fn new(program: Command) -> Program {
        let command = with_negative_numbers(with_switch_values(program));
        let settings = Settings::of(&command);
        Program { command, settings }
    }
}

/// Reads a text as the configuration file, and uses it as every command would. `parsed` receives
/// the command lines that clap accepts.
///
/// # Panics
///
/// If an error in the text has no message, if a value is not read back as `config show` writes it,
/// or if `parsed` panics.
pub(crate) fn config(text: &str, program: &Program, parsed: impl Fn(&ArgMatches)) {
    let Program {
        command: program,
        settings,
    } = program;
    let read = |text: &str| File::of(Path::new("config.toml"), text, settings);
    let sources = match read(text) {
        Ok(file) if file.is_empty() => return,
        Ok(file) => Sources {
            variables: BTreeMap::new(),
            file: Some(file),
        },
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for path in settings.paths() {
        let resolved = match settings.resolve(path, &sources, &[], program) {
            Ok(resolved) => resolved,
            Err(error) => {
                assert!(!error.to_string().is_empty());
                continue;
            }
        };
        if resolved.given.is_empty() {
            continue;
        }
        let mut program = program.clone();
        for given in &resolved.given {
            let (setting, literal) = (given.setting, literal(given.setting, &given.values));
            let table = &setting.tables[0];
            let written = format!("[{}]\n{} = {literal}\n", table.join("."), setting.name);
            let again = read(&written).and_then(|file| file.given(setting, table));
            let again = again.map(|again| again.map(|(values, _)| values));
            let again = again.unwrap_or_else(|error| panic!("{written:?}: {error:#}"));
            assert_eq!(again.as_ref(), Some(&given.values), "{written:?}");
            program = set_default(program, path, given);
        }
        let line = ["hashfinder"].into_iter();
        let line = line.chain(path.iter().map(String::as_str));
        // The line may lack arguments that no file can give, such as NAME.
        if let Ok(matches) = program.try_get_matches_from(line) {
            parsed(&matches);
        }
    }
}
