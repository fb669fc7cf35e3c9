//! `hashfinder estimate`: how likely a match is, and how long a search takes.

mod arguments;

use std::{num::NonZeroUsize, thread};

use anyhow::Result;
use hashfinder_search::{
    DesiredName, Kernel, Odds, Query,
    throughput::{MEASURING_TIME, search_rate},
};
use hashfinder_system::running_time::RunningTime;

pub(crate) use self::arguments::EstimateArguments;
use crate::{
    arguments::QueryError,
    exit::Exit,
    terminal::{
        self,
        figures::{Bounds, number, probability, show, time},
        print, say,
    },
};

/// The chance that any secret matches is shown if it is lower than this.
const NEARLY_SURE: f64 = 0.999;

/// Runs the command.
pub(crate) fn run(arguments: &EstimateArguments) -> Result<Exit> {
    let query = match arguments.query.query() {
        Ok(query) => query,
        Err(error) => {
            say(&error);
            return Ok(match error {
                QueryError::Wrong(_) => Exit::Usage,
                QueryError::Impossible(_) => Exit::Impossible,
            });
        }
    };
    let odds = Odds::any(query.names(), query.ideal_distance());
    let kernel = arguments.kernel.unwrap_or_else(Kernel::best);
    let rate = arguments.rate.unwrap_or_else(|| {
        let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let mut running = RunningTime::start();
        search_rate(kernel, &query, threads.get(), MEASURING_TIME, || {
            running.read()
        })
    });
    let text = if arguments.json {
        json(&query, &odds, rate, arguments.rate.is_none())
    } else {
        let rate_source = match arguments.rate {
            Some(_) => "as given".to_owned(),
            None => format!(
                "measured on this machine, {}",
                query.matcher().hashed_by(kernel)
            ),
        };
        table(&query, &odds, rate, &rate_source)
    };
    print(format!("{text}\n"))?;
    Ok(Exit::Success)
}

/// Returns the numbers of hashes to show, each after its name in JSON and its title in the table.
fn points(odds: &Odds) -> [(&'static str, &'static str, Bounds); 4] {
    [
        ("expected", "on average", odds.expected_hashes()),
        ("median", "50% finish within", odds.hashes_for(0.5)),
        ("p90", "90% finish within", odds.hashes_for(0.9)),
        ("p99", "99% finish within", odds.hashes_for(0.99)),
    ]
}

fn texts(query: &Query) -> impl Iterator<Item = &str> {
    query.names().iter().map(DesiredName::as_str)
}

fn json(query: &Query, odds: &Odds, rate: f64, measured: bool) -> String {
    let bounds = |bounds: &Bounds| serde_json::json!({"low": bounds.start(), "high": bounds.end()});
    let points = points(odds);
    let hashes = points.iter().map(|(key, _, hashes)| (*key, bounds(hashes)));
    let seconds = points.iter().map(|(key, _, hashes)| {
        let seconds = hashes.start() / rate..=hashes.end() / rate;
        (*key, bounds(&seconds))
    });
    let object = serde_json::json!({
        "names": texts(query).collect::<Vec<_>>(),
        "algorithm": query.spelling().algorithm.to_string(),
        "encoding": query.spelling().encoding.to_string(),
        "ideal_distance": query.ideal_distance().get(),
        "exact": odds.is_exact(),
        "chance": bounds(&odds.chance()),
        "hashes": hashes.collect::<serde_json::Value>(),
        "hashes_per_second": rate,
        "measured": measured,
        "seconds": seconds.collect::<serde_json::Value>(),
    });
    terminal::json(&object)
}

fn table(query: &Query, odds: &Odds, rate: f64, rate_source: &str) -> String {
    let names: Vec<String> = texts(query)
        .map(|name| name.escape_debug().to_string())
        .collect();
    let (distance, names) = (query.ideal_distance(), names.join(" or "));
    let what = format!("within distance {distance} of {names}");
    let mut lines = vec![if *odds.chance().start() == 1.0 {
        format!("every hash is {what}")
    } else {
        let chance = show(&odds.chance(), probability);
        let hashes = show(&odds.expected_hashes(), number);
        format!("1 in {hashes} hashes is {what} (a chance of {chance})")
    }];
    if !odds.is_exact() {
        lines.push(
            "The exact numbers take too long to compute; these are lower and upper bounds."
                .to_owned(),
        );
    }
    lines.push(String::new());
    let (searches, hashes, rate_shown) = ("searches", "hashes", number(rate));
    lines.push(format!(
        "{searches:<18} {hashes:>26}   at {rate_shown} per second ({rate_source})"
    ));
    for (key, title, hashes) in points(odds) {
        let times = hashes.start() / rate..=hashes.end() / rate;
        // A search ends after a whole number of hashes, but the average need not be whole.
        let whole = |hashes: f64| {
            if key == "expected" {
                hashes
            } else {
                hashes.ceil()
            }
        };
        let hashes = show(&hashes, |hashes| number(whole(hashes)));
        let times = show(&times, time);
        lines.push(format!("{title:<18} {hashes:>26}   {times}"));
    }
    lines.push(String::new());
    lines.push(
        "A search has no memory: however long it has run, these numbers stay the same.".to_owned(),
    );
    let ever = odds.chance_after(query.keyspace().end());
    if *ever.end() < NEARLY_SURE {
        lines.push(format!(
            "There are {} secrets to try. The chance that any of them matches is {}.",
            number(query.keyspace().end() as f64),
            show(&ever, probability),
        ));
    }
    lines.join("\n")
}
