//! `larder client-config`: the exact file that makes a client pull through larder, and what to beware of. The file
//! goes to stdout, so that it can be piped to where it belongs; the notes go to stderr.

mod templates;

use crate::config::{BaseUrl, Config, Listener};

/// The clients whose files we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Docker,
    Containerd,
    Podman,
    K3s,
    Buildkit,
}

/// What a client is to be told.
#[derive(Debug)]
pub struct Request {
    /// How the client reaches larder.
    url: BaseUrl,
    /// Whether the client may ask the registry itself when larder cannot answer.
    fallback: bool,
    registries: Vec<Registry>,
    /// What images that name no registry mean to larder, if that is one thing wherever the URL leads.
    default_upstream: Option<String>,
    /// What to beware of whatever the client.
    notes: Vec<String>,
}

/// A registry as clients name it.
#[derive(Debug)]
struct Registry {
    name: String,
    /// How it is written as the first component of a repository's name, where no port may stand.
    component: Option<String>,
}

/// A file for stdout and the notes for stderr, the first of which says where the file belongs.
#[derive(Debug)]
pub struct ClientConfig {
    pub content: String,
    pub notes: Vec<String>,
}

impl Request {
    /// For the registries of a configuration, or for one of them.
    ///
    /// # Errors
    /// When the URL or the registry is none that a client can use.
    pub fn new(url: Option<&str>, fallback: bool, registry: Option<&str>, config: &Config) -> Result<Request, String> {
        let mut notes = Vec::new();
        let url = match url {
            Some(text) => text.parse::<BaseUrl>().map_err(|fault| format!("--url {fault}"))?,
            None => listening_url(config, &mut notes),
        };
        if !url.path.is_empty() {
            return Err("--url has a path; leave it out: each client puts its own in another place, and larder knows them all".into());
        }
        let wanted = config.upstreams.values().filter(|upstream| registry.is_none_or(|name| name == upstream.name));
        let component = |name: &str| Some(name.to_owned()).filter(|name| !name.contains(':'));
        let registries: Vec<_> = wanted
            .map(|upstream| Registry {
                name: upstream.name.clone(),
                component: component(&upstream.name).or_else(|| upstream.aliases.iter().find_map(|alias| component(alias))),
            })
            .collect();
        match registry {
            Some(name) if registries.is_empty() => Err(format!("--registry {name} is not one of the upstreams")),
            _ => {
                let default_upstream = default_upstream(config, url.port);
                Ok(Request { url, fallback, registries, default_upstream, notes })
            }
        }
    }

    /// `host:port` without a scheme.
    fn authority(&self) -> String {
        let url = self.url.to_string();
        url.split_once("://").map_or(url.as_str(), |(_, authority)| authority).to_owned()
    }
}

/// That of the listeners on the URL's port; a proxy in between may lead to any.
fn default_upstream(config: &Config, port: u16) -> Option<String> {
    let listeners = &config.server.listen;
    let on_port = |listener: &&Listener| listener.address.port() == port;
    let behind_a_proxy = !listeners.iter().any(|listener| on_port(&listener));
    let mut defaults: Vec<_> = listeners
        .iter()
        .filter(|listener| behind_a_proxy || on_port(listener))
        .map(|listener| listener.default_upstream.as_ref().unwrap_or(&config.default_upstream))
        .collect();
    defaults.dedup();
    if let [only] = defaults.as_slice() { Some((*only).clone()) } else { None }
}

/// The URL that clients on this machine can use.
fn listening_url(config: &Config, notes: &mut Vec<String>) -> BaseUrl {
    let listen = config.server.listen.first();
    let (mut host, port) =
        listen.map_or(("127.0.0.1".to_owned(), 5000), |Listener { address, .. }| (address.ip().to_string(), address.port()));
    if listen.is_some_and(|Listener { address, .. }| address.ip().is_unspecified()) {
        "127.0.0.1".clone_into(&mut host);
        notes.push("larder listens on every address; for clients on other machines, give --url with the name they know it by".into());
    }
    if host.contains(':') {
        host = format!("[{host}]");
    }
    BaseUrl { tls: false, host, port, path: String::new() }
}

/// The file for one kind of client.
///
/// # Errors
/// When this client cannot do what is asked: why, and what to do instead.
pub fn client_config(kind: Kind, request: &Request) -> Result<ClientConfig, String> {
    let mut made = match kind {
        Kind::Docker => templates::docker(request)?,
        Kind::Containerd => templates::containerd(request),
        Kind::Podman => templates::podman(request)?,
        Kind::K3s => templates::k3s(request),
        Kind::Buildkit => templates::buildkit(request)?,
    };
    made.notes.extend_from_slice(&request.notes);
    Ok(made)
}
