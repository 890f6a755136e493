//! RESP on both links: where one command of a stream ends, and what a server answered.
//!
//! Commands of a replication stream are found by [`CommandParser`], which only notes where the arguments lie, so that an
//! unmodified command can be forwarded as the bytes that arrived. It remembers how far it came: a command of a million
//! arguments that arrives in pieces is still parsed once. Replies are decoded by `redis-protocol`.

use std::borrow::Cow;
use std::ops::Range;

use redis_protocol::resp2::decode::decode;
use redis_protocol::resp2::types::OwnedFrame;

/// Most arguments of one command (Redis: `1024 * 1024` for clients; a master may send more).
const MAX_ARGUMENTS: u64 = 1 << 28;
/// Longest argument: what a 32-bit `proto-max-bulk-len` could be set to.
const MAX_ARGUMENT_LEN: u64 = 1 << 40;
/// Longest header line (`*<n>` or `$<n>`).
const MAX_HEADER_LEN: usize = 32;

/// Bytes that are not RESP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected {expected}, found '{found}'")]
pub struct RespError {
    /// What should have stood there.
    pub expected: &'static str,
    /// What stood there instead, escaped, at most some 32 bytes.
    pub found: String,
}

/// Finds one command at the front of a buffer that grows until the command is whole.
///
/// ```text
///  buffer  *2\r\n$3\r\nGET\r\n$1\r\nk\r\n*1\r\n…
///          <------- total = Some(23) ------->
///  args                  8..11      17..18
/// ```
#[derive(Debug, Default)]
pub struct CommandParser {
    /// Where the arguments lie in the buffer; complete when [`CommandParser::advance`] returned a length.
    pub args: Vec<Range<usize>>,
    /// First byte not yet understood.
    position: usize,
    /// Arguments still to come; `None` before the `*` line.
    missing: Option<u64>,
}

/// The arguments of a command that is whole; none where it is not one.
pub fn arguments(command: &[u8]) -> Vec<&[u8]> {
    let mut parser = CommandParser::default();
    match parser.advance(command) {
        Ok(Some(_)) => parser.args.iter().filter_map(|range| command.get(range.clone())).collect(),
        _ => Vec::new(),
    }
}

impl CommandParser {
    /// Looks at `buffer`, whose first byte is the first byte of the command in every call until the command is whole.
    /// Returns its length once it is, `None` while bytes are missing. After a length, call [`CommandParser::reset`].
    pub fn advance(&mut self, buffer: &[u8]) -> Result<Option<usize>, RespError> {
        let mut missing = match self.missing {
            Some(missing) => missing,
            None => {
                let Some((count, end)) = header(buffer, 0, b'*', "a command ('*' and a number)")? else {
                    return Ok(None);
                };
                if count > MAX_ARGUMENTS {
                    return Err(error("at most 268,435,456 arguments", buffer));
                }
                self.position = end;
                count
            }
        };
        while missing > 0 {
            let Some((len, start)) = header(buffer, self.position, b'$', "an argument ('$' and a number)")?
            else {
                self.missing = Some(missing);
                return Ok(None);
            };
            if len > MAX_ARGUMENT_LEN {
                return Err(error("an argument of at most 1 TiB", &buffer[self.position..]));
            }
            let end = start + len as usize;
            let Some(line_end) = buffer.get(end..end + 2) else {
                self.missing = Some(missing);
                return Ok(None);
            };
            if line_end != b"\r\n" {
                return Err(error("a line end after an argument", line_end));
            }
            self.args.push(start..end);
            self.position = end + 2;
            missing -= 1;
        }
        self.missing = Some(0);
        Ok(Some(self.position))
    }

    /// Gets ready for the next command.
    pub fn reset(&mut self) {
        self.args.clear();
        self.position = 0;
        self.missing = None;
    }
}

/// Reads `<mark><digits>\r\n` at `start`; returns the number and the position after the line.
fn header(
    buffer: &[u8],
    start: usize,
    mark: u8,
    expected: &'static str,
) -> Result<Option<(u64, usize)>, RespError> {
    let Some(line) = buffer.get(start..).filter(|line| !line.is_empty()) else { return Ok(None) };
    if line[0] != mark {
        return Err(error(expected, line));
    }
    let mut value = 0u64;
    for (at, &byte) in line.iter().enumerate().skip(1) {
        match byte {
            b'0'..=b'9' if at < MAX_HEADER_LEN => {
                value = value.saturating_mul(10).saturating_add(u64::from(byte - b'0'));
            }
            b'\r' if at > 1 => {
                return match line.get(at + 1) {
                    None => Ok(None),
                    Some(b'\n') => Ok(Some((value, start + at + 2))),
                    Some(_) => Err(error(expected, line)),
                };
            }
            _ => return Err(error(expected, line)),
        }
    }
    Ok(None)
}

fn error(expected: &'static str, found: &[u8]) -> RespError {
    RespError { expected, found: found[..found.len().min(32)].escape_ascii().to_string() }
}

/// Appends one command.
pub fn append_command(out: &mut Vec<u8>, args: &[&[u8]]) {
    append_array_header(out, args.len());
    for arg in args {
        append_bulk(out, arg);
    }
}

/// Appends `*<count>\r\n`.
pub fn append_array_header(out: &mut Vec<u8>, count: usize) {
    out.push(b'*');
    append_decimal(out, count as u64);
    out.extend_from_slice(b"\r\n");
}

/// Appends `$<len>\r\n<bytes>\r\n`.
pub fn append_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    append_decimal(out, bytes.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// Appends a number in decimal; the hot path of every header, hence without `format!`.
pub fn append_decimal(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// One reply of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// `+OK`
    Status(Cow<'static, str>),
    /// `-ERR …` without the minus.
    Error(String),
    /// `:1`
    Integer(i64),
    /// `$…`
    Bulk(Vec<u8>),
    /// `*…`
    Array(Vec<Reply>),
    /// `$-1` or `*-1`
    Null,
}

impl Reply {
    /// Decodes the reply at the front of `buffer`; `None` while bytes are missing. Returns its length too.
    pub fn decode(buffer: &[u8]) -> Result<Option<(Reply, usize)>, RespError> {
        // By far the most frequent replies of a pipeline.
        for (line, text) in [(&b"+OK\r\n"[..], "OK"), (b"+QUEUED\r\n", "QUEUED")] {
            if buffer.starts_with(line) {
                return Ok(Some((Reply::Status(text.into()), line.len())));
            }
        }
        match decode(buffer) {
            Ok(Some((frame, len))) => Ok(Some((frame.into(), len))),
            Ok(None) => Ok(None),
            Err(_) => Err(error("a reply", buffer)),
        }
    }

    /// The text of a status or bulk reply, as far as it is UTF-8.
    pub fn text(&self) -> Option<&str> {
        match self {
            Reply::Status(text) => Some(text),
            Reply::Bulk(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }
}

impl From<OwnedFrame> for Reply {
    fn from(frame: OwnedFrame) -> Self {
        match frame {
            OwnedFrame::SimpleString(bytes) => {
                Reply::Status(String::from_utf8_lossy(&bytes).into_owned().into())
            }
            OwnedFrame::Error(text) => Reply::Error(text),
            OwnedFrame::Integer(value) => Reply::Integer(value),
            OwnedFrame::BulkString(bytes) => Reply::Bulk(bytes),
            OwnedFrame::Array(frames) => Reply::Array(frames.into_iter().map(Reply::from).collect()),
            OwnedFrame::Null => Reply::Null,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the failure of a test")]

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Our scanner and `redis-protocol` must agree on every command, for any split of the input.
        #[test]
        fn commands_are_framed_alike_for_any_split(
            commands in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..20), 1..6), 1..5),
            step in 1usize..40,
        ) {
            let mut bytes = Vec::new();
            for command in &commands {
                let args: Vec<&[u8]> = command.iter().map(Vec::as_slice).collect();
                append_command(&mut bytes, &args);
            }
            let (mut parser, mut start, mut seen, mut found) = (CommandParser::default(), 0, 0, Vec::new());
            while seen < bytes.len() {
                seen = (seen + step).min(bytes.len());
                while let Some(len) = parser.advance(&bytes[start..seen]).unwrap() {
                    let args: Vec<Vec<u8>> =
                        parser.args.iter().map(|range| bytes[start..][range.clone()].to_vec()).collect();
                    let (frame, frame_len) = decode(&bytes[start..]).unwrap().unwrap();
                    prop_assert_eq!(frame_len, len);
                    let expected = args.iter().cloned().map(OwnedFrame::BulkString).collect();
                    prop_assert_eq!(frame, OwnedFrame::Array(expected));
                    found.push(args);
                    start += len;
                    parser.reset();
                    if start == seen { break; }
                }
            }
            prop_assert_eq!(found, commands);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = CommandParser::default().advance(&bytes);
            let _ = Reply::decode(&bytes);
        }
    }

    #[test]
    fn nonsense_is_named() {
        let error = CommandParser::default().advance(b"GET k\r\n").unwrap_err();
        assert_eq!(error.to_string(), "expected a command ('*' and a number), found 'GET k\\r\\n'");
        for bytes in
            [&b"*1\r\n+OK\r\n"[..], b"*x\r\n", b"*\r\n", b"*1\rx", b"*1\r\n$1\r\nabc", b"*99999999999\r\n"]
        {
            assert!(CommandParser::default().advance(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_huge_announced_length_only_waits() {
        assert_eq!(CommandParser::default().advance(b"*1\r\n$4294967296\r\nx"), Ok(None));
    }

    #[test]
    fn decimal_is_exact() {
        for value in [0, 9, 10, 12_345, u64::MAX] {
            let mut out = Vec::new();
            append_decimal(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), value.to_string());
        }
    }
}
