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

logs_hold_no_canary() {
  local name
  for name in "${!LARDERS[@]}"; do holds_no_canary "$TMP/$name.log"; done
}

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

caches_hold_no_canary() {
  local name found
  for name in "${!LARDERS[@]}"; do
    [[ -n $(ls -A "$TMP/$name.cache") ]]
    found=$(canary_patterns | grep -raFl -f - "$TMP/$name.cache" || true)
    same "files with the password" "" "$found"
  done
}

secret_scenarios() {
  check "the password is in no larder's log" logs_hold_no_canary
  check "the password is not in /metrics" metrics_hold_no_canary
  check "the password is not in an answer" answers_hold_no_canary
  check "the password is in no larder's cache" caches_hold_no_canary
}
