//! Formats operations as lines: with tabs, as JSON, and as a table.

use std::time::SystemTime;

use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_proto::{
    google::longrunning::Operation,
    v1::{Algorithm, Candidate, Encoding, EndReason, OperationState, Query, SearchMetadata},
};
use serde_json::{Value, json};

use crate::{
    commands::searches::rows::{age, in_table, listed, rfc3339, word},
    terminal::{
        self, as_text,
        figures::{self, number},
    },
};

/// An operation, as a server reports it.
pub(super) struct Listed {
    name: String,
    metadata: SearchMetadata,
    found: Option<Candidate>,
}

impl Listed {
    /// Reads an operation. What cannot be read is left out: it comes from a later version.
    pub(super) fn of(operation: &Operation) -> Listed {
        let result = operation.search_result().ok().flatten();
        Listed {
            name: operation.name.clone(),
            metadata: operation.search_metadata().unwrap_or_default(),
            found: result.and_then(|result| result.found),
        }
    }

    fn state(&self) -> String {
        word(self.metadata.state().as_str_name(), "OPERATION_STATE_")
    }

    fn names(&self) -> &[String] {
        self.metadata
            .query
            .as_ref()
            .map_or(&[], |query| &query.desired_names)
    }

    /// Returns how it ended, or why it is paused; an empty text if there is nothing to say.
    fn ending(&self) -> String {
        let metadata = &self.metadata;
        if metadata.state() != OperationState::Ended {
            return as_text(&metadata.state_message);
        }
        let reason = word(metadata.end_reason().as_str_name(), "END_REASON_").replace('_', " ");
        match metadata.end_message.as_str() {
            "" => reason,
            message => format!("{reason}: {}", as_text(message)),
        }
    }

    /// Returns what became of an operation that was to be cancelled.
    pub(super) fn after_cancellation(&self) -> String {
        match self.metadata.end_reason() {
            EndReason::CancelledByClient | EndReason::CancelledByOperator => "cancelled".to_owned(),
            _ => format!("had ended: {}", self.ending()),
        }
    }

    /// Returns the columns, for programs.
    pub(super) fn in_columns(&self) -> String {
        let metadata = &self.metadata;
        let columns = [
            as_text(&self.name),
            self.state(),
            as_text(&metadata.client),
            rfc3339(metadata.create_time.as_ref()).unwrap_or_default(),
            metadata.hashes.to_string(),
            metadata.candidates.to_string(),
            listed(self.names()),
            self.ending(),
            as_text(&metadata.cursor),
        ];
        columns.join("\t")
    }

    pub(super) fn as_json(&self) -> Value {
        let metadata = &self.metadata;
        let text = |text: &str| Some(text).filter(|text| !text.is_empty()).map(Value::from);
        let query = metadata.query.clone().unwrap_or_default();
        let ended = metadata.state() == OperationState::Ended;
        json!({
            "name": self.name,
            "display_name": text(&metadata.display_name),
            "client": metadata.client,
            "desired_names": query.desired_names,
            "algorithm": algorithm(&query),
            "encoding": encoding(&query),
            "ideal_distance": query.ideal_distance,
            "interesting_distance": query.interesting_distance,
            "state": self.state(),
            "state_message": text(&metadata.state_message),
            "hashes": metadata.hashes,
            "maximum_hashes": metadata.maximum_hashes,
            "frontier": metadata.frontier,
            "candidates": metadata.candidates,
            "created_at": rfc3339(metadata.create_time.as_ref()),
            "updated_at": rfc3339(metadata.update_time.as_ref()),
            "ended_at": rfc3339(metadata.end_time.as_ref()),
            "expires_at": rfc3339(metadata.expire_time.as_ref()),
            "end_reason": ended.then(|| word(metadata.end_reason().as_str_name(), "END_REASON_")),
            "end_message": text(&metadata.end_message),
            "cursor": text(&metadata.cursor),
            "search_id": text(&metadata.search_id),
            "found": self.found.as_ref().map(candidate_as_json),
        })
    }

    /// Returns the operation as lines of names and values, for people.
    pub(super) fn in_lines(&self) -> String {
        let metadata = &self.metadata;
        let query = metadata.query.clone().unwrap_or_default();
        let count = |count: u64| figures::grouped(count);
        let time = |time| rfc3339(time).unwrap_or_default();
        let mut lines = vec![
            ("name", as_text(&self.name)),
            ("display name", as_text(&metadata.display_name)),
            ("state", self.state()),
        ];
        let of_state = match metadata.state() {
            OperationState::Ended => "end",
            _ => "because",
        };
        lines.push((of_state, self.ending()));
        if let Some(found) = &self.found {
            let hex = found.secret.iter().map(|byte| format!("{byte:02x}"));
            lines.push(("found", as_text(&found.hashed_name)));
            lines.push(("secret (base64)", BASE64_STANDARD.encode(&found.secret)));
            lines.push(("secret (hex)", hex.collect()));
        }
        lines.extend([
            ("names", listed(self.names())),
            ("ideal distance", query.ideal_distance.to_string()),
            (
                "interesting distance",
                query.interesting_distance.to_string(),
            ),
            ("algorithm", algorithm(&query)),
            ("encoding", encoding(&query)),
            ("client", as_text(&metadata.client)),
            ("hashes", count(metadata.hashes)),
            ("maximum hashes", count(metadata.maximum_hashes)),
            ("candidates", count(metadata.candidates)),
            ("created at", time(metadata.create_time.as_ref())),
            ("updated at", time(metadata.update_time.as_ref())),
            ("ended at", time(metadata.end_time.as_ref())),
            ("expires at", time(metadata.expire_time.as_ref())),
            ("search", as_text(&metadata.search_id)),
            ("cursor", as_text(&metadata.cursor)),
        ]);
        let shown = lines.into_iter().filter(|(_, value)| !value.is_empty());
        let rows: Vec<[String; 2]> = shown
            .map(|(name, value)| [name.to_owned(), value])
            .collect();
        in_table(&rows).join("\n") + "\n"
    }
}

fn algorithm(query: &Query) -> String {
    let algorithm = match query.algorithm() {
        Algorithm::Unspecified => Algorithm::Sha1,
        algorithm => algorithm,
    };
    word(algorithm.as_str_name(), "ALGORITHM_")
}

fn encoding(query: &Query) -> String {
    let encoding = match query.encoding() {
        Encoding::Unspecified => Encoding::Base64,
        encoding => encoding,
    };
    word(encoding.as_str_name(), "ENCODING_")
}

fn candidate_as_json(candidate: &Candidate) -> Value {
    let hex = candidate.secret.iter().map(|byte| format!("{byte:02x}"));
    json!({
        "name": candidate.desired_name,
        "hashed_name": candidate.hashed_name,
        "secret": BASE64_STANDARD.encode(&candidate.secret),
        "hex": hex.collect::<String>(),
        "distance": candidate.distance,
        "window": candidate.window,
    })
}

/// Returns a candidate as a line like those of `find`.
pub(super) fn candidate_line(candidate: &Candidate, json: bool) -> String {
    let mut value = candidate_as_json(candidate);
    if json {
        let kind = if candidate.is_ideal {
            "result"
        } else {
            "candidate"
        };
        value["type"] = kind.into();
        return terminal::json(&value) + "\n";
    }
    let or_empty = |field: &str| match value[field].as_str() {
        Some("") | None => "(empty)".to_owned(),
        Some(text) => as_text(text),
    };
    let columns = [
        as_text(&candidate.hashed_name),
        or_empty("secret"),
        or_empty("hex"),
        candidate.distance.to_string(),
        candidate.window.to_string(),
        as_text(&candidate.desired_name),
    ];
    columns.join("\t") + "\n"
}

/// Returns a table of operations as lines. The first line has the titles of the columns.
pub(super) fn table(operations: &[Listed], now: SystemTime) -> Vec<String> {
    let titles = [
        "OPERATION",
        "STATE",
        "CLIENT",
        "STARTED",
        "HASHES",
        "CANDIDATES",
        "NAMES",
        "END",
    ];
    let mut rows = vec![titles.map(str::to_owned)];
    rows.extend(operations.iter().map(|operation| {
        let metadata = &operation.metadata;
        [
            as_text(&operation.name),
            operation.state(),
            as_text(&metadata.client),
            age(metadata.create_time.as_ref(), now).unwrap_or_default(),
            number(metadata.hashes as f64),
            metadata.candidates.to_string(),
            listed(operation.names()),
            operation.ending(),
        ]
    }));
    in_table(&rows)
}
