//! Settings that only the file and the environment can give.

use clap::{ArgMatches, Args, Command, FromArgMatches};

/// Arguments that are not flags of their command.
///
/// [`with_file_settings`] adds them to the command that is parsed with the settings of the file and
/// the environment.
///
/// [`with_file_settings`]: crate::cli::with_file_settings
#[derive(Debug)]
pub(crate) struct FromFile<T>(pub(crate) T);

impl<T: Args> Args for FromFile<T> {
    fn augment_args(command: Command) -> Command {
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        command
    }
}

impl<T: FromArgMatches> FromArgMatches for FromFile<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<FromFile<T>, clap::Error> {
        T::from_arg_matches(matches).map(FromFile)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.0.update_from_arg_matches(matches)
    }
}
