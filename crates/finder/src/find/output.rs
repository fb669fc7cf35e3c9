//! What `find` prints: results on stdout, one a line; everything else on stderr.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use anyhow::{Context, Result};
use base64::{Engine, prelude::BASE64_STANDARD};
use hashfinder_search::{Candidate, DesiredName, HashedName, Query};

use crate::cli::say;

/// A secret that was found, with everything that is shown of it.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) secret: Vec<u8>,
    pub(crate) hashed_name: HashedName,
    pub(crate) distance: u8,
    pub(crate) window: u8,
}

impl Finding {
    /// What there is to show of any secret, of which nobody has said anything yet.
    pub(crate) fn of(secret: Vec<u8>, name: &DesiredName) -> Finding {
        let nearest = name.nearest(&secret);
        Finding {
            hashed_name: HashedName::of(&secret),
            distance: nearest.distance,
            window: nearest.window,
            secret,
        }
    }

    /// The secret in hexadecimal.
    pub(crate) fn hex(&self) -> String {
        self.secret
            .iter()
            .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

impl From<Candidate> for Finding {
    fn from(candidate: Candidate) -> Finding {
        Finding {
            secret: candidate.secret.as_bytes().to_vec(),
            hashed_name: candidate.hashed_name(),
            distance: candidate.distance,
            window: candidate.window,
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = BASE64_STANDARD.encode(&self.secret);
        let hex = self.hex();
        write!(f, "{}\t{secret}\t{hex}", self.hashed_name)?;
        write!(f, "\t{}\t{}", self.distance, self.window)
    }
}

/// The two streams, and the nearest candidate that has been seen.
pub(super) struct Output {
    shows: u8,
    best: Option<Finding>,
    headed: bool,
}

impl Output {
    pub(super) fn new(query: &Query) -> Output {
        Output {
            shows: query.interesting_distance().get(),
            best: None,
            headed: !io::stdout().is_terminal(),
        }
    }

    /// Prints a secret on the way, if it is near enough to be shown; says whether anybody reads.
    pub(super) fn candidate(&mut self, finding: Finding) -> Result<bool> {
        let mut read = true;
        if finding.distance < self.shows {
            read = self.line(&finding)?;
        }
        let best = self.best.as_ref();
        if best.is_none_or(|best| finding.distance < best.distance) {
            self.best = Some(finding);
        }
        Ok(read)
    }

    /// Prints the answer.
    pub(super) fn answer(&mut self, finding: &Finding) -> Result<()> {
        self.line(finding).map(drop)
    }

    fn line(&mut self, finding: &Finding) -> Result<bool> {
        if !self.headed {
            self.headed = true;
            let heading = "hashed name                 \tsecret\thex\tdistance\twindow";
            // For people to read; the results go on without it.
            let _ = writeln!(io::stderr(), "{heading}");
        }
        let mut stdout = io::stdout().lock();
        // Each line at once: who pipes them somewhere wants them when they are found.
        match writeln!(stdout, "{finding}").and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(error).context("cannot write a result to stdout"),
        }
    }

    /// Tells the nearest candidate, for a search that has no answer.
    pub(super) fn best(&self) {
        match &self.best {
            Some(best) => say(format_args!("the nearest so far:\n{best}")),
            None => say("no candidate so far"),
        }
    }
}
