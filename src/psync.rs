//! The replication handshake as values: what a source answers to PSYNC and where its RDB ends.
//!
//! Facts from `replication.c` of Redis and Valkey (`syncWithMaster`, `readSyncBulkPayload`). Pure: bytes in, values out.

use std::fmt;

use crc_fast::{CrcAlgorithm, Digest};
use memchr::memmem;
use serde::{Deserialize, Serialize};

/// Replication id: 40 hexadecimal digits that name one history of writes.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Replid(String);

impl Replid {
    /// Parses 40 hexadecimal digits; the case is folded, because servers compare without case.
    pub fn parse(text: &str) -> Option<Self> {
        (text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .then(|| Replid(text.to_ascii_lowercase()))
    }

    /// The 40 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Replid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Replid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Replid> for String {
    fn from(replid: Replid) -> String {
        replid.0
    }
}

impl TryFrom<String> for Replid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Replid::parse(&text)
            .ok_or_else(|| format!("'{text}' is not a replication id (40 hexadecimal digits)"))
    }
}

/// What a source answers to PSYNC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PsyncReply {
    /// A full sync follows; the first stream byte after the RDB has offset `offset + 1`.
    FullResync {
        /// The history that the RDB belongs to.
        replid: Replid,
        /// Offset that the RDB stands for.
        offset: u64,
    },
    /// The stream goes on where it was asked for.
    Continue {
        /// Given when the source was promoted since: the new name of the same history.
        replid: Option<Replid>,
    },
    /// Ask again later: LOADING, NOMASTERLINK, BUSY, MASTERDOWN.
    RetryLater(String),
    /// Asking again will not help.
    Refused(String),
}

impl PsyncReply {
    /// Reads one reply line without its line end.
    pub fn parse(line: &str) -> PsyncReply {
        let mut words = line.split_ascii_whitespace();
        match words.next().map(str::to_ascii_uppercase).as_deref() {
            Some("+FULLRESYNC") => {
                let replid = words.next().and_then(Replid::parse);
                let offset = words.next().and_then(|word| word.parse().ok());
                match (replid, offset) {
                    (Some(replid), Some(offset)) => PsyncReply::FullResync { replid, offset },
                    _ => PsyncReply::Refused(line.to_owned()),
                }
            }
            Some("+CONTINUE") => match words.next() {
                None => PsyncReply::Continue { replid: None },
                Some(word) => match Replid::parse(word) {
                    Some(replid) => PsyncReply::Continue { replid: Some(replid) },
                    None => PsyncReply::Refused(line.to_owned()),
                },
            },
            Some("-LOADING" | "-NOMASTERLINK" | "-BUSY" | "-MASTERDOWN" | "-TRYAGAIN") => {
                PsyncReply::RetryLater(line[1..].to_owned())
            }
            _ => PsyncReply::Refused(line.strip_prefix('-').unwrap_or(line).to_owned()),
        }
    }
}

/// Length of the mark of a diskless transfer (`CONFIG_RUN_ID_SIZE`).
pub const EOF_MARK_LEN: usize = 40;

/// How the RDB is delimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transfer {
    /// `$<len>`: so many bytes, nothing after them.
    Length(u64),
    /// `$EOF:<40 bytes>`: the RDB, then the same 40 bytes.
    EofMark([u8; EOF_MARK_LEN]),
}

impl Transfer {
    /// Reads the `$` line without its line end; `None` when it is neither form.
    pub fn parse(line: &[u8]) -> Option<Transfer> {
        if let Some(mark) = line.strip_prefix(b"$EOF:") {
            return Some(Transfer::EofMark(mark.try_into().ok()?));
        }
        let digits = std::str::from_utf8(line.strip_prefix(b"$")?).ok()?;
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?.map(Transfer::Length)
    }
}

/// What follows the RDB in a diskless transfer: EOF opcode (1), checksum (8), mark (40).
const TRAILER_LEN: usize = 1 + 8 + EOF_MARK_LEN;

/// Finds the end of a diskless RDB.
///
/// The mark is no secret: it is the same for every sync of one server process, so a client can store it as a value.
/// It is believed only where the bytes before it are the EOF opcode and the CRC64 of everything so far. Where the source
/// writes no checksum (`rdbchecksum no`, eight zero bytes), only the RDB parser can tell: see [`EofSearch::Unverified`].
pub struct EofFinder {
    mark: memmem::Finder<'static>,
    digest: Digest,
    /// Bytes before the held-back tail, all in `digest`.
    digested: u64,
    /// The last bytes seen, at most [`TRAILER_LEN`]` - 1`: a trailer may begin in them.
    tail: Vec<u8>,
}

/// Result of looking at one more chunk. Positions count from the first byte of the RDB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EofSearch {
    /// Not in here.
    NotYet,
    /// The RDB is exactly the first `rdb_len` bytes (mark not included).
    Found {
        /// Length of the RDB.
        rdb_len: u64,
    },
    /// It may end here: opcode and mark are right, but there is no checksum. Ask the parser, unless more bytes arrive.
    Unverified {
        /// Length of the RDB if this is its end.
        rdb_len: u64,
    },
}

impl EofFinder {
    /// Looks for this mark.
    pub fn new(mark: &[u8; EOF_MARK_LEN]) -> Self {
        EofFinder {
            mark: memmem::Finder::new(mark).into_owned(),
            digest: Digest::new(CrcAlgorithm::Crc64Redis),
            digested: 0,
            tail: Vec::new(),
        }
    }

    /// Looks at the next chunk of the transfer.
    pub fn push(&mut self, chunk: &[u8]) -> EofSearch {
        // Only the seam between the held tail and the chunk needs a joined copy; the chunk itself is searched in place.
        let seam_len = chunk.len().min(TRAILER_LEN - 1);
        let mut seam = std::mem::take(&mut self.tail);
        let old_tail = seam.len();
        seam.extend_from_slice(&chunk[..seam_len]);
        let mut result = self.search(&seam, self.digested, self.digest);
        if !matches!(result, EofSearch::Found { .. }) && chunk.len() > seam_len {
            let mut digest = self.digest;
            digest.update(&seam[..old_tail]);
            result = self.search(chunk, self.digested + old_tail as u64, digest);
        }
        // Digest everything except a new tail.
        let total = old_tail + chunk.len();
        let keep = total.min(TRAILER_LEN - 1);
        let to_digest = total - keep;
        let from_tail = to_digest.min(old_tail);
        self.digest.update(&seam[..from_tail]);
        self.digest.update(&chunk[..to_digest - from_tail]);
        self.digested += to_digest as u64;
        seam.truncate(old_tail);
        seam.drain(..from_tail);
        seam.extend_from_slice(&chunk[to_digest - from_tail..]);
        self.tail = seam;
        result
    }

    /// Searches `window`, whose first byte has position `start` and before which `digest` has seen everything.
    fn search(&self, window: &[u8], start: u64, digest: Digest) -> EofSearch {
        let mut unverified = EofSearch::NotYet;
        for at in self.mark.find_iter(window) {
            let Some(opcode) = at.checked_sub(9) else { continue };
            if window[opcode] != 0xFF {
                continue;
            }
            let mut stored = [0; 8];
            stored.copy_from_slice(&window[opcode + 1..at]);
            let rdb_len = start + at as u64;
            if stored == [0; 8] {
                // Only the very last bytes can be the end: a source sends nothing after the mark before it got an ACK.
                if at + EOF_MARK_LEN == window.len() {
                    unverified = EofSearch::Unverified { rdb_len };
                }
                continue;
            }
            let mut digest = digest;
            digest.update(&window[..=opcode]);
            if digest.finalize() == u64::from_le_bytes(stored) {
                return EofSearch::Found { rdb_len };
            }
        }
        unverified
    }
}

/// The ACK of a replica, ready to send.
pub fn replconf_ack(offset: u64) -> Vec<u8> {
    let digits = offset.to_string();
    format!("*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n${}\r\n{digits}\r\n", digits.len()).into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use proptest::prelude::*;

    use super::*;

    const ID: &str = "8f3a41c28f3a41c28f3a41c28f3a41c28f3a41c2";

    #[test]
    fn replies_are_told_apart() {
        let replid = Replid::parse(ID).unwrap();
        let upper = format!("+fullresync {} 42", ID.to_uppercase());
        assert_eq!(PsyncReply::parse(&upper), PsyncReply::FullResync { replid: replid.clone(), offset: 42 });
        assert_eq!(PsyncReply::parse("+CONTINUE"), PsyncReply::Continue { replid: None });
        assert_eq!(
            PsyncReply::parse(&format!("+CONTINUE {ID}")),
            PsyncReply::Continue { replid: Some(replid) }
        );
        assert_eq!(
            PsyncReply::parse("-LOADING Redis is loading the dataset in memory"),
            PsyncReply::RetryLater("LOADING Redis is loading the dataset in memory".into())
        );
        for line in
            ["-NOPERM no psync", "-ERR unknown command", "+FULLRESYNC x y", "+CONTINUE zz", "", "hello"]
        {
            assert!(matches!(PsyncReply::parse(line), PsyncReply::Refused(_)), "{line}");
        }
    }

    #[test]
    fn transfer_line_needs_digits_or_a_whole_mark() {
        assert_eq!(Transfer::parse(b"$1234"), Some(Transfer::Length(1234)));
        assert_eq!(Transfer::parse(format!("$EOF:{ID}").as_bytes()), {
            Some(Transfer::EofMark(ID.as_bytes().try_into().unwrap()))
        });
        for line in [&b"$"[..], b"$-1", b"$+5", b"$EOF:short", b"12", b"$99999999999999999999999"] {
            assert_eq!(Transfer::parse(line), None, "{line:?}");
        }
    }

    fn rdb_with_planted_marks(mark: &[u8; 40], checksum: bool) -> Vec<u8> {
        let mut rdb = b"REDIS0011".to_vec();
        rdb.extend_from_slice(mark);
        rdb.push(0xFF);
        rdb.extend_from_slice(&[7; 8]);
        rdb.extend_from_slice(mark); // looks like an end, wrong checksum
        rdb.extend_from_slice(&[0xFF, 0, 0, 0, 0, 0, 0, 0, 0]);
        rdb.extend_from_slice(mark); // looks like an end without checksum
        rdb.extend_from_slice(b"more");
        rdb.push(0xFF);
        let mut digest = Digest::new(CrcAlgorithm::Crc64Redis);
        digest.update(&rdb);
        rdb.extend_from_slice(&(if checksum { digest.finalize() } else { 0 }).to_le_bytes());
        rdb
    }

    proptest! {
        #[test]
        fn the_end_is_found_for_any_split(cuts in proptest::collection::vec(1usize..70, 1..60), checksum: bool) {
            let mark: [u8; 40] = ID.as_bytes().try_into().unwrap();
            let rdb = rdb_with_planted_marks(&mark, checksum);
            let mut sent = rdb.clone();
            sent.extend_from_slice(&mark);
            let mut finder = EofFinder::new(&mark);
            let mut at = 0;
            let mut cuts = cuts.iter().cycle();
            while at < sent.len() {
                let end = (at + cuts.next().unwrap()).min(sent.len());
                let result = finder.push(&sent[at..end]);
                at = end;
                let rdb_len = rdb.len() as u64;
                if at < sent.len() {
                    let planted = matches!(result, EofSearch::Unverified { rdb_len } if rdb_len < rdb.len() as u64);
                    prop_assert!(result == EofSearch::NotYet || planted, "{result:?} at {at}");
                } else if checksum {
                    prop_assert_eq!(result, EofSearch::Found { rdb_len });
                } else {
                    prop_assert_eq!(result, EofSearch::Unverified { rdb_len });
                }
            }
        }
    }

    #[test]
    fn ack_is_one_resp_command() {
        assert_eq!(replconf_ack(1024), b"*3\r\n$8\r\nREPLCONF\r\n$3\r\nACK\r\n$4\r\n1024\r\n");
    }
}
