# What hangs on an image: signatures, attestations, referrers; and artifacts that are no images. Made at the upstream, asked for
# through a larder that would not ask again for an hour, were it an ordinary tag.
# shellcheck shell=bash

PATIENT=127.0.0.1:5010
# olareg, which has the referrers API; docker-registry has not, so its referrers are in a tag. Both of the names below are larder's.
API_UPSTREAM=127.0.0.1:5110
API_NAME=api.example

# A signature that was not there is asked for again after this; one that was added to others after the second.
SEEN_AFTER_ABSENCE=12
SEEN_AFTER_CHANGE=62

SBOM_TYPE=application/vnd.larder.sbom.v1+json
DATA_TYPE=application/vnd.larder.data.v1

start_patient() {
  spawn olareg olareg serve --addr 127.0.0.1 --port "${API_UPSTREAM#*:}" --store-type mem
  wait_for 20 answers "http://$API_UPSTREAM/v2/"
  start_larder patient "${PATIENT#*:}" "http://$UPSTREAM" 1h "$(upstream_login)" "  $API_NAME: {url: \"http://$API_UPSTREAM\", tag_ttl: 1h}"
}

# A pair of keys; with them cosign needs neither the transparency log nor anything else on the internet.
new_key() { (mkdir -p "$TMP/keys" && cd "$TMP/keys" && COSIGN_PASSWORD='' cosign generate-key-pair --output-key-prefix "$1"); }

# sign KEY IMAGE OPTIONS…
sign() {
  local key=$1 image=$2
  shift 2
  COSIGN_PASSWORD='' cosign sign --yes --key "$TMP/keys/$key.key" --tlog-upload=false --allow-http-registry "$@" "$image"
}

attest() {
  COSIGN_PASSWORD='' cosign attest --yes --key "$TMP/keys/$1.key" --tlog-upload=false --allow-http-registry \
    --type custom --predicate "$TMP/sbom.json" "$2"
}

verify() { cosign verify --key "$TMP/keys/$1.pub" --insecure-ignore-tlog=true --allow-http-registry "${@:3}" "$2"; }

verify_attestation() {
  cosign verify-attestation --key "$TMP/keys/$1.pub" --insecure-ignore-tlog=true --allow-http-registry --type custom "$2"
}

# As cosign 3 does it: the signature is a referrer, and no tag of its own.
sign_bundle() { sign "$1" "$2" --new-bundle-format; }
verify_bundle() { verify "$1" "$2" --new-bundle-format --trusted-root "$TMP/keys/trusted_root.json"; }

# referrers_of REFERENCE: what oras finds.
referrers_of() { oras discover --plain-http --format json "$1" | jq -r '.referrers // [] | .[].digest' | sort; }

# attach REFERENCE ANNOTATION
attach() {
  (cd "$TMP" && oras attach --plain-http --artifact-type "$SBOM_TYPE" --annotation "which=$2" "$1" "sbom.json:$SBOM_TYPE")
}

# The same places, as the upstream and as larder has them.
AT_UPSTREAM=("$UPSTREAM/library" "$API_UPSTREAM/library")
AT_LARDER=("$PATIENT/library" "$PATIENT/$API_NAME/library")

push_artifacts() {
  echo '{"parts": ["flour", "salt"]}' >"$TMP/sbom.json"
  head -c 3000000 /dev/urandom >"$TMP/data.bin"
  local at
  for at in "${AT_UPSTREAM[@]}"; do
    (cd "$TMP" && oras push --plain-http --artifact-type application/vnd.larder.test.v1 "$at/artifact:1" "data.bin:$DATA_TYPE")
  done
  # Images of their own, so that nobody has asked for their signatures before.
  for at in "${AT_UPSTREAM[@]}"; do
    crane copy "$UPSTREAM/library/busybox:latest" "$at/signed:latest"
    crane copy "$UPSTREAM/library/busybox:latest" "$at/bundled:latest"
  done
}

artifact_comes_through() {
  local at
  for at in "${AT_LARDER[@]}"; do
    rm -rf "$TMP/pulled"
    oras pull --plain-http --output "$TMP/pulled" "$at/artifact:1"
    cmp "$TMP/data.bin" "$TMP/pulled/data.bin"
    same "type of the layer" "$DATA_TYPE" "$(oras manifest fetch --plain-http "$at/artifact:1" | jq -r '.layers[0].mediaType')"
    same "type of the artifact" application/vnd.larder.test.v1 "$(oras manifest fetch --plain-http "$at/artifact:1" | jq -r .artifactType)"
  done
}

# larder only reads; who tries to write must be told so, and nothing be written.
push_is_refused() {
  local said
  if said=$(cd "$TMP" && oras push --plain-http "$PATIENT/library/pushed:1" "data.bin:$DATA_TYPE" 2>&1); then
    echo "pushed: $said"
    return 1
  fi
  echo "$said"
  grep -qi 'unsupported\|405' <<<"$said"
  same "the upstream's tag" 404 "$(curl -sS -u "$UPSTREAM_USER:$CANARY" -o /dev/null -w '%{http_code}' "http://$UPSTREAM/v2/library/pushed/manifests/1")"
}

# refuses COMMAND ARGS…: it finds no signature, and says so.
refuses() {
  local said
  if said=$("$@" 2>&1); then
    echo "verified: $said"
    return 1
  fi
  echo "$said"
  grep -qi 'no signatures found\|no valid bundles\|no matching attestations' <<<"$said"
}

# So that larder now remembers that there is nothing.
nothing_is_signed_yet() {
  local at
  for at in "${AT_LARDER[@]}"; do
    refuses verify first "$at/signed:latest"
    refuses verify_attestation first "$at/signed:latest"
    refuses verify_bundle first "$at/bundled:latest"
    same "referrers of $at" "" "$(referrers_of "$at/artifact:1")"
  done
}

# change KEY: signs and attaches at the upstreams, which no client of larder's is told.
change() {
  local at
  for at in "${AT_UPSTREAM[@]}"; do
    sign "$1" "$at/signed@$BUSYBOX_DIGEST"
    attest "$1" "$at/signed@$BUSYBOX_DIGEST"
    sign_bundle "$1" "$at/bundled@$BUSYBOX_DIGEST"
    attach "$at/artifact:1" "$1"
  done
}

# left DEADLINE: the seconds until then, one at least: a client that comes late must find it at once.
left() { echo $(($1 > SECONDS ? $1 - SECONDS : 1)); }

# sees COMMAND KEY DEADLINE REFERENCE: it verifies by then.
sees() { wait_for "$(left "$3")" "$1" "$2" "$4" || "$1" "$2" "$4"; }

discovers_alike() { [[ $(referrers_of "${AT_UPSTREAM[$1]}/artifact:1") == "$(referrers_of "${AT_LARDER[$1]}/artifact:1")" ]]; }

# sees_referrers NUMBER DEADLINE N
sees_referrers() {
  same "referrers at the upstream" "$1" "$(referrers_of "${AT_UPSTREAM[$3]}/artifact:1" | wc -l)"
  wait_for "$(left "$2")" discovers_alike "$3" || {
    referrers_of "${AT_LARDER[$3]}/artifact:1"
    return 1
  }
}

# What hangs on an artifact can be pulled, too.
referrer_comes_through() {
  local at digest
  for at in "${AT_LARDER[@]}"; do
    rm -rf "$TMP/pulled"
    digest=$(referrers_of "$at/artifact:1" | head -n 1)
    oras pull --plain-http --output "$TMP/pulled" "$at/artifact@$digest"
    cmp "$TMP/sbom.json" "$TMP/pulled/sbom.json"
  done
}

regctl_finds_the_same_referrers() {
  local n list='{{range .Descriptors}}{{println .Digest}}{{end}}'
  for n in 0 1; do
    same referrers "$(referrers_of "${AT_UPSTREAM[n]}/artifact:1")" \
      "$(regctl artifact list --format "$list" "${AT_LARDER[n]}/artifact:1" | sed '/^$/d' | sort)"
  done
}

WITH=("without the referrers API" "with the referrers API")

# check_tags WHAT DEADLINE KEY N: what cosign 2 writes are tags, whatever the upstream has.
check_tags() {
  local at=${AT_LARDER[$4]}
  check "credential_24: cosign verify: a signature $1 is seen (upstream ${WITH[$4]})" sees verify "$3" "$2" "$at/signed:latest"
  check "credential_24: cosign verify-attestation: one $1 is seen (upstream ${WITH[$4]})" sees verify_attestation "$3" "$2" "$at/signed:latest"
}

# check_referrers WHAT DEADLINE KEY N NUMBER
check_referrers() {
  check "credential_24: cosign verify: a bundle $1 is seen (upstream ${WITH[$4]})" sees verify_bundle "$3" "$2" "${AT_LARDER[$4]}/bundled:latest"
  check "clients_46: oras discover: a referrer $1 is seen (upstream ${WITH[$4]})" sees_referrers "$5" "$2" "$4"
}

prepare_artifacts() {
  new_key first
  new_key second
  cosign trusted-root create --out "$TMP/keys/trusted_root.json"
  push_artifacts
}

artifact_scenarios_begin() {
  local what="that had been asked for in vain" until
  start_patient
  prepare_artifacts >>"$TMP/setup.log" 2>&1
  check "clients_17: an artifact of a type of its own is pulled by oras" artifact_comes_through
  check "clients_47: a push through larder is refused" push_is_refused
  check "credential_23: what is not signed does not verify, and has no referrers" nothing_is_signed_yet
  change first >>"$TMP/setup.log" 2>&1
  until=$((SECONDS + SEEN_AFTER_ABSENCE))
  # With the API, "no referrers" is a list like any other, and may be remembered as long: see the end.
  check_tags "$what" "$until" first 0
  check_tags "$what" "$until" first 1
  check_referrers "$what" "$until" first 0 1
  change second >>"$TMP/setup.log" 2>&1
  CHANGED_AT=$SECONDS
}

# Something else may be done in between, as waiting is all there is to it.
artifact_scenarios_end() {
  local n what="added to another" until=$((CHANGED_AT + SEEN_AFTER_CHANGE))
  for n in 0 1; do
    check_tags "$what" "$until" second "$n"
    check_referrers "$what" "$until" second "$n" 2
  done
  check "the signatures that were there before still verify" first_still_verifies
  check "what was attached is pulled by oras" referrer_comes_through
  check "clients_44: regctl finds the referrers that oras finds" regctl_finds_the_same_referrers
}

first_still_verifies() {
  local at
  for at in "${AT_LARDER[@]}"; do
    verify first "$at/signed:latest"
    verify_attestation first "$at/signed:latest"
    verify_bundle first "$at/bundled:latest"
  done
}
