//! Base64 as RFC 4648, section 4, has it: with padding, and one way alone to write the same bytes.

use super::tree::Hash;
use base64ct::{Base64, Encoding};

pub(super) fn encode(bytes: &[u8]) -> String {
    Base64::encode_string(bytes)
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    Base64::decode_vec(text).ok()
}

/// Of a hash, or of whatever else has so many bytes.
pub(super) fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    decode(text)?.try_into().ok()
}

pub(super) fn decode_hash(text: &str) -> Option<Hash> {
    decode_array(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_written_in_one_way_alone() {
        assert_eq!(decode("YQ==").unwrap(), b"a");
        for other in ["YQ", "YQ=", "YR==", "YQ==\n", " YQ==", "Y Q==", "YQ===", "-_==", "="] {
            assert_eq!(decode(other), None, "{other:?}");
        }
        assert_eq!(decode_hash(&encode(&[1; 31])), None);
        assert_eq!(decode_hash(&encode(&[1; 32])), Some([1; 32]));
    }
}
