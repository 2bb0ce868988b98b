//! What an operator wants to read of a certificate: who signed it, and until when it is good. Pure. It vouches for nothing;
//! that is rustls's business.

/// As it stands in the certificate, whoever wrote that.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Certificate {
    /// The issuer's common name, else its organisation.
    pub issuer: Option<String>,
    /// The last day, as `2026-11-21`.
    pub until: Option<String>,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const VERSION: u8 = 0xa0;
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const ORGANISATION: &[u8] = &[0x55, 0x04, 0x0a];
const NAME_CHARACTERS_MAX: usize = 64;

impl Certificate {
    /// From DER (RFC 5280 §4.1). What it cannot read it does not tell.
    pub fn read(der: &[u8]) -> Certificate {
        fields(der).unwrap_or_default()
    }
}

fn fields(der: &[u8]) -> Option<Certificate> {
    let mut certificate = Der(Der(der).expect(SEQUENCE)?);
    let mut to_be_signed = Der(certificate.expect(SEQUENCE)?);
    if to_be_signed.0.first() == Some(&VERSION) {
        to_be_signed.expect(VERSION)?;
    }
    to_be_signed.expect(INTEGER)?;
    to_be_signed.expect(SEQUENCE)?;
    let issuer = to_be_signed.expect(SEQUENCE)?;
    let mut validity = Der(to_be_signed.expect(SEQUENCE)?);
    validity.next()?;
    let until = validity.next().and_then(|(tag, text)| day(tag, text));
    Some(Certificate { issuer: name(issuer, COMMON_NAME).or_else(|| name(issuer, ORGANISATION)), until })
}

/// One attribute of a distinguished name.
fn name(name: &[u8], attribute: &[u8]) -> Option<String> {
    let mut sets = Der(name);
    while let Some(set) = sets.expect(SET) {
        let mut pair = Der(Der(set).expect(SEQUENCE)?);
        if pair.expect(OBJECT_IDENTIFIER)? == attribute {
            let (_, value) = pair.next()?;
            let text = String::from_utf8_lossy(value);
            let text: String = text.chars().filter(|c| !c.is_control()).take(NAME_CHARACTERS_MAX).collect();
            return (!text.is_empty()).then_some(text);
        }
    }
    None
}

/// `YYMMDD…` of this century or the last, as RFC 5280 splits them at 50; or `YYYYMMDD…`.
fn day(tag: u8, text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.bytes().take(8).all(|byte| byte.is_ascii_digit()))?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let century = if year < "50" { "20" } else { "19" };
            (format!("{century}{year}"), rest)
        }
        GENERALIZED_TIME => text.split_at_checked(4).map(|(year, rest)| (year.to_owned(), rest))?,
        _ => return None,
    };
    Some(format!("{year}-{}-{}", rest.get(..2)?, rest.get(2..4)?))
}

/// What is left of some DER.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next element's tag and content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (octets, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (octets.iter().fold(0, |length, octet| length << 8 | usize::from(*octet)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

    fn made(set: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
        let mut params = CertificateParams::new(vec!["registry.example".to_owned()]).expect("a name");
        params.distinguished_name = rcgen::DistinguishedName::new();
        set(&mut params);
        params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate").der().to_vec()
    }

    #[test]
    fn issuer_and_last_day_are_read() {
        let der = made(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "Corp");
            params.distinguished_name.push(DnType::CommonName, "Corp Root\u{1b}[2J");
            params.not_after = date_time_ymd(2031, 2, 7);
        });
        let read = Certificate::read(&der);
        assert_eq!((read.issuer.as_deref(), read.until.as_deref()), (Some("Corp Root[2J"), Some("2031-02-07")));
        let der = made(|params| {
            params.distinguished_name.push(DnType::OrganizationName, "Corp");
            params.not_after = date_time_ymd(2090, 12, 31);
        });
        let read = Certificate::read(&der);
        assert_eq!((read.issuer.as_deref(), read.until.as_deref()), (Some("Corp"), Some("2090-12-31")));
        assert_eq!(Certificate::read(&made(|_| ())).issuer, None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(cut in 0usize..400, at in 0usize..400, byte: u8) {
            let mut der = made(|params| params.distinguished_name.push(DnType::CommonName, "Corp"));
            if let Some(old) = der.get_mut(at) {
                *old = byte;
            }
            let _ = Certificate::read(&der);
            let _ = Certificate::read(der.get(..cut).unwrap_or(&der));
        }

        #[test]
        fn no_text_of_a_time_makes_it_panic(tag in UTC_TIME..=GENERALIZED_TIME, text: Vec<u8>) {
            let _ = day(tag, &text);
        }
    }
}
