//! What the bytes of a map mean to Rust: types that may stand for a key or value, and addresses and texts in fields.

use std::net::IpAddr;

/// A type that any bytes of its size are a value of, and that has no padding of its own.
///
/// # Safety
///
/// All bit patterns must be valid, and all bytes part of a field. The structs that the skeleton
/// generator writes are such (it names padding), as long as no field is a `bool`, a Rust `enum`, a reference or
/// a function.
pub unsafe trait MapValue: Copy + 'static {
    /// The value that `bytes` hold, or `None` where they are of another size.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != size_of::<Self>() {
            return None;
        }
        // SAFETY: the size fits, `read_unaligned` asks for no alignment, and any bytes are a value.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    /// The bytes of the value as the kernel wants them.
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: no byte of the value is padding, so all are initialised; they live as long as `self`.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }
}

// SAFETY: integers have neither padding nor invalid values.
unsafe impl MapValue for u32 {}
// SAFETY: the same.
unsafe impl MapValue for u64 {}

/// An address as `struct address` of bpf/include/address.h has it: IPv4 in its IPv4-mapped form, bytes in wire order.
pub fn address_words(address: IpAddr) -> [u64; 2] {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    let (first, second) = octets.split_at(8);
    [first, second].map(|half| u64::from_ne_bytes(half.try_into().expect("half of 16 bytes is 8")))
}

/// The address that the words of a `struct address` stand for.
pub fn address_of_words(words: [u64; 2]) -> IpAddr {
    let mut octets = [0; 16];
    octets[..8].copy_from_slice(&words[0].to_ne_bytes());
    octets[8..].copy_from_slice(&words[1].to_ne_bytes());
    IpAddr::from(octets).to_canonical()
}

/// The text in a field of the kernel's or of ours: up to the first zero byte, or all of it.
pub fn text(field: &[u8]) -> String {
    let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Writes a text into an array of bytes, cut to leave a zero at the end.
pub fn copy_text(field: &mut [u8], text: &str) {
    let length = text.len().min(field.len() - 1);
    field.fill(0);
    field[..length].copy_from_slice(&text.as_bytes()[..length]);
}

/// Says of generated types that they are [`MapValue`]s. Only for types of a skeleton's `types` module.
#[macro_export]
macro_rules! map_values {
    ($($generated:ty),+ $(,)?) => {
        $(
            // SAFETY: the skeleton generator names padding, and uses integers for C's enums.
            unsafe impl $crate::kernel::value::MapValue for $generated {}
        )+
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_their_value_on_the_way_to_the_kernel_and_back() {
        for text in ["192.0.2.1", "2001:db8::1", "::", "255.255.255.255"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_of_words(address_words(address)), address);
        }
    }

    #[test]
    fn texts_are_cut_to_their_field() {
        let mut field = [1; 8];
        copy_text(&mut field, "0123456789");
        assert_eq!(text(&field), "0123456");
        copy_text(&mut field, "eth2");
        assert_eq!(text(&field), "eth2");
    }
}
