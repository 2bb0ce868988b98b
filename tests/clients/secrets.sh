# The upstream's password is on the machine and in memory, and nowhere else.
# shellcheck shell=bash

# Plain, and as Basic carries it.
canary_patterns() {
  printf '%s\n' "$CANARY" "$(printf '%s:%s' "$UPSTREAM_USER" "$CANARY" | base64 -w0)"
}

holds_no_canary() {
  local file=$1
  [[ -s $file ]] || { echo "$file is empty: nothing was looked at"; return 1; }
  if canary_patterns | grep -aFq -f - "$file"; then
    echo "the password is in $file"
    return 1
  fi
}

log_holds_no_canary() { holds_no_canary "$TMP/larder.log"; }

metrics_hold_no_canary() {
  curl -sSf "http://$ADMIN/metrics" >"$TMP/metrics.txt"
  holds_no_canary "$TMP/metrics.txt"
}

# Headers too, and those of an answer that larder had to ask upstream for.
answers_hold_no_canary() {
  local path
  for path in library/big/manifests/latest library/missing/manifests/latest; do
    curl -sS -i -H "Accept: $MANIFEST_TYPES" "http://$MIRROR/v2/$path"
  done >"$TMP/answers.txt"
  holds_no_canary "$TMP/answers.txt"
}

cache_holds_no_canary() {
  [[ -n $(ls -A "$TMP/cache") ]]
  local found
  found=$(canary_patterns | grep -raFl -f - "$TMP/cache" || true)
  same "files with the password" "" "$found"
}

secret_scenarios() {
  check "the password is not in larder's log" log_holds_no_canary
  check "the password is not in /metrics" metrics_hold_no_canary
  check "the password is not in an answer" answers_hold_no_canary
  check "the password is not in the cache" cache_holds_no_canary
}
