//! `cargo xtask boundaries`: checks that packages and files depend only on what they may.
//!
//! Each package has a row in [`TABLE`] that limits its normal and build dependencies, both direct
//! and indirect. Dev-dependencies are not limited. The files of a package must not import each
//! other in a ring ([`imports`]), except for [`RINGS`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    graph::{Graph, cycles, way},
    imports::{self, Imports},
    steps::{cargo, root, took},
};

/// What a package may depend on, directly or not.
struct Row {
    package: &'static str,
    /// Packages of the workspace that it may depend on.
    may: &'static [&'static str],
    /// Why it may not depend on other packages of the workspace.
    why: &'static str,
    /// External packages that it may not depend on, and why.
    never: &'static [(&'static str, &'static str)],
}

/// Forbids a dependency on clap, for libraries.
const CLAP: (&str, &str) = (
    "clap",
    "only programs have a command line; a library takes plain structs",
);

/// A row for each package of the workspace. No row allows `hashfinder`: nothing is built on the
/// program.
const TABLE: &[Row] = &[
    Row {
        package: "tonic-cancel",
        may: &[],
        why: "it serves any tonic service, and is to be published without the rest",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-kernels",
        may: &[],
        why: "the hot loop knows blocks and filters, and is tested against an oracle without the rest",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-search",
        may: &["hashfinder-kernels"],
        why: "the engine runs the same in the program, in a server and under loom",
        never: &[
            CLAP,
            ("tokio", "the engine has its own threads, and no sockets"),
            ("tonic", "the engine knows no calls and no statuses"),
        ],
    },
    Row {
        package: "hashfinder-system",
        may: &[],
        why: "it wraps the operating system, for all others",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-tls",
        may: &["hashfinder-system"],
        why: "server and client share it, so it knows neither",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-fleet",
        may: &["hashfinder-search", "hashfinder-kernels"],
        why: "leader and agents are simulated without a network",
        never: &[
            CLAP,
            ("tokio", "it has no tasks, no clock and no sockets"),
            ("tonic", "it knows no calls and no statuses"),
        ],
    },
    Row {
        package: "hashfinder-fleet-nats",
        may: &[
            "hashfinder-fleet",
            "hashfinder-kernels",
            "hashfinder-operations",
            "hashfinder-proto",
            "hashfinder-search",
            "hashfinder-system",
            "hashfinder-tls",
        ],
        why: "server and agent use it, so it knows neither calls nor the command line",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-operations",
        may: &["hashfinder-search", "hashfinder-kernels"],
        why: "it saves and resumes searches for any service, and is simulated without one",
        never: &[CLAP, ("tonic", "operations know no calls and no statuses")],
    },
    Row {
        package: "hashfinder-proto",
        may: &[],
        why: "the contract is the same for every server and client, so it knows none",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-transport",
        may: &["hashfinder-system", "hashfinder-tls"],
        why: "it limits the connections of any HTTP/2 server, and knows nothing of hashing",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-server",
        may: &[
            "hashfinder-fleet",
            "hashfinder-fleet-nats",
            "hashfinder-kernels",
            "hashfinder-operations",
            "hashfinder-proto",
            "hashfinder-search",
            "hashfinder-system",
            "hashfinder-tls",
            "hashfinder-transport",
            "tonic-cancel",
        ],
        why: "a server runs in any program, and does not call itself",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder-client",
        may: &[
            "hashfinder-kernels",
            "hashfinder-proto",
            "hashfinder-search",
            "hashfinder-system",
            "hashfinder-tls",
            "tonic-cancel",
        ],
        why: "a client knows a server by its contract only",
        never: &[CLAP],
    },
    Row {
        package: "hashfinder",
        may: &[
            "hashfinder-client",
            "hashfinder-fleet",
            "hashfinder-fleet-nats",
            "hashfinder-kernels",
            "hashfinder-operations",
            "hashfinder-proto",
            "hashfinder-search",
            "hashfinder-server",
            "hashfinder-system",
            "hashfinder-tls",
            "hashfinder-transport",
            "tonic-cancel",
        ],
        why: "the program is for users, the other packages are tools for its developers",
        never: &[],
    },
    Row {
        package: "hashfinder-attack",
        may: &["hashfinder-proto"],
        why: "an attacker shares no code with what it attacks, so that no bug hides in both",
        never: &[],
    },
    Row {
        package: "tonic-cancel-interop",
        may: &["tonic-cancel"],
        why: "it tests tonic-cancel as any user of it would have it",
        never: &[],
    },
    Row {
        package: "xtask",
        may: &[],
        why: "it builds and runs the others, also when they do not compile",
        never: &[],
    },
];

/// Files of a package that may import each other.
struct Ring {
    package: &'static str,
    /// Paths of the files, below the package's `src`.
    files: &'static [&'static str],
}

/// The rings that are allowed.
const RINGS: &[Ring] = &[
    // Together these files are the state machine of a call.
    Ring {
        package: "tonic-cancel",
        files: &[
            "server/context.rs",
            "server/deadlines.rs",
            "server/drain.rs",
        ],
    },
];

/// Checks all boundaries. Prints which packages of the workspace each of them depends on.
pub(crate) fn run() -> Result<()> {
    println!("== boundaries");
    let began = Instant::now();
    let workspace = Workspace::read()?;
    let mut faults = forbidden(&workspace.uses, &workspace.packages(), TABLE);
    for (package, sources) in &workspace.sources {
        let mut imports = Imports::new();
        for source in sources {
            imports.extend(imports::of(source, &|file| fs::read_to_string(file).ok())?);
        }
        faults.extend(rings(package, &imports, RINGS));
    }
    took("boundaries", began.elapsed());
    if !faults.is_empty() {
        bail!(
            "boundaries (see xtask/src/boundaries.rs):\n{}",
            faults.join("\n")
        );
    }
    for package in workspace.sources.keys() {
        let uses = workspace.uses.get(package).into_iter().flatten();
        let ours: Vec<&str> = uses
            .map(String::as_str)
            .filter(|used| workspace.sources.contains_key(*used))
            .collect();
        println!("{package}: {}", ours.join(", "));
    }
    println!("== boundaries: {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// The packages that are built, by name. The names of external packages include their version,
/// because a package can have several versions.
struct Workspace {
    /// The normal and build dependencies of every package.
    uses: Graph,
    /// Each package of the workspace, with the root files of its library and programs.
    sources: BTreeMap<String, Vec<PathBuf>>,
}

impl Workspace {
    fn read() -> Result<Workspace> {
        let mut metadata = cargo("metadata --format-version 1 --locked");
        let output = metadata.current_dir(root()).output();
        let output = output.context("cannot run cargo metadata")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "cargo metadata: {errors}");
        Workspace::parse(&serde_json::from_slice(&output.stdout)?)
    }

    fn parse(metadata: &Value) -> Result<Workspace> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
        let members = list(&metadata["workspace_members"]);
        let mut names = BTreeMap::new();
        let mut sources = BTreeMap::new();
        for package in list(&metadata["packages"]) {
            let mut name = text(&package["name"])?;
            if members.contains(&package["id"]) {
                let targets = list(&package["targets"]).into_iter().filter(|target| {
                    let kinds = list(&target["kind"]);
                    kinds.contains(&"lib".into()) || kinds.contains(&"bin".into())
                });
                let roots = targets.map(|target| text(&target["src_path"]).map(PathBuf::from));
                sources.insert(name.clone(), roots.collect::<Result<_>>()?);
            } else {
                name = format!("{name} {}", text(&package["version"])?);
            }
            names.insert(text(&package["id"])?, name);
        }
        let name = |id: &Value| {
            let name = id.as_str().and_then(|id| names.get(id));
            name.cloned()
                .context("cargo metadata: a package without a name")
        };
        let mut uses = Graph::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let built = list(&node["deps"]).into_iter().filter(|used| {
                let kinds = list(&used["dep_kinds"]);
                kinds.iter().any(|kind| kind["kind"] != "dev")
            });
            let built = built.map(|used| name(&used["pkg"]));
            uses.insert(name(&node["id"])?, built.collect::<Result<_>>()?);
        }
        Ok(Workspace { uses, sources })
    }

    fn packages(&self) -> BTreeSet<&str> {
        self.sources.keys().map(String::as_str).collect()
    }
}

/// Returns the dependencies that the table forbids, and the packages that only the table or only
/// the workspace has. `ours` are the packages of the workspace.
fn forbidden(uses: &Graph, ours: &BTreeSet<&str>, table: &[Row]) -> Vec<String> {
    let mut faults = Vec::new();
    let rows: BTreeSet<&str> = table.iter().map(|row| row.package).collect();
    for package in ours.difference(&rows) {
        faults.push(format!("{package} has no row in the table"));
    }
    let named = table.iter().flat_map(|row| row.may).copied().chain(rows);
    let named: BTreeSet<&str> = named.collect();
    for missing in named.difference(ours) {
        faults.push(format!(
            "the table names the package {missing}, which the workspace does not have"
        ));
    }
    for row in table {
        let Row {
            package,
            may,
            why,
            never,
        } = row;
        for used in uses.keys() {
            let name = used.split(' ').next().unwrap_or(used);
            let why = if ours.contains(name) {
                (name != *package && !may.contains(&name)).then_some(*why)
            } else {
                let never = never.iter().find(|(never, _)| *never == name);
                never.map(|(_, why)| *why)
            };
            if let Some(why) = why
                && let Some(way) = way(uses, package, used)
            {
                let way = way.join(" -> ");
                faults.push(format!(
                    "{package} must not depend on {name} ({why}): {way}"
                ));
            }
        }
    }
    faults
}

/// Returns the rings of imports that are not in `allowed`, and the exceptions that have become
/// unnecessary.
fn rings(package: &str, imports: &Imports, allowed: &[Ring]) -> Vec<String> {
    let mut files = Graph::new();
    for (from, to) in imports.keys() {
        files.entry(from.clone()).or_default().insert(to.clone());
    }
    let groups = cycles(&files);
    let is_within = |group: &[&str], ring: &Ring| group.iter().all(|one| ring.files.contains(one));
    let allowed = || allowed.iter().filter(|ring| ring.package == package);
    let mut faults = Vec::new();
    for group in &groups {
        if allowed().any(|ring| is_within(group, ring)) {
            continue;
        }
        let shortest = group.iter().filter_map(|file| way(&files, file, file));
        let shortest = shortest.min_by_key(Vec::len).unwrap_or_default();
        let mut ring = shortest
            .first()
            .map_or(String::new(), |&file| file.to_owned());
        for pair in shortest.windows(2) {
            let edge = (pair[0].to_owned(), pair[1].to_owned());
            let name = imports.get(&edge).map_or("", String::as_str);
            ring += &format!(" -> {} ({name})", pair[1]);
        }
        faults.push(format!(
            "{package}: {} files import each other: {}; the shortest ring: {ring}",
            group.len(),
            group.join(", ")
        ));
    }
    for ring in allowed() {
        if !groups.iter().any(|group| is_within(group, ring)) {
            let files = ring.files.join(", ");
            faults.push(format!(
                "{package}: {files} do not form a ring any more; shorten RINGS"
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TWO: &[Row] = &[
        Row {
            package: "program",
            may: &["engine"],
            why: "it is for users",
            never: &[],
        },
        Row {
            package: "engine",
            may: &[],
            why: "it stands alone",
            never: &[("tokio", "it has its own threads")],
        },
    ];

    fn graph(edges: &[(&str, &str)]) -> Graph {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*to).to_owned()).or_default();
            let from = graph.entry((*from).to_owned()).or_default();
            from.insert((*to).to_owned());
        }
        graph
    }

    fn faults(edges: &[(&str, &str)]) -> Vec<String> {
        forbidden(&graph(edges), &BTreeSet::from(["engine", "program"]), TWO)
    }

    #[test]
    fn dependencies_in_the_table_are_allowed() {
        let allowed = [
            ("program", "engine"),
            ("program", "tokio 1.0.0"),
            ("engine", "sha1 1.0.0"),
        ];
        assert_eq!(faults(&allowed), [""; 0]);
    }

    #[test]
    fn a_forbidden_dependency_is_named_with_the_reason() {
        let direct = [("program", "engine"), ("engine", "tokio 1.0.0")];
        let expected =
            "engine must not depend on tokio (it has its own threads): engine -> tokio 1.0.0";
        assert_eq!(faults(&direct), [expected]);
        let ours = [("engine", "program")];
        let expected = "engine must not depend on program (it stands alone): engine -> program";
        assert_eq!(faults(&ours), [expected]);
    }

    #[test]
    fn an_indirect_dependency_is_named_with_its_shortest_path() {
        let indirect = [
            ("engine", "h2 0.4.0"),
            ("engine", "hyper 1.0.0"),
            ("h2 0.4.0", "slab 0.4.0"),
            ("slab 0.4.0", "tokio 1.0.0"),
            ("hyper 1.0.0", "tokio 1.0.0"),
            ("tokio 1.0.0", "hyper 1.0.0"),
        ];
        let expected = "engine must not depend on tokio (it has its own threads): \
                        engine -> hyper 1.0.0 -> tokio 1.0.0";
        assert_eq!(faults(&indirect), [expected]);
    }

    #[test]
    fn the_table_has_every_package_and_no_others() {
        let ours = BTreeSet::from(["engine", "server"]);
        let expected = [
            "server has no row in the table",
            "the table names the package program, which the workspace does not have",
        ];
        assert_eq!(forbidden(&Graph::new(), &ours, TWO), expected);
    }

    #[test]
    fn dependencies_for_tests_do_not_count_and_those_of_builds_do() {
        let used = |package: &str, kinds: &[Option<&str>]| {
            let kinds: Vec<Value> = kinds.iter().map(|kind| json!({"kind": kind})).collect();
            json!({"pkg": package, "dep_kinds": kinds})
        };
        let metadata = json!({
            "packages": [
                {"id": "e", "name": "engine", "version": "0.1.0", "targets": [
                    {"kind": ["lib"], "src_path": "/engine/src/lib.rs"},
                    {"kind": ["test"], "src_path": "/engine/tests/all.rs"},
                ]},
                {"id": "t", "name": "tokio", "version": "1.0.0", "targets": []},
                {"id": "c", "name": "cc", "version": "1.0.0", "targets": []},
                {"id": "s", "name": "sha1", "version": "1.0.0", "targets": []},
            ],
            "workspace_members": ["e"],
            "resolve": {"nodes": [
                {"id": "e", "deps": [
                    used("t", &[Some("dev")]),
                    used("c", &[Some("build")]),
                    used("s", &[Some("dev"), None]),
                ]},
            ]},
        });
        let workspace = Workspace::parse(&metadata).unwrap();
        let uses = graph(&[("engine", "cc 1.0.0"), ("engine", "sha1 1.0.0")]);
        assert_eq!(workspace.uses["engine"], uses["engine"]);
        assert_eq!(
            workspace.sources["engine"],
            [PathBuf::from("/engine/src/lib.rs")]
        );
    }

    #[test]
    fn import_rings_are_reported_unless_allowed() {
        let imports: Imports = [
            "a b B", "b c C", "c a A", "b a A", "c d D", "d c C", "d e E",
        ]
        .map(|edge| {
            let words: Vec<String> = edge.split(' ').map(str::to_owned).collect();
            ((words[0].clone(), words[1].clone()), words[2].clone())
        })
        .into();
        let expected = "engine: 4 files import each other: a, b, c, d; \
                        the shortest ring: a -> b (B) -> a (A)";
        assert_eq!(rings("engine", &imports, &[]), [expected]);
        let ring = |files| Ring {
            package: "engine",
            files,
        };
        assert_eq!(
            rings("engine", &imports, &[ring(&["a", "b", "c", "d"])]),
            [""; 0]
        );
        let faults = rings("engine", &Imports::new(), &[ring(&["a", "b"])]);
        assert_eq!(
            faults,
            ["engine: a, b do not form a ring any more; shorten RINGS"]
        );
    }
}
