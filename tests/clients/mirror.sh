# larder, in front of the upstream; and further ones, in front of others.
# shellcheck shell=bash disable=SC2034

MIRROR=127.0.0.1:5000
ADMIN=127.0.0.1:5001
TAG_TTL_SECONDS=1

# Every one that was ever started: all are searched for the password.
declare -A LARDERS=()

# start_larder NAME PORT URL TAG_TTL [LOGIN [UPSTREAMS]]: on whatever $TMP/NAME.cache holds; the admin port is the next one.
# It stands for docker.io. LOGIN and UPSTREAMS are YAML, for docker.io and beside it.
start_larder() {
  local name=$1 port=$2 url=$3 tag_ttl=$4 login=${5:-} upstreams=${6:-}
  cat >"$TMP/$name.yaml" <<YAML
server: {listen: "127.0.0.1:$port"}
admin: {listen: "127.0.0.1:$((port + 1))"}
cache:
  path: $TMP/$name.cache
  max_size: 2GiB
  stale_if_error: 7d
default_upstream: docker.io
upstreams:
  docker.io:
    url: $url
    tag_ttl: $tag_ttl
$login
$upstreams
log: {format: json, level: info}
YAML
  mkdir -p "$TMP/$name.cache"
  LARDERS[$name]=1
  spawn "$name" "$LARDER_BIN" serve --config "$TMP/$name.yaml"
  wait_for 20 answers "http://127.0.0.1:$port/v2/"
}

# Not public: what the upstream holds nobody can read without its password.
upstream_login() {
  cat <<YAML
    credentials: {username: $UPSTREAM_USER, password_file: $TMP/password}
    visibility: private
YAML
}

start_mirror() { start_larder larder "${MIRROR#*:}" "http://$UPSTREAM" "${TAG_TTL_SECONDS}s" "$(upstream_login)"; }

# With an empty cache and an empty log of the upstream, so that a scenario may count from zero.
start_cold_mirror() {
  stop larder
  rm -rf "$TMP/larder.cache"
  : >"$TMP/upstream.log"
  start_mirror
}

# metric PATTERN: the sum of the samples whose line matches.
metric() {
  curl -sSf "http://$ADMIN/metrics" | grep -v '^#' | grep -E "$1" | awk '{sum += $NF} END {print sum + 0}'
}

let_tags_expire() { sleep "$((TAG_TTL_SECONDS)).2"; }
