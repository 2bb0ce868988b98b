//! `larder pull`: which images are meant, and what to say of them.

use std::collections::HashSet;
use std::io::{self, Read};
use std::path::Path;

use super::client::{answer, block_on};
use super::print::Form;
use crate::config::Config;
use crate::control::{self, Answer, Ask};
use crate::exit::ExitError;
use crate::mirror::{Platforms, Warmed};

/// Of a question: a request's head has 64 KiB.
const ASK_BYTES_MAX: usize = 32 * 1024;
/// Of a list of images: some 100,000.
const LIST_BYTES_MAX: u64 = 8 << 20;

/// Makes images complete, says how far it is on stderr, and prints what came of it. `texts` are references as clients have
/// them, each with the place where it was written, if that is a list.
///
/// # Errors
/// When a reference or platform is none, nobody could answer, or an image is incomplete.
pub fn pull(config: &Config, texts: &[(Option<String>, String)], platforms: &[String], form: Form) -> Result<(), ExitError> {
    Platforms::parse(platforms).map_err(|fault| ExitError::Usage(format!("--platform: {fault}")))?;
    let images = images(config, texts)?;
    let warmed = block_on(ask_all(config, &images, platforms, form))?;
    let incomplete = warmed.iter().filter(|image| !image.complete).count();
    let of = warmed.len();
    form.print(&Answer::Pulled(warmed))?;
    match incomplete {
        0 => Ok(()),
        _ => Err(ExitError::Failed(format!("{incomplete} of {of} images are incomplete"))),
    }
}

/// The images that are meant, each once. All that are none are named at once.
fn images(config: &Config, texts: &[(Option<String>, String)]) -> Result<Vec<String>, ExitError> {
    let (mut images, mut seen, mut faults) = (Vec::new(), HashSet::new(), Vec::new());
    for (place, text) in texts {
        match control::image(text, config) {
            Ok(image) if seen.insert(image.clone()) => images.push(image),
            Ok(_) => {}
            Err(fault) => faults.push(place.as_ref().map_or_else(|| fault.clone(), |place| format!("{place}: {fault}"))),
        }
    }
    match (faults.is_empty(), images.is_empty()) {
        (false, _) => Err(ExitError::Usage(faults.join("\n"))),
        (true, true) => Err(ExitError::Usage("no image is named; write references such as alpine:3.20, or -f FILE with one a line".into())),
        (true, false) => Ok(images),
    }
}

/// Asks, in as many questions as it takes.
async fn ask_all(config: &Config, images: &[String], platforms: &[String], form: Form) -> Result<Vec<Warmed>, ExitError> {
    let mut warmed = Vec::new();
    for images in parts(images) {
        match answer(config, Ask::Pull { images: images.to_vec(), platforms: platforms.to_vec() }, form).await? {
            Answer::Pulled(mut part) => warmed.append(&mut part),
            _ => return Err(ExitError::Failed("the daemon answered another question; is it of another version?".into())),
        }
    }
    Ok(warmed)
}

/// Slices that fit into one question each.
fn parts(images: &[String]) -> Vec<&[String]> {
    let (mut parts, mut begin, mut bytes) = (Vec::new(), 0, 0);
    for (at, image) in images.iter().enumerate() {
        let own = image.len() + "&image=".len();
        if bytes + own > ASK_BYTES_MAX && at > begin {
            parts.push(&images[begin..at]);
            (begin, bytes) = (at, 0);
        }
        bytes += own;
    }
    parts.push(&images[begin..]);
    parts
}

/// The references of a list, with their places: one a line, but for blank ones and what follows a `#`. `-` is stdin.
///
/// # Errors
/// When it cannot be read.
pub fn read_list(path: &Path) -> Result<Vec<(Option<String>, String)>, ExitError> {
    let is_stdin = path.as_os_str() == "-";
    let shown = if is_stdin { "stdin".to_owned() } else { path.display().to_string() };
    let fail = |error: io::Error| ExitError::Usage(format!("{shown}: {error}"));
    let mut text = String::new();
    let read = if is_stdin {
        io::stdin().take(LIST_BYTES_MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(LIST_BYTES_MAX).read_to_string(&mut text))
    };
    let is_cut = read.map_err(fail)? as u64 == LIST_BYTES_MAX;
    if is_cut {
        return Err(ExitError::Usage(format!(
            "{shown}: a list of images of more than {} is not read; split it",
            crate::units::size(LIST_BYTES_MAX)
        )));
    }
    let reference = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    let lines = text.lines().map(reference).enumerate().filter(|(_, reference)| !reference.is_empty());
    Ok(lines.map(|(at, reference)| (Some(format!("{shown}:{}", at + 1)), reference)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_is_asked_for_in_parts_that_fit_into_a_request_each() {
        let images: Vec<String> = (0..2000).map(|n| format!("docker.io/library/an-image-with-a-long-name:{n}")).collect();
        let parts = parts(&images);
        assert!(parts.len() > 2 && parts.concat() == images);
        for part in &parts {
            let (_, target) = Ask::Pull { images: part.to_vec(), platforms: vec!["linux/amd64".into()] }.request();
            assert!(target.len() < 33 * 1024, "{}", target.len());
        }
        assert_eq!(super::parts(&images[..1]), [&images[..1]]);
    }
}
