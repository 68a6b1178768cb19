//! The kernel's addresses, links and neighbours.
//!
//! Questions go through rtnetlink on a runtime of the calling thread's own. Changes go as one datagram of
//! many messages, which the kernel has carried out when the call returns: rtnetlink's own connection
//! sends one message, waits for its answer and sends the next. A third socket listens for what others change.

use crate::{Error, arp::Mac, sys};
use config::VirtualAddress;
use futures::TryStreamExt;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, recv, send},
};
use rtnetlink::{
    AddressMessageBuilder, Handle, LinkMacVlan, LinkUnspec, RouteMessageBuilder,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
        NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage, AddressProtocol, CacheInfo},
        link::{
            InfoKind, InfoPortKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
            MacVlanMode,
        },
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage},
        route::{RouteMessage, RouteType},
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE},
};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    time::Duration,
};
use tokio::runtime::Runtime;

/// Most messages in one datagram. So many refusals still fit into a receive buffer of default size.
pub(crate) const BATCH: usize = 128;

/// Marks an address as ours (`ip address` shows it as `proto 83`); Linux 5.18 or later.
pub(crate) const PROTOCOL: u8 = 83;

/// The kernel answers at once; this is for an answer that was lost.
const ANSWER_MAX: Duration = Duration::from_millis(250);
const RECEIVE_BUFFER: i32 = 1 << 20;
const BUFFER: usize = 64 * 1024;
const SOCKET: &str = "a netlink socket";

const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const DEL_ADDRESS: u16 = 21;
const GROUP_LINK: u32 = 1;
const GROUP_IPV4_ADDRESS: u32 = 5;
const GROUP_IPV6_ADDRESS: u32 = 9;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// None if it is not Ethernet: nothing is announced there.
    pub(crate) mac: Option<Mac>,
    pub(crate) up: bool,
    /// Whether it is up and its cable carries.
    pub(crate) carries: bool,
    pub(crate) loopback: bool,
    /// Whether its packets begin with an Ethernet header.
    pub(crate) ethernet: bool,
    /// Whether it is a port of a bridge.
    pub(crate) bridge_port: bool,
    /// The number of the interface below, of a macvlan device.
    pub(crate) macvlan_on: Option<u32>,
}

#[cfg(test)]
impl Link {
    /// An interface that may carry addresses, as far as it was noted.
    pub(crate) fn known(index: u32, name: &str, ethernet: bool) -> Self {
        Self {
            index,
            name: name.to_owned(),
            mac: None,
            up: true,
            carries: true,
            loopback: false,
            ethernet,
            bridge_port: false,
            macvlan_on: None,
        }
    }
}

/// What others did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The interface with this number lost this address.
    Removed(u32, IpAddr),
    /// An interface is new or has changed.
    Link(Link),
    /// The interface with this number and name is gone.
    Gone(u32, String),
    /// Some changes were lost.
    Unknown,
}

/// How to set an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) interface: u32,
    pub(crate) address: VirtualAddress,
    /// Seconds until the kernel removes it by itself.
    pub(crate) lifetime: u32,
    /// Whether to leave the route to the address's network alone.
    pub(crate) no_prefix_route: bool,
}

pub(crate) struct Netlink {
    asker: Asker,
    changer: Changer,
    monitor: Socket,
    buffer: Vec<u8>,
}

impl Netlink {
    pub(crate) fn open() -> Result<Self, Error> {
        Ok(Self {
            asker: Asker::open()?,
            changer: Changer::open()?,
            monitor: monitor().map_err(Error::kernel(SOCKET))?,
            buffer: vec![0; BUFFER],
        })
    }

    /// The descriptor that becomes readable when others change something.
    pub(crate) fn monitor(&self) -> BorrowedFd<'_> {
        self.monitor.as_fd()
    }

    /// The interface of this name; none if there is none.
    pub(crate) fn link(&mut self, name: &str) -> io::Result<Option<Link>> {
        let handle = self.asker.handle();
        let name = name.to_owned();
        let found = self.asker.ask(async move {
            handle
                .link()
                .get()
                .match_name(name)
                .execute()
                .try_next()
                .await
        });
        match found {
            Ok(link) => Ok(link.as_ref().map(read_link)),
            Err(e) if e.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All interfaces of this network namespace.
    pub(crate) fn links(&mut self) -> io::Result<Vec<Link>> {
        let handle = self.asker.handle();
        let all: Vec<LinkMessage> = self
            .asker
            .ask(async move { handle.link().get().execute().try_collect().await })?;
        Ok(all.iter().map(read_link).collect())
    }

    /// Makes a macvlan device, down. It reaches others on the same interface too.
    pub(crate) fn make_macvlan(&mut self, name: &str, below: u32, mac: Mac) -> io::Result<()> {
        let handle = self.asker.handle();
        let wanted = LinkMacVlan::new(name, below, MacVlanMode::Bridge).address(mac.into());
        self.asker
            .ask(async move { handle.link().add(wanted.build()).execute().await })
    }

    /// Sets an interface up or down.
    pub(crate) fn set_up(&mut self, interface: u32, up: bool) -> io::Result<()> {
        let handle = self.asker.handle();
        let wanted = LinkUnspec::new_with_index(interface);
        let wanted = if up { wanted.up() } else { wanted.down() };
        self.asker
            .ask(async move { handle.link().set(wanted.build()).execute().await })
    }

    /// Removes an interface; one not there is no error.
    pub(crate) fn remove_link(&mut self, interface: u32) -> io::Result<()> {
        let handle = self.asker.handle();
        let removed = self
            .asker
            .ask(async move { handle.link().del(interface).execute().await });
        removed.or_else(|e| match e.raw_os_error() {
            Some(nix::libc::ENODEV) => Ok(()),
            _ => Err(e),
        })
    }

    /// All addresses of this machine.
    pub(crate) fn addresses(&mut self) -> io::Result<Vec<AddressMessage>> {
        let handle = self.asker.handle();
        self.asker
            .ask(async move { handle.address().get().execute().try_collect().await })
    }

    /// Whether a packet for this address would be delivered on this machine.
    pub(crate) fn delivers_here(&mut self, ip: IpAddr) -> io::Result<bool> {
        let handle = self.asker.handle();
        let question = match ip {
            IpAddr::V4(ip) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(ip, 32)
                .build(),
            IpAddr::V6(ip) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(ip, 128)
                .build(),
        };
        let route = self
            .asker
            .ask(async move { handle.route().get(question).execute().try_next().await });
        let local = |route: &RouteMessage| route.header.kind == RouteType::Local;
        Ok(route?.as_ref().is_some_and(local))
    }

    /// Adds addresses, or renews the lifetime of those there.
    pub(crate) fn set(&mut self, settings: &[Setting]) -> io::Result<Vec<(usize, Errno)>> {
        self.add(settings, NLM_F_REPLACE)
    }

    /// Adds addresses; those there are refused with EEXIST and left alone.
    pub(crate) fn add_missing(&mut self, settings: &[Setting]) -> io::Result<Vec<(usize, Errno)>> {
        self.add(settings, NLM_F_EXCL)
    }

    fn add(&mut self, settings: &[Setting], flag: u16) -> io::Result<Vec<(usize, Errno)>> {
        let messages = settings
            .iter()
            .map(|s| RouteNetlinkMessage::NewAddress(setting(s)));
        self.changer.change(messages, NLM_F_CREATE | flag)
    }

    /// Removes addresses from an interface. Those not there are no refusals.
    pub(crate) fn remove(
        &mut self,
        interface: u32,
        addresses: &[VirtualAddress],
    ) -> io::Result<Vec<(usize, Errno)>> {
        let messages = addresses
            .iter()
            .map(|a| RouteNetlinkMessage::DelAddress(address(interface, *a)));
        self.change_absent_fine(messages)
    }

    /// Removes addresses as they were listed.
    pub(crate) fn remove_listed(
        &mut self,
        listed: Vec<AddressMessage>,
    ) -> io::Result<Vec<(usize, Errno)>> {
        self.change_absent_fine(listed.into_iter().map(RouteNetlinkMessage::DelAddress))
    }

    /// Removes an interface's neighbour entries for these addresses: the article's ARP method.
    pub(crate) fn forget_neighbours(
        &mut self,
        interface: u32,
        addresses: &[VirtualAddress],
    ) -> io::Result<Vec<(usize, Errno)>> {
        let entries = addresses.iter().map(|a| neighbour(interface, a.ip));
        self.change_absent_fine(entries.map(RouteNetlinkMessage::DelNeighbour))
    }

    fn change_absent_fine(
        &mut self,
        messages: impl Iterator<Item = RouteNetlinkMessage>,
    ) -> io::Result<Vec<(usize, Errno)>> {
        let mut refused = self.changer.change(messages, 0)?;
        let absent = [
            Errno::EADDRNOTAVAIL,
            Errno::ENODEV,
            Errno::ENXIO,
            Errno::ENOENT,
            Errno::ESRCH,
        ];
        refused.retain(|(_, errno)| !absent.contains(errno));
        Ok(refused)
    }

    /// What others changed since the last call, at most some hundreds of changes.
    pub(crate) fn changes(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for _ in 0..256 {
            match recv(
                self.monitor.as_raw_fd(),
                &mut self.buffer,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(got) => changes.extend(split(&self.buffer[..got]).filter_map(read_change)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(_) => changes.push(Change::Unknown), // the receive buffer overflowed
            }
        }
        changes
    }
}

/// Has the kernel change things, many with one call.
pub(crate) struct Changer {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Changer {
    pub(crate) fn open() -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            socket.set_cap_ack(true)?;
            socket.set_rx_buf_sz(RECEIVE_BUFFER)?;
            Ok(socket)
        };
        Ok(Self {
            socket: open().map_err(Error::kernel(SOCKET))?,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Has the kernel carry out the messages, [`BATCH`] in a datagram. Returns the refused ones by position.
    pub(crate) fn change(
        &mut self,
        messages: impl Iterator<Item = RouteNetlinkMessage>,
        flags: u16,
    ) -> io::Result<Vec<(usize, Errno)>> {
        let mut refused = Vec::new();
        let (mut from, mut count, mut length) = (0, 0, 0);
        let mut messages = messages.peekable();
        while let Some(message) = messages.next() {
            let last = messages.peek().is_none() || count + 1 == BATCH;
            let mut message = NetlinkMessage::from(message);
            message.header.flags = NLM_F_REQUEST | flags | if last { NLM_F_ACK } else { 0 };
            message.header.sequence_number = self.sequence.wrapping_add(count as u32);
            message.finalize();
            let size = message.buffer_len();
            if self.buffer.len() < length + size {
                self.buffer.resize(length + size, 0);
            }
            message.serialize(&mut self.buffer[length..length + size]);
            length += size;
            count += 1;
            if last {
                self.exchange(length, count, from, &mut refused)?;
                from += count;
                (count, length) = (0, 0);
            }
        }
        Ok(refused)
    }

    fn exchange(
        &mut self,
        length: usize,
        count: usize,
        from: usize,
        refused: &mut Vec<(usize, Errno)>,
    ) -> io::Result<()> {
        let first = self.sequence;
        self.sequence = self.sequence.wrapping_add(count as u32);
        let fd = self.socket.as_raw_fd();
        send(fd, &self.buffer[..length], MsgFlags::empty())?;
        // The kernel has done the work within the call: all answers are waiting.
        loop {
            let got = match recv(fd, &mut self.buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(got) => got,
                Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => {
                    return Err(io::Error::other("the kernel did not confirm a change"));
                }
                Err(e) => return Err(e.into()),
            };
            for message in split(&self.buffer[..got]) {
                let NetlinkPayload::Error(e) = message.payload else {
                    continue;
                };
                let place = message.header.sequence_number.wrapping_sub(first) as usize;
                if place >= count {
                    continue; // an answer to something earlier
                }
                if e.code.is_some() {
                    refused.push((from + place, Errno::from_raw(e.raw_code().wrapping_neg())));
                }
                if place == count - 1 {
                    return Ok(());
                }
            }
        }
    }
}

/// Asks the kernel, and waits for the answer at most [`ANSWER_MAX`].
pub(crate) struct Asker {
    runtime: Runtime,
    handle: Handle,
}

impl Asker {
    pub(crate) fn open() -> Result<Self, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(Error::kernel("the runtime for netlink"))?;
        let handle = connect(&runtime).map_err(Error::kernel(SOCKET))?;
        Ok(Self { runtime, handle })
    }

    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    pub(crate) fn ask<T>(
        &mut self,
        question: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> io::Result<T> {
        let answer = self
            .runtime
            .block_on(async { tokio::time::timeout(ANSWER_MAX, question).await });
        match answer {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(rtnetlink::Error::NetlinkError(e))) => return Err(e.to_io()),
            _ => {}
        }
        // The connection has lost its place. The next question gets a new one.
        self.handle = connect(&self.runtime)?;
        Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "no answer from the kernel on the netlink socket",
        ))
    }
}

fn connect(runtime: &Runtime) -> io::Result<Handle> {
    let _inside = runtime.enter();
    let (connection, handle, _) = rtnetlink::new_connection()?;
    runtime.spawn(connection);
    Ok(handle)
}

fn monitor() -> io::Result<Socket> {
    let mut monitor = Socket::new(NETLINK_ROUTE)?;
    // Our own additions are reported too, thousands in a second perhaps: they are not even let in.
    sys::attach_filter(
        &monitor,
        &mut sys::netlink_filter(&[NEW_LINK, DEL_LINK, DEL_ADDRESS]),
    )?;
    monitor.set_rx_buf_sz(RECEIVE_BUFFER)?;
    let groups = [GROUP_LINK, GROUP_IPV4_ADDRESS, GROUP_IPV6_ADDRESS];
    monitor.bind(&SocketAddr::new(
        0,
        groups.iter().fold(0, |all, g| all | 1 << (g - 1)),
    ))?;
    Ok(monitor)
}

/// The messages of a datagram; what cannot be read is passed over.
pub(crate) fn split(mut bytes: &[u8]) -> impl Iterator<Item = NetlinkMessage<RouteNetlinkMessage>> {
    std::iter::from_fn(move || {
        loop {
            let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
            let message = bytes.get(..length).filter(|m| m.len() >= 16)?;
            bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let Ok(message) = NetlinkMessage::deserialize(message) {
                return Some(message);
            }
        }
    })
}

/// What a message tells of what others did.
pub(crate) fn read_change(message: NetlinkMessage<RouteNetlinkMessage>) -> Option<Change> {
    let NetlinkPayload::InnerMessage(message) = message.payload else {
        return None;
    };
    match message {
        RouteNetlinkMessage::DelAddress(a) => {
            ip_of(&a).map(|ip| Change::Removed(a.header.index, ip))
        }
        // What a bridge says about its ports is another story: they are there before and after.
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link)
            if link.header.interface_family == AddressFamily::Bridge =>
        {
            None
        }
        RouteNetlinkMessage::NewLink(link) => Some(Change::Link(read_link(&link))),
        RouteNetlinkMessage::DelLink(link) => {
            let link = read_link(&link);
            Some(Change::Gone(link.index, link.name))
        }
        _ => None,
    }
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: None,
        up: message.header.flags.contains(LinkFlags::Up),
        carries: message.header.flags.contains(LinkFlags::Running),
        loopback: message.header.flags.contains(LinkFlags::Loopback),
        ethernet: message.header.link_layer_type == LinkLayerType::Ether,
        bridge_port: false,
        macvlan_on: None,
    };
    let (mut below, mut macvlan) = (None, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac)
                if message.header.link_layer_type == LinkLayerType::Ether =>
            {
                link.mac = mac.as_slice().try_into().ok();
            }
            LinkAttribute::LinkInfo(infos) => {
                link.bridge_port = infos.contains(&LinkInfo::PortKind(InfoPortKind::Bridge));
                macvlan = infos.contains(&LinkInfo::Kind(InfoKind::MacVlan));
            }
            LinkAttribute::Link(index) => below = Some(*index),
            _ => {}
        }
    }
    link.macvlan_on = below.filter(|_| macvlan);
    link
}

/// The address that a listed address message is about.
pub(crate) fn ip_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|a| match a {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|a| match a {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    })
}

/// Whether a listed address was added by standin.
pub(crate) fn is_ours(message: &AddressMessage) -> bool {
    message
        .attributes
        .contains(&AddressAttribute::Protocol(AddressProtocol::Other(
            PROTOCOL,
        )))
}

/// The beginning of a message about what is known of a neighbour.
pub(crate) fn neighbour(interface: u32, ip: IpAddr) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = interface;
    let (family, destination) = match ip {
        IpAddr::V4(ip) => (AddressFamily::Inet, NeighbourAddress::Inet(ip)),
        IpAddr::V6(ip) => (AddressFamily::Inet6, NeighbourAddress::Inet6(ip)),
    };
    message.header.family = family;
    let destination = NeighbourAttribute::Destination(destination);
    message.attributes.push(destination);
    message
}

fn address(interface: u32, address: VirtualAddress) -> AddressMessage {
    match address.ip {
        IpAddr::V4(ip) => AddressMessageBuilder::<Ipv4Addr>::new()
            .index(interface)
            .address(ip, address.prefix)
            .build(),
        IpAddr::V6(ip) => AddressMessageBuilder::<Ipv6Addr>::new()
            .index(interface)
            .address(ip, address.prefix)
            .build(),
    }
}

fn setting(setting: &Setting) -> AddressMessage {
    let mut message = address(setting.interface, setting.address);
    let mut life = CacheInfo::default();
    life.ifa_valid = setting.lifetime;
    life.ifa_preferred = setting.lifetime;
    let mut flags = AddressFlags::empty();
    if setting.address.ip.is_ipv6() {
        // Never the source of this server's own connections: they would break when the address moves.
        // (IPv4 takes the interface's first address, and ours comes later.)
        life.ifa_preferred = 0;
        flags |= AddressFlags::Nodad;
    }
    if setting.no_prefix_route {
        flags |= AddressFlags::Noprefixroute;
    }
    message.attributes.push(AddressAttribute::CacheInfo(life));
    message.attributes.push(AddressAttribute::Flags(flags));
    message
        .attributes
        .push(AddressAttribute::Protocol(AddressProtocol::Other(PROTOCOL)));
    message
}
