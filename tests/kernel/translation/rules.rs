//! Rule sets, written as kube-proxy and Docker write them.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::Translator;

/// A port of a Kubernetes service.
#[derive(Clone, Debug)]
pub(super) struct Service {
    /// What is asked.
    pub(super) address: SocketAddr,
    /// Who answers, one of them at random.
    pub(super) backends: Vec<SocketAddr>,
    /// Whether every client is masqueraded, as with `externalTrafficPolicy: Cluster`.
    pub(super) masquerade: bool,
}

/// A port that Docker publishes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Published {
    /// The host's port.
    pub(super) port: u16,
    /// The container's address and port.
    pub(super) container: SocketAddr,
}

const PROTOCOLS: [&str; 2] = ["tcp", "udp"];

/// kube-proxy's rules for services of one IP version, TCP and UDP.
pub(super) fn kube_proxy(translator: Translator, services: &[Service]) -> String {
    if translator == Translator::Nft { kube_nft(services) } else { kube_iptables(services) }
}

fn family(addr: IpAddr) -> &'static str {
    if addr.is_ipv4() { "ip" } else { "ip6" }
}

/// As `pkg/proxy/iptables` writes them.
fn kube_iptables(services: &[Service]) -> String {
    let (mut chains, mut rules) = (String::new(), String::new());
    for (number, service) in services.iter().enumerate() {
        let (ip, port) = (service.address.ip(), service.address.port());
        for protocol in PROTOCOLS {
            let name = format!("KUBE-SVC-{number}{protocol}");
            let _ = writeln!(chains, ":{name} - [0:0]");
            let _ = writeln!(
                rules,
                "-A KUBE-SERVICES -d {ip} -p {protocol} -m comment --comment \"default/web:http \
                 cluster IP\" -m {protocol} --dport {port} -j {name}"
            );
            if service.masquerade {
                let _ = writeln!(
                    rules,
                    "-A {name} -d {ip} -p {protocol} -m {protocol} --dport {port} -j KUBE-MARK-MASQ"
                );
            }
            let count = service.backends.len();
            for (index, backend) in service.backends.iter().enumerate() {
                let endpoint = format!("KUBE-SEP-{number}{protocol}{index}");
                let _ = writeln!(chains, ":{endpoint} - [0:0]");
                let left = count - index;
                let chance = if left == 1 {
                    String::new()
                } else {
                    format!(
                        " -m statistic --mode random --probability {:.10}",
                        1.0 / f64::from(u32::try_from(left).unwrap_or(1))
                    )
                };
                let _ = writeln!(
                    rules,
                    "-A {name} -m comment --comment \"default/web:http -> {backend}\"{chance} -j \
                     {endpoint}\n\
                     -A {endpoint} -p {protocol} -m {protocol} -j DNAT --to-destination {backend}"
                );
            }
        }
    }
    format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}\
         -A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j \
         MASQUERADE --random-fully\n{rules}COMMIT\n"
    )
}

/// As `pkg/proxy/nftables` writes them.
fn kube_nft(services: &[Service]) -> String {
    let ip = family(services[0].address.ip());
    let (mut elements, mut chains) = (Vec::new(), String::new());
    for (number, service) in services.iter().enumerate() {
        let (addr, port) = (service.address.ip(), service.address.port());
        for protocol in PROTOCOLS {
            let name = format!("service-{number}-{protocol}");
            elements.push(format!("{addr} . {protocol} . {port} : goto {name}"));
            let mut body = String::new();
            if service.masquerade {
                let _ = writeln!(
                    body,
                    "    {ip} daddr {addr} {protocol} dport {port} jump mark-for-masquerade"
                );
            }
            let mut endpoints = Vec::new();
            for (index, backend) in service.backends.iter().enumerate() {
                let endpoint = format!("endpoint-{number}-{protocol}-{index}");
                let _ = writeln!(
                    chains,
                    "  chain {endpoint} {{\n    meta l4proto {protocol} dnat to {backend}\n  }}"
                );
                endpoints.push(format!("{index} : goto {endpoint}"));
            }
            let count = endpoints.len();
            let _ = writeln!(
                chains,
                "  chain {name} {{\n{body}    numgen random mod {count} vmap {{ {} }}\n  }}",
                endpoints.join(", ")
            );
        }
    }
    let kind = if ip == "ip" { "ipv4_addr" } else { "ipv6_addr" };
    format!(
        "table {ip} kube-proxy {{}}\ndelete table {ip} kube-proxy\ntable {ip} kube-proxy {{\n\
         {chains}  map service-ips {{\n    type {kind} . inet_proto . inet_service : verdict\n    \
         elements = {{ {} }}\n  }}\n  chain services {{\n    {ip} daddr . meta l4proto . th dport \
         vmap @service-ips\n  }}\n  chain mark-for-masquerade {{\n    mark set mark or 0x4000\n  \
         }}\n  chain masquerading {{\n    mark and 0x4000 == 0 return\n    mark set mark xor \
         0x4000\n    masquerade fully-random\n  }}\n  chain nat-prerouting {{\n    type nat hook \
         prerouting priority dstnat; policy accept;\n    jump services\n  }}\n  chain nat-output \
         {{\n    type nat hook output priority -100; policy accept;\n    jump services\n  }}\n  \
         chain nat-postrouting {{\n    type nat hook postrouting priority srcnat; policy \
         accept;\n    jump masquerading\n  }}\n}}\n",
        elements.join(", ")
    )
}

/// Docker's rules for a bridge's published ports, TCP and UDP; `from` are its containers' addresses
/// and `bridge` their interface. With the addresses of loopback, as without its userland proxy.
pub(super) fn docker(
    translator: Translator,
    from: &str,
    bridge: &str,
    published: &[Published],
) -> String {
    let ip = family(published[0].container.ip());
    let mut rules = String::new();
    let nft = translator == Translator::Nft;
    for Published { port, container } in published {
        let addr = container.ip();
        for protocol in PROTOCOLS {
            // A container that asks itself by its published port.
            let _ = if nft {
                writeln!(
                    rules,
                    "  chain DOCKER {{\n    {protocol} dport {port} dnat to {container}\n  }}\n  \
                     chain POSTROUTING {{\n    {ip} saddr {addr} {ip} daddr {addr} {protocol} dport \
                     {} masquerade\n  }}",
                    container.port()
                )
            } else {
                writeln!(
                    rules,
                    "-A POSTROUTING -s {addr} -d {addr} -p {protocol} -m {protocol} --dport {} -j \
                     MASQUERADE\n\
                     -A DOCKER -p {protocol} -m {protocol} --dport {port} -j DNAT --to-destination \
                     {container}",
                    container.port()
                )
            };
        }
    }
    let local = if ip == "ip" { "127.0.0.0/8" } else { "::1" };
    if nft {
        return format!(
            "table {ip} docker {{}}\ndelete table {ip} docker\ntable {ip} docker {{\n  chain DOCKER \
             {{}}\n  chain PREROUTING {{\n    type nat hook prerouting priority dstnat; policy \
             accept;\n    fib daddr type local jump DOCKER\n  }}\n  chain OUTPUT {{\n    type nat \
             hook output priority -100; policy accept;\n    fib daddr type local jump DOCKER\n  }}\n  \
             chain POSTROUTING {{\n    type nat hook postrouting priority srcnat; policy \
             accept;\n    {ip} saddr {from} oifname != \"{bridge}\" masquerade\n    {ip} saddr \
             {local} oifname \"{bridge}\" masquerade\n  }}\n{rules}}}\n"
        );
    }
    format!(
        "*nat\n:DOCKER - [0:0]\n\
         -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER\n\
         -A POSTROUTING -s {from} ! -o {bridge} -j MASQUERADE\n\
         -A POSTROUTING -s {local} -o {bridge} -j MASQUERADE\n{rules}COMMIT\n"
    )
}
