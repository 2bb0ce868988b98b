use std::collections::HashMap;

use super::*;
use crate::oci::Algorithm;

fn tasks() -> Supervisor {
    Supervisor::new(prometheus::IntCounter::new("panics", "of tasks").expect("a name"))
}

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
        let index = Index::open(&path, &tasks()).expect("a new index");
        assert_eq!(read(&index), (HashMap::new(), false), "there was none");
        assert!(!index.take_loss(), "it was said already");
        index.put(digest("manifest"), record.clone());
        index.put(digest("gone"), record.clone());
        index.remove(digest("gone"));
        index.touch(vec![(digest("manifest"), DaemonTime(9)), (digest("blob"), DaemonTime(8))]);
    }
    let index = Index::open(&path, &tasks()).expect("the index");
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
    let index = Index::open(&path, &tasks()).expect("a fresh index");
    assert_eq!(read(&index), (HashMap::new(), false));
    assert!(path.with_extension("bad").exists());
}

#[test]
fn more_than_one_portion_is_read_while_it_is_written_to() {
    let directory = tempfile::tempdir().expect("a directory");
    let index = Index::open(&directory.path().join("index"), &tasks()).expect("a new index");
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

const QUICK: Limits = Limits {
    flush_every: Duration::ZERO,
    renew_every: Duration::from_millis(10),
    measure_every: Duration::from_secs(3600),
    size_max: u64::MAX,
    size_per_live: 1,
};

/// So many that sled's file has several segments.
fn many() -> Vec<(Digest, Record)> {
    let list: Children = (0..10).map(|n| (digest(&format!("child {n}")), n)).collect();
    let record = |n: u64| Record { last_used: DaemonTime(n), children: n.is_multiple_of(10).then(|| Arc::clone(&list)) };
    (0..20_000).map(|n| (digest(&n.to_string()), record(n))).collect()
}

/// An index of many records, closed.
fn filled(path: &Path) {
    let index = Index::open(path, &tasks()).expect("a new index");
    assert!(index.put_many(many()));
}

/// What it has is right, and what it is then given it keeps; says whether it knew that something was missing.
fn is_begun_anew(path: &Path) -> bool {
    let is_all = {
        let index = Index::open_with(path, QUICK, &tasks()).expect("a thread");
        let (found, is_all) = read(&index);
        let expected: HashMap<_, _> = many().into_iter().collect();
        assert!(found.iter().all(|(digest, record)| expected.get(digest) == Some(record)));
        // It may be set aside only now; then it says so, and there is another.
        assert!(index.put_many(many()) || index.put_many(many()));
        if index.take_loss() {
            assert!(index.put_many(many()));
        }
        is_all
    };
    let index = Index::open(path, &tasks()).expect("a thread");
    assert_eq!(read(&index), (many().into_iter().collect(), true));
    !is_all
}

fn damaged(damage: fn(&std::fs::File, u64)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    filled(&directory.path().join("index"));
    // Once it was opened again, sled has it in writing where the records are, and notices more.
    drop(Index::open(&directory.path().join("index"), &tasks()).expect("a thread"));
    let file = std::fs::OpenOptions::new().write(true).open(directory.path().join("index/0/db")).expect("the file");
    damage(&file, file.metadata().expect("its size").len());
    directory
}

/// sled takes some damage for the work of a crash, and goes on with the records that it finds.
#[test]
fn of_a_damaged_file_what_is_found_is_right_and_what_is_put_is_kept() {
    let cut: fn(&std::fs::File, u64) = |file, len| file.set_len(len / 2).expect("a shorter file");
    let zero: fn(&std::fs::File, u64) = |file, len| {
        std::os::unix::fs::FileExt::write_all_at(file, &vec![0; 256 << 10], len / 2).expect("a damaged file");
    };
    let flip: fn(&std::fs::File, u64) = |file, len| {
        std::os::unix::fs::FileExt::write_all_at(file, b"damage", len / 3).expect("a damaged file");
    };
    for damage in [cut, zero, flip] {
        let directory = damaged(damage);
        is_begun_anew(&directory.path().join("index"));
    }
}

#[test]
fn a_panic_costs_what_the_index_knew_but_not_again_and_again() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    filled(&path);
    let limits = Limits { renew_every: Duration::from_secs(600), ..QUICK };
    let index = Index::open_with(&path, limits, &tasks()).expect("a thread");
    assert!(index.put_many(Vec::new()) && !index.take_loss());
    index.send(Message::Panic);
    assert_eq!(read(&index), (HashMap::new(), false), "the one that was asked");
    assert!(index.put_many(many()) && path.with_extension("bad").exists());
    index.send(Message::Panic);
    assert!(!index.put_many(many()) && !index.put_many(many()), "there is none for ten minutes");
}

#[test]
fn a_panic_of_the_thread_itself_is_counted_and_the_index_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    filled(&path);
    let panics = prometheus::IntCounter::new("panics", "of tasks").expect("a name");
    let index = Index::open_with(&path, QUICK, &Supervisor::new(panics.clone())).expect("a thread");
    assert!(index.put_many(Vec::new()) && !index.take_loss());
    index.send(Message::PanicElsewhere);
    assert!(index.put_many(many()), "it is kept again");
    assert!(panics.get() == 1 && index.take_loss(), "what was said meanwhile may be lost");
}

#[test]
fn an_index_of_another_format_is_begun_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    let stamped = |path: &Path| {
        let db = sled::open(path).expect("a database");
        db.insert("format", "larder 999").expect("a stamp");
    };
    stamped(&path.join("0"));
    assert!(is_begun_anew(&path));
    // As larder had it before there was a stamp, and numbers.
    let path = directory.path().join("earlier");
    stamped(&path);
    assert!(is_begun_anew(&path));
    assert!(!path.with_extension("bad").exists(), "nothing is to be learnt from it");
}

#[test]
fn where_no_index_can_be_kept_nobody_is_held_up_and_one_is_begun_when_it_can_be() {
    let directory = tempfile::tempdir().expect("a directory");
    let in_the_way = directory.path().join("file");
    std::fs::write(&in_the_way, b"").expect("a file");
    let index = Index::open_with(&in_the_way.join("index"), QUICK, &tasks()).expect("a thread");
    assert_eq!(read(&index), (HashMap::new(), false));
    assert!(!index.put_many(many()));
    index.touch(vec![(digest("blob"), DaemonTime(1))]);
    std::fs::remove_file(&in_the_way).expect("no file");
    assert!(index.put_many(many()), "the disk is well again");
    assert!(index.take_loss(), "whoever owns it is to put everything");
    assert!(!index.take_loss());
}

#[test]
fn what_was_flushed_survives_a_crash() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    let index = Index::open_with(&path, QUICK, &tasks()).expect("a thread");
    assert!(index.put_many(many()));
    let expected = many().into_iter().collect();
    // It is flushed soon after the answer, and written to no more.
    let survives = |n: usize| {
        let crashed = directory.path().join(n.to_string());
        std::fs::create_dir_all(crashed.join("0/blobs")).expect("a directory");
        for entry in std::fs::read_dir(path.join("0")).expect("a database").flatten().filter(|entry| entry.path().is_file()) {
            std::fs::copy(entry.path(), crashed.join("0").join(entry.file_name())).expect("a copy");
        }
        read(&Index::open(&crashed, &tasks()).expect("a thread")) == (HashMap::clone(&expected), true)
    };
    assert!((0..20).any(survives));
}

#[test]
fn an_index_that_has_grown_is_written_anew_with_all_that_changes_meanwhile() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    filled(&path);
    let mut expected: HashMap<_, _> = many().into_iter().collect();
    {
        let limits = Limits { measure_every: Duration::from_millis(1), size_max: 0, size_per_live: 0, ..QUICK };
        let index = Index::open_with(&path, limits, &tasks()).expect("a thread");
        assert_eq!(read(&index), (expected.clone(), true), "and so it is counted");
        let mut changes = many().into_iter();
        while !path.join("1").exists() || path.join("0").exists() {
            let (removed, _) = changes.next_back().expect("time");
            index.remove(removed);
            expected.remove(&removed);
            let (touched, _) = changes.next().expect("time");
            index.touch(vec![(touched, DaemonTime(1 << 40))]);
            expected.get_mut(&touched).expect("a record").last_used = DaemonTime(1 << 40);
            assert!(index.put_many(Vec::new()));
        }
    }
    assert!(expected.len() < many().len() - 5, "{}", expected.len());
    let index = Index::open(&path, &tasks()).expect("a thread");
    assert_eq!(read(&index), (expected, true));
    assert!(!path.with_extension("bad").exists());
}

#[test]
fn a_crash_while_it_is_written_anew_leaves_the_whole_one_and_nothing_to_clean() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    for half in ["1", "old"] {
        filled(&path);
        std::fs::create_dir_all(path.join(half)).expect("a directory");
        std::fs::write(path.join(half).join("conf"), b"half a file").expect("a file");
        let index = Index::open(&path, &tasks()).expect("a thread");
        assert_eq!(read(&index), (many().into_iter().collect(), true));
        assert!(path.join("0").exists() && !path.join(half).exists());
    }
}
