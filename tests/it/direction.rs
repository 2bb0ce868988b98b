//! Who knows whom. Between the rooms of `src` every arrow points down the list of layers; within a folder, files form no circle but those that
//! are listed with their reason. The sources are parsed, so that a path in a body or a macro counts as an import does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{Attribute, Item, UseTree};

/// The rooms, from the top down. A room may name rooms of the layers below its own, and none of its own layer.
const LAYERS: [&[&str]; 11] = [
    &["main"],
    &["app", "cli"],
    &["control"],
    &["world"],
    &["server"],
    &["mirror"],
    &["store", "upstream"],
    &["log"],
    &["config", "metrics"],
    &["labels", "oci"],
    &["clock", "exit", "gate", "percent", "queue", "rng", "shutdown", "single_flight", "task", "units"],
];

/// Circles within a folder that are meant: the files, and why.
const CIRCLES: [(&[&str], &str); 0] = [];

/// A module's path, such as `upstream::auth::token`.
type Module = String;

/// The files below `src` as modules, and what each names.
struct Sources {
    files: BTreeMap<Module, syn::File>,
}

/// One file names another: where, and by which words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrow {
    from: Module,
    to: Module,
    line: usize,
    words: String,
}

impl Sources {
    fn read() -> Sources {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let (mut files, mut folders) = (BTreeMap::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let module = path.strip_prefix(&root).unwrap().with_extension("").to_string_lossy().replace('/', "::");
                    let text = std::fs::read_to_string(&path).unwrap();
                    files.insert(module, syn::parse_file(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())));
                }
            }
        }
        // The crate's root names its rooms, and nothing else.
        files.remove("lib");
        let tests: Vec<Module> = files.iter().flat_map(|(module, file)| test_modules(module, &file.items)).collect();
        files.retain(|module, _| !tests.iter().any(|test| is_within(module, test)));
        Sources { files }
    }

    fn arrows(&self) -> BTreeSet<Arrow> {
        let mut arrows = BTreeSet::new();
        for (module, file) in &self.files {
            let mut found = Vec::new();
            find_in_items(&file.items, &mut found);
            for (words, line) in found {
                let Some(absolute) = absolute(module, &words) else { continue };
                let to = self.resolve(absolute);
                if to != *module && !to.is_empty() {
                    arrows.insert(Arrow { from: module.clone(), to, line, words: words.join("::") });
                }
            }
        }
        arrows
    }

    /// The file that defines what a path names: through the front pages that pass on what their children define.
    fn resolve(&self, mut path: Vec<String>) -> Module {
        for _ in 0..16 {
            let depth = (1..=path.len()).rev().find(|depth| self.files.contains_key(&path[..*depth].join("::"))).unwrap_or_default();
            let module = path[..depth].join("::");
            let Some(next) = path.get(depth).and_then(|name| self.reexport(&module, name)) else { return module };
            path = next.into_iter().chain(path.drain(depth + 1..).collect::<Vec<_>>()).collect();
        }
        panic!("re-exports without an end at {}", path.join("::"));
    }

    fn reexport(&self, module: &str, name: &str) -> Option<Vec<String>> {
        let uses = self.files.get(module)?.items.iter().filter_map(|item| if let Item::Use(item) = item { Some(item) } else { None });
        uses.filter(|item| !matches!(item.vis, syn::Visibility::Inherited)).find_map(|item| {
            let mut paths = Vec::new();
            flatten(&item.tree, &[], &mut paths);
            let (words, _) = paths.into_iter().find(|(_, alias)| alias == name)?;
            let own_child = || module.split("::").map(str::to_owned).chain(words.clone()).collect();
            Some(absolute(module, &words).unwrap_or_else(own_child))
        })
    }
}

/// Modules that exist for tests alone, as `#[cfg(test)] mod tests;` declares them.
fn test_modules(module: &str, items: &[Item]) -> Vec<Module> {
    let is_test = |item: &Item| matches!(item, Item::Mod(inner) if inner.content.is_none() && is_for_tests(&inner.attrs));
    let name = |item: &Item| if let Item::Mod(inner) = item { inner.ident.to_string() } else { String::new() };
    items.iter().filter(|item| is_test(item)).map(|item| format!("{module}::{}", name(item))).collect()
}

fn is_within(module: &str, folder: &str) -> bool {
    module.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("cfg") && attribute.meta.to_token_stream().to_string().contains("test"))
}

/// Every path that begins with `crate`, `super` or `self`, with its line; what is for tests alone is left out.
fn find_in_items(items: &[Item], found: &mut Vec<(Vec<String>, usize)>) {
    for item in items {
        match item {
            Item::Use(item) if !is_for_tests(&item.attrs) => {
                let line = item.use_token.span.start().line;
                let mut paths = Vec::new();
                flatten(&item.tree, &[], &mut paths);
                // What a front page passes on of its own children is no arrow, and has no `crate` or `super` in it.
                found.extend(paths.into_iter().map(|(words, _)| (words, line)));
            }
            Item::Mod(inner) if !is_for_tests(&inner.attrs) => {
                // One level deeper: `super` is this file.
                let mut deeper = Vec::new();
                find_in_items(inner.content.as_ref().map(|(_, items)| items.as_slice()).unwrap_or_default(), &mut deeper);
                found.extend(deeper.into_iter().filter_map(|(words, line)| match words.first()?.as_str() {
                    "super" => Some((if words.get(1)? == "super" { words[1..].to_vec() } else { return None }, line)),
                    _ => Some((words, line)),
                }));
            }
            Item::Use(_) | Item::Mod(_) => {}
            other if is_for_tests(attributes(other)) => {}
            other => find_in_tokens(without_tests(other).into_token_stream(), found),
        }
    }
}

/// Without the methods that only tests have.
fn without_tests(item: &Item) -> Item {
    let mut item = item.clone();
    if let Item::Impl(block) = &mut item {
        block.items.retain(|item| !matches!(item, syn::ImplItem::Fn(method) if is_for_tests(&method.attrs)));
    }
    item
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        _ => &[],
    }
}

/// The leaves of a `use`, each with the name it gives.
fn flatten(tree: &UseTree, before: &[String], paths: &mut Vec<(Vec<String>, String)>) {
    let with = |name: String| before.iter().cloned().chain([name]).collect::<Vec<_>>();
    match tree {
        UseTree::Path(path) => flatten(&path.tree, &with(path.ident.to_string()), paths),
        UseTree::Name(name) if name.ident == "self" => paths.push((before.to_vec(), before.last().cloned().unwrap_or_default())),
        UseTree::Name(name) => paths.push((with(name.ident.to_string()), name.ident.to_string())),
        UseTree::Rename(rename) => paths.push((with(rename.ident.to_string()), rename.rename.to_string())),
        UseTree::Glob(_) => paths.push((before.to_vec(), String::new())),
        UseTree::Group(group) => group.items.iter().for_each(|tree| flatten(tree, before, paths)),
    }
}

fn find_in_tokens(tokens: TokenStream, found: &mut Vec<(Vec<String>, usize)>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        match &tokens[at] {
            TokenTree::Group(group) => find_in_tokens(group.stream(), found),
            TokenTree::Ident(first) if ["crate", "super", "self"].contains(&first.to_string().as_str()) => {
                let mut words = vec![first.to_string()];
                while let [TokenTree::Punct(one), TokenTree::Punct(other), TokenTree::Ident(word), ..] = &tokens[at + 1..]
                    && (one.as_char(), other.as_char()) == (':', ':')
                {
                    words.push(word.to_string());
                    at += 3;
                }
                if words.len() > 1 {
                    found.push((words, first.span().start().line));
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// A path from the crate's root. `None` for what begins elsewhere: a library's, or a child's name in its front page.
fn absolute(module: &str, words: &[String]) -> Option<Vec<String>> {
    let mut base: Vec<String> = module.split("::").map(str::to_owned).collect();
    let mut rest = words;
    match rest.first()?.as_str() {
        "crate" => (base, rest) = (Vec::new(), &rest[1..]),
        "self" => rest = &rest[1..],
        "super" => {}
        _ => return None,
    }
    while rest.first().is_some_and(|word| word == "super") {
        base.pop();
        rest = &rest[1..];
    }
    Some(base.into_iter().chain(rest.iter().cloned()).collect())
}

fn room(module: &str) -> &str {
    module.split("::").next().unwrap_or_default()
}

fn layer(room: &str) -> usize {
    LAYERS.iter().position(|layer| layer.contains(&room)).unwrap_or_else(|| panic!("{room} has no layer: add it to LAYERS"))
}

/// `upstream::auth` and `upstream::http` from what lies below them: the two that differ first, within the folder they share.
fn siblings(arrow: &Arrow) -> Option<(Module, Module)> {
    let (from, to): (Vec<_>, Vec<_>) = (arrow.from.split("::").collect(), arrow.to.split("::").collect());
    let shared = from.iter().zip(&to).take_while(|(one, other)| one == other).count();
    // A front page belongs to its folder: it and its children are no siblings.
    if shared == 0 || shared == from.len() || shared == to.len() {
        return None;
    }
    Some((from[..=shared].join("::"), to[..=shared].join("::")))
}

/// The groups of siblings of which each can be reached from each other.
fn circles(edges: &BTreeSet<(Module, Module)>) -> BTreeSet<Vec<Module>> {
    let reach = |start: &Module| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![start.clone()]);
        while let Some(module) = open.pop() {
            for (_, to) in edges.iter().filter(|(from, _)| *from == module) {
                if seen.insert(to.clone()) {
                    open.push(to.clone());
                }
            }
        }
        seen
    };
    let names: BTreeSet<Module> = edges.iter().map(|(from, _)| from.clone()).collect();
    let reached: BTreeMap<Module, BTreeSet<Module>> = names.iter().map(|name| (name.clone(), reach(name))).collect();
    let circle = |name: &Module| {
        let mates = names.iter().filter(|other| reached[name].contains(*other) && reached[*other].contains(name));
        mates.cloned().collect::<Vec<_>>()
    };
    names.iter().map(circle).filter(|circle| circle.len() > 1).collect()
}

#[test]
fn dependencies_run_in_one_direction() {
    let mut told = String::new();
    for Arrow { from, to, line, words } in Sources::read().arrows() {
        let (one, other) = (room(&from), room(&to));
        if one != other && layer(one) >= layer(other) {
            writeln!(told, "{one} → {other}: src/{}.rs:{line} names {words}", from.replace("::", "/")).unwrap();
        }
    }
    assert!(told.is_empty(), "{} arrows point up or aside:\n{told}", told.lines().count());
}

#[test]
fn files_of_a_folder_form_no_circle_but_those_with_a_reason() {
    let arrows = Sources::read().arrows();
    let edges: BTreeSet<(Module, Module)> = arrows.iter().filter_map(siblings).collect();
    let circles = circles(&edges);
    let meant: BTreeSet<Vec<Module>> = CIRCLES.iter().map(|(files, _)| files.iter().map(|file| (*file).to_owned()).collect()).collect();
    let mut told = String::new();
    for circle in circles.difference(&meant) {
        writeln!(told, "circle: {}", circle.join(", ")).unwrap();
        for arrow in &arrows {
            if siblings(arrow).is_some_and(|(from, to)| circle.contains(&from) && circle.contains(&to)) {
                writeln!(told, "    src/{}.rs:{} names {}", arrow.from.replace("::", "/"), arrow.line, arrow.words).unwrap();
            }
        }
    }
    assert!(told.is_empty(), "{} circles within folders:\n{told}", circles.difference(&meant).count());
    let gone: Vec<_> = meant.difference(&circles).collect();
    assert!(gone.is_empty(), "no such circle any more, take it off the list: {gone:?}");
}

#[test]
fn a_path_is_found_wherever_it_stands() {
    let text = "use crate::a::{b, c as d};\npub(super) use child::Thing;\nfn f(x: &super::y::Z) { warn!(\"{}\", crate::m::N); self::g(); }\n\
                #[cfg(test)]\nmod tests { use crate::never; }\n#[cfg(test)]\nimpl Q { fn q() { crate::never::x() } }\n\
                mod inner { use super::super::up; use super::f; }\n";
    let mut found = Vec::new();
    find_in_items(&syn::parse_file(text).unwrap().items, &mut found);
    let words: Vec<String> = found.iter().map(|(words, line)| format!("{line} {}", words.join("::"))).collect();
    let expected = ["1 crate::a::b", "1 crate::a::c", "2 child::Thing", "3 super::y::Z", "3 crate::m::N", "3 self::g", "8 super::up"];
    assert_eq!(words, expected);
    let path = |module: &str, words: &[&str]| absolute(module, &words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
    assert_eq!(path("a::b::c", &["super", "super", "x"]).unwrap().join("::"), "a::x");
    assert_eq!(path("a::b", &["std", "fs"]), None);
}
