//! docker's and podman's files, in the order in which they are looked through, and the helpers they name.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moka::sync::Cache;

use super::docker_config::{DockerConfig, Found};
use super::environment::Environment;
use super::exec::Limits;
use super::health::{Health, Place};
use super::pattern::Image;
use super::program::{Program, Protocol};
use super::{Held, Login, Version, files, refused};
use crate::upstream::UpstreamError;

const AUTH_VARIABLE: &str = "DOCKER_AUTH_CONFIG";
/// One file names one or two.
const HELPERS_MAX: u64 = 32;

/// Where a configuration may stand.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whereabouts {
    Variable,
    File(PathBuf),
    /// It need not be there.
    PossibleFile(PathBuf),
}

/// Whatever there is of them: the first that has a login for the image says it.
pub(super) struct Lookup {
    whereabouts: Vec<(Whereabouts, Health)>,
    helpers: Cache<String, Arc<Program>>,
    environment: Environment,
    limits: Limits,
    place: Place,
}

impl Lookup {
    /// One file, which must be there.
    pub(super) fn in_file(path: &Path, environment: &Environment, limits: Limits, place: &Place) -> Lookup {
        Lookup::new(vec![Whereabouts::File(path.to_owned())], environment, limits, place)
    }

    pub(super) fn everywhere(environment: &Environment, limits: Limits, place: &Place) -> Lookup {
        Lookup::new(everywhere(environment), environment, limits, place)
    }

    fn new(whereabouts: Vec<Whereabouts>, environment: &Environment, limits: Limits, place: &Place) -> Lookup {
        let whereabouts = whereabouts.into_iter().map(|whereabouts| (whereabouts, Health::new(place))).collect();
        Lookup { whereabouts, helpers: Cache::new(HELPERS_MAX), environment: environment.clone(), limits, place: place.clone() }
    }

    /// What cannot be read is passed over for what can, and told if nothing can.
    pub(super) async fn login(&self, image: &Image) -> Result<Held, UpstreamError> {
        let mut failure = None;
        for (whereabouts, health) in &self.whereabouts {
            match self.login_in(whereabouts, health, image).await {
                Ok(Some(held)) => return Ok(held),
                Ok(None) => {}
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        failure.map_or_else(|| Ok(Login::Anonymous.into()), Err)
    }

    pub(super) fn refused(&self, version: &Version) {
        for (_, helper) in &self.helpers {
            helper.refused(version);
        }
    }

    async fn login_in(&self, whereabouts: &Whereabouts, health: &Health, image: &Image) -> Result<Option<Held>, UpstreamError> {
        let config = health.of(self.read(whereabouts).await)?;
        let Found { helper, login } = config.map(|config| config.find(image)).unwrap_or_default();
        if let Some(helper) = helper {
            let held = self.helper(&helper).login(image).await?;
            if !matches!(held.login, Login::Anonymous) {
                return Ok(Some(held));
            }
        }
        Ok(login.map(Held::from))
    }

    fn helper(&self, name: &str) -> Arc<Program> {
        let new = || Program::new(Protocol::Helper(name.into()), &self.environment, self.limits, &self.place);
        self.helpers.get_with_by_ref(name, new)
    }

    async fn read(&self, whereabouts: &Whereabouts) -> Result<Option<DockerConfig>, UpstreamError> {
        let parse = |bytes: &[u8]| DockerConfig::parse(bytes).map_err(io::Error::other);
        let (path, optional) = match whereabouts {
            Whereabouts::Variable => {
                let parsed = self.environment.get(AUTH_VARIABLE).map(OsStr::as_encoded_bytes).map(parse).transpose();
                return parsed.map_err(|error| refused(format!("{AUTH_VARIABLE}: {error}")));
            }
            Whereabouts::File(path) => (path, false),
            Whereabouts::PossibleFile(path) => (path, true),
        };
        match files::read(path, parse).await {
            Ok(config) => Ok(Some(config)),
            Err(error) if optional && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(refused(format!("docker config file {}: {error}", path.display()))),
        }
    }
}

/// As docker and podman look, the job's own variable first. A file that is named must be there.
fn everywhere(environment: &Environment) -> Vec<Whereabouts> {
    let variable = |name: &str, file: &str| environment.path(name).map(|folder| folder.join(file));
    let home = |file: &str| variable("HOME", file);
    let runtime = variable("XDG_RUNTIME_DIR", "containers/auth.json");
    let run = || PathBuf::from(format!("/run/containers/{}/auth.json", rustix::process::getuid().as_raw()));
    let possible = [
        variable("DOCKER_CONFIG", "config.json").or_else(|| home(".docker/config.json")),
        Some(runtime.unwrap_or_else(run)),
        variable("XDG_CONFIG_HOME", "containers/auth.json").or_else(|| home(".config/containers/auth.json")),
        home(".dockercfg"),
    ];
    let named = environment.path("REGISTRY_AUTH_FILE").map(Whereabouts::File);
    let possible = possible.into_iter().flatten().map(Whereabouts::PossibleFile);
    [Whereabouts::Variable].into_iter().chain(named).chain(possible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(variables: &[(&str, &str)]) -> Vec<String> {
        let environment = variables.iter().copied().collect();
        let all = everywhere(&environment).into_iter().map(|whereabouts| match whereabouts {
            Whereabouts::Variable => "$".into(),
            Whereabouts::File(path) => format!("!{}", path.display()),
            Whereabouts::PossibleFile(path) => path.display().to_string(),
        });
        all.collect()
    }

    #[test]
    fn credential_16_files_are_looked_for_where_docker_and_podman_look() {
        let own = format!("/run/containers/{}/auth.json", rustix::process::getuid().as_raw());
        let home = ["$", "/h/.docker/config.json", &own, "/h/.config/containers/auth.json", "/h/.dockercfg"];
        assert_eq!(files(&[("HOME", "/h")]), home);
        assert_eq!(files(&[("HOME", "/h"), ("DOCKER_CONFIG", ""), ("XDG_RUNTIME_DIR", "")]), home);
        let all = [
            ("HOME", "/h"),
            ("REGISTRY_AUTH_FILE", "/a/auth.json"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_RUNTIME_DIR", "/r"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        let expected = ["$", "!/a/auth.json", "/d/config.json", "/r/containers/auth.json", "/c/containers/auth.json", "/h/.dockercfg"];
        assert_eq!(files(&all), expected);
        assert_eq!(files(&[]), ["$", &own]);
    }
}
