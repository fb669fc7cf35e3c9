//! `hashfinder fleet nats-config`: users and rights for a broker.

use std::{
    fmt::Write as _,
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use clap::Args;
use hashfinder_fleet_nats::{ANYONE, BrokerAddress, Role, is_name, new_key, public_key, rights_of};
use hashfinder_system::files;

use crate::{exit::Exit, terminal::say};

/// Configuration of a broker. It is written once, and can be changed. STORE is a folder.
const BROKER: &str = "\
# A NATS broker for a fleet of hashfinder. Change it as you need; see docs/fleet.md.
listen: 127.0.0.1:4222
jetstream { store_dir: STORE, sync_interval: always }
# To listen on a network, use TLS:
# listen: 0.0.0.0:4222
# tls { cert_file: broker.pem, key_file: broker-key.pem }
include ./users.conf
";

/// Beginning of the file with the users, before the name of the fleet.
const WRITTEN: &str = "# Written by `hashfinder fleet nats-config` for the fleet: ";

/// Maximum size of a file with a key.
const MOST_BYTES: u64 = 4096;

/// Write a configuration and credentials for a broker.
///
/// Each agent becomes a user of the broker, with rights to its own messages only: it can neither
/// read what others get nor speak for them. The servers share a user, and so do operators (`fleet
/// status`, `agents`, `drain`, `ban` and `unban`).
///
/// FOLDER gets nats.conf for the broker, unless it has one; users.conf, which nats.conf includes;
/// and a file with credentials for each user: server.txt, operator.txt, and a file for each agent
/// in agents/. users.conf contains no secrets. To add agents, run the command again with their
/// names. To remove one, delete its file and run the command again. Then have the broker load the
/// configuration again (nats-server --signal reload).
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  hashfinder fleet nats-config fleet node1 node2
  nats-server -c fleet/nats.conf
  hashfinder serve --fleet nats://127.0.0.1:4222 --fleet-credentials fleet/server.txt
  hashfinder agent --fleet nats://127.0.0.1:4222 --fleet-credentials fleet/agents/node1.txt

Exit codes:
  0  written
  2  the command line or a file is wrong
  5  the folder or a file cannot be written")]
pub(super) struct NatsConfigArguments {
    /// Folder for the files
    folder: PathBuf,

    /// Names of agents: letters, digits, - and _
    #[arg(value_name = "AGENT", value_parser = agent)]
    agents: Vec<String>,

    /// Name of the fleet, as at the end of its URL [default: that of the folder's files, or
    /// default]
    #[arg(long, value_name = "NAME", value_parser = pool)]
    pool: Option<String>,
}

fn agent(text: &str) -> Result<String, &'static str> {
    if is_name(text) && text != ANYONE {
        Ok(text.to_owned())
    } else {
        Err("expected letters, digits, - and _, at most 64 of them, and not anyone")
    }
}

fn pool(text: &str) -> Result<String, String> {
    let address = format!("nats://broker/{text}").parse::<BrokerAddress>();
    match address {
        Ok(address) if **address.pool() == *text => Ok(text.to_owned()),
        Ok(_) => Err("the name is empty".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Runs the command.
pub(super) fn run(arguments: NatsConfigArguments) -> Result<Exit> {
    let NatsConfigArguments {
        folder,
        agents,
        pool,
    } = arguments;
    let in_agents = folder.join("agents");
    let made = DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&in_agents);
    made.with_context(|| format!("cannot create {}", in_agents.display()))?;
    let users_conf = folder.join("users.conf");
    let before = pool_of(&users_conf)?;
    let pool = match (pool, before) {
        (Some(given), Some(before)) if given != before => {
            say(format_args!(
                "{}: these are the users of the fleet {before}; choose another folder for {given}",
                users_conf.display()
            ));
            return Ok(Exit::Usage);
        }
        (given, before) => given.or(before).unwrap_or_else(|| "default".to_owned()),
    };
    let mut users = vec![
        (Role::Server("server"), folder.join("server.txt")),
        (Role::Operator, folder.join("operator.txt")),
    ];
    let names = match names(&in_agents, agents)? {
        Ok(names) => names,
        Err(wrong) => {
            say(wrong);
            return Ok(Exit::Usage);
        }
    };
    let file = |name: &String| in_agents.join(format!("{name}.txt"));
    users.extend(names.iter().map(|name| (Role::Agent(name), file(name))));
    let mut lines = String::new();
    for (role, path) in &users {
        let key = key(*role, path)?;
        let rights = rights_of(*role, &pool);
        writeln!(
            lines,
            "  # {}\n  {{ nkey: {key}, permissions: {{\n      publish: {},\n      subscribe: {}\n  }} }}",
            path.strip_prefix(&folder).unwrap_or(path).display(),
            serde_json::to_string(&rights.publish)?,
            serde_json::to_string(&rights.subscribe)?,
        )?;
    }
    let text = format!("{WRITTEN}{pool}\nauthorization {{ users: [\n{lines}] }}\n");
    // Another process, such as a broker, never sees a part of it.
    let new = folder.join("users.conf.new");
    let written = fs::write(&new, text).and_then(|()| fs::rename(&new, &users_conf));
    written.with_context(|| format!("cannot write {}", users_conf.display()))?;
    let broker = folder.join("nats.conf");
    let store = std::path::absolute(folder.join("store"))?;
    let store = serde_json::to_string(&store)?;
    let is_new = create(&broker, 0o644, &BROKER.replace("STORE", &store))?;
    let agents = match names.len() {
        1 => "1 agent".to_owned(),
        count => format!("{count} agents"),
    };
    say(format_args!(
        "{}: users for servers, operators and {agents}",
        users_conf.display()
    ));
    if is_new {
        say(format_args!(
            "start the broker with: nats-server -c {}",
            broker.display()
        ));
    } else {
        say("have the broker load the users again with: nats-server --signal reload");
    }
    Ok(Exit::Success)
}

/// Returns the fleet whose users a file has; `None` if there is none.
fn pool_of(users_conf: &Path) -> Result<Option<String>> {
    let text = match fs::read_to_string(users_conf) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        read => read.with_context(|| format!("cannot read {}", users_conf.display()))?,
    };
    let first = text.lines().next();
    let pool = first.and_then(|line| line.strip_prefix(WRITTEN));
    let pool = pool.with_context(|| {
        format!(
            "{}: not a file of this command; remove it",
            users_conf.display()
        )
    })?;
    Ok(Some(pool.to_owned()))
}

/// Returns the names of all agents: those that have a file, and new ones.
fn names(folder: &Path, new: Vec<String>) -> Result<Result<Vec<String>, String>> {
    let mut names = new;
    for file in folder
        .read_dir()
        .with_context(|| format!("cannot read {}", folder.display()))?
    {
        let path = file?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        match name
            .and_then(|name| name.strip_suffix(".txt"))
            .filter(|name| is_name(name))
        {
            Some(name) => names.push(name.to_owned()),
            None => return Ok(Err(format!("{}: not the file of an agent", path.display()))),
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok(Ok(names))
}

/// Returns the public key of a user. If it has no file, creates a key.
fn key(role: Role<'_>, path: &Path) -> Result<String> {
    let name = match role {
        Role::Agent(name) => name,
        Role::Server(_) => "server",
        Role::Operator => "operator",
    };
    let seed = new_key().context("a new key has no seed")?;
    let seed = if create(path, 0o600, &format!("{name}:{seed}\n"))? {
        seed
    } else {
        let text: Vec<u8> = files::read(path, MOST_BYTES)
            .with_context(|| format!("cannot read {}", path.display()))?;
        let text = String::from_utf8_lossy(&text).into_owned();
        match text.trim().split_once(':') {
            Some((of, seed)) if of == name => seed.to_owned(),
            _ => bail!("{}: expected {name}:SEED", path.display()),
        }
    };
    public_key(&seed).with_context(|| format!("{}: its seed is wrong", path.display()))
}

/// Creates a file. Returns whether it is new.
fn create(path: &Path, mode: u32, text: &str) -> Result<bool> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    match file {
        Ok(mut file) => {
            let written = file
                .write_all(text.as_bytes())
                .and_then(|()| file.sync_all());
            written.with_context(|| format!("cannot write {}", path.display()))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot create {}", path.display())),
    }
}
