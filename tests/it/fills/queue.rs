//! Downloads that wait for their turn: who is next.

use super::{hub, path, path_in, push, until};
use crate::support::larder::{Setup, upstream};
use crate::support::registry::{FakeRegistry, Fault, Latch, get};

#[tokio::test(start_paused = true)]
async fn one_download_of_an_upstream_does_not_wait_for_twenty_of_another() {
    let (net, registry) = hub();
    let other = FakeRegistry::new();
    net.host("other.test", "93.184.216.40", &other);
    let latch = Latch::new();
    registry.when(get().blob()).nth(1).then(Fault::Hold(latch.clone()));
    let hub: Vec<_> = (0..21).map(|seed| push(&registry, 1000, seed)).collect();
    let lone = push(&other, 1000, 99);
    let mut setup = Setup::new(&net).upstream(upstream("other.example", "other.test"));
    setup.config.fills.max_concurrent = 1;
    let larder = setup.start();
    let paths = hub.iter().map(|blob| path(blob.digest)).chain([path_in("other.example/library/app", lone.digest)]);
    let mut asks = Vec::new();
    for (waiting, path) in paths.enumerate() {
        let mut client = larder.client().await;
        asks.push(tokio::spawn(async move { client.get(&path).send().await.status }));
        until("it waits", || larder.metric("larder_fills_queued") == waiting as f64 && larder.metric("larder_fills_in_flight") == 1.0)
            .await;
    }
    // The lone one is kept for a while, so that what has been asked by then is what came before it.
    let kept = Latch::new();
    other.when(get().blob()).then(Fault::Hold(kept.clone()));
    latch.open();
    other.wait_for(get().blob(), 1).await;
    assert!(registry.count(get().blob()) <= 2, "{}", registry.count(get().blob()));
    kept.open();
    for ask in asks.into_iter().rev().take(1) {
        assert_eq!(ask.await.expect("no panic"), 200);
    }
}
