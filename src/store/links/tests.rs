//! Whose bytes are whose, said by hand.

use super::*;
use crate::oci::Algorithm;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn repository(upstream: &str, name: &str) -> RepositoryKey {
    RepositoryKey { upstream: upstream.into(), name: name.parse().expect("a name") }
}

/// `upstream/app` has a manifest of its own that lists `layer`.
fn hold(links: &mut Links, upstream: &str) -> RepositoryKey {
    let repository = repository(upstream, "app");
    let manifest = digest(upstream);
    links.hold(repository.clone(), manifest, "a/b".parse().expect("a type"));
    links.list(manifest, [(digest("layer"), 7)].into());
    repository
}

#[test]
fn an_image_is_half_pulled_while_something_it_lists_is_missing() {
    let mut links = Links::new([]);
    let held = |missing: &'static str| move |digest: &Digest| *digest != self::digest(missing);
    links.list(digest("image"), [(digest("config"), 1), (digest("layer"), 1)].into());
    links.hold(repository("docker.io", "app"), digest("index"), MediaType::OCI_INDEX.parse().expect("a type"));
    links.list(digest("index"), [(digest("image"), 1), (digest("other image"), 1)].into());
    for part in ["image", "config", "layer"] {
        assert!(links.is_half_pulled(&digest(part), |_| true, held("config")), "{part}");
        assert!(!links.is_half_pulled(&digest(part), |_| true, held("other image")), "{part}");
        assert!(!links.is_half_pulled(&digest(part), |_| false, held("config")), "{part}");
    }
    assert!(!links.is_half_pulled(&digest("index"), |_| true, held("other image")));
    assert!(!links.is_half_pulled(&digest("something else"), |_| true, held("config")));
}

#[test]
fn invariant_14_only_a_repository_whose_manifest_lists_it_may_serve_a_blob() {
    let mut links = Links::new([]);
    let app = hold(&mut links, "docker.io");
    assert_eq!(links.link(&app, &digest("layer")), Link::Listed { size: 7 });
    assert_eq!(links.link(&repository("docker.io", "other"), &digest("layer")), Link::Unlisted);
    assert_eq!(links.link(&app, &digest("another layer")), Link::Unlisted);
    links.forget(&digest("docker.io"));
    assert_eq!(links.link(&app, &digest("layer")), Link::Unlisted);
}

#[test]
fn invariant_14_listing_what_a_private_upstream_has_is_not_enough() {
    let mut links = Links::new(["private.example".into()]);
    let (public, private) = (hold(&mut links, "docker.io"), hold(&mut links, "private.example"));
    let layer = digest("layer");
    assert_eq!(links.link(&public, &layer), Link::Doubtful { size: 7 });
    assert_eq!(links.link(&private, &layer), Link::Listed { size: 7 });
    links.confirm(&"docker.io".into(), layer);
    assert_eq!(links.link(&public, &layer), Link::Listed { size: 7 });
}

#[test]
fn invariant_14_a_private_blob_that_no_manifest_lists_is_private_too() {
    let mut links = Links::new(["private.example".into()]);
    let public = hold(&mut links, "docker.io");
    links.confirm(&"private.example".into(), digest("layer"));
    assert_eq!(links.link(&public, &digest("layer")), Link::Doubtful { size: 7 });
}

#[test]
fn invariant_14_while_not_all_is_loaded_another_private_upstream_may_have_it() {
    let layer = digest("layer");
    let mut links = Links::new(["private.example".into()]);
    let (app, private) = (hold(&mut links, "docker.io"), repository("private.example", "app"));
    links.set_loading(true);
    assert_eq!(links.link(&app, &layer), Link::Doubtful { size: 7 });
    assert_eq!(links.link(&private, &layer), Link::Unlisted);
    links.set_loading(false);
    assert_eq!(links.link(&app, &layer), Link::Listed { size: 7 });
    links.set_loading(true);
    links.confirm(&"docker.io".into(), layer);
    assert_eq!(links.link(&app, &layer), Link::Listed { size: 7 });

    let mut links = Links::new(["docker.io".into()]);
    let app = hold(&mut links, "docker.io");
    links.set_loading(true);
    assert_eq!(links.link(&app, &layer), Link::Listed { size: 7 }, "nobody else is private");
}

#[test]
fn a_manifest_that_lists_something_twice_is_one_of_its_listers() {
    let mut links = Links::new([]);
    links.list(digest("manifest"), [(digest("empty"), 1), (digest("layer"), 2), (digest("empty"), 1)].into());
    assert_eq!(links.children(&digest("manifest")).map(|children| children.len()), Some(3));
    links.list(digest("manifest"), [(digest("empty"), 1)].into());
    links.forget(&digest("manifest"));
    assert!(links.is_orphan(&digest("empty")) && links.is_orphan(&digest("layer")));
}

#[test]
fn a_repository_knows_what_it_holds() {
    let mut links = Links::new([]);
    let app = hold(&mut links, "docker.io");
    let media_type: MediaType = "a/b".parse().expect("a type");
    links.hold(app.clone(), digest("another"), media_type.clone());
    links.hold(app.clone(), digest("another"), media_type.clone());
    links.hold(repository("docker.io", "other"), digest("another"), media_type);
    let held = |links: &Links, repository: &RepositoryKey| links.held_by(repository).into_iter().collect::<HashSet<_>>();
    assert_eq!(held(&links, &app), [digest("docker.io"), digest("another")].into());
    assert!(links.unhold(&app, &digest("another")) && !links.unhold(&app, &digest("another")));
    assert_eq!(held(&links, &app), [digest("docker.io")].into());
    assert_eq!(held(&links, &repository("docker.io", "other")), [digest("another")].into());
    links.forget(&digest("docker.io"));
    assert_eq!((held(&links, &app), links.manifest_count()), ([].into(), 1));
}

/// The same, said in plain sets.
#[derive(Default)]
struct Model {
    is_loading: bool,
    /// Repository and manifest, with the media type.
    held: BTreeMap<(usize, u8), u8>,
    lists: BTreeMap<u8, Vec<u8>>,
    /// Upstream and blob.
    confirmed: BTreeSet<(&'static str, u8)>,
}

const UPSTREAMS: [&str; 3] = ["docker.io", "private.example", "secret.example"];
const REPOSITORIES: usize = 5;
const DIGESTS: u8 = 12;

fn nth(n: u8) -> Digest {
    digest(&n.to_string())
}

fn nth_repository(n: usize) -> RepositoryKey {
    repository(UPSTREAMS[n % 3], &format!("app{n}"))
}

fn nth_type(n: u8) -> MediaType {
    [MediaType::OCI_MANIFEST, MediaType::OCI_INDEX][usize::from(n % 2)].parse().expect("a type")
}

impl Model {
    fn holders(&self, digest: u8) -> BTreeSet<usize> {
        self.held.keys().filter(|(_, manifest)| *manifest == digest).map(|(repository, _)| *repository).collect()
    }

    fn parents(&self, digest: u8) -> Vec<u8> {
        self.lists.iter().filter(|(_, children)| children.contains(&digest)).map(|(manifest, _)| *manifest).collect()
    }

    /// Sizes that the repository's manifests say, and whether they are enough; `None` when it has none that lists it.
    fn link(&self, repository: usize, digest: u8) -> Option<(Vec<u64>, bool)> {
        let parents = self.parents(digest);
        let sizes: Vec<u64> =
            parents.iter().filter(|parent| self.held.contains_key(&(repository, **parent))).map(|parent| size(*parent, digest)).collect();
        let here = UPSTREAMS[repository % 3];
        let others = UPSTREAMS[1..].iter().filter(|upstream| **upstream != here);
        let has = |upstream: &str, digest: u8| self.holders(digest).iter().any(|holder| UPSTREAMS[holder % 3] == upstream);
        let itself = |upstream: &'static str| self.confirmed.contains(&(upstream, digest)) || has(upstream, digest);
        let mut elsewhere =
            others.filter(|upstream| self.is_loading || itself(upstream) || parents.iter().any(|parent| has(upstream, *parent)));
        (!sizes.is_empty()).then(|| (sizes, itself(here) || elsewhere.next().is_none()))
    }
}

fn size(manifest: u8, child: u8) -> u64 {
    u64::from(manifest) * 100 + u64::from(child)
}

#[derive(Clone, Debug)]
enum Step {
    Hold(usize, u8, u8),
    List(u8, Vec<u8>),
    Confirm(usize, u8),
    Unhold(usize, u8),
    Forget(u8),
    Load(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..REPOSITORIES, 0..DIGESTS, 0..2u8).prop_map(|(n, digest, kind)| Step::Hold(n, digest, kind)),
        4 => (0..DIGESTS, proptest::collection::vec(0..DIGESTS, 0..5)).prop_map(|(digest, children)| Step::List(digest, children)),
        2 => (0..3usize, 0..DIGESTS).prop_map(|(upstream, digest)| Step::Confirm(upstream, digest)),
        2 => (0..REPOSITORIES, 0..DIGESTS).prop_map(|(n, digest)| Step::Unhold(n, digest)),
        3 => (0..DIGESTS).prop_map(Step::Forget),
        1 => any::<bool>().prop_map(Step::Load),
    ]
}

fn apply(links: &mut Links, model: &mut Model, step: Step) {
    match step {
        Step::Hold(n, digest, kind) => {
            links.hold(nth_repository(n), nth(digest), nth_type(kind));
            model.held.insert((n, digest), kind);
        }
        Step::List(digest, children) => {
            links.list(nth(digest), children.iter().map(|child| (nth(*child), size(digest, *child))).collect());
            model.lists.entry(digest).or_insert(children);
        }
        Step::Confirm(upstream, digest) => {
            links.confirm(&UPSTREAMS[upstream].into(), nth(digest));
            model.confirmed.insert((UPSTREAMS[upstream], digest));
        }
        Step::Unhold(n, digest) => {
            assert_eq!(links.unhold(&nth_repository(n), &nth(digest)), model.held.remove(&(n, digest)).is_some());
        }
        Step::Forget(digest) => {
            links.forget(&nth(digest));
            model.held.retain(|(_, manifest), _| *manifest != digest);
            model.confirmed.retain(|(_, blob)| *blob != digest);
            model.lists.remove(&digest);
        }
        Step::Load(is_loading) => {
            links.set_loading(is_loading);
            model.is_loading = is_loading;
        }
    }
}

fn compare(links: &Links, model: &Model, digest: u8) {
    let (id, parents, holders) = (nth(digest), model.parents(digest), model.holders(digest));
    let children: Option<Vec<_>> =
        model.lists.get(&digest).map(|children| children.iter().map(|child| (nth(*child), size(digest, *child))).collect());
    assert_eq!(links.children(&id).as_deref(), children.as_deref());
    let keys = |numbers: &BTreeSet<usize>| numbers.iter().map(|n| nth_repository(*n)).collect::<BTreeSet<_>>();
    assert_eq!(links.holders(&id).cloned().collect::<BTreeSet<_>>(), keys(&holders));
    assert_eq!(links.any_media_type(&id).is_some(), !holders.is_empty());
    let confirmed: Vec<Arc<str>> = UPSTREAMS.into_iter().filter(|name| model.confirmed.contains(&(*name, digest))).map(Arc::from).collect();
    assert_eq!(links.confirmed(&id), confirmed);
    assert_eq!(links.is_orphan(&id), parents.is_empty() && holders.is_empty());
    let all = parents.iter().chain([&digest]).flat_map(|manifest| model.holders(*manifest)).collect();
    assert_eq!(links.repositories_of(&id).into_iter().cloned().collect::<Vec<_>>(), keys(&all).into_iter().collect::<Vec<_>>());
    let is_known = !parents.is_empty() || !holders.is_empty() || children.is_some() || !confirmed.is_empty();
    assert_eq!(links.names.find(&id).is_some(), is_known, "numbers are given back");
    for n in 0..REPOSITORIES {
        let kind = model.held.get(&(n, digest));
        assert_eq!(links.media_type(&nth_repository(n), &id).cloned(), kind.map(|kind| nth_type(*kind)));
        assert_eq!(links.is_listed(&nth_repository(n), &id), model.link(n, digest).is_some());
        match (links.link(&nth_repository(n), &id), model.link(n, digest)) {
            (Link::Unlisted, None) => {}
            (Link::Listed { size }, Some((sizes, true))) | (Link::Doubtful { size }, Some((sizes, false))) => {
                assert!(sizes.contains(&size))
            }
            (links, model) => panic!("{links:?} instead of {model:?}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn links_are_what_plain_sets_say(steps in proptest::collection::vec(step(), 0..100)) {
        let private = UPSTREAMS[1..].iter().map(|name| Arc::from(*name));
        let (mut links, mut model) = (Links::new(private), Model::default());
        for step in steps {
            apply(&mut links, &mut model, step);
            (0..DIGESTS).for_each(|digest| compare(&links, &model, digest));
            let manifests: BTreeSet<Digest> = model.held.keys().map(|(_, manifest)| nth(*manifest)).collect();
            prop_assert_eq!(links.manifest_count(), manifests.len());
            prop_assert_eq!(links.manifests().into_iter().collect::<BTreeSet<_>>(), manifests);
            for n in 0..REPOSITORIES {
                let held: BTreeSet<u8> = model.held.keys().filter(|(holder, _)| *holder == n).map(|(_, manifest)| *manifest).collect();
                let found: BTreeSet<Digest> = links.held_by(&nth_repository(n)).into_iter().collect();
                prop_assert_eq!(found, held.iter().map(|manifest| nth(*manifest)).collect());
                let listed = held.iter().filter_map(|manifest| model.lists.get(manifest)).flatten();
                let closure: BTreeSet<Digest> = held.iter().chain(listed).map(|digest| nth(*digest)).collect();
                let (count, ids) = links.closure_of(&nth_repository(n));
                prop_assert_eq!((count, ids.len()), (held.len(), closure.len()));
                prop_assert_eq!(ids.into_iter().filter_map(|id| links.names.digest(id)).collect::<BTreeSet<_>>(), closure);
            }
        }
        (0..DIGESTS).for_each(|digest| links.forget(&nth(digest)));
        prop_assert!(links.images.is_empty() && (0..REPOSITORIES).all(|n| links.repositories.find(&nth_repository(n)).is_none()));
    }
}
