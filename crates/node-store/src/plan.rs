// SPDX-License-Identifier: Apache-2.0
//! What to do next: a pure function of what is wanted, what is here and what is under way.
//!
//! Content is pulled when its order is not served by what is held; volumes are made once, from the content they name, and
//! from then on belong to their key. Things that nobody wants go, but only when the topic that would want them is synced.

use std::collections::{BTreeMap, BTreeSet};

use model::config::VolumeOrigin;
use model::desired::{ContentDesired, VolumeDesired};
use model::id::{ContentTreeId, VolumeKey};
use model::observed::MadeVolume;
use model::time::MonoMs;

use crate::catalog::{ContentRecord, Order};

/// Images pulled at one time, so that a slow registry does not hold up another one.
pub const MAX_PULLS: usize = 2;

/// All that a decision depends on.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    pub now: MonoMs,
    pub content: &'a BTreeMap<ContentTreeId, ContentDesired>,
    pub is_content_synced: bool,
    pub volumes: &'a BTreeMap<VolumeKey, VolumeDesired>,
    pub is_volumes_synced: bool,
    pub held: &'a BTreeMap<ContentTreeId, ContentRecord>,
    pub made: &'a BTreeMap<VolumeKey, MadeVolume>,
    /// Volumes that are being made.
    pub making: &'a BTreeSet<VolumeKey>,
    /// What each pull under way was started for.
    pub pulling: &'a BTreeMap<ContentTreeId, Order>,
    /// Orders that failed, and when to try again.
    pub waiting: &'a BTreeMap<ContentTreeId, (Order, MonoMs)>,
    /// Something was dropped or replaced since the last sweep.
    pub may_have_garbage: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Pull(ContentTreeId),
    Cancel(ContentTreeId),
    MakeVolume(VolumeKey),
    DropContent(ContentTreeId),
    DropVolume(VolumeKey),
    Sweep,
}

/// Steps in the order to take them; none when all is as wanted. And when to look again by itself.
pub fn plan(inputs: &Inputs<'_>) -> (Vec<Step>, Option<MonoMs>) {
    let mut steps = Vec::new();
    let mut deadline: Option<MonoMs> = None;
    for (id, order) in inputs.pulling {
        let is_wanted = match inputs.content.get(id) {
            Some(desired) => Order::of(desired) == *order,
            None => !inputs.is_content_synced,
        };
        if !is_wanted {
            steps.push(Step::Cancel(*id));
        }
    }
    if inputs.is_content_synced {
        let unwanted = inputs.held.keys().filter(|id| !inputs.content.contains_key(id));
        steps.extend(unwanted.map(|id| Step::DropContent(*id)));
    }
    if inputs.is_volumes_synced {
        let unwanted = inputs.made.keys().filter(|key| !inputs.volumes.contains_key(key));
        steps.extend(unwanted.map(|key| Step::DropVolume(*key)));
    }
    for (key, desired) in inputs.volumes {
        let is_ready = || {
            let VolumeOrigin::Content(tree) = desired.origin else { return Some(()) };
            let order = inputs.content.get(&tree).map(Order::of)?;
            inputs.held.get(&tree).filter(|record| record.order.serves(&order)).map(drop)
        };
        let is_begun = inputs.made.contains_key(key) || inputs.making.contains(key);
        if !is_begun && is_ready().is_some() {
            steps.push(Step::MakeVolume(*key));
        }
    }
    let mut pulls = inputs.pulling.len();
    for (id, desired) in inputs.content {
        let order = Order::of(desired);
        let is_served = inputs.held.get(id).is_some_and(|record| record.order.serves(&order));
        // A pull for an older order ends first.
        if is_served || inputs.pulling.contains_key(id) {
            continue;
        }
        if let Some((failed, retry_at)) = inputs.waiting.get(id)
            && *failed == order
            && *retry_at > inputs.now
        {
            deadline = Some(deadline.map_or(*retry_at, |known| known.min(*retry_at)));
            continue;
        }
        if pulls < MAX_PULLS {
            pulls += 1;
            steps.push(Step::Pull(*id));
        }
    }
    // A pull counts on layers it found; and what is dropped now is garbage only afterwards.
    let is_quiet = steps.is_empty() && inputs.pulling.is_empty() && inputs.making.is_empty();
    if inputs.may_have_garbage && is_quiet && inputs.is_content_synced && inputs.is_volumes_synced {
        steps.push(Step::Sweep);
    }
    (steps, deadline)
}

#[cfg(test)]
mod tests {
    use model::desired::{ContentSource, ContentSources, ImageConfig, RegistrySource};
    use model::id::{Digest, VolumeId};
    use model::observed::Image;

    use super::*;
    use crate::catalog::Held;

    #[derive(Default)]
    struct World {
        content: BTreeMap<ContentTreeId, ContentDesired>,
        volumes: BTreeMap<VolumeKey, VolumeDesired>,
        held: BTreeMap<ContentTreeId, ContentRecord>,
        made: BTreeMap<VolumeKey, MadeVolume>,
        making: BTreeSet<VolumeKey>,
        pulling: BTreeMap<ContentTreeId, Order>,
        waiting: BTreeMap<ContentTreeId, (Order, MonoMs)>,
        unsynced: bool,
        garbage: bool,
    }

    impl World {
        fn plan(&self) -> (Vec<Step>, Option<MonoMs>) {
            plan(&Inputs {
                now: MonoMs(1000),
                content: &self.content,
                is_content_synced: !self.unsynced,
                volumes: &self.volumes,
                is_volumes_synced: !self.unsynced,
                held: &self.held,
                made: &self.made,
                making: &self.making,
                pulling: &self.pulling,
                waiting: &self.waiting,
                may_have_garbage: self.garbage,
            })
        }

        fn steps(&self) -> Vec<Step> {
            self.plan().0
        }

        fn hold(&mut self, number: u8, desired: &ContentDesired) {
            let held = Held::Image(image());
            self.held.insert(id(number), ContentRecord::new(id(number), Order::of(desired), held));
        }
    }

    fn id(number: u8) -> ContentTreeId {
        format!("00000000-0000-4000-8000-0000000000{number:02x}").parse().unwrap()
    }

    fn key(number: u8) -> VolumeKey {
        VolumeKey { id: VolumeId(id(number).0), generation: 0 }
    }

    fn image() -> Image {
        Image {
            digest: Digest([1; 32]),
            total_bytes: 1,
            config: ImageConfig::default(),
            layers: Vec::new(),
            blobs: Vec::new(),
        }
    }

    fn content(number: u8, generation: i64) -> ContentDesired {
        let registry = RegistrySource { base_url: "https://r".into(), credentials: None, ca_pem: Vec::new() };
        ContentDesired {
            id: id(number),
            name: format!("c{number}"),
            generation,
            sources: ContentSources::Registries(vec![ContentSource {
                registry,
                repository: "a".into(),
                reference: "latest".into(),
            }]),
            digest: None,
            max_size_bytes: 0,
        }
    }

    fn volume(number: u8, from: u8) -> VolumeDesired {
        VolumeDesired {
            key: key(number),
            name: String::new(),
            origin: VolumeOrigin::Content(id(from)),
            max_size_bytes: 0,
            is_read_only: false,
        }
    }

    #[test]
    fn content_is_pulled_a_few_at_a_time() {
        let mut world = World::default();
        for number in 1..=3 {
            world.content.insert(id(number), content(number, 0));
        }
        assert_eq!(world.steps(), [Step::Pull(id(1)), Step::Pull(id(2))]);
        world.pulling.insert(id(1), Order::of(&content(1, 0)));
        world.hold(2, &content(2, 0));
        assert_eq!(world.steps(), [Step::Pull(id(3))]);
    }

    #[test]
    fn a_tag_is_looked_up_again_only_with_a_new_generation() {
        let mut world = World::default();
        world.content.insert(id(1), content(1, 0));
        world.hold(1, &content(1, 0));
        assert_eq!(world.steps(), []);
        world.content.insert(id(1), content(1, 1));
        assert_eq!(world.steps(), [Step::Pull(id(1))]);
        // By digest, the generation says nothing new.
        let by_digest =
            |generation| ContentDesired { digest: Some(Digest([1; 32])), ..content(1, generation) };
        world.content.insert(id(1), by_digest(1));
        assert_eq!(world.steps(), [Step::Pull(id(1))]);
        world.hold(1, &by_digest(0));
        assert_eq!(world.steps(), []);
    }

    #[test]
    fn a_pull_for_another_order_is_cancelled_and_started_anew_when_it_ended() {
        let mut world = World::default();
        world.content.insert(id(1), content(1, 1));
        world.pulling.insert(id(1), Order::of(&content(1, 0)));
        assert_eq!(world.steps(), [Step::Cancel(id(1))]);
        world.pulling.clear();
        assert_eq!(world.steps(), [Step::Pull(id(1))]);
    }

    #[test]
    fn a_failed_order_waits_and_a_new_one_does_not() {
        let mut world = World::default();
        world.content.insert(id(1), content(1, 0));
        world.waiting.insert(id(1), (Order::of(&content(1, 0)), MonoMs(5000)));
        assert_eq!(world.plan(), (vec![], Some(MonoMs(5000))));
        world.content.insert(id(1), content(1, 1));
        assert_eq!(world.plan(), (vec![Step::Pull(id(1))], None));
    }

    #[test]
    fn volumes_are_made_when_their_content_is_here_and_then_stay() {
        let mut world = World::default();
        world.volumes.insert(key(9), volume(9, 1));
        assert_eq!(world.steps(), []);
        world.content.insert(id(1), content(1, 1));
        world.hold(1, &content(1, 0));
        // What is held is an older generation.
        assert_eq!(world.steps(), [Step::Pull(id(1))]);
        world.hold(1, &content(1, 1));
        assert_eq!(world.steps(), [Step::MakeVolume(key(9))]);
        world.made.insert(key(9), MadeVolume::Image(image()));
        world.content.insert(id(1), content(1, 2));
        assert_eq!(world.steps(), [Step::Pull(id(1))]);
    }

    #[test]
    fn a_blank_volume_waits_for_nothing_and_is_made_once() {
        let mut world = World { garbage: true, ..World::default() };
        world.volumes.insert(key(9), VolumeDesired { origin: VolumeOrigin::Blank, ..volume(9, 1) });
        assert_eq!(world.steps(), [Step::MakeVolume(key(9))]);
        world.making.insert(key(9));
        assert_eq!(world.steps(), [], "nothing is swept meanwhile");
        world.making.clear();
        world.made.insert(key(9), MadeVolume::Directory);
        assert_eq!(world.steps(), [Step::Sweep]);
    }

    #[test]
    fn absent_is_deleted_only_when_the_planner_has_said_all() {
        let mut world = World { unsynced: true, garbage: true, ..World::default() };
        world.hold(1, &content(1, 0));
        world.made.insert(key(9), MadeVolume::Image(image()));
        world.pulling.insert(id(2), Order::of(&content(2, 0)));
        assert_eq!(world.steps(), []);
        world.unsynced = false;
        assert_eq!(world.steps(), [Step::Cancel(id(2)), Step::DropContent(id(1)), Step::DropVolume(key(9))]);
        world.held.clear();
        world.made.clear();
        assert_eq!(world.steps(), [Step::Cancel(id(2))]);
        world.pulling.clear();
        assert_eq!(world.steps(), [Step::Sweep]);
        world.garbage = false;
        assert_eq!(world.steps(), []);
    }
}
