//! The clocks of source, destination and this host. Times of expiry are absolute on the wire, so a key ends on the destination as
//! much earlier or later as the destination's clock is ahead of the source's or behind it.

use super::events::unix_ms;
use super::net::{Connection, NetError};
use crate::format;
use crate::resp::Reply;

/// Clocks that differ by more (ms) are worth a word.
const WORTH_A_WORD_MS: i64 = 1_000;

/// How far the server's clock is ahead of this host's (ms), by TIME; `None` where it does not tell.
pub async fn skew_ms(connection: &mut Connection) -> Result<Option<i64>, NetError> {
    let asked = unix_ms();
    let Reply::Array(time) = connection.request(&[b"TIME"]).await? else { return Ok(None) };
    let answered = unix_ms();
    let number = |at: usize| time.get(at).and_then(Reply::text)?.parse::<i64>().ok();
    let theirs = number(0)
        .zip(number(1))
        .map(|(seconds, micros)| seconds.saturating_mul(1000).saturating_add(micros / 1000));
    let ours = i64::try_from(asked.midpoint(answered)).unwrap_or(i64::MAX);
    Ok(theirs.map(|theirs| theirs.saturating_sub(ours)))
}

/// Now by the server's clock (Unix ms); by this host's where it does not tell.
pub async fn now_ms(connection: &mut Connection) -> Result<i64, NetError> {
    let ahead = skew_ms(connection).await?.unwrap_or(0);
    Ok(i64::try_from(unix_ms()).unwrap_or(i64::MAX).saturating_add(ahead))
}

/// "3 s ahead of", "1m05s behind"; `None` where the difference is too small for a word.
pub fn in_words(skew_ms: i64) -> Option<String> {
    (skew_ms.abs() > WORTH_A_WORD_MS).then(|| {
        let time = format::spoken_duration(skew_ms.unsigned_abs() as f64 / 1000.0);
        format!("{time} {}", if skew_ms > 0 { "ahead of" } else { "behind" })
    })
}

/// What the operator must know while the clocks of both sides differ.
pub fn warning(source_skew_ms: i64, destination_skew_ms: i64) -> Option<String> {
    let between = destination_skew_ms.saturating_sub(source_skew_ms);
    let words = in_words(between)?;
    let end = if between > 0 { "earlier" } else { "later" };
    Some(format!(
        "CLOCKS DIFFER: the destination's is {words} the source's; keys with a time to live end that much {end} there"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_difference_that_matters_is_said_and_in_which_direction() {
        assert_eq!(warning(0, 900), None);
        assert_eq!(warning(7_200_000, 7_200_400), None, "both are wrong by the same");
        let ahead = warning(-1_000, 2_000).unwrap_or_default();
        assert!(ahead.contains("3 s ahead of the source's") && ahead.contains("earlier"), "{ahead}");
        let behind = warning(0, -65_000).unwrap_or_default();
        assert!(behind.contains("behind the source's") && behind.contains("later"), "{behind}");
    }
}
