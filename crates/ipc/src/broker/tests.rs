// SPDX-License-Identifier: Apache-2.0
//! The broker by tables, and against a model: whatever happens in whatever order, a reader that has been told
//! everything sees exactly what stands.

use super::*;
use proptest::prelude::*;

const TOPICS: &[(&str, &str)] = &[("t", "writer"), ("u", "other")];

fn broker() -> Broker<u32> {
    let readers = BTreeMap::from([
        ("reader".to_string(), vec!["t".to_string(), "u".to_string()]),
        ("second".to_string(), vec!["t".to_string()]),
    ]);
    let mut broker = Broker::new(Rules::new(TOPICS, &readers));
    for client in ["writer", "other", "reader", "second"] {
        broker.connect(client);
    }
    broker
}

fn told(broker: &mut Broker<u32>, client: &str) -> Vec<String> {
    let mut all = Vec::new();
    while let Some(notice) = broker.front(client) {
        broker.sent(client);
        all.push(match notice {
            Notice::Put(value) => format!("{value}"),
            Notice::Remove { key, .. } => format!("-{key}"),
            Notice::Synced { topic } => format!("synced {topic}"),
        });
    }
    all
}

#[test]
fn only_the_writer_writes_and_only_readers_of_the_manifest_read() {
    let mut broker = broker();
    let refused = |result: Result<(), Refusal>| result.unwrap_err().to_string();
    assert_eq!(refused(broker.put("other", "t", "k", 1, 1)), "other is not the writer of t");
    assert_eq!(refused(broker.remove("reader", "t", "k")), "reader is not the writer of t");
    assert_eq!(refused(broker.synced("reader", "u")), "reader is not the writer of u");
    assert_eq!(refused(broker.put("writer", "x", "k", 1, 1)), "there is no topic \"x\"");
    assert_eq!(refused(broker.subscribe("reader", "x")), "there is no topic \"x\"");
    let what = "the manifest of second does not let it read u";
    assert_eq!(refused(broker.subscribe("second", "u")), what);
    let what = "the manifest of writer does not let it read t";
    assert_eq!(refused(broker.subscribe("writer", "t")), what);
    broker.disconnect("reader");
    assert_eq!(refused(broker.subscribe("reader", "t")), "reader is not connected");
}

#[test]
fn a_slow_reader_is_told_the_newest_value_once() {
    let mut broker = broker();
    broker.subscribe("reader", "t").unwrap();
    for value in 0..1000 {
        broker.put("writer", "t", "a", value, 1).unwrap();
        broker.put("writer", "t", "b", 5000, 1).unwrap();
    }
    assert_eq!(told(&mut broker, "reader"), ["999", "5000"]);
    broker.put("writer", "t", "a", 1, 1).unwrap();
    broker.remove("writer", "t", "a").unwrap();
    broker.remove("writer", "t", "never").unwrap();
    assert_eq!(told(&mut broker, "reader"), ["-a"]);
}

#[test]
fn an_equal_value_is_no_news() {
    let mut broker = broker();
    broker.subscribe("reader", "t").unwrap();
    broker.put("writer", "t", "a", 7, 1).unwrap();
    assert_eq!(told(&mut broker, "reader"), ["7"]);
    broker.connect("writer");
    broker.put("writer", "t", "a", 7, 1).unwrap();
    assert_eq!(told(&mut broker, "reader"), [""; 0]);
}

#[test]
fn keys_of_an_older_epoch_stand_until_the_writer_is_synced_again() {
    let mut broker = broker();
    broker.subscribe("reader", "t").unwrap();
    for (key, value) in [("a", 1), ("b", 2), ("c", 3)] {
        broker.put("writer", "t", key, value, 1).unwrap();
    }
    broker.synced("writer", "t").unwrap();
    assert_eq!(told(&mut broker, "reader"), ["1", "2", "3", "synced t"]);
    broker.disconnect("writer");
    broker.connect("writer");
    broker.put("writer", "t", "b", 20, 1).unwrap();
    assert_eq!(told(&mut broker, "reader"), ["20"]);
    // A reader that comes now sees what stands, and that absent is absent.
    broker.subscribe("second", "t").unwrap();
    assert_eq!(told(&mut broker, "second"), ["1", "20", "3", "synced t"]);
    broker.synced("writer", "t").unwrap();
    assert_eq!(told(&mut broker, "reader"), ["-a", "-c", "synced t"]);
}

#[test]
fn a_writer_that_dies_before_it_is_synced_takes_nothing_away() {
    let mut broker = broker();
    broker.subscribe("reader", "t").unwrap();
    broker.put("writer", "t", "a", 1, 1).unwrap();
    broker.synced("writer", "t").unwrap();
    for _ in 0..3 {
        broker.connect("writer");
        broker.put("writer", "t", "b", 2, 1).unwrap();
    }
    assert_eq!(told(&mut broker, "reader"), ["1", "synced t", "2"]);
}

#[test]
fn synced_comes_after_every_key_that_stood_when_it_was_said() {
    let mut broker = broker();
    broker.subscribe("reader", "t").unwrap();
    broker.put("writer", "t", "a", 1, 1).unwrap();
    broker.synced("writer", "t").unwrap();
    broker.put("writer", "t", "b", 2, 1).unwrap();
    broker.synced("writer", "t").unwrap();
    assert_eq!(told(&mut broker, "reader"), ["1", "2", "synced t"]);
}

#[test]
fn a_topic_that_nobody_synced_is_not_synced_for_a_reader() {
    let mut broker = broker();
    broker.put("writer", "t", "a", 1, 1).unwrap();
    broker.subscribe("reader", "t").unwrap();
    assert_eq!(told(&mut broker, "reader"), ["1"]);
}

#[test]
fn limits_hold_and_what_stands_stays() {
    let mut broker = broker();
    let long = "k".repeat(MAX_KEY_BYTES + 1);
    let refusal = broker.put("writer", "t", &long, 1, 1);
    assert!(matches!(refusal, Err(Refusal::KeyTooLong { .. })));
    for key in 0..MAX_TOPIC_KEYS {
        broker.put("writer", "t", &key.to_string(), 1, 1).unwrap();
    }
    assert!(matches!(broker.put("writer", "t", "x", 1, 1), Err(Refusal::TooManyKeys { .. })));
    broker.put("writer", "t", "0", 2, 1).unwrap();
    let refusal = broker.put("writer", "t", "0", 3, MAX_WRITER_BYTES);
    assert!(matches!(refusal, Err(Refusal::TooManyBytes { .. })));
    broker.remove("writer", "t", "1").unwrap();
    broker.put("writer", "t", "x", 1, 1).unwrap();
    // A full writer takes nothing from another one.
    let most = MAX_WRITER_BYTES - KEY_COST_BYTES - 1;
    assert!(broker.put("other", "u", "x", 1, most + 1).is_err());
    broker.put("other", "u", "x", 1, most).unwrap();
    broker.put("other", "u", "x", 2, most).unwrap();
}

#[test]
fn all_topics_of_a_writer_share_its_room() {
    let mut broker: Broker<u32> = Broker::new(Rules::new(&[("t", "w"), ("u", "w")], &BTreeMap::new()));
    broker.connect("w");
    broker.put("w", "t", "a", 1, MAX_WRITER_BYTES / 2).unwrap();
    let refusal = broker.put("w", "u", "a", 1, MAX_WRITER_BYTES / 2);
    assert!(matches!(refusal, Err(Refusal::TooManyBytes { .. })));
    broker.remove("w", "t", "a").unwrap();
    broker.put("w", "u", "a", 1, MAX_WRITER_BYTES / 2).unwrap();
}

#[test]
fn keys_that_come_and_go_while_a_reader_is_slow_are_not_kept_for_it() {
    let mut broker = broker();
    broker.subscribe("reader", "t").unwrap();
    broker.put("writer", "t", "known", 1, 1).unwrap();
    assert_eq!(told(&mut broker, "reader"), ["1"]);
    for key in 0..100_000 {
        broker.put("writer", "t", &key.to_string(), 2, 1).unwrap();
        broker.remove("writer", "t", &key.to_string()).unwrap();
    }
    broker.remove("writer", "t", "known").unwrap();
    assert_eq!(broker.queued("reader"), 1);
    assert_eq!(told(&mut broker, "reader"), ["-known"]);
}

/// Something that happens to the bus.
#[derive(Clone, Debug)]
enum Step {
    Put(u8, u32),
    Remove(u8),
    Synced,
    WriterRestarts,
    ReaderRestarts,
    Tell(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..6_u8, 0..4_u32).prop_map(|(key, value)| Step::Put(key, value)),
        2 => (0..6_u8).prop_map(Step::Remove),
        1 => Just(Step::Synced),
        1 => Just(Step::WriterRestarts),
        1 => Just(Step::ReaderRestarts),
        4 => (0..8_u8).prop_map(Step::Tell),
    ];
    proptest::collection::vec(step, 0..80)
}

/// What a reader makes of notices. A value carries its key: `key * 10 + value`.
#[derive(Default)]
struct Reader {
    view: BTreeMap<String, u32>,
    is_synced: bool,
}

impl Reader {
    fn hear(&mut self, notice: Notice<u32>) {
        match notice {
            Notice::Put(value) => {
                self.view.insert((value / 10).to_string(), value);
            }
            Notice::Remove { key, .. } => {
                self.view.remove(&key);
            }
            Notice::Synced { .. } => self.is_synced = true,
        }
    }
}

proptest! {
    #[test]
    fn a_reader_that_was_told_everything_sees_exactly_what_stands(steps in steps()) {
        let mut broker = broker();
        broker.subscribe("reader", "t").unwrap();
        let mut reader = Reader::default();
        // The model: what stands, with the life of the writer that said it.
        let mut stands: BTreeMap<String, (u32, u32)> = BTreeMap::new();
        let (mut life, mut was_synced) = (0, false);
        for step in steps {
            match step {
                Step::Put(key, value) => {
                    let value = u32::from(key) * 10 + value;
                    broker.put("writer", "t", &key.to_string(), value, 1).unwrap();
                    stands.insert(key.to_string(), (value, life));
                }
                Step::Remove(key) => {
                    broker.remove("writer", "t", &key.to_string()).unwrap();
                    stands.remove(&key.to_string());
                }
                Step::Synced => {
                    broker.synced("writer", "t").unwrap();
                    stands.retain(|_, (_, said_in)| *said_in == life);
                    was_synced = true;
                }
                Step::WriterRestarts => {
                    broker.connect("writer");
                    life += 1;
                }
                Step::ReaderRestarts => {
                    broker.connect("reader");
                    broker.subscribe("reader", "t").unwrap();
                    reader = Reader::default();
                }
                Step::Tell(count) => {
                    for _ in 0..count {
                        let Some(notice) = broker.front("reader") else { break };
                        broker.sent("reader");
                        reader.hear(notice);
                    }
                }
            }
            // Bounded: each key once, and synced once.
            prop_assert!(broker.clients["reader"].outbox.len() <= 7);
        }
        while let Some(notice) = broker.front("reader") {
            broker.sent("reader");
            reader.hear(notice);
        }
        let expected: BTreeMap<String, u32> =
            stands.into_iter().map(|(key, (value, _))| (key, value)).collect();
        prop_assert_eq!(reader.view, expected);
        prop_assert_eq!(reader.is_synced, was_synced);
        let kept = broker.topics["t"].values.keys().map(|key| key.len() + KEY_COST_BYTES + 1);
        prop_assert_eq!(broker.topics["t"].bytes, kept.sum::<usize>());
    }
}
