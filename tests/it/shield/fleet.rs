//! Docker Hub's strict double with many images of four layers, and clients that pull them as dockerd does, every byte compared.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::client::Client;
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registries::{DockerHub, Double, docker_hub};
use crate::support::registry::{Image, get};

const LAYERS: [usize; 4] = [900, 700, 500, 300];

pub struct Fleet {
    pub net: FakeNet,
    pub hub: Double<DockerHub>,
    /// `library/app<n>`, as `latest` names it.
    pub images: Vec<Image>,
}

pub fn tag(number: usize) -> String {
    format!("/v2/library/app{number}/manifests/latest")
}

impl Fleet {
    pub fn new(images: usize) -> Fleet {
        let net = FakeNet::new();
        let hub = docker_hub(&net);
        let mut fleet = Fleet { net, hub, images: Vec::new() };
        (0..images).for_each(|_| fleet.push());
        fleet
    }

    /// One more image.
    pub fn push(&mut self) {
        let number = self.images.len();
        let image = self.hub.push_image(&format!("library/app{number}"), "latest", &LAYERS, number as u64);
        self.images.push(image);
    }

    /// `latest` of this repository names another image from now on.
    pub fn move_tag(&mut self, number: usize) {
        let seed = 1000 + number as u64;
        self.images[number] = self.hub.push_image(&format!("library/app{number}"), "latest", &LAYERS, seed);
    }

    pub fn setup(&self) -> Setup {
        Setup::new(&self.net).upstream(self.hub.upstream())
    }

    /// As dockerd does, on a connection of its own.
    ///
    /// # Errors
    /// With what was not as it should be.
    pub async fn pull(&self, larder: &Larder, number: usize) -> Result<(), String> {
        pull(larder.client().await, number, self.images[number].clone()).await
    }

    /// So many runners, each of which pulls all of these images, all at once. How many pulls came whole, and what went wrong.
    pub async fn pull_all(&self, larder: &Larder, runners: usize, numbers: &[usize]) -> (usize, Vec<String>) {
        let mut pulls = JoinSet::new();
        for _ in 0..runners {
            for number in numbers {
                pulls.spawn(pull(larder.client().await, *number, self.images[*number].clone()));
            }
        }
        let pulled = pulls.join_all().await;
        (pulled.iter().filter(|pull| pull.is_ok()).count(), pulled.into_iter().filter_map(Result::err).take(5).collect())
    }

    /// Manifest GETs so far, those beyond the limit included.
    pub fn gets(&self) -> usize {
        self.hub.count(get().manifest().with_header("authorization"))
    }
}

/// Time for larder and for the world.
pub async fn pass(larder: &Larder, time: Duration) {
    larder.clock.advance(time);
    tokio::time::sleep(time).await;
}

async fn pull(mut client: Client, number: usize, image: Image) -> Result<(), String> {
    let path = tag(number);
    let head = client.head(&path).accept_manifests().send().await;
    let named = (head.status, head.header("docker-content-digest").map(str::to_owned));
    if named != (200, Some(image.digest.to_string())) {
        return Err(format!("HEAD {path}: {named:?}"));
    }
    let parts = image.config.iter().chain(&image.layers);
    let blobs = parts.map(|blob| (format!("/v2/library/app{number}/blobs/{}", blob.digest), &blob.bytes));
    let manifest = (format!("/v2/library/app{number}/manifests/{}", image.digest), &image.bytes);
    for (path, bytes) in [manifest].into_iter().chain(blobs) {
        let reply = client.get(&path).accept_manifests().send().await;
        match &reply.body {
            Ok(body) if reply.status == 200 && body == bytes => {}
            body => return Err(format!("GET {path}: {} {body:?}", reply.status)),
        }
    }
    Ok(())
}
