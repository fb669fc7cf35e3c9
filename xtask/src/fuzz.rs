//! `cargo xtask long fuzz`: fuzzes all untrusted input with libFuzzer.

use std::{
    cmp::Reverse,
    collections::BTreeMap,
    env,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Mutex,
    thread,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    results,
    steps::{cargo, root, runs, step, target, took},
};

/// The targets, and for each the number of inputs that the tests try: a few seconds' worth. Apart
/// from the effects of threads, every run tries the same inputs.
const TARGETS: [(&str, u64); 6] = [
    ("config", 20_000),
    ("connection", 6_000),
    ("credential", 200_000),
    ("cursor", 300_000),
    ("kernels", 8_000),
    ("request", 500_000),
];

/// Duration of the long run for each target, in seconds. With two processes at a time, the long run
/// takes ten minutes.
const SECONDS: u64 = 200;

/// Minimum number of inputs of the long run, over all targets. If it tries fewer in its time, it
/// continues with the fastest targets.
const INPUTS: u64 = 100_000_000;

/// Maximum time for one input, in seconds; the slowest takes some hundredths of a second.
const INPUT_SECONDS: u64 = 20;

/// Memory limit of a target in MiB: many times what targets need, so that only unbounded growth
/// exceeds it.
const MEMORY: u64 = 1024;

/// Number of inputs of a target to keep in the repository. The hundred inputs that add most reach
/// 19 of 20 known edges.
const KEPT: usize = 100;

/// Flags that count the edges that an input reaches, trace comparisons, and keep debug assertions.
/// `cargo fuzz --sanitizer none` passes the same flags to rustc, and every compiler supports them.
const INSTRUMENTED: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cdebug-assertions";

/// How the targets' programs are compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// For few inputs: compiles in half the time.
    Quick,
    /// For many inputs.
    Thorough,
    /// With AddressSanitizer, which detects leaks. Needs a nightly compiler.
    Leaks,
}

impl Kind {
    fn flags(self) -> &'static str {
        match self {
            Kind::Quick => "-Copt-level=1 -Cdebuginfo=0",
            Kind::Thorough => "-Ccodegen-units=1",
            Kind::Leaks => "-Ccodegen-units=1 -Zsanitizer=address",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Kind::Quick => "fuzz-quick",
            Kind::Thorough => "fuzz",
            Kind::Leaks => "fuzz-leaks",
        }
    }

    /// Returns the title of the section of `bench/RESULTS.md` for the last run of this kind. Runs
    /// that look for leaks have a section of their own.
    fn title(self) -> &'static str {
        match self {
            Kind::Quick | Kind::Thorough => "Fuzzing",
            Kind::Leaks => "Fuzzing for leaks",
        }
    }

    /// Returns what a run without failures has shown.
    fn shown(self) -> String {
        let leak = match self {
            Kind::Quick | Kind::Thorough => "",
            Kind::Leaks => "no leak, ",
        };
        format!("no panic, {leak}no input that took longer than {INPUT_SECONDS} seconds")
    }
}

/// Options of the command line.
#[derive(Default)]
struct Options {
    target: Option<&'static str>,
    seconds: Option<u64>,
    runs: Option<u64>,
    leaks: bool,
    keep: bool,
}

impl Options {
    fn of(arguments: &[&str]) -> Result<Options> {
        let mut options = Options::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut number = || {
                let number = arguments.next().and_then(|number| number.parse().ok());
                number.with_context(|| format!("{argument} takes a number"))
            };
            match *argument {
                "--seconds" => options.seconds = Some(number()?),
                "--runs" => options.runs = Some(number()?),
                "--leaks" => options.leaks = true,
                "--keep" => options.keep = true,
                name => {
                    let known = TARGETS.iter().find(|(target, _)| *target == name);
                    let names = TARGETS.map(|(target, _)| target).join(", ");
                    let known = known.with_context(|| format!("the targets are {names}"))?;
                    options.target = Some(known.0);
                }
            }
        }
        Ok(options)
    }

    fn targets(&self) -> Vec<&'static str> {
        let names = TARGETS.iter().map(|(name, _)| *name);
        names
            .filter(|name| self.target.is_none_or(|target| target == *name))
            .collect()
    }
}

/// Does the long run, with one process per core, and prints a table of the results. A run of all
/// targets without custom limits writes the table into `bench/RESULTS.md`.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let options = Options::of(arguments)?;
    let kind = if options.leaks {
        Kind::Leaks
    } else {
        Kind::Thorough
    };
    let build = Build { kind };
    build.build()?;
    let limit = match (options.runs, options.seconds) {
        (Some(runs), _) => format!("-runs={runs}"),
        (None, seconds) => format!("-max_total_time={}", seconds.unwrap_or(SECONDS)),
    };
    let whole = (options.target, options.runs, options.seconds) == (None, None, None);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let began = Instant::now();
    let targets = options.targets().into_iter();
    let mut done = build.fuzz_all(targets.map(|name| (name, limit.clone())).collect(), cores)?;
    if whole && kind == Kind::Thorough {
        build.make_up(&mut done, cores)?;
    }
    let mut table = String::from(
        "| target | inputs | a second | edges seen | inputs kept | peak RSS |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let (mut inputs, mut failed) = (0, Vec::new());
    for (name, figures) in done {
        match figures {
            Ok(figures) => {
                inputs += figures.inputs;
                writeln!(table, "| {name} | {figures}")?;
            }
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    let (minutes, sanitizer) = (
        began.elapsed().as_secs_f64() / 60.0,
        if options.leaks {
            ", with AddressSanitizer and LeakSanitizer"
        } else {
            ""
        },
    );
    let only = options.target.map(|name| format!(" for {name} alone"));
    let came_to = if failed.is_empty() {
        kind.shown()
    } else {
        format!("targets that failed: {}", failed.len())
    };
    let text = format!(
        "{inputs} inputs{} in {minutes:.0} minutes on {}, {cores} processes at a time{sanitizer}: {came_to}.\n\n{table}",
        only.unwrap_or_default(),
        results::cpu(),
    );
    ensure!(failed.is_empty(), "{text}\n{}", failed.join("\n"));
    if options.keep {
        for name in options.targets() {
            build.keep(name)?;
        }
    }
    if whole {
        results::write(kind.title(), &text)
    } else {
        println!("{text}");
        Ok(())
    }
}

/// Does the short run for the tests: the corpus, and some inputs derived from it.
pub(crate) fn short() -> Result<()> {
    let build = Build { kind: Kind::Quick };
    build.build()?;
    for (name, runs) in TARGETS {
        let began = Instant::now();
        // An empty folder, so that the findings of other runs have no effect.
        let new = folder().join("short").join(name);
        if new.exists() {
            fs::remove_dir_all(&new).context("cannot remove what was found before")?;
        }
        let figures = build.fuzz(name, &new, &[&format!("-runs={runs}"), "-seed=1"]);
        took(&format!("fuzzing {name}"), began.elapsed());
        let (figures, seconds) = (figures?, began.elapsed().as_secs_f64());
        println!(
            "== fuzzing {name}: {} inputs, {seconds:.1} s",
            figures.inputs
        );
    }
    Ok(())
}

/// Result of each target.
type Done = BTreeMap<&'static str, Result<Figures>>;

fn next<T>(waiting: &Mutex<Vec<T>>) -> Option<T> {
    waiting.lock().ok()?.pop()
}

fn folder() -> PathBuf {
    target().join("fuzz")
}

/// Returns the folder of inputs that were found on this machine. The next run starts from them.
fn found(name: &str) -> PathBuf {
    folder().join("found").join(name)
}

/// Returns the folder of inputs in the repository.
fn corpus(name: &str) -> PathBuf {
    root().join("fuzz/corpus").join(name)
}

/// The programs of the targets.
struct Build {
    kind: Kind,
}

impl Build {
    fn folder(&self) -> PathBuf {
        target().join(self.kind.folder())
    }

    fn build(&self) -> Result<()> {
        ensure!(
            runs(Command::new("c++").arg("--version")),
            "libFuzzer has to be compiled, by c++, which is not there"
        );
        let host = host()?;
        // With an explicit target, build scripts and macros are not instrumented.
        let arguments =
            format!("build --manifest-path fuzz/Cargo.toml --locked --release --target {host}");
        let mut build;
        let flags = format!("{INSTRUMENTED} {}", self.kind.flags());
        if self.kind == Kind::Leaks {
            build = Command::new("cargo");
            build.arg("+nightly").args(arguments.split(' '));
            build.env_remove("RUSTUP_TOOLCHAIN");
        } else {
            build = cargo(&arguments);
        }
        build
            .env("RUSTFLAGS", flags)
            .env("CARGO_TARGET_DIR", self.folder());
        step("the fuzz targets", &mut build)
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        Ok(self.folder().join(host()?).join("release").join(name))
    }

    /// Fuzzes targets, at most `processes` at a time, each within its limit.
    fn fuzz_all(&self, targets: Vec<(&'static str, String)>, processes: usize) -> Result<Done> {
        let (waiting, done) = (Mutex::new(targets), Mutex::new(Done::new()));
        thread::scope(|scope| {
            for _ in 0..processes {
                scope.spawn(|| {
                    while let Some((name, limit)) = next(&waiting) {
                        println!("== fuzzing {name}");
                        let figures = self.fuzz(name, &found(name), &[&limit]);
                        if let Ok(mut done) = done.lock() {
                            done.insert(name, figures);
                        }
                    }
                });
            }
        });
        done.into_inner().ok().context("a target panicked")
    }

    /// Continues with the fastest targets until [`INPUTS`] inputs have been tried in total. Does
    /// nothing if a target failed.
    fn make_up(&self, done: &mut Done, processes: usize) -> Result<()> {
        let mut rates: Vec<(u64, &'static str)> = Vec::new();
        let mut missing = INPUTS;
        for (name, figures) in &*done {
            let Ok(figures) = figures else {
                return Ok(());
            };
            missing = missing.saturating_sub(figures.inputs);
            rates.push((figures.a_second, *name));
        }
        if missing == 0 {
            return Ok(());
        }
        rates.sort_unstable_by_key(|(rate, _)| Reverse(*rate));
        rates.truncate(processes);
        // Each target gets inputs in proportion to its rate, so that all targets take equally long.
        let together: u64 = rates.iter().map(|(rate, _)| rate).sum();
        let share = |rate: u64| (missing as f64 * rate as f64 / together.max(1) as f64).ceil();
        let limits = rates.iter();
        let limits = limits.map(|(rate, name)| (*name, format!("-runs={}", share(*rate))));
        for (name, more) in self.fuzz_all(limits.collect(), processes)? {
            let all = match (done.remove(name), more) {
                (Some(Ok(first)), Ok(more)) => Ok(first.and(&more)),
                (_, more) => more,
            };
            done.insert(name, all);
        }
        Ok(())
    }

    /// Runs a target on the inputs in the repository and in the folder `new`, and adds its findings
    /// to `new`.
    fn fuzz(&self, name: &str, new: &Path, limits: &[&str]) -> Result<Figures> {
        let (artifacts, logs) = (folder().join("artifacts").join(name), folder().join("logs"));
        for folder in [new, &artifacts, &logs, &corpus(name)] {
            fs::create_dir_all(folder).context("cannot make a folder")?;
        }
        let log = logs.join(format!("{name}.log"));
        let mut program = Command::new(self.program(name)?);
        program
            .args(limits)
            // With libFuzzer's default, choosing the next input takes longer than trying it, and
            // finds nothing more.
            .arg("-entropic=0")
            .arg(format!("-timeout={INPUT_SECONDS}"))
            .arg(format!("-rss_limit_mb={}", self.memory()))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg("-print_final_stats=1");
        let dictionary = root().join(format!("fuzz/dictionaries/{name}.dict"));
        if dictionary.exists() {
            program.arg(format!("-dict={}", dictionary.display()));
        }
        program.arg(new).arg(corpus(name));
        program.stderr(fs::File::create(&log).context("cannot write a log")?);
        let status = program.current_dir(root()).status();
        let status = status.with_context(|| format!("cannot run {program:?}"))?;
        let printed = fs::read(&log).context("cannot read the log")?;
        let printed = String::from_utf8_lossy(&printed);
        if !status.success() {
            let lines: Vec<&str> = printed.lines().collect();
            let last = lines[lines.len().saturating_sub(60)..].join("\n");
            bail!(
                "{last}\n{name} failed with {status}; all of this is in {}, and {:?} with the file that \
                 it names does it again",
                log.display(),
                program.get_program()
            );
        }
        Figures::of(&printed).with_context(|| format!("{} has no figures", log.display()))
    }

    fn memory(&self) -> u64 {
        // A sanitizer retains freed memory for a while.
        if self.kind == Kind::Leaks {
            4 * MEMORY
        } else {
            MEMORY
        }
    }

    /// Replaces a target's corpus in the repository by at most [`KEPT`] inputs that together reach
    /// nearly every edge known to be reachable.
    fn keep(&self, name: &str) -> Result<()> {
        let kept = folder().join("kept").join(name);
        if kept.exists() {
            fs::remove_dir_all(&kept).context("cannot remove what was kept before")?;
        }
        fs::create_dir_all(&kept).context("cannot make a folder")?;
        let mut merge = Command::new(self.program(name)?);
        merge.args(["-set_cover_merge=1", "-use_counters=0"]);
        merge.arg(&kept).arg(corpus(name)).arg(found(name));
        merge.arg(format!("-artifact_prefix={}/", folder().display()));
        step(&format!("the corpus of {name}"), &mut merge)?;
        fs::remove_dir_all(corpus(name)).context("cannot replace the corpus")?;
        fs::create_dir_all(corpus(name)).context("cannot make a folder")?;
        let mut files = Vec::new();
        for file in fs::read_dir(&kept)? {
            let file = file?;
            files.push((file.metadata()?.modified()?, file));
        }
        // libFuzzer writes the inputs in the order in which it chose them: the input that adds most
        // comes first.
        files.sort_by_key(|(written, _)| *written);
        for (_, file) in files.iter().take(KEPT) {
            fs::copy(file.path(), corpus(name).join(file.file_name()))?;
        }
        Ok(())
    }
}

/// Figures of a target's run.
struct Figures {
    inputs: u64,
    a_second: u64,
    edges: u64,
    kept: u64,
    memory: u64,
}

impl Figures {
    /// Parses libFuzzer's final statistics.
    fn of(printed: &str) -> Option<Figures> {
        let stat = |name: &str| {
            let line = printed
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').trim().parse().ok()
        };
        let line = printed.lines().rev().find(|line| line.contains(" cov: "))?;
        let after = |word: &str| {
            line.split_whitespace()
                .skip_while(|one| *one != word)
                .nth(1)
        };
        Some(Figures {
            inputs: stat("stat::number_of_executed_units")?,
            a_second: stat("stat::average_exec_per_sec")?,
            edges: after("cov:")?.parse().ok()?,
            kept: after("corp:")?.split('/').next()?.parse().ok()?,
            memory: stat("stat::peak_rss_mb")?,
        })
    }

    /// Combines the figures of two runs. The second run (`more`) continued from the findings of the
    /// first.
    fn and(&self, more: &Figures) -> Figures {
        let seconds = |of: &Figures| of.inputs as f64 / of.a_second.max(1) as f64;
        let inputs = self.inputs + more.inputs;
        Figures {
            inputs,
            a_second: (inputs as f64 / (seconds(self) + seconds(more)).max(1.0)) as u64,
            edges: self.edges.max(more.edges),
            kept: more.kept,
            memory: self.memory.max(more.memory),
        }
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Figures {
            inputs,
            a_second,
            edges,
            kept,
            memory,
        } = self;
        write!(
            f,
            "{inputs} | {a_second} | {edges} | {kept} | {memory} MiB |"
        )
    }
}

/// Returns the target triple of this machine.
fn host() -> Result<String> {
    let rustc = env::var_os("RUSTC").unwrap_or("rustc".into());
    let output = Command::new(rustc).arg("-vV").output();
    let printed = String::from_utf8(output.context("cannot run rustc")?.stdout)?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not print its host")?.to_owned())
}
