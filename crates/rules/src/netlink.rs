//! A netlink socket for small questions, and for hearing of changes.
//!
//! Messages are put together and taken apart by hand: there are a handful, and a dump of
//! tens of thousands of rules is read without keeping any of it. The layout is that of
//! `include/uapi/linux/netlink.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const DUMP: u16 = 0x300;
const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const HEADER: usize = 16;
/// Flags of an attribute's type: nested, network byte order.
const ATTRIBUTE_FLAGS: u16 = 0xc000;
/// The kernel fills at most this much of a reader's buffer per message.
const BUFFER: usize = 64 * 1024;

/// A netlink socket that asks one question at a time.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// One of several messages that are sent together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outgoing<'a> {
    pub(crate) kind: u16,
    /// Those beside that of a request.
    pub(crate) flags: u16,
    pub(crate) payload: &'a [u8],
}

/// The kernel did not take what was sent together.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Place of the message that it refused, from 0.
    pub(crate) at: usize,
    pub(crate) error: io::Error,
}

/// One message of an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    sequence: u32,
    /// Who made the change that the message tells of; 0 for the kernel itself.
    pub(crate) port: u32,
    pub(crate) payload: &'a [u8],
}

impl NetlinkSocket {
    /// A socket for questions; `groups` is the mask of what to be told of unasked.
    pub(crate) fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            protocol,
        )?;
        // The kernel answers at once; a limit keeps a surprise from becoming a hang.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self {
            fd,
            sequence: 0,
            buffer: vec![0; BUFFER],
        })
    }

    /// Asks for one object and hands over the answer.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        payload: &[u8],
        mut answer: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        self.send(kind, REQUEST, payload)?;
        let mut answered = false;
        while !answered {
            self.receive(|message| {
                answered = true;
                answer(message);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Asks for all objects of a kind and hands over each.
    pub(crate) fn dump(
        &mut self,
        kind: u16,
        payload: &[u8],
        mut each: impl FnMut(Message<'_>),
    ) -> io::Result<()> {
        self.send(kind, REQUEST | DUMP, payload)?;
        let mut done = false;
        while !done {
            self.receive(|message| {
                if message.kind == KIND_DONE {
                    done = true;
                    return message.outcome();
                }
                each(message);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Tells the kernel to do something, and waits for its word that it is done.
    pub(crate) fn command(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACK | flags, payload)?;
        let mut done = false;
        while !done {
            self.receive(|message| {
                done |= message.kind == KIND_ERROR;
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Hands over all that was told unasked since the last call, without waiting.
    ///
    /// # Errors
    ///
    /// `ENOBUFS` when more was told than the kernel could keep for us.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<()> {
        loop {
            match recv(
                self.fd.as_raw_fd(),
                &mut self.buffer,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(length) => {
                    messages(self.buffer.get(..length).unwrap_or_default()).for_each(&mut each);
                }
                Err(nix::Error::EAGAIN) => return Ok(()),
                Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends messages as one, and waits until the kernel has answered the one at
    /// `answered`. By then it has told of every one that it refuses, and the first counts;
    /// a refusal of the first message is one of the whole.
    pub(crate) fn send_together(
        &mut self,
        messages: &[Outgoing<'_>],
        answered: usize,
    ) -> Result<(), Refused> {
        let whole = |error| Refused { at: 0, error };
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        for (place, message) in messages.iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let ack = if place == answered { ACK } else { 0 };
            let flags = REQUEST | message.flags | ack;
            self.push_message(&mut bytes, message.kind, flags, message.payload)
                .map_err(whole)?;
        }
        self.make_room(bytes.len());
        send(self.fd.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(|e| whole(e.into()))?;
        let mut refused = None;
        let mut over = false;
        while !over {
            let length = self.receive_bytes().map_err(whole)?;
            for answer in self::messages(self.buffer.get(..length).unwrap_or_default()) {
                let place = usize::try_from(answer.sequence.wrapping_sub(first));
                let Some(at) = place.ok().filter(|at| *at < messages.len()) else {
                    continue;
                };
                let outcome = answer.outcome();
                over |= at == answered || (at == 0 && outcome.is_err());
                if let Err(error) = outcome {
                    refused.get_or_insert(Refused { at, error });
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// The number by which the kernel knows this socket.
    pub(crate) fn port(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.fd.as_raw_fd())?.pid())
    }

    /// Asks for a buffer that takes so many bytes at once. Where that is not granted (in a
    /// user namespace the limit is `net.core.wmem_max`), sending says so.
    fn make_room(&self, bytes: usize) {
        const ALWAYS_THERE: usize = 64 * 1024;
        if bytes > ALWAYS_THERE {
            let _ = setsockopt(&self.fd, sockopt::SndBufForce, &bytes)
                .or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &bytes));
        }
    }

    fn send(&mut self, kind: u16, flags: u16, payload: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + payload.len());
        self.push_message(&mut message, kind, flags, payload)?;
        send(self.fd.as_raw_fd(), &message, MsgFlags::empty())?;
        Ok(())
    }

    fn push_message(
        &self,
        bytes: &mut Vec<u8>,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> io::Result<()> {
        let length = u32::try_from(HEADER + payload.len())
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        Ok(())
    }

    fn receive(&mut self, mut each: impl FnMut(Message<'_>) -> io::Result<()>) -> io::Result<()> {
        let length = self.receive_bytes()?;
        for message in messages(self.buffer.get(..length).unwrap_or_default()) {
            // What is left of an answer that was given up belongs to an older question.
            if message.sequence != self.sequence {
                continue;
            }
            if message.kind == KIND_ERROR {
                message.outcome()?;
            }
            each(message)?;
        }
        Ok(())
    }

    fn receive_bytes(&mut self) -> io::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::Error::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

impl AsRawFd for NetlinkSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<'a> Message<'a> {
    /// The attributes behind a fixed part of `skip` bytes.
    pub(crate) fn attributes(
        &self,
        skip: usize,
    ) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        attributes(self.payload.get(skip..).unwrap_or_default())
    }

    /// What a message that ends an answer says: a negative error number, or nothing bad.
    fn outcome(&self) -> io::Result<()> {
        match self
            .payload
            .first_chunk()
            .map(|code| i32::from_ne_bytes(*code))
        {
            Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
            Some(_) | None => Ok(()),
        }
    }
}

/// The attributes that a nested attribute holds.
pub(crate) fn nested(value: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    attributes(value)
}

/// Adds an attribute to a message's payload.
pub(crate) fn push_attribute(payload: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    payload.extend(length.to_ne_bytes());
    payload.extend(kind.to_ne_bytes());
    payload.extend(value);
    payload.resize(payload.len().next_multiple_of(4), 0);
}

pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let word = |at: usize| Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?));
        let [kind_0, kind_1] = *bytes.get(4..)?.first_chunk()?;
        let length = usize::try_from(word(0)?).ok()?;
        let message = Message {
            kind: u16::from_ne_bytes([kind_0, kind_1]),
            sequence: word(8)?,
            port: word(12)?,
            payload: bytes.get(HEADER..length)?,
        };
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let [l0, l1, k0, k1] = *bytes.first_chunk()?;
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([k0, k1]) & !ATTRIBUTE_FLAGS, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let mut payload = Vec::new();
        push_attribute(&mut payload, 1, b"nat\0");
        push_attribute(&mut payload, 3, b"x");
        push_attribute(&mut payload, 0x8002, &[]);
        let read: Vec<_> = attributes(&payload).collect();
        assert_eq!(read, [(1, &b"nat\0"[..]), (3, b"x"), (2, b"")]);
    }

    proptest::proptest! {
        #[test]
        fn whatever_arrives_is_survived(bytes: Vec<u8>) {
            for message in messages(&bytes) {
                message.attributes(4).count();
                let _ = message.outcome();
            }
        }
    }
}
