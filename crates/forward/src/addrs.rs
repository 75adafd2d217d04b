//! Addresses by their part in a connection, so that swapped arguments do not compile.

use std::fmt;
use std::net::SocketAddr;

macro_rules! address_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub SocketAddr);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address_type! {
    /// Where a connection was meant to go before the kernel translated it to us.
    OriginalDst
}
address_type! {
    /// Where one of our own listeners is bound.
    ListenAddr
}
address_type! {
    /// Who connected, or whose datagram it is.
    ClientAddr
}
