//! How a strongSwan backend is told to choose SPIs that name it.
//!
//! strongSwan replaces the bits of `spi_mask` in the IKE SPIs that it chooses by those of `spi_label`, both read as
//! big-endian numbers of 64 bits, as they are on the wire (`src/libcharon/sa/ike_sa_manager.c`, `get_spi` and
//! `ike_sa_manager_create`). ESP SPIs it takes from `spi_min` to `spi_max`, so their label is the top bits.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

use super::backend::Backend;
use super::datapath::Maps;
use crate::kernel::table::TableError;

/// The lowest SPI of ESP and AH that is not reserved (RFC 4303, section 2.1).
const SPI_LOWEST: u32 = 0x100;

/// Part of a `strongswan.conf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snippet {
    name: String,
    label: u32,
    bits: u32,
    spi_label: String,
    spi_mask: String,
    spi_min: String,
    spi_max: String,
}

/// Why there is no snippet.
#[derive(Debug, Error)]
pub enum SnippetError {
    #[error("SPIs have no labels here; `lb attach --replace --spi-shard BITS` begins with them")]
    NoLabels,
    #[error("{0} has no label; `lb backend set {0} --label N` gives it one")]
    NoLabel(String),
    #[error(transparent)]
    Table(#[from] TableError),
}

impl Snippet {
    /// What to tell a backend of an instance.
    ///
    /// # Errors
    ///
    /// Where SPIs have no labels, or this backend has none.
    pub fn new(maps: &Maps, backend: &Backend) -> Result<Self, SnippetError> {
        let bits = maps.config()?.lb_config.label_bits;
        if bits == 0 {
            return Err(SnippetError::NoLabels);
        }
        let label = backend.label.ok_or_else(|| SnippetError::NoLabel(backend.name.clone()))?;
        Ok(Self::of(&backend.name, label, bits))
    }

    /// `bits` is 1 to 12, and `label` fits into it.
    fn of(name: &str, label: u32, bits: u32) -> Self {
        let first = label << (u32::BITS - bits);
        Self {
            name: name.into(),
            label,
            bits,
            spi_label: format!("{:#018x}", u64::from(label) << (u64::BITS - bits)),
            spi_mask: format!("{:#018x}", u64::MAX << (u64::BITS - bits)),
            spi_min: format!("{:#010x}", first.max(SPI_LOWEST)),
            spi_max: format!("{:#010x}", first | (u32::MAX >> bits)),
        }
    }
}

impl fmt::Display for Snippet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, label, bits, spi_label, spi_mask, spi_min, spi_max } = self;
        write!(
            formatter,
            "# {name}: label {label} in the top {bits} bits of the SPIs that it chooses\n\
             charon {{\n    \
             spi_label = {spi_label}\n    \
             spi_mask = {spi_mask}\n    \
             spi_min = {spi_min}\n    \
             spi_max = {spi_max}\n\
             }}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_the_top_bits_of_all_spis() {
        let snippet = Snippet::of("eth5", 3, 4);
        assert_eq!(snippet.spi_label, "0x3000000000000000");
        assert_eq!(snippet.spi_mask, "0xf000000000000000");
        assert_eq!((snippet.spi_min.as_str(), snippet.spi_max.as_str()), ("0x30000000", "0x3fffffff"));
        let snippet = Snippet::of("eth2", 4095, 12);
        assert_eq!(snippet.spi_label, "0xfff0000000000000");
        assert_eq!((snippet.spi_min.as_str(), snippet.spi_max.as_str()), ("0xfff00000", "0xffffffff"));
        let snippet = Snippet::of("eth2", 1, 1);
        assert_eq!(snippet.spi_mask, "0x8000000000000000");
        assert_eq!((snippet.spi_min.as_str(), snippet.spi_max.as_str()), ("0x80000000", "0xffffffff"));
    }

    #[test]
    fn reserved_spis_stay_unused() {
        let snippet = Snippet::of("eth2", 0, 2);
        assert_eq!(snippet.spi_label, "0x0000000000000000");
        assert_eq!((snippet.spi_min.as_str(), snippet.spi_max.as_str()), ("0x00000100", "0x3fffffff"));
    }
}
