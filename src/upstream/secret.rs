//! Header values that nobody prints. Knows no credential and no host.

use http::HeaderValue;

/// A header value whose Debug says only that it is secret. `None` where the text does not fit into a header.
pub fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}
