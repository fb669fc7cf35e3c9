//! Tests that variables and files can set every setting.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

/// Runs the program with only these variables in its environment. Returns what it prints on stdout.
fn hashfinder<'a>(
    arguments: &[&str],
    variables: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_hashfinder"))
        .args(arguments)
        .env_clear()
        .envs(variables)
        .output()
        .unwrap();
    let errors = String::from_utf8(done.stderr).unwrap();
    assert!(done.status.success(), "{arguments:?}: {errors}");
    assert!(!errors.contains("ignoring"), "{errors}");
    String::from_utf8(done.stdout).unwrap()
}

/// Parses the output of `config show --json`.
fn shown(text: &str) -> Vec<Value> {
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Returns a setting's command, name and value.
fn value(setting: &Value) -> (&Value, &Value, &Value) {
    (&setting["command"], &setting["setting"], &setting["value"])
}

#[test]
fn the_default_file_changes_nothing() {
    let default = hashfinder(&["config", "default"], []);
    let none = shown(&hashfinder(&["config", "show", "--json"], []));
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("default.toml");
    let file = path.to_str().unwrap();
    fs::write(&path, &default).unwrap();
    let as_printed = shown(&hashfinder(
        &["config", "show", "--json", "--config", file],
        [],
    ));
    assert_eq!(none, as_printed);
    // The values stay the same if the # before every setting that has a default is removed.
    let bare = default.lines().map(|line| {
        let setting = line.strip_prefix('#').filter(|rest| !rest.starts_with(' '));
        format!("{}\n", setting.unwrap_or(line))
    });
    fs::write(&path, bare.collect::<String>()).unwrap();
    let bare = shown(&hashfinder(
        &["config", "show", "--json", "--config", file],
        [],
    ));
    assert!(none.iter().map(value).eq(bare.iter().map(value)));
    for setting in &bare {
        let expected = if setting["value"].is_null() {
            "default"
        } else {
            "file"
        };
        assert_eq!(setting["source"], expected, "{setting}");
    }
    // A value that equals the default conflicts with nothing, such as an --ideal-distance in the
    // file, which --resume would otherwise exclude.
    let cursor = "hf1_AAAAAAAAAA9CQGhhc2hmaW5kZXJgc2wH";
    let go_on = [
        "find",
        "--resume",
        cursor,
        "--quiet",
        "--maximum-time",
        "1ms",
        "--config",
    ];
    let done = Command::new(env!("CARGO_BIN_EXE_hashfinder"))
        .args([&go_on[..], &[file, "--quiet=false"]].concat())
        .env_clear()
        .output()
        .unwrap();
    let errors = String::from_utf8(done.stderr).unwrap();
    assert_eq!(done.status.code(), Some(3), "{errors}");
    assert!(!errors.contains("ignoring"), "{errors}");
}

#[test]
fn every_setting_has_a_variable_and_a_file_key() {
    let none = shown(&hashfinder(&["config", "show", "--json"], []));
    let mut variables = Vec::new();
    // An empty variable counts as unset.
    let is_set = |setting: &&Value| !setting["value"].is_null() && setting["value"] != "";
    for setting in none.iter().filter(is_set) {
        let (command, name, value) = value(setting);
        let name = format!("{} {}", command.as_str().unwrap(), name.as_str().unwrap());
        let text = |value: &Value| value.to_string().trim_matches('"').to_owned();
        let value = match value {
            Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(","),
            value => text(value),
        };
        let name = name.to_uppercase().replace([' ', '-'], "_");
        variables.push((format!("HASHFINDER_{name}"), value));
    }
    assert!(variables.len() > 15, "{variables:?}");
    let given = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()));
    let all = shown(&hashfinder(&["config", "show", "--json"], given));
    assert!(none.iter().map(value).eq(all.iter().map(value)));
    for setting in all.iter().filter(is_set) {
        assert_eq!(setting["source"], "environment", "{setting}");
    }
}

/// Files at the usual paths are read if no file is named.
#[test]
fn files_at_the_default_paths_are_read() {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR")).join("users");
    let mine = root.join("me/.config/hashfinder");
    let theirs = root.join("xdg/hashfinder");
    for (folder, port) in [(&mine, 1), (&theirs, 2)] {
        fs::create_dir_all(folder).unwrap();
        fs::write(
            folder.join("config.toml"),
            format!("[serve]\nport = {port}\n"),
        )
        .unwrap();
    }
    let home = root.join("me");
    let (home, xdg) = (home.to_str().unwrap(), root.join("xdg"));
    let named = theirs.join("config.toml");
    let home = ("HOME", home);
    let xdg = ("XDG_CONFIG_HOME", xdg.to_str().unwrap());
    let named = ("HASHFINDER_CONFIG", named.to_str().unwrap());
    for (variables, port) in [
        (vec![home], 1),
        (vec![home, xdg], 2),
        (vec![home, named], 2),
        (vec![home, ("XDG_CONFIG_HOME", "")], 1),
        (vec![home, ("HASHFINDER_CONFIG", "/dev/null")], 50051),
    ] {
        let all = shown(&hashfinder(
            &["config", "show", "--json"],
            variables.clone(),
        ));
        let setting = all.iter().find(|setting| setting["setting"] == "port");
        assert_eq!(setting.unwrap()["value"], port, "{variables:?}");
    }
}
