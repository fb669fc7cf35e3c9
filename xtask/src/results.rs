//! Writes `bench/RESULTS.md`, which has a section for each benchmark.

use std::{collections::BTreeMap, fmt, fmt::Write as _, fs};

use anyhow::{Context, Result, ensure};

use crate::steps::{Form, cargo, output, root};

const HEAD: &str = "# Results\n\nWhat `cargo xtask bench` and `cargo xtask long` measured. Figures of \
                    benchmarks are medians; those of a ratio\nwere measured in turn. [NOTES.md](NOTES.md) \
                    explains them: what was tried, and why some goals are missed.\n";

/// Prints a section and writes it into the file. It replaces the section of the last run.
pub(crate) fn write(title: &str, text: &str) -> Result<()> {
    println!("{text}");
    let file = root().join("bench/RESULTS.md");
    let before = fs::read_to_string(&file).unwrap_or_default();
    let section = format!("\n## {title}\n\n{}\n", text.trim());
    let others = before.split("\n## ").skip(1);
    let mut sections: Vec<String> = others
        .filter(|other| other.split('\n').next() != Some(title))
        .map(|other| format!("\n## {}\n", other.trim()))
        .collect();
    sections.push(section);
    sections.sort_by_key(|section| !section.starts_with("\n## Kernels"));
    let all = format!("{HEAD}{}", sections.concat());
    fs::write(&file, all).with_context(|| format!("cannot write {}", file.display()))
}

/// Measurements of several rounds, by the name of the figure.
#[derive(Default)]
pub(crate) struct Samples(BTreeMap<String, Vec<f64>>);

impl Samples {
    pub(crate) fn add(&mut self, name: &str, value: f64) {
        self.0.entry(name.to_owned()).or_default().push(value);
    }

    /// Runs a benchmark of a package. Each line of its output is a figure's name, a tab and its
    /// value.
    pub(crate) fn bench(&mut self, package: &str, bench: &str, form: Form) -> Result<()> {
        let mut command = match form {
            Form::Long => cargo(&format!("bench --quiet -p {package} --bench {bench}")),
            // Builds for the whole workspace, so that it shares compiled dependencies with the
            // tests.
            Form::Short => cargo(&format!(
                "bench --quiet --workspace --profile dev --bench {bench} -- --short"
            )),
        };
        let text = output(&mut command)?;
        ensure!(
            text.contains('\t'),
            "{command:?} printed no figures:\n{text}"
        );
        for line in text.lines() {
            if let Some((name, value)) = line.split_once('\t') {
                self.add(name, value.parse()?);
            }
        }
        Ok(())
    }

    /// Prints the median of every figure.
    pub(crate) fn print(self) {
        for (name, values) in self.0 {
            println!("{:14.3}  {name}", median(values));
        }
    }

    /// Writes a section: an introduction, the figures that have a goal, and the others.
    pub(crate) fn write(self, title: &str, intro: &str, goals: &[(&str, Goal)]) -> Result<()> {
        let medians = self.0.into_iter();
        let medians: BTreeMap<String, f64> = medians
            .map(|(name, values)| (name, median(values)))
            .collect();
        let mut text = format!("{intro}\n\n| figure | goal | median |\n| --- | ---: | ---: |\n");
        for (name, goal) in goals {
            let value = medians.get(*name);
            let value = value.with_context(|| format!("{name} was not measured"))?;
            writeln!(text, "| {name} | {goal} | {value:.3} |")?;
        }
        text += "\n| beside these | median |\n| --- | ---: |\n";
        for (name, value) in &medians {
            if goals.iter().all(|(goal, _)| goal != name) {
                writeln!(text, "| {name} | {value:.3} |")?;
            }
        }
        write(title, &text)
    }
}

/// Goal of a figure.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtLeast(f64),
    AtMost(f64),
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Goal::AtLeast(goal) => write!(f, "{goal} or more"),
            Goal::AtMost(goal) => write!(f, "{goal} or less"),
        }
    }
}

/// Returns the median. For an even number of samples, this is the mean of the two in the middle.
pub(crate) fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    if samples.len() % 2 == 1 {
        samples[middle]
    } else {
        (samples[middle - 1] + samples[middle]) / 2.0
    }
}

/// Returns the CPU's name.
pub(crate) fn cpu() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let name = name.and_then(|rest| rest.split_once(':'));
    name.map_or("an unknown CPU".to_owned(), |(_, name)| {
        name.trim().to_owned()
    })
}
