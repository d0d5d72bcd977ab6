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
    /// Frames as a link takes them in, before anything else sees them.
    Netdev,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    pub kind: HookKind,
    pub point: HookPoint,
    pub priority: i32,
    /// The one link whose frames enter, with [`HookPoint::Ingress`].
    pub link: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookKind {
    Filter,
    Nat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookPoint {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// All matches must hold, then the limit, then effects happen and the counter counts, then the verdict is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub limit: Option<Limit>,
    pub effects: Vec<Effect>,
    pub counter: Option<String>,
    pub verdict: Verdict,
}

/// What a rule does to a packet or its flow besides its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Writes the number of the deciding access rule into a half of the flow's mark.
    MarkFlow(Half, u16),
    /// Writes a mark on the packet alone.
    MarkPacket(u32),
    /// Keeps the flow apart from those of other zones.
    Zone(u16),
    /// Shows the packet to this process, under a word that says why.
    Show(String),
    /// Sends a copy out of a link.
    Copy(String),
}

/// Half of a flow's mark: which rule let it out of an app, and which one let it in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Half {
    Out,
    In,
}

impl Half {
    pub const fn mask(self) -> u32 {
        match self {
            Half::Out => 0x0000_ffff,
            Half::In => 0xffff_0000,
        }
    }

    /// The mark that has this number in its half and nothing in the other.
    pub const fn place(self, number: u16) -> u32 {
        match self {
            Half::Out => number as u32,
            Half::In => (number as u32) << 16,
        }
    }
}

/// Group in which packets are shown.
pub const SHOW_GROUP: u16 = 0x5e1;
/// Bytes of a packet that are shown: headers, and all of a DHCP message.
pub const SHOW_BYTES: u32 = 640;

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
    /// Numbers that stand in a half of the flow's mark; 0 is no rule.
    FlowMark(Half, BTreeSet<u16>),
    /// Some rule let the flow pass.
    FlowMarked(Is),
    PacketMark(Is, u32),
    FrameSource(Is, Mac),
    FrameDestination(Is, Mac),
    FrameDestinationAmong(BTreeSet<Mac>),
    /// To more than one receiver.
    GroupFrame(Is),
    Ipv4Frame,
    ArpFrame,
    ArpSender {
        mac: Mac,
        /// `None`: any.
        address: Option<Ipv4Addr>,
    },
    /// A DHCP client speaks for this MAC.
    DhcpFrom(Mac),
    /// A DHCP server speaks, to this MAC or not to it.
    DhcpTo(Is, Mac),
    /// A DHCP server or client speaks.
    Dhcp,
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
    /// Goes on with the next rule.
    Continue,
    Jump(String),
    Goto(String),
    /// Goes to the chain of the packet's key; goes on when there is none.
    Dispatch(Dispatch),
    /// Out of another link as it is; nothing else sees it.
    Forward(String),
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
    OutLink(BTreeMap<String, String>),
    FrameSource(BTreeMap<Mac, String>),
    FrameDestination(BTreeMap<Mac, String>),
    Source(BTreeMap<Ipv4Addr, String>),
    Destination(BTreeMap<Ipv4Addr, String>),
}

impl Rule {
    pub fn new(matches: impl Into<Vec<Match>>, verdict: Verdict) -> Rule {
        Rule { matches: matches.into(), limit: None, effects: Vec::new(), counter: None, verdict }
    }

    pub fn counted(self, counter: &str) -> Rule {
        Rule { counter: Some(counter.into()), ..self }
    }

    pub fn with(mut self, effect: Effect) -> Rule {
        self.effects.push(effect);
        self
    }

    pub fn at_most(self, packets: u64, per: LimitUnit, burst: u32) -> Rule {
        Rule { limit: Some(Limit { packets, per, burst }), ..self }
    }
}

impl Chain {
    pub fn hooked(kind: HookKind, point: HookPoint, priority: i32) -> Chain {
        Chain { hook: Some(Hook { kind, point, priority, link: None }), rules: Vec::new() }
    }

    /// Frames that a link takes in.
    pub fn ingress(link: &str) -> Chain {
        let hook =
            Hook { kind: HookKind::Filter, point: HookPoint::Ingress, priority: 0, link: Some(link.into()) };
        Chain { hook: Some(hook), rules: Vec::new() }
    }

    pub fn of(rules: Vec<Rule>) -> Chain {
        Chain { hook: None, rules }
    }
}

impl Ruleset {
    /// A number that differs, for all we can tell, when the rulesets differ: kept in the kernel beside the rules. `links`
    /// are the numbers by which the kernel knows the links that rules name.
    pub fn fingerprint(&self, links: &BTreeMap<String, u32>) -> u128 {
        let mut hash = Fnv128(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        let _ = write!(hash, "{self}{links:?}");
        hash.0
    }
}

/// FNV-1a, 64 bits: for names and numbers where nobody gains by a collision.
pub(super) fn fnv64(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
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
            Family::Netdev => "netdev",
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
                if let Some(hook) = &chain.hook {
                    write!(f, "\t\ttype {} hook {} ", hook.kind.name(), hook.point.name())?;
                    if let Some(link) = &hook.link {
                        write!(f, "device \"{link}\" ")?;
                    }
                    writeln!(f, "priority {}; policy accept;", hook.priority)?;
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
            HookPoint::Ingress => "ingress",
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
        for effect in &self.effects {
            write!(f, "{effect} ")?;
        }
        if let Some(counter) = &self.counter {
            write!(f, "counter name \"{counter}\" ")?;
        }
        write!(f, "{}", self.verdict)
    }
}

impl Display for Effect {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Effect::MarkFlow(half, number) => {
                write!(f, "ct mark set ct mark & {:#010x} ^ {:#010x}", !half.mask(), half.place(*number))
            }
            Effect::MarkPacket(mark) => write!(f, "meta mark set {mark:#010x}"),
            Effect::Zone(zone) => write!(f, "ct zone set {zone}"),
            Effect::Show(word) => write!(f, "log prefix \"{word}\" group {SHOW_GROUP} snaplen {SHOW_BYTES}"),
            Effect::Copy(link) => write!(f, "dup to \"{link}\""),
        }
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
            Match::FlowMark(half, numbers) => {
                write!(f, "ct mark & {:#010x} ", half.mask())?;
                list(f, numbers.iter(), |f, number| write!(f, "{:#010x}", half.place(*number)))
            }
            Match::FlowMarked(Is::So) => f.write_str("ct mark != 0x00000000"),
            Match::FlowMarked(Is::Not) => f.write_str("ct mark 0x00000000"),
            Match::PacketMark(is, mark) => write!(f, "meta mark {is}{mark:#010x}"),
            Match::FrameDestination(is, mac) => write!(f, "ether daddr {is}{mac}"),
            Match::FrameDestinationAmong(all) => {
                f.write_str("ether daddr ")?;
                list(f, all.iter(), |f, mac| write!(f, "{mac}"))
            }
            Match::GroupFrame(Is::So) => f.write_str("@ll,0,8 & 0x01 0x01"),
            Match::GroupFrame(Is::Not) => f.write_str("@ll,0,8 & 0x01 0x00"),
            Match::FrameSource(is, mac) => write!(f, "ether saddr {is}{mac}"),
            Match::Ipv4Frame => f.write_str("meta protocol ip"),
            Match::ArpFrame => f.write_str("meta protocol arp"),
            Match::ArpSender { mac, address: Some(address) } => {
                write!(f, "arp htype 1 arp ptype ip arp saddr ether {mac} arp saddr ip {address}")
            }
            Match::ArpSender { mac, address: None } => {
                write!(f, "arp htype 1 arp ptype ip arp saddr ether {mac}")
            }
            Match::DhcpFrom(mac) => {
                write!(f, "ip protocol udp th sport 68 th dport 67 @th,288,48 {:#014x}", number(*mac))
            }
            Match::DhcpTo(is, mac) => {
                write!(f, "ip protocol udp th sport 67 th dport 68 @th,288,48 {is}{:#014x}", number(*mac))
            }
            Match::Dhcp => f.write_str("ip protocol udp th sport 67-68 th dport 67-68"),
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
            Verdict::Continue => f.write_str("continue"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Dispatch(Dispatch::InLink(map)) => {
                f.write_str("iifname vmap ")?;
                list(f, map.iter(), |f, (link, chain)| write!(f, "\"{link}\" : goto {chain}"))
            }
            Verdict::Dispatch(Dispatch::OutLink(map)) => {
                f.write_str("oifname vmap ")?;
                list(f, map.iter(), |f, (link, chain)| write!(f, "\"{link}\" : goto {chain}"))
            }
            Verdict::Dispatch(Dispatch::FrameSource(map)) => {
                f.write_str("ether saddr vmap ")?;
                list(f, map.iter(), |f, (mac, chain)| write!(f, "{mac} : goto {chain}"))
            }
            Verdict::Dispatch(Dispatch::FrameDestination(map)) => {
                f.write_str("ether daddr vmap ")?;
                list(f, map.iter(), |f, (mac, chain)| write!(f, "{mac} : goto {chain}"))
            }
            Verdict::Dispatch(Dispatch::Source(map)) => {
                f.write_str("ip saddr vmap ")?;
                list(f, map.iter(), |f, (address, chain)| write!(f, "{address} : goto {chain}"))
            }
            Verdict::Dispatch(Dispatch::Destination(map)) => {
                f.write_str("ip daddr vmap ")?;
                list(f, map.iter(), |f, (address, chain)| write!(f, "{address} : goto {chain}"))
            }
            Verdict::Forward(link) => write!(f, "fwd to \"{link}\""),
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

fn number(mac: Mac) -> u64 {
    mac.0.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
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
