//! From a file and an environment to a [`Config`], or to everything that is wrong with them.

use std::path::{Path, PathBuf};

use super::environment::{FILE_VARIABLE, Overlay, Variables, overlay};
use super::files::check_files;
use super::key::Keys;
use super::machine::Machine;
use super::mistake::{Finding, Place};
use super::proxy::Proxies;
use super::section::{Findings, Section};
use super::tree::Origin;
use super::validate::validate;
use super::{Config, KEYS, Mistake, Mistakes, Warning, check, file, upstreams};

/// Read when it is there and nothing else is named.
pub const DEFAULT_FILE: &str = "/etc/larder/larder.yaml";
/// More mistakes than this are one mistake: the wrong file.
const MISTAKES_MAX: usize = 50;

/// The file to read: the named one, else `LARDER_CONFIG`'s, else the usual one when it is there.
pub fn find_file<'a>(named: Option<&Path>, env: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<PathBuf> {
    let variable = || env.into_iter().find(|(name, value)| *name == FILE_VARIABLE && !value.is_empty()).map(|(_, value)| value.into());
    let usual = || Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists());
    named.map(Path::to_path_buf).or_else(variable).or_else(usual)
}

impl Config {
    /// Reads the configuration, and checks that the files it names are there.
    ///
    /// # Errors
    /// All mistakes, in the order of the file.
    pub fn load(path: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<(Config, Vec<Warning>), Mistakes> {
        let variables: Variables = env.into_iter().collect();
        let found = find_file(path, variables.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let fail = |mistakes| Mistakes { file: found.clone(), mistakes };
        let text = match &found {
            None => String::new(),
            Some(path) => file::read(path).map_err(|error| fail(vec![whole_file(format!("cannot be read: {error}"))]))?,
        };
        interpret(&text, &variables, Keys(KEYS), check_files).map_err(fail)
    }

    /// The configuration that a text means. Asks the machine for the size of a disk, and nothing else.
    ///
    /// # Errors
    /// All mistakes, in the order of the text.
    pub fn from_yaml(text: &str, env: impl IntoIterator<Item = (String, String)>) -> Result<(Config, Vec<Warning>), Mistakes> {
        interpret(text, &env.into_iter().collect(), Keys(KEYS), |_, _, _| {}).map_err(|mistakes| Mistakes { file: None, mistakes })
    }
}

pub(super) fn interpret(
    text: &str,
    variables: &Variables,
    keys: Keys<'_>,
    check_files: impl FnOnce(&Config, &Section<'_>, &mut Findings),
) -> Result<(Config, Vec<Warning>), Vec<Mistake>> {
    let mut tree = file::parse(text)
        .map_err(|error| vec![Mistake { place: Place::File(error.position), key: String::new(), message: error.message }])?;
    if !tree.may_hold_keys() {
        // Everything else would be a consequence of that.
        return Err(place(text, check::check(&tree, keys)));
    }
    if tree.get("upstreams").is_none() {
        let _ = tree.set(&["upstreams"], upstreams::built_in());
    }
    let Overlay { mut mistakes, warnings } = overlay(&mut tree, variables, keys);
    mistakes.splice(0..0, check::check(&tree, keys));
    let mut findings = Findings { mistakes, warnings, ..Findings::default() };
    let machine = Machine {
        cache_directory: cache_directory(variables),
        disk_size: &disk_size,
        credentials_directory: absolute(variables, "CREDENTIALS_DIRECTORY"),
        proxies: Proxies::new(variables),
    };
    let config = validate(&tree, keys, &machine, &mut findings);
    check_files(&config, &Section::root(&tree, keys), &mut findings);
    if findings.mistakes.is_empty() { Ok((config, place(text, findings.warnings))) } else { Err(place(text, findings.mistakes)) }
}

/// Looks up the lines, in the order of the file.
fn place(text: &str, mut findings: Vec<Finding>) -> Vec<Mistake> {
    findings.sort_by_key(|finding| match finding.origin {
        Origin::File(number) => number,
        Origin::Variable(_) | Origin::BuiltIn => usize::MAX,
    });
    let more = findings.len().saturating_sub(MISTAKES_MAX);
    findings.truncate(MISTAKES_MAX);
    let mut placed: Vec<_> = findings.into_iter().map(|finding| finding.place(|number| file::locate(text, number))).collect();
    if more > 0 {
        placed.push(whole_file(format!("and {more} more; is this larder's configuration?")));
    }
    placed
}

fn whole_file(message: String) -> Mistake {
    Mistake { place: Place::File(None), key: String::new(), message }
}

/// systemd's, else the user's.
fn cache_directory(variables: &Variables) -> Option<PathBuf> {
    // systemd joins several directories with colons; the first is the one meant for data.
    let systemd = variables.get("CACHE_DIRECTORY").and_then(|paths| paths.split(':').next()).map(PathBuf::from);
    let systemd = systemd.filter(|path| path.is_absolute());
    systemd
        .or_else(|| absolute(variables, "XDG_CACHE_HOME").map(|path| path.join("larder")))
        .or_else(|| absolute(variables, "HOME").map(|path| path.join(".cache/larder")))
}

fn absolute(variables: &Variables, name: &str) -> Option<PathBuf> {
    variables.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
}

/// Of the file system that holds the path, or will hold it.
fn disk_size(path: &Path) -> Option<u64> {
    let stat = path.ancestors().find_map(|ancestor| rustix::fs::statvfs(ancestor).ok())?;
    stat.f_blocks.checked_mul(stat.f_frsize)
}
