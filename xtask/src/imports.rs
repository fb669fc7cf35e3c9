//! Finds the imports between the files of a crate.
//!
//! A file imports another if a path in its code, in a `use` or elsewhere, leads to an item that the
//! other file defines. Re-exports are followed: if `a/mod.rs` has `pub use b::Item`, then
//! `crate::a::Item` is an import of `a/b.rs`. If no item is found in this way, because a macro or
//! another crate defines it, the path counts as an import of the last module on it. These are not
//! imports:
//!
//! - `mod b;`, and the re-export of an item from a module below, unless the file uses the item
//!   itself;
//! - the name of a module by itself: only the items used from the module count;
//! - code under `#[cfg(test)]`, and comments.
//!
//! This module reads the tokens that `proc-macro2` returns. A syntax tree would hide the paths
//! inside of macro calls, and would add nothing that matters here. Without one, scopes are unknown:
//! a `use` inside of a function counts for the whole module. Items used through a glob (`use a::*`)
//! count as imports of the file of `a`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};

/// Maps a file and one that it imports to one of the imported items. Paths of files are relative to
/// the folder of the root file.
pub(crate) type Imports = BTreeMap<(String, String), String>;

/// Returns the imports between the files of a crate. `read` returns the text of a file, if there is
/// one.
pub(crate) fn of(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Result<Imports> {
    let folder = root.parent().context("a crate without a folder")?;
    let mut tree = Tree {
        modules: Vec::new(),
        read,
    };
    tree.add_file(None, root, folder)?;
    let name = |module: usize| {
        let file = &tree.modules[module].file;
        let file = file.strip_prefix(folder).unwrap_or(file);
        file.display().to_string()
    };
    let mut imports = Imports::new();
    for at in 0..tree.modules.len() {
        for (to, item) in tree.imports_of(at) {
            let (from, to) = (name(at), name(to));
            if from != to {
                imports.entry((from, to)).or_insert(item);
            }
        }
    }
    Ok(imports)
}

struct Tree<'a> {
    modules: Vec<Module>,
    read: &'a dyn Fn(&Path) -> Option<String>,
}

#[derive(Default)]
struct Module {
    file: PathBuf,
    parent: Option<usize>,
    children: BTreeMap<String, usize>,
    uses: Vec<Use>,
    /// All paths outside of `use`, including those of a single name.
    paths: BTreeSet<Vec<String>>,
}

/// One name that a `use` brings into scope; `*` for all of a module.
struct Use {
    name: String,
    path: Vec<String>,
    is_public: bool,
}

impl Tree<'_> {
    fn add_file(&mut self, parent: Option<usize>, file: &Path, folder: &Path) -> Result<usize> {
        let text = (self.read)(file).with_context(|| format!("cannot read {}", file.display()))?;
        let stream = text.parse::<TokenStream>();
        let stream = stream.map_err(|error| anyhow!("{}: {error}", file.display()))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let at = self.add(parent, file);
        self.scan(at, &tokens, folder)?;
        Ok(at)
    }

    fn add(&mut self, parent: Option<usize>, file: &Path) -> usize {
        self.modules.push(Module {
            file: file.to_owned(),
            parent,
            ..Module::default()
        });
        self.modules.len() - 1
    }

    /// Reads the code of a module, whose children have their files in `folder`.
    fn scan(&mut self, at: usize, tokens: &[String], folder: &Path) -> Result<()> {
        let token = |i: usize| tokens.get(i).map_or("", String::as_str);
        let mut i = 0;
        while i < tokens.len() {
            let before = i.checked_sub(1).map_or("", token);
            match (token(i), token(i + 1), token(i + 2)) {
                ("#", "[", _) if is_for_tests(&tokens[i + 2..closing(tokens, i + 1)]) => {
                    i = end_of_item(tokens, i);
                }
                ("mod", name, ";") => {
                    let below = folder.join(name);
                    let file = [below.with_extension("rs"), below.join("mod.rs")];
                    let file = file.iter().find(|file| (self.read)(file).is_some());
                    let file = file.with_context(|| format!("no file of the module {name}"))?;
                    let child = self.add_file(Some(at), file, &below)?;
                    self.modules[at].children.insert(name.to_owned(), child);
                    i += 3;
                }
                ("mod", name, "{") => {
                    let end = closing(tokens, i + 2);
                    let file = self.modules[at].file.clone();
                    let child = self.add(Some(at), &file);
                    self.modules[at].children.insert(name.to_owned(), child);
                    self.scan(child, &tokens[i + 3..end], &folder.join(name))?;
                    i = end + 1;
                }
                // `use<'a>` captures lifetimes, and imports nothing.
                ("use", first, _) if first != "<" => {
                    let length = tokens[i..].iter().position(|token| token == ";");
                    let end = i + length.context("a `use` without an end")?;
                    let is_public = matches!(before, "pub" | ")");
                    let mut tree = tokens[i + 1..end].iter().map(String::as_str);
                    leaves(&mut tree, &[], is_public, &mut self.modules[at].uses);
                    i = end + 1;
                }
                (name, ..) if is_name(name) && !matches!(before, "." | "::" | "'") => {
                    let mut path = vec![name.to_owned()];
                    while token(i + 1) == "::" && is_name(token(i + 2)) {
                        path.push(token(i + 2).to_owned());
                        i += 2;
                    }
                    self.modules[at].paths.insert(path);
                    i += 1;
                }
                _ => i += 1,
            }
        }
        Ok(())
    }

    /// Returns the modules that `at` imports items from, with those items.
    fn imports_of(&self, at: usize) -> Vec<(usize, String)> {
        let Module { uses, paths, .. } = &self.modules[at];
        let mut imports = Vec::new();
        for Use {
            name,
            path,
            is_public,
        } in uses
        {
            let Some((to, item)) = self.resolve(at, path, 0) else {
                continue;
            };
            let passes_on =
                *is_public && self.is_below(to, at) && !paths.contains(&vec![name.clone()]);
            let item = item.or((name == "*").then(|| name.clone()));
            imports.extend(item.filter(|_| !passes_on).map(|item| (to, item)));
        }
        for path in paths.iter().filter(|path| path.len() > 1) {
            if let Some((to, Some(item))) = self.resolve(at, path, 0) {
                imports.push((to, item));
            }
        }
        imports
    }

    fn is_below(&self, module: usize, above: usize) -> bool {
        let mut at = self.modules[module].parent;
        while let Some(parent) = at.filter(|parent| *parent != above) {
            at = self.modules[parent].parent;
        }
        at.is_some()
    }

    /// Follows `path` from the module `from`. Returns the module that it leads to, and the item in
    /// that module, unless the path ends at the module itself. Returns `None` if the path leads to
    /// another crate, or to something that has no path.
    fn resolve(
        &self,
        from: usize,
        path: &[String],
        depth: usize,
    ) -> Option<(usize, Option<String>)> {
        let (mut at, mut rest) = (from, path);
        loop {
            let Some((name, after)) = rest.split_first() else {
                return Some((at, None));
            };
            let Module {
                parent,
                children,
                uses,
                ..
            } = &self.modules[at];
            let is_first = rest.len() == path.len();
            let used = uses
                .iter()
                .find(|one| one.name == *name && one.path != *path);
            match (name.as_str(), children.get(name), used) {
                ("crate", ..) => at = 0,
                ("self", ..) => {}
                ("super", ..) => at = (*parent)?,
                (_, Some(child), _) => at = *child,
                (_, None, Some(used)) if depth < MOST_RE_EXPORTS => {
                    match self.resolve(at, &used.path, depth + 1) {
                        Some((module, None)) => at = module,
                        None if !is_first => return Some((at, Some(name.clone()))),
                        found => return found,
                    }
                }
                _ if is_first => return None,
                _ => return Some((at, Some(name.clone()))),
            }
            rest = after;
        }
    }
}

/// Maximum number of re-exports to follow. Two re-exports can lead to each other.
const MOST_RE_EXPORTS: usize = 16;

/// Appends the names and punctuation of `stream` in order; `::` is one token, and every literal is
/// `"`.
fn flatten(stream: TokenStream, tokens: &mut Vec<String>) {
    let mut after_colon = false;
    for tree in stream {
        let is_second = std::mem::take(&mut after_colon);
        match tree {
            TokenTree::Ident(name) => tokens.push(name.to_string()),
            TokenTree::Literal(_) => tokens.push("\"".to_owned()),
            TokenTree::Punct(mark) if mark.as_char() == ':' && is_second => {
                tokens.pop();
                tokens.push("::".to_owned());
            }
            TokenTree::Punct(mark) => {
                after_colon = mark.as_char() == ':' && mark.spacing() == Spacing::Joint;
                tokens.push(mark.as_char().to_string());
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                tokens.push(open.to_owned());
                flatten(group.stream(), tokens);
                tokens.push(close.to_owned());
            }
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first == '_' || first.is_alphabetic())
}

/// Returns the index of the bracket that closes the one at `open`, or the number of tokens if none
/// does.
fn closing(tokens: &[String], open: usize) -> usize {
    let mut depth = 0_usize;
    for (i, token) in tokens.iter().enumerate().skip(open) {
        match token.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i;
        }
    }
    tokens.len()
}

/// Whether an attribute limits its item to tests.
fn is_for_tests(attribute: &[String]) -> bool {
    let has = |name: &str| attribute.iter().any(|token| token == name);
    attribute.first().is_some_and(|first| first == "cfg")
        && has("test")
        && !has("not")
        && !has("any")
}

/// Returns the end of an item whose first attribute begins at `i`. An item without a semicolon or a
/// block, such as a field, ends where the block around it ends.
fn end_of_item(tokens: &[String], mut i: usize) -> usize {
    let mut is_use = false;
    while let Some(token) = tokens.get(i) {
        match token.as_str() {
            "{" if !is_use => return closing(tokens, i) + 1,
            "(" | "[" | "{" => i = closing(tokens, i),
            ";" => return i + 1,
            ")" | "]" | "}" => return i,
            token => is_use |= token == "use",
        }
        i += 1;
    }
    i
}

/// Adds each name of a `use` tree to `uses`: `a::{b, c as d, e::*}` has three. Returns whether
/// another tree follows.
fn leaves<'a>(
    tokens: &mut impl Iterator<Item = &'a str>,
    above: &[String],
    is_public: bool,
    uses: &mut Vec<Use>,
) -> bool {
    let mut path = above.to_vec();
    let mut name: Option<String> = None;
    let mut another = false;
    while let Some(token) = tokens.next() {
        match token {
            "," => {
                another = true;
                break;
            }
            "}" => break,
            "{" => {
                while leaves(tokens, &path, is_public, uses) {}
                name = None;
            }
            "*" => name = Some(token.to_owned()),
            "as" => name = tokens.next().map(str::to_owned),
            "::" if !path.is_empty() => {}
            // As in `a::{self, b}`.
            "self" if !path.is_empty() => name = path.last().cloned(),
            // A path that begins with `::` leads to another crate, even if a module has the same
            // name.
            segment => {
                path.push(segment.to_owned());
                name = path.last().cloned();
            }
        }
    }
    if let Some(name) = name {
        uses.push(Use {
            name,
            path,
            is_public,
        });
    }
    another
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the imports of a crate with these files, as "from to item".
    fn imports(files: &[(&str, &str)]) -> Vec<String> {
        let files: BTreeMap<PathBuf, &str> = files
            .iter()
            .map(|(file, text)| (Path::new("src").join(file), *text))
            .collect();
        let read = |file: &Path| files.get(file).map(|text| (*text).to_owned());
        let imports = of(Path::new("src/lib.rs"), &read).unwrap();
        imports
            .into_iter()
            .map(|((from, to), item)| format!("{from} {to} {item}"))
            .collect()
    }

    #[test]
    fn paths_in_uses_code_and_macro_calls_are_imports() {
        let found = imports(&[
            (
                "lib.rs",
                "mod a; mod b; mod c; mod d; pub fn run() { d::run() }",
            ),
            (
                "a.rs",
                "use crate::{b::{self, B}, c::C as Other}; fn f() { b::f() }",
            ),
            (
                "b.rs",
                "struct B; fn f() { println!(\"{}\", super::c::g()) }",
            ),
            ("c.rs", "struct C { field: crate::d::D }"),
            (
                "d.rs",
                "use std::fmt; #[arg(value_parser = crate::a::parse)] struct D;",
            ),
        ]);
        let expected = [
            "a.rs b.rs B",
            "a.rs c.rs C",
            "b.rs c.rs g",
            "c.rs d.rs D",
            "d.rs a.rs parse",
            "lib.rs d.rs run",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn an_item_is_imported_from_the_file_that_defines_it() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b; pub use a::{A, Helper};"),
            (
                "a/mod.rs",
                "mod deep; mod other; pub use deep::A; pub(crate) struct Helper;",
            ),
            ("a/deep.rs", "use super::Helper; pub struct A;"),
            ("a/other.rs", "use super::A; pub use std::fmt;"),
            (
                "b.rs",
                "use crate::{A, a}; fn f() -> a::Helper { a::other::fmt() }",
            ),
        ]);
        let expected = [
            "a/deep.rs a/mod.rs Helper",
            "a/other.rs a/deep.rs A",
            "b.rs a/deep.rs A",
            "b.rs a/mod.rs Helper",
            "b.rs a/other.rs fmt",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_re_export_is_an_import_only_if_the_file_uses_it_or_it_comes_from_elsewhere() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b;"),
            (
                "a/mod.rs",
                "mod c; mod d; pub use c::C; pub use d::*; pub use crate::b::B; fn f(_: C) {}",
            ),
            ("a/c.rs", "pub struct C;"),
            ("a/d.rs", "pub struct D;"),
            ("b.rs", "pub struct B;"),
        ]);
        assert_eq!(found, ["a/mod.rs a/c.rs C", "a/mod.rs b.rs B"]);
    }

    #[test]
    fn tests_comments_inner_modules_and_other_crates_are_not_imports() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b; mod http { pub fn f() {} }"),
            (
                "a.rs",
                "//! See [`crate::b::B`].
                use ::b::B; use http::Request;
                #[cfg(test)] use crate::b::{B as C, D};
                #[cfg(all(test, loom))] mod missing;
                enum E { Two(crate::b::Two), #[cfg(test)] One(crate::b::B) }
                #[cfg(test)] mod tests { use crate::b::B; }
                mod inner { pub(super) fn f<'b>(b: &'b str) { super::E::Two; b.b::<u8>() } }
                fn f() { inner::f(\"crate::b::B\") }",
            ),
            (
                "b.rs",
                "#[cfg(not(test))] use crate::a::E; use super::http::f;",
            ),
        ]);
        assert_eq!(found, ["a.rs b.rs Two", "b.rs a.rs E", "b.rs lib.rs f"]);
    }

    #[test]
    fn circular_re_exports_do_not_loop() {
        let found = imports(&[
            ("lib.rs", "mod a; mod b; mod c; use b::X;"),
            ("a.rs", "macro_rules! m { () => {} } pub(crate) use m;"),
            ("b.rs", "pub use crate::c::X; crate::a::m!();"),
            ("c.rs", "pub use crate::b::X;"),
        ]);
        assert!(found.contains(&"b.rs a.rs m".to_owned()), "{found:?}");
    }
}
