//! The table of keys: every key that means something, once. Reader, environment, `--print`, `config.example.yaml`, the JSON schema
//! and the messages about unknown keys all follow from it; a key that is added here needs only its reader.

use std::time::Duration;

use super::key::{Key, Kind, Longest, Shape};
use super::{LogFormat, VerifyOnRead, Visibility};

/// Less holds no image.
const CACHE_SIZE_MIN: u64 = 1 << 20;
const ANY_SIZE: Kind = Kind::Size { min: 0 };
const ANY_DURATION: Kind = Kind::Duration(Longest::Any);
/// No wait within a request may be longer than the request.
const WAIT: Kind = Kind::Duration(Longest::Seconds(25, "a client gets its headers within 25s or gives up"));
const STOP: Kind = Kind::Duration(Longest::Seconds(3600, "a service manager kills a daemon that takes longer to stop"));
/// Of downloads or requests at a time: more than sockets allow would bound nothing.
const AT_A_TIME: Kind = Kind::Count { min: 1, max: 65_536 };
const CONNECTIONS: Kind = Kind::Count { min: 1, max: 1_000_000 };
const VERIFY_ON_READ: &[&str] = &words(&VerifyOnRead::WORDS);
const VISIBILITY: &[&str] = &words(&Visibility::WORDS);
const LOG_FORMAT: &[&str] = &words(&LogFormat::WORDS);

/// Every key, in the order in which it is documented and printed.
pub static KEYS: &[Key] = &[
    Key::list(
        "server.listen",
        Kind::Address,
        "Addresses and ports for clients; one, or a list: [127.0.0.1:5000, {address: 127.0.0.1:5002, default_upstream: ghcr.io}]. \
         Loopback unless something else is written: 0.0.0.0:5000 serves other machines.",
    )
    .default("127.0.0.1:5000")
    .restart(),
    Key::one("server.listen.address", Kind::Address, "Address and port.").example("127.0.0.1:5000").restart(),
    Key::one(
        "server.listen.default_upstream",
        Kind::Text,
        "The upstream of requests that come in here and name none, for clients that cannot be given a path. Default: the global one.",
    )
    .example("docker.io")
    .restart(),
    Key::one(
        "server.hosts",
        Kind::Text,
        "Host header (without port) → upstream, for clients that can be given a host but no path: {quay.mirror.corp: quay.io}.",
    )
    .shaped(Shape::Names),
    Key::one(
        "server.allow_anonymous_private",
        Kind::Boolean,
        "Start although everybody who reaches `listen` can read private upstreams without authentication.",
    )
    .default("false"),
    Key::one(
        "server.max_connections",
        CONNECTIONS,
        "Connections from clients at a time; each costs a file descriptor and some memory.",
    )
    .default("16384"),
    Key::one("server.drain_timeout", STOP, "Longest wait for running downloads on SIGTERM.").default("60s"),
    Key::one(
        "admin.listen",
        Kind::Address,
        "Address and port of /metrics, /livez and /readyz. Apart from the clients' port, so that it can stay private.",
    )
    .default("127.0.0.1:5001")
    .restart(),
    Key::one(
        "cache.path",
        Kind::Path,
        "Directory of the cache. Default: $CACHE_DIRECTORY (systemd sets it), else $XDG_CACHE_HOME/larder, else ~/.cache/larder.",
    )
    .example("/var/cache/larder")
    .restart(),
    Key::one(
        "cache.max_size",
        Kind::Size { min: CACHE_SIZE_MIN },
        "Most bytes on disk, as allocated; the least recently used content is evicted first. \
         Default: 20GiB or 10 % of the disk, whichever is smaller.",
    )
    .example("20GiB"),
    Key::one(
        "cache.min_free",
        ANY_SIZE,
        "Bytes of the disk that stay free, whoever else writes to it: larder evicts for it, and stores nothing where that does not help.",
    )
    .default("1GiB"),
    Key::one(
        "cache.max_blob_size",
        Kind::Share,
        "Larger blobs pass through unstored, so that one does not push out everything else. A size, or a percentage of max_size.",
    )
    .default("50%"),
    Key::one(
        "cache.evict_unused_after",
        ANY_DURATION,
        "What nobody has used for so long is evicted, even if there is space for it. Only time counts while larder runs, whatever the \
         clock says. 0: never.",
    )
    .default("30d"),
    Key::list(
        "cache.pinned_images",
        Kind::Text,
        "Images that are never evicted: host/repository:tag, where * and ? may stand in the tag. What does not fit beside them passes \
         through unstored. One with a whole tag is fetched if missing and kept complete, also when its tag moves; with * or ? that \
         goes for the tags that clients have pulled, since all tags of a repository may be terabytes.",
    ),
    Key::list(
        "cache.pinned_platforms",
        Kind::Text,
        "The platforms of these images that are fetched, such as [linux/amd64, linux/arm64]. Empty: those that clients have pulled, \
         else this machine's.",
    ),
    Key::one(
        "cache.tag_ttl",
        ANY_DURATION,
        "How long a tag is served without asking upstream; an upstream's own tag_ttl comes first. Default: 5m for the well-known \
         public registries at their own URL; 0s for all others, so that a pull gets what was just pushed.",
    )
    .example("5m"),
    Key::one(
        "cache.stale_if_error",
        ANY_DURATION,
        "How long an unconfirmed tag is served stale while upstream cannot answer; after that, pulls by tag fail as upstream does.",
    )
    .default("7d"),
    Key::one(
        "cache.revalidate_wait",
        WAIT,
        "How long a pull waits for upstream's answer about a cached tag, before it is served stale.",
    )
    .default("2s"),
    Key::one(
        "cache.negative_ttl",
        ANY_DURATION,
        "How long \"not found\" is remembered; saves upstream requests when a cluster asks for a tag that does not exist yet.",
    )
    .default("10s"),
    Key::one(
        "cache.keep_deleted_tags",
        Kind::Boolean,
        "Go on serving a cached tag that upstream has deleted; pulls of it outlive a clean-up over there. Default: it is deleted here, too.",
    )
    .default("false"),
    Key::one("cache.memory_cache_size", ANY_SIZE, "Bytes of RAM for often used manifests and small blobs.").default("64MiB").restart(),
    Key::one(
        "cache.verify_on_read",
        Kind::Choice(VERIFY_ON_READ),
        "When a stored blob is hashed again before it is served from disk: after-unclean-stop (once each, if larder or the machine \
         went down hard), always (a disk that is not to be trusted; each pull then costs a hash) or never.",
    )
    .default("after-unclean-stop"),
    Key::one(
        "cache.scrub_interval",
        ANY_DURATION,
        "Everything in the cache is hashed once in so long, slowly, in the background; finds damage in what nobody reads. 0: never.",
    )
    .default("30d"),
    Key::one("fills.max_concurrent", AT_A_TIME, "Downloads from upstreams at a time. With more of them each takes longer.").default("64"),
    Key::one(
        "fills.max_concurrent_per_upstream",
        AT_A_TIME,
        "Of these, to one upstream, so that a slow registry leaves room for the others.",
    )
    .default("32"),
    Key::one(
        "fills.queue_timeout",
        WAIT,
        "How long a download waits for its turn before the client gets 503 and comes back.",
    )
    .default("20s"),
    Key::one(
        "limits.questions",
        AT_A_TIME,
        "Requests to upstreams at a time that are no downloads: for manifests, tags, lists and tokens. More of them wait.",
    )
    .default("256"),
    Key::one(
        "limits.questions_per_upstream",
        AT_A_TIME,
        "Of these, to one upstream, so that a slow registry leaves room for the others.",
    )
    .default("32"),
    Key::one(
        "default_upstream",
        Kind::Text,
        "The upstream of requests that name none, as Docker's do. One of the names or aliases below.",
    )
    .default("docker.io"),
    Key::section(
        "upstreams",
        "The registries to mirror, by the host that image names have. A list that is written replaces this one; nothing else is reachable.",
    ),
    Key::list(
        "upstreams.*.url",
        Kind::Text,
        "Where the registry is: http or https, and a path before /v2 if it has one. Default: its own; for an unknown name, \
         https://<name>. Or a list, of which the next is tried when one is down or limits the rate. No username in it: that goes \
         under credentials.",
    )
    .shaped(Shape::OneOrMore)
    .example("https://registry-1.docker.io"),
    Key::list(
        "upstreams.*.aliases",
        Kind::Text,
        "Further first components of an image's name that mean this upstream: mirror:5000/hub/library/alpine.",
    ),
    Key::one(
        "upstreams.*.credentials",
        Kind::Text,
        "For private images, or a higher rate limit: one mapping, or a list of them, each with exactly one kind. Files are read at \
         each use, and may begin with $CREDENTIALS_DIRECTORY/ (systemd's LoadCredential). Whoever can read this file can read a \
         secret that is written in it.",
    )
    .shaped(Shape::Entries),
    Key::one(
        "upstreams.*.credentials.name",
        Kind::Text,
        "Its name in logs and metrics: up to 32 of a-z, 0-9, _ and -. Default: default; in a list then 2, 3 and so on.",
    )
    .example("default"),
    Key::list(
        "upstreams.*.credentials.repositories",
        Kind::Text,
        "The repositories it is for: * is any text within a component, ** any components, ? one character. Default: all. Of several, \
         the longest match is used.",
    )
    .example("[\"org/**\"]"),
    Key::one("upstreams.*.credentials.username", Kind::Text, "Kind 1: a username and its password or access token.").example("robot"),
    Key::one("upstreams.*.credentials.password_file", Kind::File, "The password's file.")
        .example("/run/credentials/larder.service/dockerhub"),
    Key::one("upstreams.*.credentials.password", Kind::Secret, "Or the password.").example("in-the-open"),
    Key::one(
        "upstreams.*.credentials.identity_token_file",
        Kind::File,
        "Kind 2: an OAuth2 refresh token, as `docker login` to Azure leaves one. Its file.",
    )
    .example("/run/secrets/identity-token"),
    Key::one("upstreams.*.credentials.identity_token", Kind::Secret, "Or the token.").example("in-the-open"),
    Key::one(
        "upstreams.*.credentials.registry_token_file",
        Kind::File,
        "Kind 3: a bearer token that the registry takes as it is. Its file.",
    )
    .example("/run/secrets/registry-token"),
    Key::one("upstreams.*.credentials.registry_token", Kind::Secret, "Or the token.").example("in-the-open"),
    Key::one(
        "upstreams.*.credentials.docker_config",
        Kind::Text,
        "Kind 4: docker's config.json, podman's auth.json, Kubernetes' .dockerconfigjson or .dockercfg; or auto: wherever docker and \
         podman look.",
    )
    .example("/var/lib/larder/.docker/config.json"),
    Key::one(
        "upstreams.*.credentials.docker_helper",
        Kind::Text,
        "Kind 5: docker-credential-<this> in PATH, such as ecr-login, gcr or acr-env.",
    )
    .example("ecr-login"),
    Key::list(
        "upstreams.*.credentials.kubelet_provider",
        Kind::Text,
        "Kind 6: a kubelet credential provider, by its path; or a list of the path and the arguments.",
    )
    .example("[/usr/local/bin/ecr-credential-provider]"),
    Key::one(
        "upstreams.*.visibility",
        Kind::Choice(VISIBILITY),
        "public: anonymous clients read what upstream shows anonymous clients. private: they read what the credentials read. Default: \
         public for the well-known registries at their own URL and for upstreams without credentials or client_cert_file, else private.",
    )
    .example("public"),
    Key::one("upstreams.*.tag_ttl", ANY_DURATION, "As in cache; this one wins.").example("5m"),
    Key::one("upstreams.*.stale_if_error", ANY_DURATION, "As in cache; this one wins.").example("7d"),
    Key::list(
        "upstreams.*.immutable_tags",
        Kind::Text,
        "Regular expressions for tags, each for the whole of one, that never move once they are cached: upstream is not asked about them \
         again.",
    ),
    Key::list(
        "upstreams.*.token_hosts",
        Kind::Text,
        "Hosts, besides the upstream's own and the known ones, that may be sent the credentials for a token.",
    ),
    Key::list(
        "upstreams.*.allow_private_addresses",
        Kind::Text,
        "Networks where redirects and token servers of this upstream may live; others than public ones are refused.",
    ),
    Key::one(
        "upstreams.*.ca_file",
        Kind::File,
        "PEM certificates to trust for this upstream beside the system's; for a private CA.",
    )
    .example("/etc/larder/ca.pem"),
    Key::one(
        "upstreams.*.client_cert_file",
        Kind::File,
        "PEM: the certificate chain to show to this upstream, and its private key, in one file. Read again when it changes.",
    )
    .example("/etc/larder/client.pem"),
    Key::one(
        "upstreams.*.proxy",
        Kind::Text,
        "The proxy to go through, http://user:password@host:port, or none. Default: $HTTPS_PROXY; $http_proxy for a url with http://. \
         Hosts that $NO_PROXY covers are reached directly, whichever it is.",
    )
    .example("http://proxy.example.com:3128"),
    Key::one(
        "upstreams.*.insecure_skip_verify",
        Kind::Boolean,
        "Take any certificate at the url's hosts (not where they redirect to). Whoever is in between reads and writes all: prefer ca_file.",
    )
    .default("false"),
    Key::one("log.format", Kind::Choice(LOG_FORMAT), "auto: text on a terminal, else json. Or text, or json.").default("auto"),
    Key::one(
        "log.level",
        Kind::Text,
        "off, error, warn, info, debug or trace; or a filter such as larder=debug,hyper=warn.",
    )
    .default("info"),
];

/// The default of a duration, as the table has it.
pub(super) fn default_duration(path: &str) -> Duration {
    let key = KEYS.iter().find(|key| key.path == path);
    key.and_then(|key| key.kind.duration(key.default?).ok()).unwrap_or_default()
}

/// The words of a choice, without what they mean.
const fn words<T: Copy, const N: usize>(meanings: &[(&'static str, T); N]) -> [&'static str; N] {
    let mut words = [""; N];
    let mut place = 0;
    while place < N {
        words[place] = meanings[place].0;
        place += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::super::{Config, example, load, schema};
    use super::*;
    use crate::config::key::Keys;

    /// One more row, and nothing else.
    fn with_made_up_key() -> Vec<Key> {
        let key = Key::one("cache.made_up_wait", WAIT, "How long the made-up thing waits.").default("3s");
        KEYS.iter().copied().chain([key]).collect()
    }

    fn load_with(keys: &[Key], text: &str, variable: Option<&str>) -> Result<Config, String> {
        let home = ("HOME".to_owned(), "/home/ada".to_owned());
        let made_up = variable.map(|value| ("LARDER_CACHE__MADE_UP_WAIT".to_owned(), value.to_owned()));
        let loaded = load::interpret(text, &[home].into_iter().chain(made_up).collect(), Keys(keys), |_, _, _| {});
        let lines = |mistakes: Vec<super::super::Mistake>| mistakes.iter().map(|mistake| mistake.line("f")).collect::<Vec<_>>().join("\n");
        loaded.map(|(config, _)| config).map_err(lines)
    }

    #[test]
    fn a_key_that_is_added_to_the_table_appears_wherever_keys_appear() {
        let keys = with_made_up_key();
        assert!(example::write(Keys(&keys)).contains("\n  # How long the made-up thing waits. At most 25s.\n  made_up_wait: 3s\n"));
        let part = &schema::write(Keys(&keys))["properties"]["cache"]["properties"]["made_up_wait"];
        let says = "How long the made-up thing waits. At most 25s.";
        assert_eq!((part["default"].as_str(), part["description"].as_str()), (Some("3s"), Some(says)));
        let printed =
            |text: &str, variable: Option<&str>| load_with(&keys, text, variable).expect("a configuration").to_yaml().expect("YAML");
        for (text, variable, shown) in [
            ("", None, "made_up_wait: 3s"),
            ("cache: {made_up_wait: 4000ms}", None, "made_up_wait: 4s"),
            ("cache: {made_up_wait: 4s}", Some("7s"), "made_up_wait: 7s"),
        ] {
            assert!(printed(text, variable).contains(&format!("\n  {shown}\n")), "{text}");
        }
        for (text, variable, says) in [
            ("cache: {made_up_wiat: 4s}", None, "f:1:9: cache.made_up_wiat: unknown key; did you mean cache.made_up_wait?"),
            ("cache: {made_up_wait: 1h}", None, "f:1:23: cache.made_up_wait: `1h` is too long; write at most 25s"),
            ("cache: {made_up_wait: [4s]}", None, "f:1:23: cache.made_up_wait: takes one value; it is a list"),
            ("", Some("soon"), "$LARDER_CACHE__MADE_UP_WAIT: cache.made_up_wait: `soon` is not a duration"),
        ] {
            let mistakes = load_with(&keys, text, variable).map(|_| ()).expect_err(text);
            assert!(mistakes.starts_with(says), "{mistakes}");
        }
        assert!(load_with(KEYS, "cache: {made_up_wait: 4s}", None).is_err_and(|mistakes| mistakes.contains("unknown key")));
    }

    #[test]
    fn every_default_is_one_that_its_kind_takes() {
        for key in KEYS {
            let fault = key.default.and_then(|text| key.kind.fault(text));
            assert_eq!(fault, None, "{}", key.path);
            let fault = key.example.filter(|_| key.shape == Shape::One).and_then(|text| key.kind.fault(text));
            assert_eq!(fault, None, "{}", key.path);
        }
    }
}
