//! Header blocks: names and values behind zlib with a dictionary that both sides know. All blocks of one direction are
//! one zlib stream, so each must be inflated, also those of frames that are then passed over.
//!
//! ```text
//! count (32)   { length (32) name   length (32) value }*
//! ```
//!
//! We inflate at most [`LARGEST_BLOCK`] bytes for a block. What we send is always the empty block, as a stored (not
//! compressed) piece of the zlib stream: that needs neither the dictionary nor a quarter megabyte of state per session.

use flate2::{Decompress, FlushDecompress};

use super::frame::Malformed;

/// Largest block, inflated. Those of real clients have some hundred bytes.
const LARGEST_BLOCK: usize = 64 << 10;

/// Names that begin the dictionary, each with its length before it.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// The rest of the dictionary.
const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug \
    Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch\
    charset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// The dictionary of SPDY/3.
pub(crate) fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.extend_from_slice(&(word.len() as u32).to_be_bytes());
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(REST.as_bytes());
    dictionary
}

/// Headers of a stream; names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    /// The (first) value of a header.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        value.split('\0').next()
    }
}

/// Inflates the blocks of one direction.
pub(crate) struct Inflater(Decompress);

impl Inflater {
    /// For a new connection.
    pub(crate) fn new() -> Inflater {
        Inflater(Decompress::new(true))
    }

    /// The headers of the next block.
    ///
    /// # Errors
    /// [`Malformed`]: later blocks cannot be read either.
    pub(crate) fn headers(&mut self, block: &[u8]) -> Result<Headers, Malformed> {
        parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Malformed> {
        let mut plain = Vec::with_capacity(1 << 10);
        let start = self.0.total_in();
        loop {
            let used = (self.0.total_in() - start) as usize;
            let rest = block.get(used..).unwrap_or_default();
            let done = self.0.decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            match done {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&dictionary())
                        .map_err(|_| Malformed("headers that want a dictionary other than SPDY's"))?;
                    continue;
                }
                Err(_) => return Err(Malformed("headers that cannot be inflated")),
                Ok(_) => {}
            }
            if plain.len() > LARGEST_BLOCK {
                return Err(Malformed("headers that are too large"));
            }
            let progress = (self.0.total_in() - start) as usize > used;
            if plain.len() == plain.capacity() {
                plain.reserve(plain.len());
            } else if !progress || (self.0.total_in() - start) as usize >= block.len() {
                return Ok(plain);
            }
        }
    }
}

fn parse(mut plain: &[u8]) -> Result<Headers, Malformed> {
    let short = Malformed("headers that end too early");
    let number = |plain: &mut &[u8]| -> Result<usize, Malformed> {
        let (word, rest) = plain.split_first_chunk::<4>().ok_or(short)?;
        *plain = rest;
        Ok(u32::from_be_bytes(*word) as usize)
    };
    let count = number(&mut plain)?;
    let mut headers = Vec::new();
    for _ in 0..count {
        let mut text = || -> Result<String, Malformed> {
            let length = number(&mut plain)?;
            let (text, rest) = plain.split_at_checked(length).ok_or(short)?;
            plain = rest;
            Ok(String::from_utf8_lossy(text).into_owned())
        };
        headers.push((text()?, text()?));
    }
    Ok(Headers(headers))
}

/// Writes the block without headers, again and again.
#[derive(Debug, Default)]
pub(crate) struct EmptyBlocks {
    begun: bool,
}

impl EmptyBlocks {
    /// Of the zlib stream: deflate with a window of 32 KiB, no dictionary.
    const START: [u8; 2] = [0x78, 0x01];
    /// Not the last piece, stored, its length and the complement; then the count of headers. Then an empty piece: Kubernetes'
    /// library gives out what it has inflated only at one of those.
    const STORED: [u8; 14] = [0, 4, 0, !4, !0, 0, 0, 0, 0, 0, 0, 0, !0, !0];

    /// The next block.
    pub(crate) fn next(&mut self) -> Vec<u8> {
        let start: &[u8] = if self.begun { &[] } else { &Self::START };
        self.begun = true;
        [start, &Self::STORED].concat()
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::prelude::*;

    use super::*;

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut plain = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            plain.extend_from_slice(&(text.len() as u32).to_be_bytes());
            plain.extend_from_slice(text.as_bytes());
        }
        plain
    }

    struct Deflater(Compress);

    impl Deflater {
        fn new() -> Deflater {
            let mut compress = Compress::new(Compression::best(), true);
            compress.set_dictionary(&dictionary()).expect("a dictionary");
            Deflater(compress)
        }

        fn block(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut block = Vec::with_capacity(plain.len() + 1000);
            self.0.compress_vec(plain, &mut block, FlushCompress::Sync).expect("deflates");
            block
        }
    }

    #[test]
    fn the_dictionary_is_spdys() {
        // the adler32 that every SPDY/3 stream names in its first bytes
        let mut compress = Compress::new(Compression::best(), true);
        assert_eq!(compress.set_dictionary(&dictionary()).expect("sets"), 0xe3c6_a7c2);
        assert_eq!(dictionary().len(), 1423);
    }

    #[test]
    fn blocks_are_one_stream() {
        let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
        for kind in ["error", "stdin", "stdout"] {
            let block = deflater.block(&plain(&[("streamtype", kind), ("requestid", "7\08")]));
            let headers = inflater.headers(&block).expect("headers");
            assert_eq!((headers.get("streamType"), headers.get("REQUESTID")), (Some(kind), Some("7")));
            assert_eq!(headers.get("port"), None);
        }
        let large = "x".repeat(60_000);
        let block = deflater.block(&plain(&[("a", &large)]));
        assert_eq!(inflater.headers(&block).expect("headers").get("a"), Some(&large[..]));
    }

    #[test]
    fn a_bomb_is_refused() {
        let block = Deflater::new().block(&plain(&[("a", &"x".repeat(20_000_000))]));
        assert!(block.len() < 32_000);
        assert_eq!(Inflater::new().headers(&block), Err(Malformed("headers that are too large")));
    }

    #[test]
    fn what_is_no_block_is_named() {
        let block = |plain: &[u8]| Deflater::new().block(plain);
        let cases = [
            (b"hello".to_vec(), "headers that cannot be inflated"),
            (block(&[0, 0]), "headers that end too early"),
            (block(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1]), "headers that end too early"),
            (block(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, 1]), "headers that end too early"),
            (Vec::new(), "headers that end too early"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Inflater::new().headers(&bytes), Err(Malformed(expected)), "{bytes:?}");
        }
    }

    #[test]
    fn another_dictionary_is_refused() {
        let mut compress = Compress::new(Compression::best(), true);
        compress.set_dictionary(b"something else").expect("sets");
        let block = Deflater(compress).block(&plain(&[]));
        let expected = "headers that want a dictionary other than SPDY's";
        assert_eq!(Inflater::new().headers(&block), Err(Malformed(expected)));
    }

    #[test]
    fn our_empty_blocks_can_be_inflated() {
        let (mut blocks, mut inflater) = (EmptyBlocks::default(), Inflater::new());
        for _ in 0..3 {
            assert_eq!(inflater.headers(&blocks.next()).expect("headers"), Headers::default());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(blocks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..4)) {
            let mut inflater = Inflater::new();
            for block in blocks {
                let _ = inflater.headers(&block);
            }
        }

        #[test]
        fn no_plain_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            let _ = parse(&bytes);
            let _ = Inflater::new().headers(&Deflater::new().block(&bytes));
        }
    }
}
