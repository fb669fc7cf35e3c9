//! The arguments of `keys`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use hashfinder_server::auth;

use crate::arguments::values::{LONGEST_DURATION, duration};

/// Maximum length of a key's comment, in characters. The comment is shown in one line.
const MAX_COMMENT: usize = 100;

/// Create, list and revoke the API keys of a server.
///
/// A key is ID.SECRET. The file contains its ID, its role and dates, and the SHA-256 of its secret,
/// so the file does not reveal the key. The file is TOML, and can be edited. `hashfinder serve
/// --api-keys` checks it for changes once a second.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  umask 077    # only you can read build.key
  hashfinder keys create --file keys.toml --expires 90d --comment 'the build machines' > build.key
  hashfinder keys list --file keys.toml
  hashfinder keys revoke --file keys.toml 7f0c1d2e3b4a5968

Exit codes:
  0  done
  1  the ID is unknown
  2  the command line is wrong
  5  the file is wrong, or it or the output failed")]
pub(crate) struct KeysArguments {
    #[command(subcommand)]
    pub(crate) what: KeysCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Create a key and print it on stdout
    ///
    /// The key cannot be printed again, because the file does not contain it. If the file does not
    /// exist, it is created, readable only by its owner.
    Create {
        #[command(flatten)]
        file: KeyFileArguments,

        /// Role of the key
        #[arg(long, value_enum, value_name = "ROLE", default_value_t)]
        role: Role,

        /// Lifetime of the key, such as 90d [default: until it is revoked]
        ///
        /// Calls that started before the key expires continue.
        #[arg(long, value_name = "DURATION", value_parser = lifetime)]
        expires: Option<Duration>,

        /// Comment for the list of keys, up to 100 characters
        #[arg(long, value_name = "TEXT", value_parser = comment)]
        comment: Option<String>,
    },
    /// Print a line for each key
    ///
    /// It has six columns, separated by tabs: the ID, the role, the time of creation, the time of
    /// expiry, the state (valid, expired or revoked), and the comment. An empty column is printed
    /// as -.
    List {
        #[command(flatten)]
        file: KeyFileArguments,
    },
    /// Revoke a key
    ///
    /// Within a second or two, servers reject the key and end the calls that started with it. The
    /// key stays in the list.
    Revoke {
        #[command(flatten)]
        file: KeyFileArguments,

        /// ID of the key: the part before the dot
        #[arg(value_name = "ID")]
        id: String,
    },
}

/// Permissions of a key. Each role includes the permissions of the roles before it.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Role {
    /// Start searches; list and cancel its own
    #[default]
    User,
    /// Also list and cancel the searches of all clients
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

/// Which key file to use.
#[derive(Args, Debug)]
pub(crate) struct KeyFileArguments {
    /// File of the API keys (TOML)
    #[arg(long = "file", value_name = "PATH")]
    pub(crate) path: PathBuf,
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = duration(text)?;
    if lifetime < Duration::from_secs(1) {
        return Err("it is too short; use at least 1s".to_owned());
    }
    // `duration` has cut longer values to this one.
    if lifetime >= LONGEST_DURATION {
        return Err("it is too long; use less than 1000 years, or omit the flag".to_owned());
    }
    Ok(lifetime)
}

fn comment(text: &str) -> Result<String, String> {
    if text.chars().count() > MAX_COMMENT {
        return Err(format!(
            "it is too long; use at most {MAX_COMMENT} characters"
        ));
    }
    if text.chars().any(char::is_control) {
        return Err("it contains a control character, such as a line break; remove it".to_owned());
    }
    Ok(text.to_owned())
}
