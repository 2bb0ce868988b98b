# larder, in front of the upstream.
# shellcheck shell=bash

MIRROR=127.0.0.1:5000
ADMIN=127.0.0.1:5001
TAG_TTL_SECONDS=1

# start_mirror: on whatever $TMP/cache holds.
start_mirror() {
  cat >"$TMP/larder.yaml" <<YAML
server: {listen: "$MIRROR"}
admin: {listen: "$ADMIN"}
cache:
  path: $TMP/cache
  max_size: 2GiB
  tag_ttl: ${TAG_TTL_SECONDS}s
  stale_if_error: 7d
default_upstream: docker.io
upstreams:
  docker.io:
    url: http://$UPSTREAM
    credentials: {username: $UPSTREAM_USER, password_file: $TMP/password}
    # Not public: what this upstream holds nobody can read without its password.
    visibility: private
    tag_ttl: ${TAG_TTL_SECONDS}s
log: {format: json, level: info}
YAML
  mkdir -p "$TMP/cache"
  spawn larder "$LARDER_BIN" serve --config "$TMP/larder.yaml"
  wait_for 20 answers "http://$MIRROR/v2/"
}

# With an empty cache and an empty log of the upstream, so that a scenario may count from zero.
start_cold_mirror() {
  stop larder
  rm -rf "$TMP/cache"
  : >"$TMP/upstream.log"
  start_mirror
}

# metric PATTERN: the sum of the samples whose line matches.
metric() {
  curl -sSf "http://$ADMIN/metrics" | grep -v '^#' | grep -E "$1" | awk '{sum += $NF} END {print sum + 0}'
}

let_tags_expire() { sleep "$((TAG_TTL_SECONDS)).2"; }
