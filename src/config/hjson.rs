//! Reads Hjson as DeepSpeed's reader does: JSON with comments, trailing or no commas, keys and strings without quotes,
//! single quotes, strings of several lines, and no braces around the whole.
//!
//! What it takes follows Python's `hjson` 3.1, so that a configuration that a run has read means the same here (but a sign
//! among the four digits of `\u`). A string without quotes goes on to the end of its line, commas and comments and all.

use serde_json::{Map, Number, Value as Json};

use super::json::shown_key;

/// Objects and arrays inside one another, at most; as many as in JSON.
const DEPTH_MAX: u32 = 127;

/// What may not begin a string without quotes, nor stand in such a key.
const PUNCTUATION: &[u8] = b"{}[],:";

/// Numbers written with a point or an exponent are whole ones below this, when nothing is behind the point.
const WHOLE_MAX: f64 = 1e10;

/// What a missing brace is told.
const INSIDE: &str = "the end of the file inside of an object or an array (a string without quotes goes on to the end of its line)";

/// Why a text is no Hjson, with the byte where that shows.
#[derive(Debug)]
struct Fault {
    at: usize,
    what: String,
}

type Parsed<T> = Result<T, Fault>;

/// Reads an object; the error ends with line and column.
pub(super) fn parse(text: &str) -> Result<Map<String, Json>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    Reader { text, bytes: text.as_bytes(), at: 0, depth: 0 }.document().map_err(|fault| {
        let before = &text.as_bytes()[..fault.at.min(text.len())];
        let line = before.split(|byte| *byte == b'\n').next_back().unwrap_or_default();
        let number = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = String::from_utf8_lossy(line).chars().count() + 1;
        format!("{} at line {number} column {column}", fault.what)
    })
}

struct Reader<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl Reader<'_> {
    fn document(&mut self) -> Parsed<Map<String, Json>> {
        let object = match self.next()? {
            None => return Ok(Map::new()),
            Some(b'{') => {
                self.at += 1;
                self.object(Some(b'}'))?
            }
            Some(_) => self.object(None)?,
        };
        match self.next()? {
            None => Ok(object),
            Some(_) => self.fail("something behind the last brace"),
        }
    }

    fn fail<T>(&self, what: impl Into<String>) -> Parsed<T> {
        Err(Fault { at: self.at, what: what.into() })
    }

    fn here(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn follows(&self, what: &[u8]) -> bool {
        self.bytes[self.at..].starts_with(what)
    }

    fn is_at_line_end(&self) -> bool {
        matches!(self.here(), None | Some(b'\n' | b'\r'))
    }

    /// The next byte that is neither blank nor of a comment.
    fn next(&mut self) -> Parsed<Option<u8>> {
        loop {
            match self.here() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(b'#') => self.skip_line(),
                Some(b'/') if self.follows(b"//") => self.skip_line(),
                Some(b'/') if self.follows(b"/*") => match self.text[self.at + 2..].find("*/") {
                    Some(length) => self.at += length + 4,
                    None => return self.fail("a comment without an end"),
                },
                other => return Ok(other),
            }
        }
    }

    fn skip_line(&mut self) {
        while !self.is_at_line_end() {
            self.at += 1;
        }
    }

    /// The keys and values up to the brace, or up to the end of the text where there is none.
    fn object(&mut self, end: Option<u8>) -> Parsed<Map<String, Json>> {
        let mut object = Map::new();
        if end.is_some() && self.next()? == end {
            self.at += 1;
            return Ok(object);
        }
        loop {
            self.next()?;
            let key_at = self.at;
            let key = self.key()?;
            if object.contains_key(&key) {
                let what = format!("the key {} stands twice", shown_key(&key));
                return Err(Fault { at: key_at, what });
            }
            if self.next()? != Some(b':') {
                return self.fail(format!("no colon behind the key {}", shown_key(&key)));
            }
            self.at += 1;
            let value = self.value()?;
            object.insert(key, value);
            if self.ends(end)? {
                return Ok(object);
            }
        }
    }

    /// Behind a value: takes a comma, and the end when it follows.
    fn ends(&mut self, end: Option<u8>) -> Parsed<bool> {
        if self.next()? == Some(b',') {
            self.at += 1;
        }
        match self.next()? {
            found if found == end => {
                self.at += usize::from(end.is_some());
                Ok(true)
            }
            None => self.fail(INSIDE),
            Some(_) => Ok(false),
        }
    }

    fn array(&mut self) -> Parsed<Vec<Json>> {
        let mut array = Vec::new();
        if self.next()? == Some(b']') {
            self.at += 1;
            return Ok(array);
        }
        loop {
            array.push(self.value()?);
            if self.ends(Some(b']'))? {
                return Ok(array);
            }
        }
    }

    fn key(&mut self) -> Parsed<String> {
        if let Some(quote @ (b'"' | b'\'')) = self.here() {
            return self.quoted(quote);
        }
        let start = self.at;
        let mut blank = None;
        loop {
            match self.here() {
                None => return self.fail("the end of the file where a key was expected"),
                Some(b':') if self.at == start => return self.fail("a colon without a key"),
                Some(b':') => return Ok(self.text[start..blank.unwrap_or(self.at)].to_owned()),
                Some(b' ' | b'\t' | b'\n' | b'\r') => _ = blank.get_or_insert(self.at),
                Some(byte) if PUNCTUATION.contains(&byte) => {
                    return self.fail(format!("{} where a key was expected", char::from(byte)));
                }
                Some(_) if blank.is_some() => {
                    return self.fail("a key with blanks in it, which needs quotes");
                }
                Some(_) => {}
            }
            self.at += 1;
        }
    }

    fn value(&mut self) -> Parsed<Json> {
        let first = self.next()?;
        if let Some(b'{' | b'[') = first {
            if self.depth == DEPTH_MAX {
                return self.fail("objects and arrays nested too deep");
            }
            self.depth += 1;
            self.at += 1;
            let value = match first {
                Some(b'{') => Json::Object(self.object(Some(b'}'))?),
                _ => Json::Array(self.array()?),
            };
            self.depth -= 1;
            return Ok(value);
        }
        match first {
            None => self.fail("the end of the file where a value was expected"),
            Some(b'\'') if self.follows(b"'''") => self.lines().map(Json::String),
            Some(quote @ (b'"' | b'\'')) => self.quoted(quote).map(Json::String),
            Some(byte) if PUNCTUATION.contains(&byte) => {
                self.fail(format!("{} where a value was expected", char::from(byte)))
            }
            Some(_) => self.bare(),
        }
    }

    /// A number, a word of JSON, or a string without quotes.
    fn bare(&mut self) -> Parsed<Json> {
        let start = self.at;
        let number_end = start + number_length(&self.bytes[start..]);
        loop {
            let is_line_end = self.is_at_line_end();
            let may_end = is_line_end
                || matches!(self.here(), Some(b',' | b'}' | b']' | b'#'))
                || self.follows(b"//")
                || self.follows(b"/*");
            if may_end {
                let word = &self.text[start..self.at];
                match word.trim() {
                    "null" => return Ok(Json::Null),
                    "true" => return Ok(true.into()),
                    "false" => return Ok(false.into()),
                    text if number_end > start
                        && start + text.len() == number_end
                        && word[text.len()..].bytes().all(|byte| matches!(byte, b' ' | b'\t')) =>
                    {
                        return self.number(text);
                    }
                    text if is_line_end => return Ok(text.into()),
                    _ => {}
                }
            }
            self.at += 1;
        }
    }

    fn number(&self, text: &str) -> Parsed<Json> {
        let number = match (text.parse::<u64>(), text.parse::<i64>()) {
            (Ok(number), _) => Some(number.into()),
            (_, Ok(number)) => Some(number.into()),
            _ => text.parse().ok().and_then(|float: f64| {
                match float.fract() == 0.0 && float.abs() < WHOLE_MAX {
                    true => Some((float as i64).into()),
                    false => Number::from_f64(float),
                }
            }),
        };
        number.map(Json::Number).map_or_else(|| self.fail("number out of range"), Ok)
    }

    fn quoted(&mut self, quote: u8) -> Parsed<String> {
        let start = self.at;
        self.at += 1;
        let mut string = String::new();
        loop {
            let from = self.at;
            while self.here().is_some_and(|byte| byte >= b' ' && byte != quote && byte != b'\\') {
                self.at += 1;
            }
            string.push_str(&self.text[from..self.at]);
            match self.here() {
                None => {
                    return Err(Fault { at: start, what: "a string without an end".to_owned() });
                }
                Some(b'\\') => string.push(self.escaped()?),
                Some(byte) if byte == quote => {
                    self.at += 1;
                    return Ok(string);
                }
                Some(_) => return self.fail("a control character in a string"),
            }
        }
    }

    /// What a backslash and what follows it stand for.
    fn escaped(&mut self) -> Parsed<char> {
        let letter = match self.bytes.get(self.at + 1) {
            Some(byte @ (b'"' | b'\'' | b'\\' | b'/')) => char::from(*byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => return self.unicode(),
            _ => return self.fail("a backslash before something that it does not escape"),
        };
        self.at += 2;
        Ok(letter)
    }

    /// `\uXXXX`, or two of them for a character beyond; half of such a pair is no character.
    fn unicode(&mut self) -> Parsed<char> {
        let unit = |at: usize| {
            let digits = self.bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
            let digits = std::str::from_utf8(digits).ok()?;
            let is_hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            is_hex.then(|| u16::from_str_radix(digits, 16).ok()).flatten()
        };
        let Some(first) = unit(self.at) else {
            return self.fail("\\u without four hexadecimal digits");
        };
        let units = [first, unit(self.at + 6).unwrap_or(0)];
        match char::decode_utf16(units).next() {
            Some(Ok(letter)) => {
                self.at += 6 * letter.len_utf16();
                Ok(letter)
            }
            _ => self.fail("half of a surrogate pair, which is no character"),
        }
    }

    /// A string between `'''`, whose lines lose as many blanks as stand before the first quote, and the last line end.
    fn lines(&mut self) -> Parsed<String> {
        let start = self.at;
        let line = self.text[..start].rfind('\n').map_or(0, |end| end + 1);
        let indent = self.text[line..start].chars().count();
        let is_blank = |byte: u8| matches!(byte, b' ' | b'\t' | b'\r');
        let skip = |reader: &mut Self, most: usize| {
            let blanks = reader.bytes[reader.at..].iter().take_while(|byte| is_blank(**byte));
            reader.at += blanks.take(most).count();
        };
        self.at += 3;
        skip(self, usize::MAX);
        if self.here() == Some(b'\n') {
            self.at += 1;
            skip(self, indent);
        }
        let mut string = String::new();
        loop {
            let from = self.at;
            while self.here().is_some_and(|byte| !matches!(byte, b'\n' | b'\r' | b'\'')) {
                self.at += 1;
            }
            string.push_str(&self.text[from..self.at]);
            match self.here() {
                None => {
                    return Err(Fault { at: start, what: "a string without an end".to_owned() });
                }
                Some(b'\'') if self.follows(b"'''") => {
                    self.at += 3;
                    let length = string.strip_suffix('\n').unwrap_or(&string).len();
                    string.truncate(length);
                    return Ok(string);
                }
                Some(b'\n') => {
                    string.push('\n');
                    self.at += 1;
                    skip(self, indent);
                }
                Some(byte) => {
                    string.extend((byte == b'\'').then_some('\''));
                    self.at += 1;
                }
            }
        }
    }
}

/// Bytes of the number that a text begins with; 0 for none.
fn number_length(text: &[u8]) -> usize {
    let digits = |from: usize| text[from..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let sign = usize::from(text.first() == Some(&b'-'));
    let whole = match digits(sign) {
        0 => return 0,
        // A zero in front of other digits is no number.
        _ if text[sign] == b'0' => 1,
        count => count,
    };
    let mut end = sign + whole;
    if text.get(end) == Some(&b'.') && digits(end + 1) > 0 {
        end += 1 + digits(end + 1);
    }
    if let Some(b'e' | b'E') = text.get(end) {
        let sign = usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        match digits(end + 1 + sign) {
            0 => {}
            count => end += 1 + sign + count,
        }
    }
    end
}

#[cfg(test)]
mod tests;
