//! The arguments of `keys`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use hashfinder_server::auth;

use crate::arguments::values::{LONGEST_DURATION, duration};

/// Maximum length of a key's comment, in characters. The comment is shown in one line.
const MAX_COMMENT: usize = 100;

/// Make, list and revoke the API keys of a server.
///
/// A key is ID.SECRET. The file keeps its id and the SHA-256 of its secret, which is of no use to a
/// thief, and what else is known of it. It is TOML, and people may edit it. `hashfinder serve
/// --api-keys` looks at it once a second.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  umask 077    # who can read build.key has the key
  hashfinder keys create --file keys.toml --expires 90d --comment 'the build machines' > build.key
  hashfinder keys list --file keys.toml
  hashfinder keys revoke --file keys.toml 7f0c1d2e3b4a5968

Exit codes:
  0  done
  1  there is no key with this id
  2  the command line is wrong
  5  the file is wrong, or it or the output failed")]
pub(crate) struct KeysArguments {
    #[command(subcommand)]
    pub(crate) what: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key, and print it on stdout
    ///
    /// This is the only time that it can be seen: the file does not have it. A file that is not
    /// there is made, readable by its owner alone.
    Create {
        #[command(flatten)]
        file: KeyFileArguments,

        /// What its bearer may do
        #[arg(long, value_enum, value_name = "ROLE", default_value_t)]
        role: Role,

        /// For how long it is good [default: until it is revoked]
        ///
        /// Calls that began before its end go on.
        #[arg(long, value_name = "DURATION", value_parser = lifetime)]
        expires: Option<Duration>,

        /// What it is for, of up to 100 characters, for who reads the list
        #[arg(long, value_name = "TEXT", value_parser = comment)]
        comment: Option<String>,
    },
    /// Print a line for each key
    ///
    /// It has six columns, separated by tabs: the id, the role, when the key was made, when it
    /// expires, its state (valid, expired or revoked), and the comment. An empty column is written
    /// as -.
    List {
        #[command(flatten)]
        file: KeyFileArguments,
    },
    /// Revoke a key
    ///
    /// Within a second or two, servers reject it and end the calls that were begun with it. It stays
    /// in the list.
    Revoke {
        #[command(flatten)]
        file: KeyFileArguments,

        /// The key's id: what stands before the dot
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// What the bearer of a key may do; each role may do what those before it may.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Role {
    /// Searches, and sees and cancels its own searches
    #[default]
    User,
    /// Sees and cancels everybody's
    Operator,
}

impl From<Role> for auth::Role {
    fn from(role: Role) -> auth::Role {
        match role {
            Role::User => auth::Role::User,
            Role::Operator => auth::Role::Operator,
        }
    }
}

/// Which file it is.
#[derive(Args, Debug)]
pub(crate) struct KeyFileArguments {
    /// The file of keys
    #[arg(long = "file", value_name = "PATH")]
    pub(crate) path: PathBuf,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = duration(text)?;
    if lifetime < Duration::from_secs(1) {
        return Err("it would be over at once; give a second or more".to_owned());
    }
    // Longer durations were cut to this value.
    if lifetime >= LONGEST_DURATION {
        return Err("give less than a thousand years, or leave it out".to_owned());
    }
    Ok(lifetime)
}

fn comment(text: &str) -> Result<String, String> {
    if text.chars().count() > MAX_COMMENT {
        return Err(format!("it has more than {MAX_COMMENT} characters"));
    }
    if text.chars().any(char::is_control) {
        return Err("it holds a control character, a line's end for one; leave it out".to_owned());
    }
    Ok(text.to_owned())
}
