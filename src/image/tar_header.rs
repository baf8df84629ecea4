//! One header block of a tar archive: fields at fixed places, numbers in octal or base 256.

use std::io;

use crate::pax;
use crate::tar::{Entry, EntryKind, invalid};

/// Block size of the format.
pub(crate) const BLOCK: usize = 512;

/// A header block.
pub(crate) struct Header(pub(crate) [u8; BLOCK]);

impl Header {
    pub(crate) fn kind(&self) -> u8 {
        self.0[156]
    }

    pub(crate) fn size(&self) -> io::Result<u64> {
        let size = number(&self.0[124..136])?;
        if size > i64::MAX as u64 { Err(invalid(format!("a size of {size} bytes"))) } else { Ok(size) }
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        let said = number(&self.0[148..156])?;
        let field = 148..156;
        let byte = |(i, b): (usize, &u8)| if field.contains(&i) { b' ' } else { *b };
        let unsigned: u64 = self.0.iter().enumerate().map(|e| u64::from(byte(e))).sum();
        let signed: i64 = self.0.iter().enumerate().map(|e| i64::from(byte(e).cast_signed())).sum();
        if said == unsigned || i64::try_from(said) == Ok(signed) {
            Ok(())
        } else {
            Err(invalid("a header whose checksum is wrong (not a tar archive?)"))
        }
    }

    pub(crate) fn entry_kind(&self) -> io::Result<EntryKind> {
        Ok(match self.kind() {
            0 | b'0' | b'7' | b'S' => EntryKind::File,
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::Symlink,
            b'3' => EntryKind::CharDevice,
            b'4' => EntryKind::BlockDevice,
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(invalid(format!("an entry of the unknown type {:?}", char::from(other)))),
        })
    }

    pub(crate) fn plain_entry(&self) -> io::Result<Entry> {
        let b = &self.0;
        let kind = self.entry_kind()?;
        let device = matches!(kind, EntryKind::CharDevice | EntryKind::BlockDevice);
        let part =
            |range: std::ops::Range<usize>| if device { number(&b[range]).map(narrow)? } else { Ok(0) };
        Ok(Entry {
            kind,
            name: self.name(),
            link: text(&b[157..257]).to_vec(),
            mode: (number(&b[100..108])? & 0o7777) as u32,
            uid: narrow(number(&b[108..116])?)?,
            gid: narrow(number(&b[116..124])?)?,
            mtime: (signed_number(&b[136..148])?, 0),
            major: part(329..337)?,
            minor: part(337..345)?,
            size: self.size()?,
            chunks: None,
            xattrs: Vec::new(),
        })
    }

    /// Name with the prefix that ustar and star have.
    fn name(&self) -> Vec<u8> {
        let b = &self.0;
        let name = text(&b[..100]);
        let prefix = match &b[257..265] {
            magic if !magic.starts_with(b"ustar\0") => &[][..],
            _ if &b[508..512] == b"tar\0" => text(&b[345..476]),
            _ => text(&b[345..500]),
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }
}

fn narrow(n: u64) -> io::Result<u32> {
    match u32::try_from(n) {
        Ok(n) if n != u32::MAX => Ok(n),
        _ => Err(invalid(format!("the number {n}, where an id or a device number belongs"))),
    }
}

/// An id given in a PAX record.
pub(crate) fn id(bytes: &[u8]) -> io::Result<u32> {
    narrow(pax::decimal(bytes)?)
}

/// Bytes up to the first zero.
pub(crate) fn text(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

/// A number that cannot be negative: octal digits, or base 256.
pub(crate) fn number(field: &[u8]) -> io::Result<u64> {
    let n = signed_number(field)?;
    u64::try_from(n).map_err(|_| invalid(format!("the negative number {n}")))
}

fn signed_number(field: &[u8]) -> io::Result<i64> {
    let too_big = || invalid("a number too large for 64 bits");
    if field.first().is_some_and(|b| b & 0x80 != 0) {
        let negative = field[0] & 0x40 != 0;
        let mut n: i64 = if negative { -1 } else { 0 };
        for (i, byte) in field.iter().enumerate() {
            // the top bit of the first byte is the mark
            let byte = if i == 0 && !negative { byte & 0x7f } else { *byte };
            n = n.checked_mul(256).ok_or_else(too_big)? | i64::from(byte);
        }
        return Ok(n);
    }
    let digits = field.iter().skip_while(|b| **b == b' ' || **b == 0);
    let mut n: i64 = 0;
    for byte in digits.take_while(|b| **b != b' ' && **b != 0) {
        if !(b'0'..=b'7').contains(byte) {
            return Err(invalid(format!(
                "{:?} where an octal number belongs",
                String::from_utf8_lossy(field)
            )));
        }
        n = n.checked_mul(8).ok_or_else(too_big)? + i64::from(byte - b'0');
    }
    Ok(n)
}
