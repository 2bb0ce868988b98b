//! What is known of one digest, in as few bytes as it takes: there are a million of them, and edges between them.

use slab::Slab;

use super::interned::Number;
use crate::store::names::Id;

/// 16 bytes.
#[derive(Debug, Default)]
pub struct Node {
    pub parents: Parents,
    /// Where the image is that it is the manifest of.
    pub image: Option<Number>,
    /// The set of upstreams that confirmed it.
    pub confirmed: Option<Number>,
}

impl Node {
    pub fn is_blank(&self) -> bool {
        matches!(self.parents, Parents::None) && self.image.is_none() && self.confirmed.is_none()
    }
}

/// A manifest: what it lists, and who has it.
#[derive(Debug, Default)]
pub struct Image {
    /// `None` while that is not known.
    pub children: Option<Box<[Edge]>>,
    /// Repositories, each once, with the media type.
    pub holders: Vec<(Number, Number)>,
}

/// What a manifest lists, with its word for the size in bytes. 12 bytes, not 16.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
pub struct Edge {
    pub child: Id,
    pub size: u64,
}

/// The manifests that list something. Most things have one, a base layer has all images of a company.
#[derive(Debug, Default)]
pub enum Parents {
    #[default]
    None,
    One(Id),
    /// A place in [`Crowds`].
    Many(u32),
}

/// The parents of what has several.
#[derive(Debug, Default)]
pub struct Crowds(Slab<Vec<Id>>);

impl Crowds {
    pub fn of<'a>(&'a self, parents: &'a Parents) -> &'a [Id] {
        match parents {
            Parents::None => &[],
            Parents::One(id) => std::slice::from_ref(id),
            Parents::Many(place) => self.0.get(*place as usize).map_or(&[], Vec::as_slice),
        }
    }

    /// One parent more, that was none yet.
    pub fn add(&mut self, parents: &mut Parents, parent: Id) {
        match parents {
            Parents::None => *parents = Parents::One(parent),
            Parents::One(first) => *parents = Parents::Many(u32::try_from(self.0.insert(vec![*first, parent])).unwrap_or(u32::MAX)),
            Parents::Many(place) => self.0.get_mut(*place as usize).into_iter().for_each(|crowd| crowd.push(parent)),
        }
    }

    pub fn remove(&mut self, parents: &mut Parents, parent: Id) {
        match parents {
            Parents::One(only) if *only == parent => *parents = Parents::None,
            Parents::None | Parents::One(_) => {}
            Parents::Many(place) => {
                let place = *place as usize;
                let Some(crowd) = self.0.get_mut(place) else { return };
                leave(crowd, parent);
                if let [last] = crowd[..] {
                    *parents = Parents::One(last);
                    self.0.remove(place);
                }
            }
        }
    }
}

/// Takes an element out, and memory back when most of it is unused.
pub fn leave(all: &mut Vec<Id>, one: Id) {
    if let Some(place) = all.iter().position(|other| *other == one) {
        all.swap_remove(place);
    }
    if all.len() < all.capacity() / 4 {
        all.shrink_to(all.len() * 2);
    }
}
