//! Reads tar archives as layers hold them: a stream of entries, no seeking, foreign bytes.
//!
//! Understood: V7, ustar, star, GNU (long names `L`, long links `K`, base-256 numbers, sparse files `S`), PAX (`x`, and
//! `g` as defaults for what follows), GNU sparse files in PAX form 0.0, 0.1 and 1.0, `SCHILY.xattr.*`. Whatever else an
//! archive asks for is refused by name. Where formats leave room, the reading is that of Go's archive/tar, because that
//! is what wrote most layers and what other runtimes read them with: two readers that disagree about where an entry ends
//! would unpack different files from one digest.
//!
//! Nothing here trusts a number: meta bodies are bounded ([`LONGEST_META`]), lists are bounded ([`MOST_CHUNKS`]), sizes
//! are never allocated in advance.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

use crate::pax::{self, Records};
use crate::tar_header::{BLOCK, Header, number, text};

/// The longest PAX header or GNU long name that is read.
const LONGEST_META: u64 = 1 << 20;
/// The most that global PAX headers may say in all.
const LONGEST_GLOBAL: usize = 64 << 10;
/// The most data regions of one sparse file.
pub(crate) const MOST_CHUNKS: usize = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry's header, all extensions applied.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) kind: EntryKind,
    pub(crate) name: Vec<u8>,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Permission bits, setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) major: u32,
    pub(crate) minor: u32,
    /// Size of the file once unpacked, bytes.
    pub(crate) size: u64,
    /// Where the body's bytes go, when not one after the other from 0: (offset, length), ascending.
    pub(crate) chunks: Option<Vec<(u64, u64)>>,
    /// Name and value of extended attributes.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A reader of one archive.
pub(crate) struct Archive<R> {
    input: R,
    /// Bytes of the current body not read yet.
    body: u64,
    /// Bytes that fill the body's last block.
    padding: u64,
    global: BTreeMap<String, Vec<u8>>,
}

/// What is wrong with an archive, as an [`io::Error`] of kind `InvalidData`.
pub(crate) fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text.into())
}

/// Extensions collected for the entry that follows them.
#[derive(Default)]
struct Extensions {
    records: Records,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: BufRead> Archive<R> {
    pub(crate) fn new(input: R) -> Self {
        Archive { input, body: 0, padding: 0, global: BTreeMap::new() }
    }

    /// The stream behind the archive.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; `None` at the end mark or at the end of the stream.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        self.skip_body()?;
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            match header.kind() {
                b'x' => extensions.records = pax::parse(&self.meta(&header)?)?,
                b'g' => {
                    let records = pax::parse(&self.meta(&header)?)?;
                    self.global.extend(records.fields.into_iter().filter(|(k, _)| pax::may_be_global(k)));
                    // each entry starts from a copy of them
                    if self.global.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
                        > LONGEST_GLOBAL
                    {
                        return Err(invalid(format!("global headers of more than {LONGEST_GLOBAL} bytes")));
                    }
                }
                b'L' => extensions.long_name = Some(text(&self.meta(&header)?).to_vec()),
                b'K' => extensions.long_link = Some(text(&self.meta(&header)?).to_vec()),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
    }

    /// The body of the entry that [`next`](Self::next) gave.
    pub(crate) fn body(&mut self) -> Body<'_, R> {
        Body { archive: self }
    }

    /// Passes over what is left of the current body.
    fn skip_body(&mut self) -> io::Result<()> {
        let mut left = self.body + self.padding;
        while left > 0 {
            let there = self.input.fill_buf()?.len();
            if there == 0 {
                return Err(cut("inside an entry"));
            }
            let step = usize::try_from(left).unwrap_or(usize::MAX).min(there);
            self.input.consume(step);
            left -= step as u64;
        }
        (self.body, self.padding) = (0, 0);
        Ok(())
    }

    /// The next header block; `None` at the end of the archive.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut zeros = 0;
        loop {
            if !self.block(&mut block)? {
                return Ok(None);
            }
            if block.iter().any(|b| *b != 0) {
                break;
            }
            zeros += 1;
            if zeros == 2 {
                return Ok(None);
            }
        }
        if zeros == 1 {
            return Err(invalid("a single zero block inside the archive"));
        }
        let header = Header(block);
        header.check()?;
        Ok(Some(header))
    }

    /// Reads a whole block; `false` at the end of the stream.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> io::Result<bool> {
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(cut("inside a header")),
                n => filled += n,
            }
        }
        Ok(true)
    }

    /// The whole body of a meta entry.
    fn meta(&mut self, header: &Header) -> io::Result<Vec<u8>> {
        let size = header.size()?;
        if size > LONGEST_META {
            return Err(invalid(format!("an extended header of {size} bytes (at most {LONGEST_META})")));
        }
        self.set_body(size);
        let mut bytes = Vec::new();
        self.body().read_to_end(&mut bytes)?;
        self.skip_body()?;
        Ok(bytes)
    }

    fn set_body(&mut self, size: u64) {
        self.body = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> io::Result<Entry> {
        let mut records = extensions.records;
        for (key, value) in &self.global {
            records.fields.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let mut entry = header.plain_entry()?;
        pax::apply(&records, &mut entry)?;
        if let Some(name) = extensions.long_name {
            entry.name = name;
        }
        if let Some(link) = extensions.long_link {
            entry.link = link;
        }
        // a name that ends in a slash is a directory, whatever old writers said; only V7 ones then have no body
        let by_name = entry.kind == EntryKind::File && entry.name.last() == Some(&b'/');
        let has_body = entry.kind == EntryKind::File && !(by_name && header.kind() == 0);
        if by_name {
            entry.kind = EntryKind::Directory;
        }
        self.set_body(if has_body { entry.size } else { 0 });
        if entry.kind == EntryKind::File {
            if header.kind() == b'S' {
                self.gnu_sparse(header, &mut entry)?;
            } else {
                self.pax_sparse(&records, &mut entry)?;
            }
        }
        check_strings(&entry)?;
        Ok(entry)
    }

    /// Old GNU sparse files: a map in the header, continued in blocks before the body.
    fn gnu_sparse(&mut self, header: &Header, entry: &mut Entry) -> io::Result<()> {
        let mut chunks = Vec::new();
        sparse_table(&header.0[386..482], &mut chunks)?;
        let mut more = header.0[482] != 0;
        let mut block = [0; BLOCK];
        while more {
            if !self.block(&mut block)? {
                return Err(cut("inside a sparse map"));
            }
            sparse_table(&block[..504], &mut chunks)?;
            more = block[504] != 0;
        }
        entry.size = number(&header.0[483..495])?;
        self.use_chunks(chunks, entry)
    }

    /// GNU sparse files in PAX headers.
    fn pax_sparse(&mut self, records: &Records, entry: &mut Entry) -> io::Result<()> {
        let Some(sparse) = pax::sparse(records)? else { return Ok(()) };
        let chunks = match sparse.chunks {
            Some(chunks) => chunks,
            None => self.sparse_map_in_body()?,
        };
        if let Some(name) = sparse.name {
            entry.name = name;
        }
        entry.size = sparse.size;
        self.use_chunks(chunks, entry)
    }

    /// PAX form 1.0: decimal numbers in lines at the start of the body, padded to whole blocks.
    fn sparse_map_in_body(&mut self) -> io::Result<Vec<(u64, u64)>> {
        let mut reader = MapReader { archive: self, block: [0; BLOCK], at: BLOCK };
        let count = reader.number()?;
        if count > MOST_CHUNKS as u64 {
            return Err(invalid(format!("a sparse file of {count} regions")));
        }
        let mut chunks = Vec::new();
        for _ in 0..count {
            chunks.push((reader.number()?, reader.number()?));
        }
        Ok(chunks)
    }

    /// Checks that the regions ascend, lie inside the file and together are as long as the body.
    fn use_chunks(&mut self, mut chunks: Vec<(u64, u64)>, entry: &mut Entry) -> io::Result<()> {
        let mut end = 0u64;
        let mut total = 0u64;
        for (offset, length) in &chunks {
            let next = offset.checked_add(*length).filter(|next| *offset >= end && *next <= entry.size);
            end = next.ok_or_else(|| invalid("a sparse map that is out of order or beyond the file"))?;
            total += length;
        }
        if total != self.body {
            return Err(invalid(format!("a sparse map of {total} bytes with a body of {} bytes", self.body)));
        }
        chunks.retain(|(_, length)| *length > 0);
        entry.chunks = Some(chunks);
        Ok(())
    }
}

/// Reads the lines of a sparse map block by block.
struct MapReader<'a, R> {
    archive: &'a mut Archive<R>,
    block: [u8; BLOCK],
    at: usize,
}

impl<R: BufRead> MapReader<'_, R> {
    fn number(&mut self) -> io::Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                if self.archive.body < BLOCK as u64 {
                    return Err(invalid("a sparse map longer than its entry"));
                }
                let mut block = [0; BLOCK];
                if !self.archive.block(&mut block)? {
                    return Err(cut("inside a sparse map"));
                }
                self.archive.body -= BLOCK as u64;
                (self.block, self.at) = (block, 0);
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return pax::decimal(&digits),
                byte if digits.len() < 20 => digits.push(byte),
                _ => return Err(invalid("a number in a sparse map is too long")),
            }
        }
    }
}

/// The bytes of one entry.
pub(crate) struct Body<'a, R> {
    archive: &'a mut Archive<R>,
}

impl<R: BufRead> Body<'_, R> {
    /// What is there of the body without copying; empty at its end.
    pub(crate) fn fill(&mut self) -> io::Result<&[u8]> {
        if self.archive.body == 0 {
            return Ok(&[]);
        }
        let left = usize::try_from(self.archive.body).unwrap_or(usize::MAX);
        let there = self.archive.input.fill_buf()?;
        if there.is_empty() {
            return Err(cut("inside a file"));
        }
        Ok(&there[..there.len().min(left)])
    }

    /// Marks `n` bytes of what [`fill`](Self::fill) gave as used.
    pub(crate) fn consume(&mut self, n: usize) {
        self.archive.input.consume(n);
        self.archive.body -= n as u64;
    }
}

impl<R: BufRead> Read for Body<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill()?;
        let n = there.len().min(buffer.len());
        buffer[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}

fn check_strings(entry: &Entry) -> io::Result<()> {
    let nul = |bytes: &[u8]| bytes.contains(&0);
    if nul(&entry.name) || nul(&entry.link) || entry.xattrs.iter().any(|(name, _)| nul(name)) {
        return Err(invalid("a name that holds a zero byte"));
    }
    Ok(())
}

fn cut(place: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the archive ends {place}"))
}

fn sparse_table(table: &[u8], chunks: &mut Vec<(u64, u64)>) -> io::Result<()> {
    for row in table.chunks_exact(24) {
        if row[0] == 0 || row[12] == 0 {
            break;
        }
        if chunks.len() == MOST_CHUNKS {
            return Err(invalid(format!("a sparse file of more than {MOST_CHUNKS} regions")));
        }
        chunks.push((number(&row[..12])?, number(&row[12..])?));
    }
    Ok(())
}
