//! Who is in which segment, of what manifests and documents describe.

use crate::image::SegmentSet;
use crate::inventory::Inventory;
use crate::inventory::facts::{PodFacts, WorkloadFacts};
use crate::policy::kubernetes::cluster::{Cluster, Pod};
use crate::policy::kubernetes::placed::PlacedPod;
use crate::policy::model;
use crate::policy::resolved::{Resolved, Segment};
use crate::policy::workload::{PlacedWorkload, add_addresses};

/// Puts pods, and the workloads that documents describe, into the segments that `SegmentPolicy`
/// documents define; `pods` are those of `cluster`, in its order. Their addresses become those of
/// the segments, too.
pub(super) fn place(
    segments: &mut [Segment],
    cluster: &Cluster,
    pods: &mut [PlacedPod],
    workloads: &[model::Workload],
) -> Vec<PlacedWorkload> {
    if cluster.pods.is_empty() && workloads.is_empty() {
        return Vec::new();
    }
    let mut inventory = Inventory::new();
    inventory.set_policy(&Resolved { segments: segments.to_vec(), ..Resolved::default() });
    let own: Vec<SegmentSet> =
        cluster.pods.iter().map(|pod| inventory.described(&facts(pod))).collect();
    let placed = |workload: &model::Workload| PlacedWorkload {
        name: workload.name.value.clone(),
        segments: inventory.described(&workload.facts),
        facts: workload.facts.clone(),
    };
    let workloads: Vec<_> = workloads.iter().map(placed).collect();
    // What has its node's addresses shares them with everything else there.
    let pods_with_addresses = cluster.pods.iter().zip(&own).filter(|(pod, _)| !pod.host_network);
    let of_pods = pods_with_addresses.map(|(pod, set)| (set, pod.addresses.as_slice()));
    let of_workloads = workloads.iter().map(|w| (&w.segments, w.facts.addresses.as_slice()));
    add_addresses(segments, of_pods.chain(of_workloads));
    for (pod, set) in pods.iter_mut().zip(own) {
        // One of its node's network is a workload where a segment names it, and not otherwise.
        if pod.segments.is_some() || !set.is_empty() {
            pod.segments.get_or_insert_default().extend(set);
        }
    }
    workloads
}

fn facts(pod: &Pod) -> WorkloadFacts {
    let pod = PodFacts {
        namespace: Some(pod.namespace.clone()),
        labels: pod.labels.clone(),
        service_account: Some(pod.service_account.clone()),
    };
    WorkloadFacts { pod: Some(pod), ..WorkloadFacts::default() }
}
