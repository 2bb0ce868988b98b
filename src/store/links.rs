//! Whose bytes are whose: repository → manifest → blob. In RAM, built from `refs/` and the manifests' own bytes.

mod interned;
mod node;

use std::collections::HashSet;
use std::sync::Arc;

use slab::Slab;

use self::interned::{Interned, Number};
use self::node::{Crowds, Edge, Image, Node, leave};
use super::RepositoryKey;
use super::names::{Id, Names, User};
use crate::oci::{Digest, MediaType};

/// What a repository's manifests say about a digest (invariant 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// One of its manifests lists it: it may be served. The size is that manifest's word, in bytes.
    Listed { size: u64 },
    /// One lists it, but so does another upstream's private repository, and this upstream has not confirmed that it has
    /// it: whoever can push a manifest anywhere could list it.
    Doubtful { size: u64 },
    /// None lists it.
    Unlisted,
}

/// What a manifest lists: digest and announced size in bytes.
pub type Children = Arc<[(Digest, u64)]>;

/// The upstreams that confirmed something, sorted. Very many blobs share a set.
type Upstreams = Arc<[Arc<str>]>;

#[derive(Debug, Default)]
pub struct Links {
    private: HashSet<Arc<str>>,
    /// Not everything is entered yet: who else lists something is not known.
    is_loading: bool,
    names: Arc<Names>,
    /// By number; what is blank is not ours.
    nodes: Vec<Node>,
    crowds: Crowds,
    images: Slab<Image>,
    /// Of which somebody has the manifest.
    held: usize,
    repositories: Interned<RepositoryKey>,
    /// What each repository holds.
    manifests: Vec<Vec<Id>>,
    media_types: Interned<MediaType>,
    confirmed: Interned<Upstreams>,
}

impl Links {
    #[cfg(test)]
    pub fn new(private: impl IntoIterator<Item = Arc<str>>) -> Links {
        Links::with_names(Arc::default(), private)
    }

    /// `names` may be the ledger's; `private` are the upstreams whose content is not everybody's.
    pub fn with_names(names: Arc<Names>, private: impl IntoIterator<Item = Arc<str>>) -> Links {
        Links { names, private: private.into_iter().collect(), ..Links::default() }
    }

    /// While this is so, what is not listed elsewhere may be yet.
    pub fn set_loading(&mut self, is_loading: bool) {
        self.is_loading = is_loading;
    }

    /// The repository has this manifest.
    pub fn hold(&mut self, repository: RepositoryKey, manifest: Digest, media_type: MediaType) {
        let id = self.enter(&manifest);
        let media_type = self.media_types.take(&media_type);
        let repository = self.repositories.take(&repository);
        let image = self.image_mut(id);
        if let Some((_, known)) = image.holders.iter_mut().find(|(holder, _)| *holder == repository) {
            let before = std::mem::replace(known, media_type);
            self.media_types.give_back(before);
            self.repositories.give_back(repository);
            return;
        }
        image.holders.push((repository, media_type));
        self.held += usize::from(image.holders.len() == 1);
        if self.manifests.len() <= repository.index() {
            self.manifests.resize_with(repository.index() + 1, Vec::new);
        }
        self.manifests[repository.index()].push(id);
    }

    /// The manifest lists these.
    pub fn list(&mut self, manifest: Digest, children: Children) {
        let id = self.enter(&manifest);
        if self.image_mut(id).children.is_some() {
            return;
        }
        let edges: Box<[Edge]> = children.iter().map(|(child, size)| Edge { child: self.enter(child), size: *size }).collect();
        for child in once(&edges) {
            self.crowds.add(&mut self.nodes[child.index()].parents, id);
        }
        self.image_mut(id).children = Some(edges);
    }

    /// The upstream has said, by answering for it, that it has this blob.
    pub fn confirm(&mut self, upstream: &Arc<str>, digest: Digest) {
        let id = self.enter(&digest);
        let before = self.nodes[id.index()].confirmed;
        let known = self.upstreams(before);
        let Err(place) = known.binary_search(upstream) else { return };
        let (below, above) = known.split_at(place);
        let all: Upstreams = below.iter().chain([upstream]).chain(above).map(Arc::clone).collect();
        self.nodes[id.index()].confirmed = Some(self.confirmed.take(&all));
        before.into_iter().for_each(|before| self.confirmed.give_back(before));
    }

    /// The media type under which a repository has a manifest; `None` when it has none of this digest.
    pub fn media_type(&self, repository: &RepositoryKey, manifest: &Digest) -> Option<&MediaType> {
        let repository = self.repositories.find(repository)?;
        let (_, media_type) = self.holders_of(self.find(manifest)?).iter().find(|(holder, _)| *holder == repository)?;
        self.media_types.get(*media_type)
    }

    /// The media type under which somebody has a manifest; `None` for what is none.
    pub fn any_media_type(&self, manifest: &Digest) -> Option<&MediaType> {
        self.media_type_of(self.find(manifest)?)
    }

    pub fn manifest_count(&self) -> usize {
        self.held
    }

    pub fn holders(&self, manifest: &Digest) -> impl Iterator<Item = &RepositoryKey> + Clone {
        self.find(manifest).into_iter().flat_map(|id| self.keys(self.holders_of(id)))
    }

    /// What a manifest lists; `None` for what is none.
    pub fn children(&self, manifest: &Digest) -> Option<Children> {
        let edges = self.image(self.find(manifest)?)?.children.as_deref()?;
        Some(edges.iter().filter_map(|edge| Some((self.names.digest(edge.child)?, edge.size))).collect())
    }

    /// Every digest that somebody has as a manifest.
    pub fn manifests(&self) -> Vec<Digest> {
        self.manifests.iter().flatten().collect::<HashSet<_>>().into_iter().filter_map(|id| self.names.digest(*id)).collect()
    }

    /// The manifests of a repository.
    pub fn held_by(&self, repository: &RepositoryKey) -> Vec<Digest> {
        self.manifests_of(repository).iter().filter_map(|id| self.names.digest(*id)).collect()
    }

    /// How many manifests a repository has, and the numbers of these and of what they list, each once.
    pub fn closure_of(&self, repository: &RepositoryKey) -> (usize, Vec<Id>) {
        let manifests = self.manifests_of(repository);
        let listed = manifests.iter().flat_map(|id| self.edges(*id)).map(|edge| edge.child);
        let mut closure: Vec<Id> = manifests.iter().copied().chain(listed).collect();
        closure.sort_unstable();
        closure.dedup();
        (manifests.len(), closure)
    }

    /// Whether one of the repository's manifests lists it.
    pub fn is_listed(&self, repository: &RepositoryKey, digest: &Digest) -> bool {
        self.find(digest).is_some_and(|id| self.listed_size(repository, id).is_some())
    }

    /// Whether no manifest lists it, and it is none itself.
    pub fn is_orphan(&self, digest: &Digest) -> bool {
        self.find(digest).is_none_or(|id| self.parents(id).is_empty() && self.holders_of(id).is_empty())
    }

    /// The repositories that have it, as a manifest or in one.
    pub fn repositories_of(&self, digest: &Digest) -> Vec<&RepositoryKey> {
        let Some(id) = self.find(digest) else { return Vec::new() };
        let all = self.parents(id).iter().chain([&id]).flat_map(|image| self.holders_of(*image));
        let mut numbers: Vec<Number> = all.map(|(repository, _)| *repository).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let mut found: Vec<_> = numbers.into_iter().filter_map(|number| self.repositories.get(number)).collect();
        found.sort_unstable();
        found
    }

    /// The repository has this manifest no longer; `false` when it had not.
    pub fn unhold(&mut self, repository: &RepositoryKey, manifest: &Digest) -> bool {
        let (Some(id), Some(repository)) = (self.find(manifest), self.repositories.find(repository)) else { return false };
        let Some(image) = self.nodes[id.index()].image.and_then(|key| self.images.get_mut(key.index())) else { return false };
        let Some(place) = image.holders.iter().position(|(holder, _)| *holder == repository) else { return false };
        let holder = image.holders.swap_remove(place);
        self.held -= usize::from(image.holders.is_empty());
        self.part(id, holder);
        self.tidy(id);
        true
    }

    /// A holder has let go of its manifest.
    fn part(&mut self, manifest: Id, (repository, media_type): (Number, Number)) {
        leave(&mut self.manifests[repository.index()], manifest);
        self.repositories.give_back(repository);
        self.media_types.give_back(media_type);
    }

    /// Whether this is, or belongs to, an image that is being pulled: one of its manifests was used lately, and not all it
    /// lists is here. An index is no image: of its manifests most clients want one.
    pub fn is_half_pulled(&self, digest: &Digest, is_recent: impl Fn(&Digest) -> bool, is_held: impl Fn(&Digest) -> bool) -> bool {
        let Some(id) = self.find(digest) else { return false };
        let is = |id: Id, question: &dyn Fn(&Digest) -> bool| self.names.digest(id).is_some_and(|digest| question(&digest));
        let is_index = |id: Id| self.media_type_of(id).is_some_and(MediaType::is_index);
        let mut images = self.parents(id).iter().chain([&id]).filter(|image| is(**image, &is_recent) && !is_index(**image));
        images.any(|image| self.edges(*image).iter().any(|edge| !is(edge.child, &is_held)))
    }

    /// The upstreams that confirmed a blob.
    pub fn confirmed(&self, digest: &Digest) -> &[Arc<str>] {
        self.find(digest).map_or(&[], |id| self.confirmed_of(id))
    }

    /// Whether one of the repository's manifests lists this digest, and whether that is enough.
    pub fn link(&self, repository: &RepositoryKey, digest: &Digest) -> Link {
        let Some((id, size)) = self.find(digest).and_then(|id| Some((id, self.listed_size(repository, id)?))) else {
            return Link::Unlisted;
        };
        let itself = self.confirmed_of(id).iter().chain(self.keys(self.holders_of(id)).map(|holder| &holder.upstream));
        let is_elsewhere = |upstream: &Arc<str>| *upstream != repository.upstream && self.private.contains(upstream);
        if itself.clone().any(|upstream| *upstream == repository.upstream) || !self.private.iter().any(is_elsewhere) {
            return Link::Listed { size };
        }
        let mut listers = self.parents(id).iter().flat_map(|parent| self.keys(self.holders_of(*parent))).map(|holder| &holder.upstream);
        let is_doubtful = self.is_loading || itself.clone().any(is_elsewhere) || listers.any(is_elsewhere);
        if is_doubtful { Link::Doubtful { size } } else { Link::Listed { size } }
    }

    /// What one of the repository's manifests says: looked up among these, or among those that list it, where there are fewer.
    fn listed_size(&self, repository: &RepositoryKey, id: Id) -> Option<u64> {
        let (held, parents) = (self.manifests_of(repository), self.parents(id));
        let size = |image: &Id| self.edges(*image).iter().find(|edge| edge.child == id).map(|edge| edge.size);
        if held.len() <= parents.len() {
            return held.iter().find_map(size);
        }
        let repository = self.repositories.find(repository)?;
        let is_held = |image: &&Id| self.holders_of(**image).iter().any(|(holder, _)| *holder == repository);
        parents.iter().filter(is_held).find_map(size)
    }

    /// The digest's bytes are gone; what it listed is no longer known.
    pub fn forget(&mut self, digest: &Digest) {
        let Some(id) = self.find(digest) else { return };
        let node = &mut self.nodes[id.index()];
        if let Some(confirmed) = node.confirmed.take() {
            self.confirmed.give_back(confirmed);
        }
        if let Some(image) = node.image.take().and_then(|key| self.images.try_remove(key.index())) {
            self.held -= usize::from(!image.holders.is_empty());
            image.holders.into_iter().for_each(|holder| self.part(id, holder));
            for child in image.children.iter().flat_map(|edges| once(edges)) {
                self.crowds.remove(&mut self.nodes[child.index()].parents, id);
                if child != id {
                    self.tidy(child);
                }
            }
        }
        self.tidy(id);
    }

    /// Gives back what nothing is known of any more.
    fn tidy(&mut self, id: Id) {
        let node = &mut self.nodes[id.index()];
        if let Some(key) = node.image
            && self.images.get(key.index()).is_none_or(|image| image.children.is_none() && image.holders.is_empty())
        {
            self.images.try_remove(key.index());
            node.image = None;
        }
        if node.is_blank() {
            self.names.give_back(id, User::Links);
        }
    }

    /// The number of what something is known of.
    fn find(&self, digest: &Digest) -> Option<Id> {
        self.names.find(digest).filter(|id| self.nodes.get(id.index()).is_some_and(|node| !node.is_blank()))
    }

    /// The number of what something will be known of.
    fn enter(&mut self, digest: &Digest) -> Id {
        let id = self.names.take(digest, User::Links);
        if self.nodes.len() <= id.index() {
            self.nodes.resize_with(id.index() + 1, Node::default);
        }
        id
    }

    fn image(&self, id: Id) -> Option<&Image> {
        self.images.get(self.nodes.get(id.index())?.image?.index())
    }

    fn image_mut(&mut self, id: Id) -> &mut Image {
        let key = *self.nodes[id.index()].image.get_or_insert_with(|| Number::of(self.images.insert(Image::default())));
        &mut self.images[key.index()]
    }

    fn edges(&self, id: Id) -> &[Edge] {
        self.image(id).and_then(|image| image.children.as_deref()).unwrap_or_default()
    }

    fn holders_of(&self, id: Id) -> &[(Number, Number)] {
        self.image(id).map_or(&[], |image| &image.holders)
    }

    fn keys<'a>(&'a self, holders: &'a [(Number, Number)]) -> impl Iterator<Item = &'a RepositoryKey> + Clone {
        holders.iter().filter_map(|(repository, _)| self.repositories.get(*repository))
    }

    fn media_type_of(&self, id: Id) -> Option<&MediaType> {
        self.media_types.get(self.holders_of(id).first()?.1)
    }

    fn manifests_of(&self, repository: &RepositoryKey) -> &[Id] {
        self.repositories.find(repository).and_then(|number| self.manifests.get(number.index())).map_or(&[], Vec::as_slice)
    }

    fn parents(&self, id: Id) -> &[Id] {
        self.nodes.get(id.index()).map_or(&[], |node| self.crowds.of(&node.parents))
    }

    fn confirmed_of(&self, id: Id) -> &[Arc<str>] {
        self.upstreams(self.nodes.get(id.index()).and_then(|node| node.confirmed))
    }

    fn upstreams(&self, set: Option<Number>) -> &[Arc<str>] {
        set.and_then(|set| self.confirmed.get(set)).map_or(&[], |upstreams| upstreams)
    }
}

/// What is listed, each once.
fn once(edges: &[Edge]) -> Vec<Id> {
    let mut ids: Vec<Id> = edges.iter().map(|edge| edge.child).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

#[cfg(test)]
mod tests;
