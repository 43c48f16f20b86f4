//! Text of others, which ends up in log lines, in errors and in our own records.

use serde::{Deserialize, Deserializer};

/// What others say for people is cut to so many characters: it ends up in log lines and in our records.
const LONGEST_TEXT: usize = 200;

/// Text of others in one line that is not too long.
pub fn plain(text: &str) -> String {
    let mut chars = text.chars();
    let harmless = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    let mut shown: String = chars.by_ref().take(LONGEST_TEXT).map(harmless).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

pub fn for_people<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    String::deserialize(deserializer).map(|text| plain(&text))
}

/// Anybody may have written it.
pub fn label<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(|text| plain(&text)))
}
