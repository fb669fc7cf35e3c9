//! Commands on the folder of a server: export, backup and recovery.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_operations::{
    COLLECTION, FILE, Folder, OpenError, Reader, Record, RecoveredChange, Selection, SqliteReader,
    StoreError, backup as copy, recover as repair,
};
use hashfinder_search::DesiredName;
use serde_json::{Value, json};

use super::arguments::{BackupArguments, ExportArguments, RecoverArguments};
use crate::{
    exit::Exit,
    terminal::{self, as_text, print, quoted, say},
};

/// Number of operations that are read at a time.
const READ_AT_ONCE: usize = 100;

pub(super) fn export(arguments: &ExportArguments) -> Result<Exit> {
    let path = arguments.folder.state.join(FILE);
    let path = path
        .canonicalize()
        .with_context(|| format!("cannot read {}", path.display()))?;
    let folder = &arguments.folder.state;
    let reader = SqliteReader::open(&path);
    let mut reader = reader.map_err(|error| unreadable(error, folder))?;
    let mut selection = Selection::default();
    loop {
        let records = reader.list(&selection, READ_AT_ONCE);
        let records = records.map_err(|error| unreadable(error, folder))?;
        for record in &records {
            selection.after = Some((record.created, record.name.id().to_owned()));
            // As of one moment, which is a little later.
            let read = reader.with_candidates(&record.name);
            let Some((record, indices)) = read.map_err(|error| unreadable(error, folder))? else {
                continue;
            };
            let end = record.query().keyspace().end();
            ensure!(
                indices.iter().all(|index| *index < end),
                "a candidate of {} is not valid; {}",
                record.name,
                how_to_recover(folder)
            );
            let line = terminal::json(&exported(&record, &indices));
            if !print(line + "\n")? {
                return Ok(Exit::Success);
            }
        }
        if records.len() < READ_AT_ONCE {
            return Ok(Exit::Success);
        }
    }
}

fn exported(record: &Record, indices: &[u64]) -> Value {
    let query = record.query();
    let names: Vec<&str> = query.names().iter().map(DesiredName::as_str).collect();
    let candidates = indices.iter().map(|index| {
        let secret = query.keyspace().secret(*index);
        let found = query.candidate(*index);
        json!({
            "index": index,
            "name": query.names()[usize::from(found.name)].as_str(),
            "hashed_name": query.spelling().hashed_name(&secret).to_string(),
            "secret": BASE64_STANDARD.encode(&secret),
            "distance": found.distance,
            "window": found.window,
        })
    });
    let time = |millis: i64| {
        let since = std::time::Duration::from_millis(millis.max(0).unsigned_abs());
        let time = std::time::UNIX_EPOCH.checked_add(since);
        time.map(|time| humantime::format_rfc3339_seconds(time).to_string())
    };
    let end = record.end.as_ref();
    let text = |text: &str| {
        Some(text)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    json!({
        "name": record.name.to_string(),
        "display_name": text(&record.request.display_name),
        "client": &*record.request.client,
        "desired_names": names,
        "start_cursor": record.request.text(),
        "hashes": record.hashes(),
        "maximum_hashes": record.budget,
        "frontier": record.checkpoint.frontier(),
        "created_at": time(record.created),
        "updated_at": time(record.updated),
        "ended_at": end.and_then(|end| time(end.at)),
        "end_reason": end.map(|end| end.reason.name()),
        "end_message": end.and_then(|end| text(&end.message)),
        "cursor": record.cursor().map(|cursor| cursor.to_string()),
        "candidates": candidates.collect::<Vec<_>>(),
    })
}

pub(super) fn backup(arguments: &BackupArguments) -> Result<Exit> {
    let path = arguments.folder.state.join(FILE);
    let to = &arguments.file;
    let folder = &arguments.folder.state;
    ensure!(!to.exists(), "{} exists; give another file", shown(to));
    let copied = copy(&path, to).map_err(|error| {
        unreadable(error, folder).context(format!("cannot copy the operations to {}", shown(to)))
    })?;
    say(format_args!("copied {copied} operations to {}", shown(to)));
    Ok(Exit::Success)
}

pub(super) fn recover(arguments: &RecoverArguments) -> Result<Exit> {
    let path = &arguments.folder.state;
    let folder = Folder::lock_existing(path).map_err(|error| match error {
        OpenError::Locked { process, .. } => {
            let process = process.map_or(String::new(), |process| format!(" (process {process})"));
            anyhow!("a server{process} uses {}; stop it first", shown(path))
        }
        other => other.into(),
    })?;
    folder.check_version()?;
    let recovered =
        repair(&folder).with_context(|| format!("cannot recover {}", path.display()))?;
    let Some(recovered) = recovered else {
        say(format_args!(
            "the operations in {} are not damaged",
            shown(path)
        ));
        return Ok(Exit::Success);
    };
    say(format_args!(
        "recovered {} operations and {} candidates; the damaged file is {}",
        recovered.operations,
        recovered.candidates,
        shown(&recovered.damaged)
    ));
    for (name, change) in &recovered.changed {
        let what = match change {
            RecoveredChange::Lost => "lost".to_owned(),
            RecoveredChange::Restarted => {
                "starts again, because some of its candidates are lost".to_owned()
            }
            RecoveredChange::LostCandidates(count) => format!("has lost {count} of its candidates"),
        };
        say(format_args!("{COLLECTION}/{}: {what}", as_text(name)));
    }
    Ok(Exit::Success)
}

/// Returns the error for a store that cannot be read.
fn unreadable(error: StoreError, folder: &Path) -> anyhow::Error {
    match error {
        StoreError::Damaged(why) => anyhow!(
            "the operations in {} are damaged ({}); {}",
            shown(folder),
            as_text(&why),
            how_to_recover(folder)
        ),
        other => anyhow!("cannot read the operations in {}: {other}", shown(folder)),
    }
}

fn how_to_recover(folder: &Path) -> String {
    format!(
        "stop the server and run: hashfinder operations recover --state {}",
        quoted(&folder.display().to_string())
    )
}

fn shown(path: &Path) -> String {
    as_text(&path.display().to_string())
}
