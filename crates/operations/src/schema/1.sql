-- Places in enumeration order, and numbers of hashes, are 16 bytes, big-endian. Times are in
-- milliseconds since 1970.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    -- The name without "operations/".
    name TEXT PRIMARY KEY,
    created INTEGER NOT NULL,
    client TEXT NOT NULL,
    request_id TEXT NOT NULL,
    display_name TEXT NOT NULL,
    -- The query and its start, as a cursor.
    text TEXT NOT NULL,
    maximum_hashes BLOB NOT NULL,
    keep INTEGER NOT NULL,
    budget BLOB NOT NULL,
    -- Pairs of places: the ranges that were not covered yet.
    to_cover BLOB NOT NULL,
    -- Places of what was found beyond the frontier.
    held BLOB NOT NULL,
    -- One past the last place to try.
    end_place BLOB NOT NULL,
    candidates INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    resumes INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    cancel TEXT,
    ended INTEGER,
    end_reason TEXT,
    end_message TEXT,
    expires INTEGER
) STRICT;

CREATE INDEX operations_by_time ON operations (created, name);
CREATE INDEX operations_by_client ON operations (client, created, name);
CREATE INDEX operations_unfinished ON operations (client) WHERE ended IS NULL;
CREATE INDEX operations_by_expiry ON operations (expires) WHERE expires IS NOT NULL;

CREATE TABLE candidates (
    operation TEXT NOT NULL,
    place BLOB NOT NULL,
    PRIMARY KEY (operation, place)
) STRICT, WITHOUT ROWID;

-- The requests that created operations. They are kept for a day after the operation was deleted.
CREATE TABLE requests (
    client TEXT NOT NULL,
    request_id TEXT NOT NULL,
    operation TEXT NOT NULL,
    text TEXT NOT NULL,
    maximum_hashes BLOB NOT NULL,
    forget INTEGER,
    PRIMARY KEY (client, request_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX requests_by_operation ON requests (operation);
CREATE INDEX requests_to_forget ON requests (forget) WHERE forget IS NOT NULL;
