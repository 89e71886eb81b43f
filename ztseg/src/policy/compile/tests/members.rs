//! Members elsewhere, who come and go: an image that follows them one by one says what one says that
//! is compiled with all of them, and what the oracle says of a policy that has them in its segments.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::*;
use crate::image::UnknownClass;

/// The world with its members written into the policy.
fn spelled_out(world: &World, members: &Members) -> World {
    let mut world = world.clone();
    for (address, set) in members {
        for SegmentId(segment) in set {
            let net = IpNet::from(IpAddr::from(*address));
            world.resolved.segments[*segment as usize].addresses.push(net);
        }
    }
    world
}

fn addresses(image: &Image) -> BTreeSet<Addr> {
    image.hosts.iter().map(|(address, _)| address).collect()
}

#[test]
fn an_image_that_follows_its_members_is_as_if_it_were_compiled_with_them() {
    const WORLDS: u64 = if cfg!(debug_assertions) { 60 } else { 1000 };
    const CHANGES: usize = 12;
    const QUESTIONS: usize = 12;
    let seed = seed();
    let (mut followed, mut compiled, mut removed) = (0, 0, 0);
    for case in 0..WORLDS {
        let mut rng = seeded(seed, case);
        let world = world(&mut rng);
        let with = |members: &Members| {
            compile_with_members(&world.resolved, &world.workloads, members, &LARGE).unwrap()
        };
        let mut members = Members::new();
        let mut image = with(&members);
        let count = u32::try_from(world.resolved.segments.len()).unwrap();
        for change in 0..CHANGES {
            // Of few addresses, so that they change again and leave again.
            let asked: Vec<_> = (0..QUESTIONS).map(|_| question(&mut rng, &world)).collect();
            let address = Addr::from(asked[0].address);
            let set: SegmentSet = (0..rng.u32(0..3))
                .filter(|_| count > 0)
                .map(|_| SegmentId(rng.u32(0..count)))
                .collect();
            removed += u32::from(set.is_empty() && members.contains_key(&address));
            let host = image.host_of(&address, &set);
            if set.is_empty() {
                members.remove(&address)
            } else {
                members.insert(address, set)
            };
            let fresh = with(&members);
            if let Ok(host) = host {
                image.hosts.set(address, host);
                followed += 1;
            } else {
                image = fresh.clone();
                compiled += 1;
            }
            let truth = spelled_out(&world, &members);
            let whole = compile(&truth.resolved, &world.workloads, &LARGE).unwrap();
            let at = format!("seed {seed} case {case} change {change}");
            assert_eq!(addresses(&image), addresses(&whole), "{at}");
            assert_eq!(addresses(&fresh), addresses(&whole), "{at}");
            for q in asked {
                let now = moment(&mut rng);
                for image in [&image, &fresh] {
                    let differs = difference(image, &truth, &q, now);
                    assert!(differs.is_none(), "{at}\n{}\n{members:?}", differs.unwrap());
                }
            }
        }
    }
    let least = u32::try_from(WORLDS).unwrap();
    assert!(
        followed > 4 * least && compiled > least / 4 && removed > least / 4,
        "{followed} {compiled} {removed}"
    );
}

/// Segments 0, 1 and 2 are peers of rules of their own; 10.0.0.1 is in segment 1 by the policy itself.
fn three_peers() -> Resolved {
    let rules = [0, 1, 2].map(|peer| (segments(&[7]), segments(&[peer])));
    let net = (segments(&[7]), networks(&["10.0.0.0/8"]));
    let mut resolved = policy(&[&rules[..], &[net]].concat());
    resolved.segments.iter_mut().for_each(|s| s.addresses.clear());
    resolved.segments[1].addresses = vec!["10.0.0.1/32".parse().unwrap()];
    resolved
}

fn set(list: &[u32]) -> SegmentSet {
    list.iter().copied().map(SegmentId).collect()
}

#[test]
fn an_address_keeps_what_the_policy_says_of_it() {
    let image = compile(&three_peers(), &[], &LARGE).unwrap();
    let [own, other] = [Addr::v4([10, 0, 0, 1]), Addr::v4([10, 0, 0, 2])];
    let around = image.peer(&other);
    assert_ne!(around.address, ADDRESS_UNKNOWN);
    let identity = |segment: u32| image.classes[&set(&[segment])].identity;
    // Another one joins and leaves; the CIDR around it counts all the time.
    let joined = image.host_of(&other, &set(&[0])).unwrap();
    assert_eq!(joined, Some(Peer { identity: identity(0), ..around }));
    assert_eq!(image.host_of(&other, &set(&[])), Ok(None));
    // What the policy has listed is never taken away.
    let listed = Some(Peer { identity: identity(1), ..around });
    assert_eq!(image.host_of(&own, &set(&[])), Ok(listed));
    assert_eq!(image.host_of(&own, &set(&[1])), Ok(listed));
    // Of a segment that no rule names, the prefix says the same.
    assert_eq!(image.host_of(&other, &set(&[5])), Ok(None));
}

#[test]
fn a_class_that_nobody_has_is_compiled_first() {
    let resolved = three_peers();
    let image = compile(&resolved, &[], &LARGE).unwrap();
    let address = Addr::v4([192, 0, 2, 1]);
    assert_eq!(image.host_of(&address, &set(&[0, 2])), Err(UnknownClass));
    let members = Members::from([(address, set(&[0, 2]))]);
    let image = compile_with_members(&resolved, &[], &members, &LARGE).unwrap();
    assert_eq!(image.host_of(&address, &set(&[0, 2])), Ok(Some(image.peer(&address))));
    // Others may join it from now on.
    assert!(image.host_of(&Addr::v4([192, 0, 2, 2]), &set(&[0, 2])).unwrap().is_some());
    // Segment 8 is not there.
    assert_eq!(image.host_of(&address, &set(&[8])), Err(UnknownClass));
}

#[test]
fn members_are_counted_and_checked_like_all_else() {
    let resolved = three_peers();
    let member = |n: u8, segment| (Addr::v4([192, 0, 2, n]), set(&[segment]));
    let peers = Capacity { peers: 3, ..LARGE };
    // One host and one prefix are the policy's own.
    let with = |members: &[_]| {
        let members = members.iter().cloned().collect();
        compile_with_members(&resolved, &[], &members, &peers).map_err(|e| e.to_string())
    };
    assert!(with(&[member(1, 0)]).is_ok());
    let error = with(&[member(1, 0), member(2, 0)]).unwrap_err();
    assert!(error.contains("capacity.peers"), "{error}");
    let error = with(&[member(1, 8)]).unwrap_err();
    assert!(error.contains("192.0.2.1"), "{error}");
}
