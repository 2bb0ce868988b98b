//! Which addresses an answer of somebody else's may send larder to. Pure: no sockets, no DNS.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why an address is refused; the label of `blocked_dials_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Private,
    /// Where clouds hand out credentials to whoever can connect: no list of private networks opens these.
    Metadata,
}

impl Refusal {
    pub fn label(self) -> &'static str {
        match self {
            Refusal::Private => "private",
            Refusal::Metadata => "metadata",
        }
    }
}

/// Judges an address that a redirect or a challenge led to. Global addresses pass, others only where `allowed` covers them.
pub fn judge(address: IpAddr, allowed: &[IpNet]) -> Result<(), Refusal> {
    let inner = embedded(address);
    if is_metadata(inner) {
        return Err(Refusal::Metadata);
    }
    if allowed.iter().any(|network| network.contains(&address)) || is_global(address) { Ok(()) } else { Err(Refusal::Private) }
}

/// Judges a host whose name somebody else will resolve: by how it looks. Figures in any spelling are addresses, and some
/// names are never public.
pub fn judge_name(host: &str, allowed: &[IpNet]) -> Result<(), Refusal> {
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if let Ok(address) = name.parse() {
        return judge(address, allowed);
    }
    let (rest, last) = name.rsplit_once('.').unwrap_or(("", &name));
    match last {
        _ if METADATA_NAMES.contains(&name.as_str()) => Err(Refusal::Metadata),
        "localhost" | "internal" | "" => Err(Refusal::Private),
        "localdomain" if rest == "localhost" => Err(Refusal::Private),
        _ if is_number(last) || name.contains([':', '%']) => Err(Refusal::Private),
        _ => Ok(()),
    }
}

/// What the metadata services of EC2, Google, Azure and Tencent are called.
const METADATA_NAMES: [&str; 7] = [
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.azure.internal",
    "metadata.tencentyun.com",
];

/// No domain ends so; resolvers read `127.1`, `2130706433` and `0x7f000001` as addresses.
fn is_number(label: &str) -> bool {
    label.bytes().all(|byte| byte.is_ascii_digit())
        || label.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The IPv4 address inside a mapped or translated one: what would be reached in the end.
fn embedded(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().or_else(|| nat64(v6)).map_or(address, IpAddr::V4),
        IpAddr::V4(_) => address,
    }
}

/// RFC 6052's well-known prefix, as DNS64 resolvers give it in networks without IPv4.
fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() else {
        return None;
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

fn is_metadata(address: IpAddr) -> bool {
    match address {
        // EC2, Google, Azure and most others; ECS tasks; EKS pods; Alibaba; Oracle Classic; Azure's wire server, which looks global.
        IpAddr::V4(v4) => {
            matches!(
                v4.octets(),
                [169, 254, 169, 254] | [169, 254, 170, 2 | 23] | [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16]
            )
        }
        IpAddr::V6(v6) => {
            matches!(
                v6.segments(),
                [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254 | 0x23]
                    | [0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254]
                    | [0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe]
            )
        }
    }
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_global_v4(v4),
        IpAddr::V6(v6) => nat64(v6).map_or_else(|| is_global_v6(v6), is_global_v4),
    }
}

/// The special registry of RFC 6890, but for the documentation networks: nobody routes those.
fn is_global_v4(address: Ipv4Addr) -> bool {
    !matches!(
        address.octets(),
        [0 | 10 | 127, ..]
            | [100, 64..=127, ..]
            | [169, 254, ..]
            | [172, 16..=31, ..]
            | [192, 0, 0, _]
            | [192, 88, 99, _]
            | [192, 168, ..]
            | [198, 18 | 19, ..]
            | [224..=255, ..]
    )
}

/// Global unicast is 2000::/3; Teredo and 6to4 within it lead to IPv4 addresses of the sender's choice.
fn is_global_v6(address: Ipv6Addr) -> bool {
    match address.segments() {
        [0x2001, 0, ..] | [0x2002, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(address: &str, allowed: &[&str]) -> Result<(), Refusal> {
        let allowed: Vec<IpNet> = allowed.iter().map(|network| network.parse().expect("a network")).collect();
        judge(address.parse().expect("an address"), &allowed)
    }

    #[test]
    fn global_addresses_pass() {
        for address in ["1.1.1.1", "100.63.0.1", "172.32.0.1", "203.0.113.7", "2606:4700::1111", "64:ff9b::101:101"] {
            assert_eq!(judged(address, &[]), Ok(()), "{address}");
        }
    }

    #[test]
    fn what_is_not_global_is_refused_unless_listed() {
        for address in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.1.1",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:1.1.1.1",
            "::7f00:1",
            "2002:7f00:1::",
            "2001:0:1::1",
            "64:ff9b::a00:1",
            "fec0::1",
        ] {
            assert_eq!(judged(address, &[]), Err(Refusal::Private), "{address}");
        }
        assert_eq!(judged("10.1.2.3", &["10.0.0.0/8"]), Ok(()));
        assert_eq!(judged("fd12::1", &["10.0.0.0/8", "fd00::/8"]), Ok(()));
        assert_eq!(judged("192.168.0.1", &["10.0.0.0/8"]), Err(Refusal::Private));
    }

    #[test]
    fn a_name_that_a_proxy_would_resolve_is_judged_by_its_looks() {
        let judged = |host: &str| judge_name(host, &["10.0.0.0/8".parse().expect("a network")]);
        for host in
            ["cdn.example", "cdn.example.", "1.1.1.1", "2606:4700::1111", "10.1.2.3", "internal.example", "0x.example", "localhost.example"]
        {
            assert_eq!(judged(host), Ok(()), "{host}");
        }
        for host in [
            "127.0.0.1",
            "127.0.0.1.",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0X7F.1",
            "017700000001",
            "::1",
            "fe80::1%25eth0",
            "fe80::1%eth0",
            "::ffff:192.168.0.1",
            "0.0.0.0",
            "localhost",
            "LOCALHOST.",
            "a.localhost",
            "localhost.localdomain",
            "store.corp.internal",
            "",
            ".",
        ] {
            assert_eq!(judged(host), Err(Refusal::Private), "{host}");
        }
        for host in [
            "169.254.169.254",
            "169.254.169.254.",
            "::ffff:169.254.169.254",
            "metadata.google.internal",
            "Metadata.Google.Internal.",
            "metadata",
        ] {
            assert_eq!(judged(host), Err(Refusal::Metadata), "{host}");
        }
    }

    #[test]
    fn no_list_opens_a_metadata_service() {
        for address in [
            "169.254.169.254",
            "169.254.170.2",
            "100.100.100.200",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "fd00:ec2::254",
            "168.63.129.16",
        ] {
            assert_eq!(judged(address, &["0.0.0.0/0", "::/0"]), Err(Refusal::Metadata), "{address}");
        }
    }
}
