//! What each end says first on a connection.

use crate::WireError;

/// Which run of an agent this is.
///
/// A connection to an agent that was killed and started again looks alive for as long as
/// silence is forgiven. Once the new run has said hello, silence of the old one is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Random, drawn at the start of the agent.
    pub boot_id: [u8; 16],
}

impl Hello {
    /// Bytes it takes.
    pub const LENGTH: usize = 16;

    /// As the MeshNode shows it: hexadecimal.
    #[must_use]
    pub fn boot_id_text(&self) -> String {
        use std::fmt::Write;
        self.boot_id.iter().fold(String::new(), |mut text, byte| {
            // A String takes whatever is written to it.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// As bytes.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LENGTH] {
        self.boot_id
    }

    /// From bytes.
    ///
    /// # Errors
    ///
    /// When it has another length.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let boot_id = bytes.try_into().map_err(|_| WireError::Length("hello"))?;
        Ok(Self { boot_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_is_read_back_and_no_other_length_is_one() {
        let hello = Hello {
            boot_id: std::array::from_fn(|i| i as u8),
        };
        let bytes = hello.encode();
        assert_eq!(Hello::decode(&bytes), Ok(hello));
        assert!(Hello::decode(&bytes[..15]).is_err());
        assert!(Hello::decode(&[0; 17]).is_err());
        assert_eq!(hello.boot_id_text(), "000102030405060708090a0b0c0d0e0f");
    }
}
