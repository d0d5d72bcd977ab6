// SPDX-License-Identifier: Apache-2.0
//! Patterns of module aliases: `*`, `?`, `[a-z]`. A dash and an underscore are the same, as everywhere about modules.

/// Whether the pattern fits the whole text. Time is bounded by their product.
pub(super) fn fits(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // where to go on after the last star when what follows does not fit
    let mut again: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            again = Some((p + 1, t));
            p += 1;
        } else if let Some(length) = one(&pattern[p..], text[t]) {
            (p, t) = (p + length, t + 1);
        } else if let Some((star, from)) = again {
            again = Some((star, from + 1));
            (p, t) = (star, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// Length of the piece of the pattern that takes this byte.
fn one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern.first()? {
        b'?' => Some(1),
        b'[' => {
            let close = pattern.iter().position(|c| *c == b']')?;
            let inside = &pattern[1..close];
            let mut at = 0;
            while at < inside.len() {
                let is_range = inside.get(at + 1) == Some(&b'-') && at + 2 < inside.len();
                let last = if is_range { inside[at + 2] } else { inside[at] };
                if (inside[at]..=last).contains(&byte) {
                    return Some(close + 1);
                }
                at += if is_range { 3 } else { 1 };
            }
            None
        }
        plain => (same(*plain) == same(byte)).then_some(1),
    }
}

fn same(byte: u8) -> u8 {
    if byte == b'-' { b'_' } else { byte }
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns_fit_as_those_of_modules_do() {
        for (pattern, text, is_fit) in [
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4", true),
            ("pci:v*d*sv*sd*bc0Csc03i30*", "pci:v00001B36d0000000Dsv00001AF4sd00001100bc0Csc03i30", true),
            ("pci:v00008086d*", "pci:v00001AF4d00001000", false),
            (
                "cpu:type:x86,ven0000fam*mod*:feature:*0088*",
                "cpu:type:x86,ven0000fam0006mod0055:feature:,0088,",
                true,
            ),
            ("usb:v*p*d01[0-9a]*", "usb:v1p2d015", true),
            ("usb:v*p*d01[0-9a]*", "usb:v1p2d01b", false),
            ("nft-expr-1-nat", "nft_expr_1_nat", true),
            ("*", "", true),
            ("a?c", "abc", true),
            ("a[", "ab", false),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, text), is_fit, "{pattern} {text}");
        }
    }
}
