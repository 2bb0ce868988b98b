use std::collections::HashMap;

use super::*;
use crate::oci::Algorithm;

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

/// What it holds, and whether that is all.
fn read(index: &Index) -> (HashMap<Digest, Record>, bool) {
    let mut records = HashMap::new();
    let is_all = index.read(&mut |digest, record| assert!(records.insert(digest, record).is_none()));
    (records, is_all)
}

#[test]
fn what_was_put_is_there_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    let record = Record { last_used: DaemonTime(7), children: Some([(digest("child"), 3)].into()) };
    {
        let index = Index::open(&path).expect("a new index");
        assert_eq!(read(&index), (HashMap::new(), false), "there was none");
        assert!(!index.take_loss(), "it was said already");
        index.put(digest("manifest"), record.clone());
        index.put(digest("gone"), record.clone());
        index.remove(digest("gone"));
        index.touch(vec![(digest("manifest"), DaemonTime(9)), (digest("blob"), DaemonTime(8))]);
    }
    let index = Index::open(&path).expect("the index");
    let expected = [
        (digest("manifest"), Record { last_used: DaemonTime(9), ..record }),
        (digest("blob"), Record { last_used: DaemonTime(8), children: None }),
    ];
    assert_eq!(read(&index), (HashMap::from(expected), true));
}

#[test]
fn a_damaged_index_is_set_aside() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    std::fs::create_dir_all(path.join("0")).expect("a directory");
    std::fs::write(path.join("0/conf"), b"no database").expect("a file");
    let index = Index::open(&path).expect("a fresh index");
    assert_eq!(read(&index), (HashMap::new(), false));
    assert!(path.with_extension("bad").exists());
}

#[test]
fn more_than_one_portion_is_read_while_it_is_written_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let index = Index::open(&directory.path().join("index")).expect("a new index");
    let record = Record { last_used: DaemonTime(7), children: None };
    let digests: Vec<_> = (0..2 * READ_BATCH + 3).map(|n| digest(&n.to_string())).collect();
    index.put_many(digests.iter().map(|digest| (*digest, record.clone())).collect());
    let mut found = 0;
    index.read(&mut |_, _| {
        found += 1;
        if let Some(digest) = digests.get(found) {
            index.touch(vec![(*digest, DaemonTime(8))]);
        }
    });
    assert_eq!(found, digests.len());
}
