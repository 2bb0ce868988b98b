//! ECR Public before it says 429 (B9 21): one manifest a second, asked for in turn.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Pushed, before, cold_and_warm, push};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registries::ecr_public;

/// Pulls a tag of each at once. The statuses, and what `Retry-After` said, in the order of the answers.
async fn tags_at_once(larder: &Arc<Larder>, pushed: &[Pushed]) -> Vec<(u16, Option<u64>)> {
    let mut asking = JoinSet::new();
    for pushed in pushed {
        let (larder, path) = (Arc::clone(larder), pushed.tag("public.ecr.aws"));
        asking.spawn(async move {
            let reply = larder.get(&path).await;
            (reply.status, reply.header("retry-after").map(|text| text.parse().unwrap()))
        });
    }
    let mut answers = Vec::new();
    while let Some(answer) = asking.join_next().await {
        answers.push(answer.unwrap());
    }
    answers
}

#[tokio::test(start_paused = true)]
async fn credential_21_ecr_public_is_asked_for_one_manifest_a_second() {
    let net = FakeNet::new();
    let ecr = ecr_public(&net);
    let pushed: Vec<_> = (1..=10).map(|seed| push(&ecr, &format!("org/app{seed}"), seed)).collect();
    let larder = Arc::new(before(&net, &ecr));
    let begun = Instant::now();
    let answers = tags_at_once(&larder, &pushed).await;
    assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
    ecr.script(|ecr| {
        assert_eq!(ecr.too_fast, 0, "{:?}", ecr.pulls);
        let seconds = u64::try_from(ecr.pulls.len()).unwrap() - 1;
        assert!(begun.elapsed() < Duration::from_secs(seconds + 1), "and no slower: {:?}", begun.elapsed());
    });
}

#[tokio::test(start_paused = true)]
async fn credential_21_whose_turn_comes_too_late_is_told_at_once_when_to_come_back() {
    let net = FakeNet::new();
    let ecr = ecr_public(&net);
    let pushed: Vec<_> = (1..=60).map(|seed| push(&ecr, &format!("org/app{seed}"), seed)).collect();
    let larder = Arc::new(before(&net, &ecr));
    let begun = Instant::now();
    let answers = tags_at_once(&larder, &pushed).await;
    assert!(begun.elapsed() <= Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(ecr.script(|ecr| ecr.too_fast), 0);
    let refused: Vec<_> = answers.iter().filter(|(status, _)| *status != 200).collect();
    assert!((45..=51).contains(&refused.len()), "about ten have their HEAD and their GET in time: {answers:?}");
    assert!(refused.iter().all(|(status, wait)| *status == 503 && wait.is_some_and(|wait| (1..=25).contains(&wait))), "{refused:?}");
    // Nothing rests: who comes back then is served.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(larder.get(&pushed[0].tag("public.ecr.aws")).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn credential_21_an_account_and_blobs_are_not_held_back() {
    let net = FakeNet::new();
    let ecr = ecr_public(&net);
    let pushed: Vec<_> = (1..=10).map(|seed| push(&ecr, &format!("org/app{seed}"), seed)).collect();
    ecr.script(|ecr| ecr.tokens.account("AWS", "x"));
    let larder = Arc::new(Setup::new(&net).upstream(ecr.upstream_as("AWS", "x")).start());
    let begun = Instant::now();
    assert!(tags_at_once(&larder, &pushed).await.iter().all(|(status, _)| *status == 200));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    cold_and_warm(&before(&net, &ecr), &ecr, &pushed[0]).await;
}
