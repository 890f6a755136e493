//! Shards through failovers and moving slots.

#![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

use super::*;
use crate::topology::Topology;

fn cluster(text: &str) -> Cluster {
    let seed = Endpoint {
        address: Address::Tcp { host: "10.0.0.1".into(), port: 1 },
        seeds: Vec::new(),
        sentinel: None,
        address_map: Default::default(),
        username: None,
        password: None,
        tls: None,
    };
    Cluster::new(Topology::from_nodes(text).unwrap(), seed)
}

#[test]
fn a_shard_is_followed_by_its_nodes() {
    let dir = tempfile::tempdir().unwrap();
    let before = cluster(
        "a 10.0.0.1:1@2 myself,master - 0 0 1 connected 0-99\n\
         b 10.0.0.2:1@2 slave a 0 0 1 connected\n\
         c 10.0.0.3:1@2 master - 0 0 1 connected 100-16383\n",
    );
    let seed = before.endpoint(&before.topology.nodes[0]);
    let shards = Shards::note(dir.path(), &seed, &before).unwrap();
    let names: Vec<String> = shards.lines().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["10.0.0.1:1", "10.0.0.3:1"]);
    let known = Shards::read(dir.path(), &seed).unwrap().unwrap().lock()[0].clone();
    assert_eq!(known.nodes.len(), 2);
    let at = |text: &str| {
        let now = cluster(text);
        master_of(&known, &now).map(|node| now.endpoint(node).address.to_string())
    };
    // Down, and not replaced yet.
    assert_eq!(
        at("a 10.0.0.1:1@2 master,fail - 0 0 1 connected 0-99\nb 10.0.0.2:1@2 slave a 0 0 1 connected"),
        None
    );
    // Replaced by its replica.
    assert_eq!(
        at("a 10.0.0.1:1@2 master,fail - 0 0 1 connected\nb 10.0.0.2:1@2 master - 0 0 2 connected 0-99")
            .as_deref(),
        Some("10.0.0.2:1")
    );
    // Its slots are somebody else's now.
    let moved = "a 10.0.0.1:1@2 slave c 0 0 1 connected\nc 10.0.0.3:1@2 master - 0 0 1 connected 0-16383";
    assert_eq!(at(moved), None);
    let shards = Shards::read(dir.path(), &seed).unwrap().unwrap();
    let change = shards.change(&cluster(moved));
    assert_eq!((change.retired, change.moved), (vec!["10.0.0.1:1".into()], vec!["10.0.0.3:1".into()]));
}

/// Slots 50 to 99 go from `a` to `c`: at no time are they both's, on disk neither.
#[test]
fn slots_go_from_one_line_to_another_with_nobodys_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let at = |text: &str| cluster(text);
    let before =
        at("a 10.0.0.1:1@2 master - 0 0 1 connected 0-99\nc 10.0.0.3:1@2 master - 0 0 1 connected 100-16383");
    let after =
        at("a 10.0.0.1:1@2 master - 0 0 1 connected 0-49\nc 10.0.0.3:1@2 master - 0 0 2 connected 50-16383");
    let seed = before.endpoint(&before.topology.nodes[0]);
    let shards = Shards::note(dir.path(), &seed, &before).unwrap();
    let lines: Vec<Shard> = shards.lines().into_iter().map(|(_, shard)| shard).collect();
    let read = || Shards::read(dir.path(), &seed).unwrap().unwrap();
    let owners = |shards: &Arc<Shards>, slot: usize, generation: u64| -> Vec<bool> {
        shards.lines().iter().map(|(_, shard)| shard.slots(generation)[slot]).collect()
    };
    assert_eq!((owners(&shards, 49, 1), owners(&shards, 50, 1)), (vec![true, false], vec![true, false]));
    let version = lines[0].version();
    shards.release(&after).unwrap();
    assert!(lines[0].version() > version);
    for shards in [&shards, &read()] {
        assert_eq!((owners(shards, 49, 1), owners(shards, 50, 1)), (vec![true, false], vec![false, false]));
        assert_eq!(shards.releasing(), ["10.0.0.1:1"]);
        assert_eq!(shards.lines()[0].1.lost(), (50..=99).collect());
    }
    // Asked again before it is done.
    shards.release(&after).unwrap();
    lines[0].released(&(50..=99).collect()).unwrap();
    assert!(shards.releasing().is_empty() && read().releasing().is_empty());
    assert!(shards.adopt(&after, |_| 7).is_empty());
    assert_eq!(owners(&shards, 50, 7), [false, false], "what its former full sync brings does not count");
    assert_eq!(owners(&shards, 50, 8), [false, true]);
    assert!(matches!(shards.compare(vec![after.clone()]), Lie::AsKnown));
    // Saved for another reason before the full sync has begun: it is not forgotten.
    lines[0].released(&BTreeSet::new()).unwrap();
    let again = read();
    assert!(again.lines()[1].1.awaits_next(7) && !again.lines()[0].1.awaits_next(7));
    assert_eq!((owners(&again, 50, 7), owners(&again, 50, 8)), (vec![false, false], vec![false, true]));
    shards.keep().unwrap();
    assert_eq!(owners(&read(), 50, 7), [false, true]);
}

/// A master that loses everything stays a line until it has removed it.
#[test]
fn a_line_ends_when_it_has_nothing_to_remove_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let before = cluster(
        "a 10.0.0.1:1@2 master - 0 0 1 connected 0-99\nc 10.0.0.3:1@2 master - 0 0 1 connected 100-16383",
    );
    let after =
        cluster("a 10.0.0.1:1@2 slave c 0 0 1 connected\nc 10.0.0.3:1@2 master - 0 0 2 connected 0-16383");
    let seed = before.endpoint(&before.topology.nodes[0]);
    let shards = Shards::note(dir.path(), &seed, &before).unwrap();
    shards.release(&after).unwrap();
    let read = Shards::read(dir.path(), &seed).unwrap().unwrap();
    assert_eq!(read.lines().len(), 2);
    assert!(!read.is_over("10.0.0.1:1"));
    read.has_released("10.0.0.1:1").unwrap();
    assert!(read.is_over("10.0.0.1:1"));
    assert_eq!(Shards::read(dir.path(), &seed).unwrap().unwrap().lines().len(), 1);
}

#[test]
fn what_was_left_out_is_in_doubt_until_a_later_look() {
    let dir = tempfile::tempdir().unwrap();
    let lie = cluster("a 10.0.0.1:1@2 master - 0 0 1 connected 0-16383");
    let shards = Shards::note(dir.path(), &lie.endpoint(&lie.topology.nodes[0]), &lie).unwrap();
    let line = shards.lines().remove(0).1;
    assert!(!shards.is_quiet(), "nobody has looked yet");
    shards.explain(shards.left_out());
    assert!(shards.is_quiet());
    let begun = shards.left_out();
    line.left_out();
    shards.explain(begun);
    assert!(!shards.is_quiet(), "that look began before");
    shards.explain(shards.left_out());
    assert!(shards.is_quiet());
    // Gone and come back between two looks.
    line.trimmed(&BTreeSet::from([5]));
    assert!(!shards.is_quiet());
    assert_eq!(shards.take_trimmed(), ["10.0.0.1:1"]);
    assert!(shards.take_trimmed().is_empty());
}

/// A node that is out of its cluster says that nobody has the slots; and a slot that really has another owner is no such thing.
#[test]
fn slots_do_not_vanish() {
    let dir = tempfile::tempdir().unwrap();
    let whole =
        "a 10.0.0.1:1@2 master - 0 0 1 connected 0-99\nc 10.0.0.3:1@2 master - 0 0 1 connected 100-16383";
    let before = cluster(whole);
    let shards = Shards::note(dir.path(), &before.endpoint(&before.topology.nodes[0]), &before).unwrap();
    let told = |views: &[&str]| match shards.compare(views.iter().map(|text| cluster(text)).collect()) {
        Lie::Moving(why) => why,
        Lie::AsKnown => "as known".into(),
        Lie::Changed(_) => "changed".into(),
    };
    assert_eq!(told(&[whole, whole]), "as known");
    let alone = "z 10.0.0.1:1@2 myself,master - 0 0 0 connected";
    assert!(told(&[alone]).contains("no master serves 16384 slots"), "{}", told(&[alone]));
    assert!(told(&[whole, alone]).contains("it has lost its cluster"));
    let some =
        "a 10.0.0.1:1@2 master - 0 0 1 connected 0-49\nc 10.0.0.3:1@2 master - 0 0 1 connected 100-16383";
    assert!(told(&[some]).contains("no master serves 50 slots"));
    let other = "c 10.0.0.3:1@2 master - 0 0 2 connected 0-16383";
    assert_eq!(told(&[other, other]), "changed");
}
