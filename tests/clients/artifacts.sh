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

# signer NAME COMMAND ARGS…: cosign with that key, and no transparency log, which is on the internet.
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

# referrers_of REFERENCE: what oras finds.
referrers_of() { oras discover --plain-http --format json "$1" | jq -r '.referrers // [] | .[].digest' | sort; }

# attach REFERENCE ANNOTATION
attach() {
  (cd "$TMP" && oras attach --plain-http --artifact-type "$SBOM_TYPE" --annotation "which=$2" "$1" "sbom.json:$SBOM_TYPE")
}

# The same places, as the upstream and as larder has them.
AT_UPSTREAM=("$UPSTREAM/library/artifact:1" "$API_UPSTREAM/library/artifact:1")
AT_LARDER=("$PATIENT/library/artifact:1" "$PATIENT/$API_NAME/library/artifact:1")

push_artifacts() {
  echo '{"parts": ["flour", "salt"]}' >"$TMP/sbom.json"
  head -c 3000000 /dev/urandom >"$TMP/data.bin"
  local at
  for at in "${AT_UPSTREAM[@]}"; do
    (cd "$TMP" && oras push --plain-http --artifact-type application/vnd.larder.test.v1 "$at" "data.bin:$DATA_TYPE")
  done
  # Images of their own, so that nobody has asked for their signatures before.
  crane copy "$UPSTREAM/library/busybox:latest" "$UPSTREAM/library/signed:latest"
  crane copy "$UPSTREAM/library/busybox:latest" "$API_UPSTREAM/library/signed:latest"
}

SIGNED_AT_UPSTREAM=("$UPSTREAM/library/signed" "$API_UPSTREAM/library/signed")
SIGNED_AT_LARDER=("$PATIENT/library/signed" "$PATIENT/$API_NAME/library/signed")

artifact_comes_through() {
  local at
  for at in "${AT_LARDER[@]}"; do
    rm -rf "$TMP/pulled"
    oras pull --plain-http --output "$TMP/pulled" "$at"
    cmp "$TMP/data.bin" "$TMP/pulled/data.bin"
    same "type of the layer" "$DATA_TYPE" "$(oras manifest fetch --plain-http "$at" | jq -r '.layers[0].mediaType')"
    same "type of the artifact" application/vnd.larder.test.v1 "$(oras manifest fetch --plain-http "$at" | jq -r .artifactType)"
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

# So that larder now remembers that there is nothing.
nothing_is_signed_yet() {
  local at said
  for at in "${SIGNED_AT_LARDER[@]}"; do
    if said=$(verify first "$at:latest" 2>&1); then
      echo "verified: $said"
      return 1
    fi
    echo "$said"
    grep -qi 'no signatures found' <<<"$said"
    ! verify_attestation first "$at:latest"
  done
  for at in "${AT_LARDER[@]}"; do
    same "referrers of $at" "" "$(referrers_of "$at")"
  done
}

# change KEY: signs and attaches at the upstreams, which no client of larder's is told.
change() {
  local at
  for at in "${SIGNED_AT_UPSTREAM[@]}"; do
    sign "$1" "$at@$BUSYBOX_DIGEST"
    attest "$1" "$at@$BUSYBOX_DIGEST"
  done
  for at in "${AT_UPSTREAM[@]}"; do attach "$at" "$1"; done
}

# left DEADLINE: the seconds until then, one at least: a client that comes late must find it at once.
left() { echo $(($1 > SECONDS ? $1 - SECONDS : 1)); }

# sees KEY DEADLINE N: that key's signature and attestation at upstream N, by then.
sees_signature() { wait_for "$(left "$2")" verify "$1" "${SIGNED_AT_LARDER[$3]}:latest"; }

sees_attestation() { wait_for "$(left "$2")" verify_attestation "$1" "${SIGNED_AT_LARDER[$3]}:latest"; }

discovers_alike() { [[ $(referrers_of "${AT_UPSTREAM[$1]}") == "$(referrers_of "${AT_LARDER[$1]}")" ]]; }

# sees_referrers NUMBER DEADLINE N
sees_referrers() {
  same "referrers at the upstream" "$1" "$(referrers_of "${AT_UPSTREAM[$3]}" | wc -l)"
  wait_for "$(left "$2")" discovers_alike "$3" || {
    referrers_of "${AT_LARDER[$3]}"
    return 1
  }
}

# What hangs on an artifact can be pulled, too.
referrer_comes_through() {
  local at digest
  for at in "${AT_LARDER[@]}"; do
    rm -rf "$TMP/pulled"
    digest=$(referrers_of "$at" | head -n 1)
    oras pull --plain-http --output "$TMP/pulled" "${at%:*}@$digest"
    cmp "$TMP/sbom.json" "$TMP/pulled/sbom.json"
  done
}

regctl_finds_the_same_referrers() {
  local n
  for n in 0 1; do
    same referrers "$(referrers_of "${AT_UPSTREAM[n]}")" "$(regctl artifact list --format '{{range .Descriptors}}{{.Digest}}{{"\n"}}{{end}}' "${AT_LARDER[n]}" | sed '/^$/d' | sort)"
  done
}

verifies_offline() {
  verify first "${SIGNED_AT_LARDER[0]}:latest"
  verify_attestation first "${SIGNED_AT_LARDER[0]}:latest"
}

# By the tags' names; the API's upstream has them, too, as cosign 2 always writes them.
UPSTREAM_KINDS=("without the referrers API" "with the referrers API")

# check_all WHAT DEADLINE KEY REFERRERS
check_all() {
  local n
  for n in 0 1; do
    check "cosign verify: a signature $1 is seen (upstream ${UPSTREAM_KINDS[n]})" sees_signature "$3" "$2" "$n"
    check "cosign verify-attestation: one $1 is seen (upstream ${UPSTREAM_KINDS[n]})" sees_attestation "$3" "$2" "$n"
    check "oras discover: a referrer $1 is seen (upstream ${UPSTREAM_KINDS[n]})" sees_referrers "$4" "$2" "$n"
  done
}

artifact_scenarios_begin() {
  start_patient
  new_key first
  new_key second
  push_artifacts
  check "an artifact of a type of its own is pulled by oras" artifact_comes_through
  check "a push through larder is refused" push_is_refused
  check "what is not signed does not verify, and has no referrers" nothing_is_signed_yet
  check "signed for the first time" change first
  check_all "that had been asked for in vain" $((SECONDS + SEEN_AFTER_ABSENCE)) first 1
  check "what was attached is pulled by oras" referrer_comes_through
  check "regctl finds the referrers that oras finds" regctl_finds_the_same_referrers
  check "signed once more" change second
  CHANGED_AT=$SECONDS
}

# Something else may be done in between, as waiting is all there is to it.
artifact_scenarios_end() {
  check_all "added to another" $((CHANGED_AT + SEEN_AFTER_CHANGE)) second 2
}
