// SPDX-License-Identifier: Apache-2.0
//! A DHCP client for an app that cannot ask itself: it has no rights on its own network.
//!
//! ```text
//! Selecting ─offer→ Requesting ─ack→ Bound ─half of the lease→ Renewing ─ack→ Bound
//!     ↑  ↖ silence ────┘ nak ┘          └─ lease over, nak ─────────┘ → Selecting
//! ```
//! All messages are broadcasts and ask for broadcasts: the socket has no address of its own until the app has one. Silence
//! is answered by waiting twice as long, up to [`MAX_WAIT_MS`].

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use model::net::{Mac, Prefix4};
use model::time::{MonoMs, Now};
use reconcile::{Chance, Machine, Outbox};

use super::message::{self, Kind, Message, USUAL_BYTES};

const FIRST_WAIT_MS: u64 = 1_000;
const MAX_WAIT_MS: u64 = 64_000;
/// Requests for one offer before another is looked for.
const MAX_REQUESTS: u32 = 4;
/// A lease shorter than this is taken as this long: a server that says seconds would be asked all the time.
const LEAST_LEASE_S: u32 = 30;
/// A lease without an end, RFC 2131 §3.3, and anything longer than a year.
const LONGEST_LEASE_S: u32 = 365 * 24 * 3600;
/// Routes and servers taken from one answer.
const MAX_LIST: usize = 8;

/// What a server outside gave the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub address: Prefix4,
    pub gateway: Option<Ipv4Addr>,
    pub routes: Vec<(Prefix4, Ipv4Addr)>,
    pub dns: Vec<Ipv4Addr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    Start,
    /// A datagram for the client port.
    Heard(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Broadcast from the client port to the server port.
    Send(Vec<u8>),
    Bound(Lease),
    /// The address is no longer the app's.
    Lost,
}

#[derive(Clone, Debug)]
enum State {
    Selecting,
    Requesting { offer: Offer, tries: u32 },
    Bound { offer: Offer, ends: MonoMs },
    Renewing { offer: Offer, ends: MonoMs },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offer {
    address: Ipv4Addr,
    server: Ipv4Addr,
}

/// The machine, for one interface.
#[derive(Clone, Debug)]
pub struct Client {
    mac: Mac,
    transaction: u32,
    state: State,
    next: Option<MonoMs>,
    wait_ms: u64,
    chance: Chance,
}

impl Client {
    pub fn new(mac: Mac, chance: Chance) -> Client {
        Client { mac, transaction: 0, state: State::Selecting, next: None, wait_ms: FIRST_WAIT_MS, chance }
    }

    fn select(&mut self, now: MonoMs, outbox: &mut Outbox<Output>) {
        self.state = State::Selecting;
        self.transaction = self.chance.between(0, u64::from(u32::MAX)) as u32;
        let message = self.message(Kind::Discover);
        self.send(now, &message, outbox);
    }

    fn message(&self, kind: Kind) -> Message {
        let mut message = Message::new(kind, self.transaction, self.mac);
        message.wants_broadcast = true;
        message.options.insert(message::MAX_SIZE, (USUAL_BYTES as u16 + 28).to_be_bytes().to_vec());
        let wanted =
            [message::SUBNET_MASK, message::ROUTER, message::ROUTES, message::DNS, message::LEASE_TIME];
        message.options.insert(message::WANTED, wanted.to_vec());
        message
    }

    fn request(&mut self, now: MonoMs, offer: Offer, is_new: bool, outbox: &mut Outbox<Output>) {
        let mut message = self.message(Kind::Request);
        if is_new {
            message.options.insert(message::REQUESTED_ADDRESS, message::list(&[offer.address]));
            message.options.insert(message::SERVER_ID, message::list(&[offer.server]));
        } else {
            message.client = offer.address;
        }
        self.send(now, &message, outbox);
    }

    fn send(&mut self, now: MonoMs, message: &Message, outbox: &mut Outbox<Output>) {
        outbox.push(Output::Send(message.encode(&[message::SERVER_ID], USUAL_BYTES)));
        let jitter = self.chance.between(0, self.wait_ms / 4);
        self.next = Some(now.plus_ms(self.wait_ms + jitter));
        self.wait_ms = (self.wait_ms * 2).min(MAX_WAIT_MS);
    }

    fn bound(&mut self, now: MonoMs, offer: Offer, ack: &Message, outbox: &mut Outbox<Output>) {
        let lease_s = ack.seconds(message::LEASE_TIME).unwrap_or(LEAST_LEASE_S);
        let lease_s = lease_s.clamp(LEAST_LEASE_S, LONGEST_LEASE_S);
        let mask = ack.address(message::SUBNET_MASK).map_or(32, |mask| mask.to_bits().leading_ones());
        let length = u8::try_from(mask).unwrap_or(32);
        let mut routes = ack.routes();
        routes.truncate(MAX_LIST);
        // Whoever lists routes means them instead of the router, RFC 3442.
        let gateway = if routes.is_empty() { ack.address(message::ROUTER) } else { None };
        let mut dns = ack.addresses(message::DNS);
        dns.truncate(MAX_LIST);
        self.wait_ms = FIRST_WAIT_MS;
        self.next = Some(now.plus_ms(u64::from(lease_s) * 500));
        self.state = State::Bound { offer, ends: now.plus_ms(u64::from(lease_s) * 1000) };
        outbox.push(Output::Bound(Lease {
            address: Prefix4 { address: offer.address, length },
            gateway,
            routes,
            dns,
        }));
    }

    fn heard(&mut self, now: MonoMs, untrusted_bytes: &[u8], outbox: &mut Outbox<Output>) {
        let Some(message) = Message::parse(untrusted_bytes) else { return };
        if message.mac != self.mac || message.transaction != self.transaction {
            return;
        }
        let server = message.address(message::SERVER_ID);
        match (&self.state, message.kind) {
            (State::Selecting, Kind::Offer) => {
                let address = message.yours;
                let (Some(server), false) = (server, address.is_unspecified()) else { return };
                let offer = Offer { address, server };
                self.wait_ms = FIRST_WAIT_MS;
                self.state = State::Requesting { offer, tries: 1 };
                self.request(now, offer, true, outbox);
            }
            (State::Requesting { offer, .. } | State::Renewing { offer, .. }, Kind::Ack)
                if message.yours == offer.address =>
            {
                let offer = Offer { server: server.unwrap_or(offer.server), ..*offer };
                self.bound(now, offer, &message, outbox);
            }
            (State::Requesting { .. }, Kind::Nak) => self.select(now, outbox),
            (State::Renewing { .. }, Kind::Nak) => {
                outbox.push(Output::Lost);
                self.select(now, outbox);
            }
            _ => {}
        }
    }
}

impl Machine for Client {
    type Input = Input;
    type Output = Output;

    fn handle(&mut self, now: Now, input: Input, outbox: &mut Outbox<Output>) {
        match input {
            Input::Start => self.select(now.mono, outbox),
            Input::Heard(untrusted_bytes) => self.heard(now.mono, &untrusted_bytes, outbox),
        }
    }

    fn wake(&mut self, now: Now, outbox: &mut Outbox<Output>) {
        let now = now.mono;
        if self.next.is_none_or(|at| at > now) {
            return;
        }
        match self.state.clone() {
            State::Selecting => self.select(now, outbox),
            State::Requesting { offer, tries } if tries < MAX_REQUESTS => {
                self.state = State::Requesting { offer, tries: tries + 1 };
                self.request(now, offer, true, outbox);
            }
            State::Requesting { .. } => self.select(now, outbox),
            State::Bound { ends, .. } | State::Renewing { ends, .. } if ends <= now => {
                outbox.push(Output::Lost);
                self.select(now, outbox);
            }
            State::Bound { offer, ends } | State::Renewing { offer, ends } => {
                self.state = State::Renewing { offer, ends };
                self.request(now, offer, false, outbox);
                self.next = self.next.map(|next| next.min(ends));
            }
        }
    }

    fn deadline(&self) -> Option<MonoMs> {
        self.next
    }
}
