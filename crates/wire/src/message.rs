//! Datagrams on a stream: those that are too large for a packet, each after its length.

use crate::WireError;

/// Bytes of the length before each message.
pub const MESSAGE_HEADER: usize = 2;

/// Longest datagram that IPv4 carries (65,535 less 20 and 8 bytes of headers); IPv6 carries
/// 20 more, which no endpoint behind an IPv4 Service could take.
pub const MAX_MESSAGE: usize = 65_507;

/// What stands before a message of `length` bytes.
///
/// # Errors
///
/// When it is longer than [`MAX_MESSAGE`].
pub fn message_header(length: usize) -> Result<[u8; MESSAGE_HEADER], WireError> {
    match u16::try_from(length) {
        Ok(short) if length <= MAX_MESSAGE => Ok(short.to_be_bytes()),
        Ok(_) | Err(_) => Err(too_long(length)),
    }
}

/// How long the message after `header` is.
///
/// # Errors
///
/// When it is longer than [`MAX_MESSAGE`].
pub fn message_length(header: [u8; MESSAGE_HEADER]) -> Result<usize, WireError> {
    let length = usize::from(u16::from_be_bytes(header));
    if length > MAX_MESSAGE {
        return Err(too_long(length));
    }
    Ok(length)
}

fn too_long(length: usize) -> WireError {
    WireError::TooLong {
        what: "message",
        length,
        most: MAX_MESSAGE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_up_to_the_longest_is_read_back() {
        for length in [0, 1, 255, 256, 1414, 65_506, MAX_MESSAGE] {
            let header = message_header(length).unwrap();
            assert_eq!(message_length(header), Ok(length));
        }
        assert!(message_header(MAX_MESSAGE + 1).is_err());
        assert!(message_header(1 << 20).is_err());
        assert!(message_length([0xff, 0xff]).is_err());
    }
}
