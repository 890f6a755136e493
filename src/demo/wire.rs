//! RESP as a server speaks it: requests in, replies out.
//!
//! This is written apart from the engine's own framing on purpose: the demo's servers are what the engine is tested
//! against, and one parser's mistake must not be able to excuse the other's. Lengths that a client names are checked
//! before anything is allocated. No sockets here.

use std::borrow::Cow;

/// The arguments of one command, its name first.
pub type Argv = Vec<Vec<u8>>;

/// Most arguments of one command (`processMultibulkBuffer`, networking.c).
const MAX_ARGUMENTS: usize = 1_048_576;
/// Longest argument (`proto-max-bulk-len`).
const MAX_BULK: usize = 512 * 1_048_576;
/// Longest line that is not a bulk (`PROTO_INLINE_MAX_SIZE`).
const MAX_LINE: usize = 65_536;

/// What the front of a read buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole command, and how many bytes it took.
    Command(Argv, usize),
    /// Nothing to do (an empty line, a replica's keep-alive), and how many bytes it took.
    Nothing(usize),
    /// Not whole yet: it makes no sense to try again below this many bytes.
    Need(usize),
}

/// Reads one command from the front of `buffer`; an error is the text after `-ERR Protocol error: ` and ends the link.
pub fn parse(buffer: &[u8]) -> Result<Parsed, &'static str> {
    match buffer.first() {
        None => Ok(Parsed::Need(1)),
        Some(b'*') => parse_multibulk(buffer),
        Some(_) => match line(buffer, 0) {
            Some((text, used)) => {
                let argv: Argv = text
                    .split(u8::is_ascii_whitespace)
                    .filter(|word| !word.is_empty())
                    .map(<[u8]>::to_vec)
                    .collect();
                Ok(if argv.is_empty() { Parsed::Nothing(used) } else { Parsed::Command(argv, used) })
            }
            None if buffer.len() > MAX_LINE => Err("too big inline request"),
            None => Ok(Parsed::Need(buffer.len() + 1)),
        },
    }
}

fn parse_multibulk(buffer: &[u8]) -> Result<Parsed, &'static str> {
    let Some((count, mut position)) = line(buffer, 1) else {
        return if buffer.len() > MAX_LINE {
            Err("too big mbulk count string")
        } else {
            Ok(Parsed::Need(buffer.len() + 1))
        };
    };
    let count = match integer(count) {
        Some(count) if count <= 0 => return Ok(Parsed::Nothing(position)),
        Some(count) => usize::try_from(count).ok().filter(|count| *count <= MAX_ARGUMENTS),
        None => None,
    }
    .ok_or("invalid multibulk length")?;

    // Spans first: nothing is copied until the command is whole.
    let mut spans = Vec::with_capacity(count.min(64));
    while spans.len() < count {
        match buffer.get(position) {
            None => return Ok(Parsed::Need(position + 5 * (count - spans.len()))),
            Some(b'$') => {}
            Some(_) => return Err("expected '$'"),
        }
        let Some((length, start)) = line(buffer, position + 1) else {
            return if buffer.len() - position > MAX_LINE {
                Err("too big bulk count string")
            } else {
                Ok(Parsed::Need(buffer.len() + 1))
            };
        };
        let length = integer(length)
            .and_then(|length| usize::try_from(length).ok())
            .filter(|length| *length <= MAX_BULK)
            .ok_or("invalid bulk length")?;
        position = start + length + 2;
        if buffer.len() < position {
            return Ok(Parsed::Need(position));
        }
        spans.push(start..start + length);
    }
    let argv = spans.into_iter().filter_map(|span| buffer.get(span)).map(<[u8]>::to_vec).collect();
    Ok(Parsed::Command(argv, position))
}

/// The line that begins at `start`, without its end, and where the next one begins.
fn line(buffer: &[u8], start: usize) -> Option<(&[u8], usize)> {
    let rest = buffer.get(start..)?;
    let end = memchr::memchr(b'\n', rest)?;
    let text = rest.get(..end)?;
    Some((text.strip_suffix(b"\r").unwrap_or(text), start + end + 1))
}

/// A decimal as Redis accepts it (`string2ll`): no plus sign, no leading zeros, no blanks.
pub fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let canonical = match digits {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if canonical { std::str::from_utf8(text).ok()?.parse().ok() } else { None }
}

/// Appends a command in the form in which it travels (to a server, or in the replication stream).
pub fn write_command<A: AsRef<[u8]>>(out: &mut Vec<u8>, argv: &[A]) {
    out.extend_from_slice(format!("*{}\r\n", argv.len()).as_bytes());
    for argument in argv {
        write_bulk(out, argument.as_ref());
    }
}

fn write_bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'$');
    write_decimal(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn write_decimal(out: &mut Vec<u8>, number: i64) {
    use std::io::Write;
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{number}\r\n");
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// `+OK`
    Simple(Cow<'static, str>),
    /// `-ERR …`: the code is part of the text.
    Error(String),
    /// `:1`
    Integer(i64),
    /// A floating point number: a bulk in RESP2.
    Double(f64),
    /// `$3\r\nabc`
    Bulk(Vec<u8>),
    /// The null bulk.
    Null,
    /// The null array (an aborted EXEC).
    NullArray,
    /// No answer at all (`REPLCONF ACK`).
    Nothing,
    /// `*2 …`
    Array(Vec<Reply>),
    /// Pairs: an array of twice the length in RESP2.
    Map(Vec<(Reply, Reply)>),
    /// Members of a set: an array in RESP2.
    Set(Vec<Reply>),
}

impl Reply {
    /// `+OK`
    pub const OK: Reply = Reply::simple("OK");

    /// A status line.
    pub const fn simple(text: &'static str) -> Reply {
        Reply::Simple(Cow::Borrowed(text))
    }

    /// An error with the general code.
    pub fn err(text: impl std::fmt::Display) -> Reply {
        Reply::Error(format!("ERR {text}"))
    }

    /// A bulk from anything that is bytes.
    pub fn bulk(bytes: impl Into<Vec<u8>>) -> Reply {
        Reply::Bulk(bytes.into())
    }

    /// Appends the reply in RESP2, or in RESP3 after `HELLO 3`.
    pub fn write(&self, out: &mut Vec<u8>, resp3: bool) {
        let header = |out: &mut Vec<u8>, mark: u8, count: usize| {
            out.push(mark);
            write_decimal(out, count as i64);
        };
        match self {
            Reply::Simple(text) => out.extend_from_slice(format!("+{text}\r\n").as_bytes()),
            // An error is one line, whatever a client put into the command that is quoted in it.
            Reply::Error(text) => {
                out.extend_from_slice(format!("-{}\r\n", text.replace(['\r', '\n'], " ")).as_bytes());
            }
            Reply::Integer(number) => {
                out.push(b':');
                write_decimal(out, *number);
            }
            Reply::Double(number) if resp3 => {
                out.extend_from_slice(format!(",{}\r\n", format_double(*number)).as_bytes());
            }
            Reply::Double(number) => write_bulk(out, format_double(*number).as_bytes()),
            Reply::Bulk(bytes) => write_bulk(out, bytes),
            Reply::Null | Reply::NullArray if resp3 => out.extend_from_slice(b"_\r\n"),
            Reply::Null => out.extend_from_slice(b"$-1\r\n"),
            Reply::NullArray => out.extend_from_slice(b"*-1\r\n"),
            Reply::Nothing => {}
            Reply::Array(items) => {
                header(out, b'*', items.len());
                items.iter().for_each(|item| item.write(out, resp3));
            }
            Reply::Set(items) => {
                header(out, if resp3 { b'~' } else { b'*' }, items.len());
                items.iter().for_each(|item| item.write(out, resp3));
            }
            Reply::Map(pairs) => {
                if resp3 {
                    header(out, b'%', pairs.len());
                } else {
                    header(out, b'*', pairs.len() * 2);
                }
                for (name, value) in pairs {
                    name.write(out, resp3);
                    value.write(out, resp3);
                }
            }
        }
    }
}

/// Reads one RESP2 reply from the front of `buffer`, for the client that talks to real servers: the reply and how many
/// bytes it took, or `None` while it is not whole.
pub fn parse_reply(buffer: &[u8]) -> Result<Option<(Reply, usize)>, &'static str> {
    parse_nested_reply(buffer, 0, 8)
}

fn parse_nested_reply(
    buffer: &[u8],
    start: usize,
    depth: usize,
) -> Result<Option<(Reply, usize)>, &'static str> {
    let Some(mark) = buffer.get(start) else { return Ok(None) };
    let Some((text, next)) = line(buffer, start + 1) else { return Ok(None) };
    let words = || String::from_utf8_lossy(text).into_owned();
    let number = || integer(text).ok_or("a reply with a bad number");
    let reply = match mark {
        b'+' => Reply::Simple(Cow::Owned(words())),
        b'-' => Reply::Error(words()),
        b':' => Reply::Integer(number()?),
        b'$' => {
            let Ok(length) = usize::try_from(number()?) else { return Ok(Some((Reply::Null, next))) };
            let Some(end) = next.checked_add(length).and_then(|end| end.checked_add(2)) else {
                return Err("a reply with a bad length");
            };
            let Some(bytes) = buffer.get(next..end) else { return Ok(None) };
            let bytes = bytes.get(..length).unwrap_or_default().to_vec();
            return Ok(Some((Reply::Bulk(bytes), end)));
        }
        b'*' => {
            let Ok(count) = usize::try_from(number()?) else { return Ok(Some((Reply::NullArray, next))) };
            if depth == 0 {
                return Err("a reply that is nested too deep");
            }
            let (mut items, mut position) = (Vec::new(), next);
            while items.len() < count {
                let Some((item, end)) = parse_nested_reply(buffer, position, depth - 1)? else {
                    return Ok(None);
                };
                items.push(item);
                position = end;
            }
            return Ok(Some((Reply::Array(items), position)));
        }
        _ => return Err("a reply of no known type"),
    };
    Ok(Some((reply, next)))
}

/// A score as text that reads back to the same number; whole numbers without a fraction, as Redis prints them.
pub fn format_double(number: f64) -> String {
    if number.is_infinite() {
        return if number > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    if number != 0.0 && (number.abs() < 1e-4 || number.abs() >= 1e17) {
        return format!("{number:e}");
    }
    format!("{number}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
    use super::*;

    fn argv(words: &[&str]) -> Argv {
        words.iter().map(|word| word.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_command_is_read_whole_or_not_at_all() {
        let mut wire = Vec::new();
        write_command(&mut wire, &["SET", "k\r\n\0", ""]);
        for end in 0..wire.len() {
            let Parsed::Need(need) = parse(&wire[..end]).unwrap() else { panic!("whole at {end}") };
            assert!(need > end && need <= wire.len(), "asks for {need} at {end}");
        }
        assert_eq!(parse(&wire), Ok(Parsed::Command(argv(&["SET", "k\r\n\0", ""]), wire.len())));
    }

    #[test]
    fn inline_commands_and_keep_alives_are_understood() {
        assert_eq!(parse(b"PING  a\r\nrest"), Ok(Parsed::Command(argv(&["PING", "a"]), 9)));
        assert_eq!(parse(b"\nrest"), Ok(Parsed::Nothing(1)));
        assert_eq!(parse(b"*0\r\n"), Ok(Parsed::Nothing(4)));
    }

    #[test]
    fn lengths_out_of_range_are_refused() {
        assert_eq!(parse(b"*1\r\n$-1\r\n"), Err("invalid bulk length"));
        assert_eq!(parse(b"*1\r\n$4294967296\r\n"), Err("invalid bulk length"));
        assert_eq!(parse(b"*99999999\r\n"), Err("invalid multibulk length"));
        assert_eq!(parse(b"*1\r\n:1\r\n"), Err("expected '$'"));
    }

    #[test]
    fn only_canonical_decimals_are_integers() {
        assert_eq!(integer(b"-12"), Some(-12));
        assert_eq!(integer(b"9223372036854775807"), Some(i64::MAX));
        assert_eq!(integer(b"-9223372036854775808"), Some(i64::MIN));
        for bad in ["", "-", "-0", "007", "+1", " 1", "9223372036854775808", "1.0"] {
            assert_eq!(integer(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn replies_differ_between_resp2_and_resp3() {
        let reply = Reply::Map(vec![(Reply::bulk("a"), Reply::Null), (Reply::bulk("b"), Reply::Double(1.5))]);
        let (mut two, mut three) = (Vec::new(), Vec::new());
        reply.write(&mut two, false);
        reply.write(&mut three, true);
        assert_eq!(two, b"*4\r\n$1\r\na\r\n$-1\r\n$1\r\nb\r\n$3\r\n1.5\r\n");
        assert_eq!(three, b"%2\r\n$1\r\na\r\n_\r\n$1\r\nb\r\n,1.5\r\n");
    }

    #[test]
    fn scores_read_back_to_the_same_number() {
        for score in
            [0.0, -0.0, 1.0, -3.25, 5e-324, 1e300, 9_007_199_254_740_993.0, f64::INFINITY, f64::NEG_INFINITY]
        {
            assert_eq!(format_double(score).parse::<f64>().unwrap(), score);
        }
        assert_eq!(format_double(42.0), "42");
    }

    proptest::proptest! {
        #[test]
        fn any_split_of_any_bytes_is_read_without_panic(bytes: Vec<u8>, text in "[*$+:\\-0-9a\r\n]{0,40}") {
            for input in [bytes.as_slice(), text.as_bytes()] {
                match parse(input) {
                    Ok(Parsed::Command(_, used) | Parsed::Nothing(used)) => assert!((1..=input.len()).contains(&used)),
                    Ok(Parsed::Need(bytes)) => assert!(bytes > input.len()),
                    Err(_) => {}
                }
                if let Ok(Some((_, used))) = parse_reply(input) {
                    assert!((1..=input.len()).contains(&used));
                }
            }
        }

        #[test]
        fn commands_come_back_as_they_were(argv: Vec<Vec<u8>>) {
            proptest::prop_assume!(!argv.is_empty());
            let mut wire = Vec::new();
            write_command(&mut wire, &argv);
            let length = wire.len();
            wire.extend(b"more");
            assert_eq!(parse(&wire), Ok(Parsed::Command(argv, length)));
        }
    }
}
