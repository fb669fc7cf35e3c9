//! `hashfinder keys`: creates, lists and revokes the API keys in a file.

mod arguments;

use std::{path::Path, str::FromStr};

use anyhow::{Context, Result};
use hashfinder_server::auth::{
    Role,
    keys::{KeyFile, KeyId, State},
};
use hashfinder_system::clock;
use jiff::Timestamp;

pub(crate) use self::arguments::KeysArguments;
use self::arguments::{KeyFileArguments, KeysCommand};
use crate::{
    exit::Exit,
    terminal::{print, say},
};

/// Runs the command.
pub(crate) fn run(arguments: KeysArguments) -> Result<Exit> {
    match arguments.what {
        KeysCommand::Create {
            file: KeyFileArguments { path },
            role,
            expires,
            comment,
        } => {
            let at = |lifetime| {
                let expires = clock::now()?.checked_add(lifetime).ok();
                expires.context("the key would expire after the year 9999; use a shorter lifetime")
            };
            create(&path, role.into(), expires.map(at).transpose()?, comment)
        }
        KeysCommand::List { file } => list(&file.path),
        KeysCommand::Revoke { file, id } => revoke(&file.path, &id),
    }
}

fn create(
    path: &Path,
    role: Role,
    expires: Option<Timestamp>,
    comment: Option<String>,
) -> Result<Exit> {
    let (id, credential) = KeyFile::change(path, true, |file| file.create(role, expires, comment))?;
    let unseen =
        || format!("the key {id} was created, but not printed; revoke it, and create another one");
    let is_read = print(format!("{credential}\n")).with_context(unseen)?;
    anyhow::ensure!(is_read, unseen());
    say(format_args!(
        "created the key {id}; it cannot be printed again"
    ));
    Ok(Exit::Success)
}

fn list(path: &Path) -> Result<Exit> {
    let file = KeyFile::read(path)?;
    // If the clock is beyond the calendar, keys that expire count as expired, as on a server.
    let now = clock::now().unwrap_or(Timestamp::MAX);
    let or_none = |time: Option<Timestamp>| time.map_or("-".to_owned(), |time| time.to_string());
    let lines = file.entries().iter().map(|key| {
        // A user may have written anything into the file.
        let comment = key.comment.as_deref().unwrap_or("-");
        let comment: String = comment.chars().filter(|c| !c.is_control()).collect();
        let columns = [
            key.id.to_string(),
            key.role.name().to_owned(),
            or_none(key.created),
            or_none(key.expires),
            key.state(now).name().to_owned(),
            comment,
        ];
        columns.join("\t") + "\n"
    });
    print(lines.collect::<String>())?;
    Ok(Exit::Success)
}

fn revoke(path: &Path, id: &str) -> Result<Exit> {
    // The ID is parsed here, because clap would quote it in an error. The user may have given the
    // whole key, which is secret.
    let id = match KeyId::from_str(id) {
        Ok(id) => id,
        Err(wrong) => {
            say(wrong);
            return Ok(Exit::Usage);
        }
    };
    let before = KeyFile::change(path, false, |file| file.revoke(&id))?;
    Ok(match before {
        None => {
            say(format_args!(
                "unknown key {id}; `hashfinder keys list` prints all keys"
            ));
            Exit::No
        }
        Some(before) => {
            let was = if before == State::Revoked {
                "was already revoked"
            } else {
                "is revoked"
            };
            say(format_args!("the key {id} {was}"));
            Exit::Success
        }
    })
}
