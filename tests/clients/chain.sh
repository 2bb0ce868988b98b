# larder behind larder behind the upstream: the outer knows the inner only as a registry with a path before /v2.
# shellcheck shell=bash

INNER=127.0.0.1:5030
OUTER=127.0.0.1:5040
THROTTLE_PORT=5050
# A layer takes seconds then, enough to break it in the middle.
SLOW_BYTES_PER_SECOND=$((6 << 20))

start_inner() { start_larder inner "${INNER#*:}" "$1" 0s "$(upstream_login)"; }
start_outer() { start_larder outer "${OUTER#*:}" "http://$INNER/docker.io" 0s; }

# start_cold_chain URL: the inner one's upstream is there.
start_cold_chain() {
  stop outer
  stop inner
  rm -rf "$TMP/inner.cache" "$TMP/outer.cache"
  : >"$TMP/upstream.log"
  start_inner "$1"
  start_outer
}

chain_pulls_cold() {
  local out="$TMP/chained" blob
  skopeo --insecure-policy copy -q --all --src-tls-verify=false "docker://$OUTER/library/big:latest" "dir:$out"
  same index "$BIG_DIGEST" "$(digest_of <"$out/manifest.json")"
  same "manifest" "$BIG_AMD64" "$(digest_of <"$out/${BIG_AMD64#sha256:}.manifest.json")"
  for blob in "${BIG_BLOBS[@]}" "$BIG_CONFIG"; do
    same blob "$blob" "$(digest_of <"$out/${blob#sha256:}")"
  done
  rm -rf "$out"
}

# All platforms: one more manifest, config and layer.
chain_costs_one_pull() {
  upstream_gets
  same "things sent twice" "" "$(upstream_gets | grep '^200 ' | sort | uniq -d)"
  same "things sent" "$((BIG_COST + 3))" "$(count_gets 200)"
}

chain_reads_alike() {
  same crane "$BIG_DIGEST" "$(crane digest "$OUTER/library/big:latest")"
  same "crane, by two prefixes" "$BIG_DIGEST" "$(crane digest "$OUTER/docker.io/library/big:latest")"
  same "crane, a platform" "$BIG_AMD64" "$(crane digest --platform linux/amd64 "$OUTER/library/big:latest")"
}

grown_beyond() { (($(stat -c %s "$1" 2>/dev/null || echo 0) > $2)); }

# Killed, not stopped: nothing is drained, nothing is written down.
inner_dies_in_mid_blob() {
  local blob=${BIG_BLOBS[0]} out="$TMP/resumed" client status=0 at
  curl -sSf -o "$out" "http://$OUTER/v2/library/big/blobs/$blob" &
  client=$!
  wait_for 20 grown_beyond "$out" $((4 << 20))
  kill -9 "$INNER_PID"
  at=$(stat -c %s "$out")
  echo "killed when the client had $at bytes"
  ((at < (BIG_MIB_PER_LAYER - 2) << 20))
  start_inner "http://127.0.0.1:$THROTTLE_PORT"
  echo "${PID[inner]}" >"$TMP/inner.pid"
  wait "$client" || status=$?
  same "curl's status" 0 "$status"
  same blob "$blob" "$(digest_of <"$out")"
  rm -f "$out"
}

inner_went_on_where_it_was() {
  upstream_gets
  same "whole answers for the blob" 1 "$(upstream_gets | grep -c "^200 .*${BIG_BLOBS[0]}")"
  same "partial answers for the blob" 1 "$(upstream_gets | grep -c "^206 .*${BIG_BLOBS[0]}")"
}

outer_went_on_where_it_was() {
  grep '"a download broke; it goes on"' "$TMP/outer.log" | grep -F "${BIG_BLOBS[0]}"
  grep -F "${BIG_BLOBS[0]}" "$TMP/inner.log" | grep -q '"status":206'
}

# answer URL OPTIONS…: status and error code.
answer() {
  local body
  body=$(curl -sS --max-time 30 -w '\n%{http_code}' "$@")
  echo "${body##*$'\n'} $(jq -r '.errors[0].code' <<<"${body%$'\n'*}")"
}

MISSING_DIGEST=sha256:$(printf '0%.0s' {1..64})

chain_keeps_not_found() {
  same "a missing tag" "404 MANIFEST_UNKNOWN" "$(answer "http://$OUTER/v2/library/big/manifests/missing")"
  same "a missing manifest" "404 MANIFEST_UNKNOWN" "$(answer "http://$OUTER/v2/library/big/manifests/$MISSING_DIGEST")"
  same "a missing blob" "404 BLOB_UNKNOWN" "$(answer "http://$OUTER/v2/library/big/blobs/$MISSING_DIGEST")"
  same "HEAD of a missing tag" 404 "$(curl -sS -I -o /dev/null -w '%{http_code}' "http://$OUTER/v2/library/big/manifests/missing")"
}

# is_an_outage REFERENCE: 502, 503 or 504; never 404.
is_an_outage() {
  local got
  got=$(answer "http://$OUTER/v2/library/busybox/manifests/$1")
  echo "$1: $got"
  [[ $got =~ ^50[234]\  ]]
}

# What is held is served meanwhile.
serves_what_it_holds() {
  same index "$BIG_DIGEST" "$(curl -sSf -H "Accept: $MANIFEST_TYPES" "http://$OUTER/v2/library/big/manifests/latest" | digest_of)"
  same blob "${BIG_BLOBS[0]}" "$(curl -sSf "http://$OUTER/v2/library/big/blobs/${BIG_BLOBS[0]}" | digest_of)"
}

outage_stays_an_outage() {
  is_an_outage latest
  is_an_outage "$BUSYBOX_DIGEST"
  serves_what_it_holds
}

chain_scenarios() {
  spawn throttle python3 "$HERE/throttle.py" "$THROTTLE_PORT" "${UPSTREAM#*:}" "$SLOW_BYTES_PER_SECOND"
  start_cold_chain "http://127.0.0.1:$THROTTLE_PORT"
  INNER_PID=${PID[inner]}
  # It will be killed, and the shell has nothing to say about that.
  disown "$INNER_PID"
  check "larder behind larder: the inner one is killed in mid-blob and the pull goes on" inner_dies_in_mid_blob
  # The check ran in a subshell; the process is stopped by us.
  [[ ! -s $TMP/inner.pid ]] || PID[inner]=$(<"$TMP/inner.pid")
  check "larder behind larder: the inner one asked the upstream for the rest only" inner_went_on_where_it_was
  check "larder behind larder: the outer one asked the inner for the rest only" outer_went_on_where_it_was
  stop throttle

  start_cold_chain "http://$UPSTREAM"
  check "larder behind larder pulls cold" chain_pulls_cold
  check "larder behind larder costs the upstream one pull" chain_costs_one_pull
  ! with_tools || check "larder behind larder reads as the upstream" chain_reads_alike
  check "clients_35: larder behind larder: not found stays not found" chain_keeps_not_found
  stop upstream
  check "clients_35: larder behind larder: with the upstream down, an outage is not a 404" outage_stays_an_outage
  stop inner
  check "clients_35: larder behind larder: with the inner one down, an outage is not a 404" outage_stays_an_outage
  start_upstream
  start_inner "http://$UPSTREAM"
  check "larder behind larder: all is well again" chain_recovers
}

has_busybox_again() {
  same digest "$BUSYBOX_DIGEST" "$(curl -sS -H "Accept: $MANIFEST_TYPES" "http://$OUTER/v2/library/busybox/manifests/latest" | digest_of)"
}

chain_recovers() {
  wait_for 20 has_busybox_again
  ! with_tools || same "crane" "$BUSYBOX_DIGEST" "$(crane digest "$OUTER/library/busybox:latest")"
}
