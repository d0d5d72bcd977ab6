// SPDX-License-Identifier: Apache-2.0
//! A firewall as data: what the kernel shall hold, in words small enough to be proven and wide enough for app networks.
//!
//! A [`Ruleset`] is compared, printed and applied as a whole. It prints as the text other people's tools read, so that
//! golden files are legible and an independent program can judge the encoder. Never here: how it gets into a kernel.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Display, Formatter, Write};
use core::net::Ipv4Addr;

use model::config::PortRange;
use model::net::{Mac, Prefix4};

/// Name of every table of ours.
pub const TABLE: &str = "selvedge";
/// Addresses a [`HostSet`] holds at most; a name with more does not get its newest in.
pub const HOST_SET_SIZE: u32 = 1024;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;

/// All rules of the node. Families appear at most once each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ruleset {
    pub tables: BTreeMap<Family, Table>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IP packets.
    Inet,
    /// Frames on a bridge.
    Bridge,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Addresses learned from name lookups. Their content is not part of the ruleset and survives its changes.
    pub host_sets: BTreeSet<String>,
    /// Named counters; they keep their values over changes of the rules.
    pub counters: BTreeSet<String>,
    pub chains: BTreeMap<String, Chain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Where packets enter; `None`: only from other chains.
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// Base chains accept what no rule decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub point: HookPoint,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// All matches must hold, then the limit, then the counter counts, then the verdict is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub limit: Option<Limit>,
    pub counter: Option<String>,
    pub verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    pub packets: u64,
    pub per: LimitUnit,
    pub burst: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitUnit {
    Second,
    Minute,
    Hour,
    Day,
}

impl LimitUnit {
    pub const fn seconds(self) -> u64 {
        match self {
            LimitUnit::Second => 1,
            LimitUnit::Minute => 60,
            LimitUnit::Hour => 3_600,
            LimitUnit::Day => 86_400,
        }
    }
}

/// One condition. Those on addresses hold for IPv4 packets only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    InLink(Is, BTreeSet<String>),
    OutLink(Is, BTreeSet<String>),
    Source(Prefix4),
    Destination(Prefix4),
    DestinationAmong(BTreeSet<Ipv4Addr>),
    /// Destination of the flow's first packet, as its sender wrote it.
    AskedDestination(Prefix4),
    SourceInHostSet(String),
    AskedDestinationInHostSet(String),
    Protocol(u8),
    SourcePort(PortRange),
    DestinationPort(PortRange),
    AskedDestinationPort(PortRange),
    IcmpEchoRequest,
    /// The flow has been answered before.
    Established,
    /// An error about a known flow.
    Related,
    /// The packet runs against its flow's first one.
    ReplyDirection,
    /// A port map changed the flow's destination.
    PortMapped(Is),
    FrameSource(Is, Mac),
    Ipv4Frame,
    ArpFrame,
    ArpSender {
        mac: Mac,
        address: Ipv4Addr,
    },
}

/// Whether a match is meant as written or the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is {
    So,
    Not,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(String),
    Goto(String),
    /// Goes to the chain of the packet's key; goes on when there is none.
    Dispatch(Dispatch),
    Masquerade,
    Dnat {
        address: Ipv4Addr,
        port: u16,
    },
}

/// Key to chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dispatch {
    InLink(BTreeMap<String, String>),
    Source(BTreeMap<Ipv4Addr, String>),
    Destination(BTreeMap<Ipv4Addr, String>),
}

impl Rule {
    pub fn new(matches: impl Into<Vec<Match>>, verdict: Verdict) -> Rule {
        Rule { matches: matches.into(), limit: None, counter: None, verdict }
    }

    pub fn counted(self, counter: &str) -> Rule {
        Rule { counter: Some(counter.into()), ..self }
    }
}

impl Chain {
    pub fn hooked(kind: HookKind, point: HookPoint, priority: i32) -> Chain {
        Chain { hook: Some(Hook { kind, point, priority }), rules: Vec::new() }
    }

    pub fn of(rules: Vec<Rule>) -> Chain {
        Chain { hook: None, rules }
    }
}

impl Ruleset {
    /// A number that differs, for all we can tell, when the rulesets differ: kept in the kernel beside the rules.
    pub fn fingerprint(&self) -> u128 {
        let mut hash = Fnv128(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        let _ = write!(hash, "{self}");
        hash.0
    }
}

/// FNV-1a, 128 bits: enough against accidents, and nobody else writes what is compared.
struct Fnv128(u128);

impl Write for Fnv128 {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
        Ok(())
    }
}

impl Family {
    pub const fn name(self) -> &'static str {
        match self {
            Family::Inet => "inet",
            Family::Bridge => "bridge",
        }
    }
}

impl Display for Ruleset {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for (family, table) in &self.tables {
            writeln!(f, "table {} {TABLE} {{", family.name())?;
            for counter in &table.counters {
                writeln!(f, "\tcounter {counter} {{\n\t}}")?;
            }
            for set in &table.host_sets {
                writeln!(
                    f,
                    "\tset {set} {{\n\t\ttype ipv4_addr\n\t\tsize {HOST_SET_SIZE}\n\t\tflags timeout\n\t}}"
                )?;
            }
            for (name, chain) in &table.chains {
                writeln!(f, "\tchain {name} {{")?;
                if let Some(hook) = chain.hook {
                    writeln!(
                        f,
                        "\t\ttype {} hook {} priority {}; policy accept;",
                        hook.kind.name(),
                        hook.point.name(),
                        hook.priority
                    )?;
                }
                for rule in &chain.rules {
                    writeln!(f, "\t\t{rule}")?;
                }
                writeln!(f, "\t}}")?;
            }
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}

impl HookKind {
    pub const fn name(self) -> &'static str {
        match self {
            HookKind::Filter => "filter",
            HookKind::Nat => "nat",
        }
    }
}

impl HookPoint {
    pub const fn name(self) -> &'static str {
        match self {
            HookPoint::Prerouting => "prerouting",
            HookPoint::Input => "input",
            HookPoint::Forward => "forward",
            HookPoint::Output => "output",
            HookPoint::Postrouting => "postrouting",
        }
    }
}

impl Display for Rule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        if let Some(limit) = self.limit {
            let unit = match limit.per {
                LimitUnit::Second => "second",
                LimitUnit::Minute => "minute",
                LimitUnit::Hour => "hour",
                LimitUnit::Day => "day",
            };
            write!(f, "limit rate {}/{unit} burst {} packets ", limit.packets, limit.burst)?;
        }
        if let Some(counter) = &self.counter {
            write!(f, "counter name \"{counter}\" ")?;
        }
        write!(f, "{}", self.verdict)
    }
}

impl Display for Match {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Match::InLink(is, names) => write!(f, "iifname {is}{}", Quoted(names)),
            Match::OutLink(is, names) => write!(f, "oifname {is}{}", Quoted(names)),
            Match::Source(prefix) => write!(f, "ip saddr {}", Written(*prefix)),
            Match::Destination(prefix) => write!(f, "ip daddr {}", Written(*prefix)),
            Match::DestinationAmong(all) => {
                f.write_str("ip daddr ")?;
                list(f, all.iter(), |f, address| write!(f, "{address}"))
            }
            Match::AskedDestination(prefix) => write!(f, "ct original ip daddr {}", Written(*prefix)),
            Match::SourceInHostSet(set) => write!(f, "ip saddr @{set}"),
            Match::AskedDestinationInHostSet(set) => write!(f, "ct original ip daddr @{set}"),
            Match::Protocol(TCP) => f.write_str("meta l4proto tcp"),
            Match::Protocol(UDP) => f.write_str("meta l4proto udp"),
            Match::Protocol(ICMP) => f.write_str("meta l4proto icmp"),
            Match::Protocol(number) => write!(f, "meta l4proto {number}"),
            Match::SourcePort(range) => write!(f, "th sport {}", Span(*range)),
            Match::DestinationPort(range) => write!(f, "th dport {}", Span(*range)),
            Match::AskedDestinationPort(range) => write!(f, "ct original proto-dst {}", Span(*range)),
            Match::IcmpEchoRequest => f.write_str("icmp type echo-request"),
            Match::Established => f.write_str("ct state established"),
            Match::Related => f.write_str("ct state related"),
            Match::ReplyDirection => f.write_str("ct direction reply"),
            Match::PortMapped(Is::So) => f.write_str("ct status dnat"),
            Match::PortMapped(Is::Not) => f.write_str("ct status ! dnat"),
            Match::FrameSource(is, mac) => write!(f, "ether saddr {is}{mac}"),
            Match::Ipv4Frame => f.write_str("meta protocol ip"),
            Match::ArpFrame => f.write_str("meta protocol arp"),
            Match::ArpSender { mac, address } => {
                write!(f, "arp htype 1 arp ptype ip arp saddr ether {mac} arp saddr ip {address}")
            }
        }
    }
}

impl Display for Is {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Is::So => Ok(()),
            Is::Not => f.write_str("!= "),
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Dispatch(Dispatch::InLink(map)) => {
                f.write_str("iifname vmap ")?;
                list(f, map.iter(), |f, (link, chain)| write!(f, "\"{link}\" : goto {chain}"))
            }
            Verdict::Dispatch(Dispatch::Source(map)) => {
                f.write_str("ip saddr vmap ")?;
                list(f, map.iter(), |f, (address, chain)| write!(f, "{address} : goto {chain}"))
            }
            Verdict::Dispatch(Dispatch::Destination(map)) => {
                f.write_str("ip daddr vmap ")?;
                list(f, map.iter(), |f, (address, chain)| write!(f, "{address} : goto {chain}"))
            }
            Verdict::Masquerade => f.write_str("masquerade"),
            Verdict::Dnat { address, port } => write!(f, "dnat ip to {address}:{port}"),
        }
    }
}

fn list<T>(
    f: &mut Formatter<'_>,
    items: impl Iterator<Item = T>,
    mut each: impl FnMut(&mut Formatter<'_>, T) -> fmt::Result,
) -> fmt::Result {
    f.write_str("{ ")?;
    for (index, item) in items.enumerate() {
        if index > 0 {
            f.write_str(", ")?;
        }
        each(f, item)?;
    }
    f.write_str(" }")
}

/// One name in quotes, or several in braces.
struct Quoted<'a>(&'a BTreeSet<String>);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.first() {
            Some(only) if self.0.len() == 1 => write!(f, "\"{only}\""),
            _ => list(f, self.0.iter(), |f, name| write!(f, "\"{name}\"")),
        }
    }
}

/// A prefix with its host bits cleared; a single address without its length.
struct Written(Prefix4);

impl Display for Written {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.length {
            32 => write!(f, "{}", self.0.address),
            length => write!(f, "{}/{length}", self.0.network()),
        }
    }
}

struct Span(PortRange);

impl Display for Span {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            PortRange { first, last } if first == last => write!(f, "{first}"),
            PortRange { first, last } => write!(f, "{first}-{last}"),
        }
    }
}
