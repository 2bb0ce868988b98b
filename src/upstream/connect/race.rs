//! Which of a host's addresses to dial, in which order and when: Happy Eyeballs (RFC 8305). Knows no names and
//! remembers nothing.

use std::fmt;
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use super::seam::{BoxFuture, Connect, Stream};

/// The next address is dialled when the last one has not answered for so long: the Connection Attempt Delay of RFC
/// 8305 §5.
pub const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Addresses of one host that are dialled. With the delay between them the last one still has a second of a
/// connection's five.
pub const ADDRESSES_MAX: usize = 16;

/// What is known of a host's addresses from the last connections to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// It answered when one before it did not: it goes first.
    pub works: Option<IpAddr>,
    /// They took a connection and then failed: they go last, the one that failed last at the end.
    pub fails: Vec<IpAddr>,
}

/// The order in which to dial (RFC 8305 §4): one family and the other by turns, beginning with that of the resolver's
/// first answer or of the address that is known to work.
pub fn order(addresses: &[IpAddr], known: &Known) -> Vec<IpAddr> {
    let last: Vec<IpAddr> = known.fails.iter().copied().filter(|failed| addresses.contains(failed)).collect();
    let (works, others): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.iter().filter(|address| !last.contains(address)).partition(|address| known.works == Some(**address));
    let first = [works.as_slice(), &others].concat();
    // Where one address took a connection and then failed, its whole family may be broken.
    let other_than_failed = last.last().and_then(|failed| first.iter().find(|address| address.is_ipv6() != failed.is_ipv6()));
    let is_v6 = works.first().or(other_than_failed).or(first.first()).is_some_and(IpAddr::is_ipv6);
    // Within a family the resolver's order stays (RFC 6724 §6).
    let (same, other): (Vec<IpAddr>, Vec<IpAddr>) = first.into_iter().partition(|address| address.is_ipv6() == is_v6);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let mut ordered = Vec::with_capacity(addresses.len());
    while ordered.len() + last.len() < addresses.len() {
        ordered.extend(same.next().into_iter().chain(other.next()));
    }
    ordered.extend(last);
    ordered.truncate(ADDRESSES_MAX);
    ordered
}

/// Dials one address after the other, each as soon as the last one fails or is slow, and returns the first stream;
/// the dials that are left are dropped.
///
/// # Errors
/// With what became of each address, when all have failed or it is `deadline`.
pub async fn race(
    connect: &dyn Connect,
    addresses: &[IpAddr],
    port: u16,
    deadline: Instant,
) -> Result<(IpAddr, Box<dyn Stream>), NoConnection> {
    let begun = Instant::now();
    let mut waiting = addresses.iter().copied();
    let mut dials: Vec<(IpAddr, Dial<'_>)> = Vec::new();
    let mut failures: Vec<(IpAddr, String)> = Vec::new();
    let mut next_at = begun;
    loop {
        if Instant::now() >= next_at
            && let Some(address) = waiting.next()
        {
            dials.push((address, connect.dial(SocketAddr::new(address, port))));
            next_at = Instant::now() + ATTEMPT_DELAY;
        }
        if dials.is_empty() {
            return Err(NoConnection { failures, waited: None });
        }
        let wake_at = if waiting.len() > 0 { next_at.min(deadline) } else { deadline };
        match timeout_at(wake_at, first_of(&mut dials)).await {
            Ok((address, Ok(stream))) => return Ok((address, stream)),
            Ok((address, Err(error))) => {
                failures.push((address, error.to_string()));
                next_at = Instant::now();
            }
            Err(_) if Instant::now() >= deadline => {
                failures.extend(dials.iter().map(|(address, _)| (*address, "no answer".to_owned())));
                failures.extend(waiting.map(|address| (address, "not tried".to_owned())));
                return Err(NoConnection { failures, waited: Some(begun.elapsed()) });
            }
            Err(_) => {}
        }
    }
}

type Dial<'a> = BoxFuture<'a, io::Result<Box<dyn Stream>>>;

/// The first dial that ends; it is taken out.
fn first_of<'a>(dials: &mut Vec<(IpAddr, Dial<'a>)>) -> impl Future<Output = (IpAddr, io::Result<Box<dyn Stream>>)> {
    poll_fn(move |context| {
        for index in 0..dials.len() {
            if let Some((address, dial)) = dials.get_mut(index)
                && let Poll::Ready(dialled) = dial.as_mut().poll(context)
            {
                let address = *address;
                drop(dials.swap_remove(index));
                return Poll::Ready((address, dialled));
            }
        }
        Poll::Pending
    })
}

/// Why none of a host's addresses took a connection.
#[derive(Debug)]
pub struct NoConnection {
    failures: Vec<(IpAddr, String)>,
    /// How long, where the time was up.
    waited: Option<Duration>,
}

/// `no connection in 5 s: no answer (2001:db8::1, 2001:db8::2); connection refused (192.0.2.1)`.
impl fmt::Display for NoConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(waited) = self.waited {
            write!(f, "no connection in {} s: ", waited.as_secs())?;
        }
        let mut reasons: Vec<&str> = self.failures.iter().map(|(_, why)| why.as_str()).collect();
        let mut seen = Vec::new();
        reasons.retain(|why| {
            !seen.contains(why) && {
                seen.push(*why);
                true
            }
        });
        for (place, reason) in reasons.iter().enumerate() {
            let addresses: Vec<String> =
                self.failures.iter().filter(|(_, why)| why == reason).map(|(address, _)| address.to_string()).collect();
            write!(f, "{}{reason} ({})", if place == 0 { "" } else { "; " }, addresses.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses whose first octet, or group, says what they do: 1 answers, 2 refuses, 3 is silent, 4 answers after a
    /// second.
    struct Lab;

    impl Connect for Lab {
        fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
            Box::pin(std::future::pending())
        }

        fn dial(&self, address: SocketAddr) -> Dial<'_> {
            let kind = match address.ip() {
                IpAddr::V4(v4) => v4.octets()[0],
                IpAddr::V6(v6) => v6.octets()[1],
            };
            Box::pin(async move {
                match kind {
                    2 => return Err(io::ErrorKind::ConnectionRefused.into()),
                    3 => return std::future::pending().await,
                    4 => tokio::time::sleep(Duration::from_secs(1)).await,
                    _ => {}
                }
                Ok(Box::new(tokio::io::duplex(1).0) as Box<dyn Stream>)
            })
        }
    }

    fn parsed(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().expect("an address")).collect()
    }

    /// Who won or why nobody did, and after how many milliseconds.
    async fn raced(addresses: &[&str]) -> (String, u128) {
        let begun = Instant::now();
        let won = race(&Lab, &parsed(addresses), 80, begun + Duration::from_secs(5)).await;
        (won.map_or_else(|error| error.to_string(), |(address, _)| address.to_string()), begun.elapsed().as_millis())
    }

    #[test]
    fn families_take_turns_from_the_resolver_s_first_answer_on() {
        let addresses = parsed(&["2::1", "2::2", "2::3", "1.0.0.1", "1.0.0.2"]);
        let nothing = Known::default();
        assert_eq!(order(&addresses, &nothing), parsed(&["2::1", "1.0.0.1", "2::2", "1.0.0.2", "2::3"]));
        let ordered =
            |works: &[&str], fails: &[&str]| order(&addresses, &Known { works: parsed(works).first().copied(), fails: parsed(fails) });
        assert_eq!(ordered(&["1.0.0.2"], &[]), parsed(&["1.0.0.2", "2::1", "1.0.0.1", "2::2", "2::3"]));
        assert_eq!(ordered(&["9.9.9.9"], &["9::9"]), order(&addresses, &nothing), "they are of this name no more");
        let other_family_first = parsed(&["1.0.0.1", "2::2", "1.0.0.2", "2::3", "2::1"]);
        assert_eq!(ordered(&[], &["2::1"]), other_family_first, "all of its family may be broken");
        let every_failure_last = parsed(&["1.0.0.2", "2::3", "2::2", "2::1", "1.0.0.1"]);
        assert_eq!(ordered(&[], &["2::2", "2::1", "1.0.0.1"]), parsed(&["2::3", "1.0.0.2", "2::2", "2::1", "1.0.0.1"]));
        assert_eq!(ordered(&["1.0.0.2"], &["2::2", "2::1", "1.0.0.1"]), every_failure_last);
        let only = Known { works: None, fails: parsed(&["1.0.0.1"]) };
        assert_eq!(order(&parsed(&["1.0.0.1"]), &only), parsed(&["1.0.0.1"]));
        let many: Vec<IpAddr> = (0..99).map(|last| IpAddr::from([1, 0, 0, last])).collect();
        assert_eq!(order(&many, &nothing), many[..ADDRESSES_MAX]);
        assert!(order(&[], &nothing).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_is_dialled_after_a_quarter_of_a_second_or_at_once_after_a_refusal() {
        assert_eq!(raced(&["1.0.0.1", "3.0.0.1"]).await, ("1.0.0.1".into(), 0));
        assert_eq!(raced(&["3.0.0.1", "1.0.0.1"]).await, ("1.0.0.1".into(), 250));
        assert_eq!(raced(&["2.0.0.1", "2.0.0.2", "1.0.0.1"]).await, ("1.0.0.1".into(), 0));
        assert_eq!(raced(&["3.0.0.1", "2.0.0.1", "3.0.0.2", "1.0.0.1"]).await, ("1.0.0.1".into(), 500));
        assert_eq!(raced(&["4.0.0.1", "3.0.0.1", "3.0.0.2"]).await, ("4.0.0.1".into(), 1000), "who was slow may still win");
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_tells_of_every_address() {
        assert_eq!(raced(&["2.0.0.1", "2::1"]).await, ("connection refused (2.0.0.1, 2::1)".into(), 0));
        let silent = "no connection in 5 s: connection refused (2.0.0.1); no answer (3.0.0.1, 3::1)";
        assert_eq!(raced(&["3.0.0.1", "2.0.0.1", "3::1"]).await, (silent.into(), 5000));
    }
}
