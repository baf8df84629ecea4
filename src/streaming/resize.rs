//! The sizes that a client sends on the resize stream: JSON objects, one after the other.

use serde_json::Value;

use crate::Size;

/// An object that is longer is none of ours.
const LONGEST: usize = 1 << 10;

/// Reads sizes out of bytes that arrive in pieces.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    rest: Vec<u8>,
    broken: bool,
}

impl Sizes {
    /// The sizes that are complete now; of many only the last matters. After something that is no size, there are no more.
    pub(crate) fn read(&mut self, piece: &[u8]) -> Option<Size> {
        if self.broken {
            return None;
        }
        self.rest.extend_from_slice(piece);
        let mut values = serde_json::Deserializer::from_slice(&self.rest).into_iter::<Value>();
        let (mut last, mut used) = (None, 0);
        loop {
            match values.next() {
                Some(Ok(value)) => match size(&value) {
                    Some(size) => (last, used) = (Some(size), values.byte_offset()),
                    None => self.broken = true,
                },
                Some(Err(error)) => {
                    self.broken = self.broken || !error.is_eof();
                    break;
                }
                None => {
                    used = self.rest.len();
                    break;
                }
            }
            if self.broken {
                break;
            }
        }
        self.rest.drain(..used);
        self.broken = self.broken || self.rest.len() > LONGEST;
        last
    }
}

fn size(value: &Value) -> Option<Size> {
    let field = |name: &str| {
        let object = value.as_object()?;
        let (_, value) = object.iter().find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        u16::try_from(value.as_u64()?).ok()
    };
    Some(Size { width: field("width")?, height: field("height")? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TWO: &[u8] = b"{\"Width\":80,\"Height\":24}\n{\"width\":100,\"height\":30}";

    #[test]
    fn the_last_complete_one_counts() {
        let last = Some(Size { width: 100, height: 30 });
        assert_eq!(Sizes::default().read(TWO), last);
        let mut sizes = Sizes::default();
        let read: Vec<_> = TWO.chunks(5).filter_map(|piece| sizes.read(piece)).collect();
        assert_eq!(read, [Size { width: 80, height: 24 }, Size { width: 100, height: 30 }]);
    }

    #[test]
    fn what_is_no_size_ends_it() {
        for bytes in [&b"x"[..], b"7", b"{\"Width\":1}", b"{\"Width\":70000,\"Height\":1}"] {
            let mut sizes = Sizes::default();
            sizes.read(b" {\"Width\":1,\"Height\":2} ");
            assert_eq!(
                (sizes.read(bytes), sizes.read(b" "), sizes.read(TWO)),
                (None, None, None),
                "{bytes:?}"
            );
        }
        let mut sizes = Sizes::default();
        for _ in 0..1000 {
            sizes.read(b"{\"Width\"          ");
        }
        assert!(sizes.rest.len() < 2 * LONGEST);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..30), 0..5)) {
            let mut sizes = Sizes::default();
            for piece in pieces {
                sizes.read(&piece);
            }
        }
    }
}
