//! Makes untrusted texts safe to show on a terminal and in a log.

/// Escapes control characters, and other characters that a terminal does not print. Text that was
/// escaped before stays the same.
#[must_use]
pub fn as_text(text: &str) -> String {
    let marks = ['\'', '"', '\\'];
    let mut shown = String::with_capacity(text.len());
    for part in text.split_inclusive(marks) {
        let (plain, mark) = part.split_at(part.trim_end_matches(marks).len());
        shown.extend(plain.escape_debug());
        shown += mark;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_text_cannot_control_a_terminal() {
        let plain =
            "caf\u{e9} \u{939}\u{93f}\u{928}\u{94d}\u{926}\u{940} \u{1f980} 'a' \"b\" C:\\d";
        assert_eq!(as_text(plain), plain);
        for (text, shown) in [
            ("\x1b[31mred", "\\u{1b}[31mred"),
            ("two\nlines\tand\r", "two\\nlines\\tand\\r"),
            ("\u{9b}31m \u{7f} \u{202e}", "\\u{9b}31m \\u{7f} \\u{202e}"),
            ("'\x07'\"\x08\"\\\x0b", "'\\u{7}'\"\\u{8}\"\\\\u{b}"),
        ] {
            assert_eq!(as_text(text), shown);
            assert_eq!(as_text(shown), shown);
        }
    }
}
