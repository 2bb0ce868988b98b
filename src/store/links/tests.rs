//! Whose bytes are whose, said by hand.

use super::*;
use crate::oci::Algorithm;

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
