# A cache directory on real file systems that fill up, run out of inodes, become read-only, close or vanish: no pull fails,
# larder says what is wrong, and stores again by itself when it can.
# shellcheck shell=bash

FULL=127.0.0.1:5070
FULL_ADMIN=127.0.0.1:5071
FULL_UPSTREAM=127.0.0.1:5072
FULL_IMAGES=60
FULL_MOUNT=
FULL_CACHE=

# A registry of small images, each a layer of 1 MiB that nothing else has: `image/<n>`.
prepare_full_upstream() {
  cat >"$TMP/full_upstream.yml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $TMP/full_upstream}}
http: {addr: "$FULL_UPSTREAM"}
YAML
  spawn full_upstream docker-registry serve "$TMP/full_upstream.yml"
  wait_for 20 answers "http://$FULL_UPSTREAM/v2/"
  local n
  mkdir -p "$TMP/made"
  for ((n = 1; n <= FULL_IMAGES; n++)); do
    head -c 1048576 /dev/urandom >"$TMP/made/$n.layer"
    printf '{"architecture":"amd64","os":"linux","n":%d}' "$n" >"$TMP/made/$n.config"
    local layer config
    layer=$(full_push "$n" layer) config=$(full_push "$n" config)
    cat >"$TMP/made/$n.manifest" <<JSON
{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"$config","size":$(stat -c %s "$TMP/made/$n.config")},
"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"$layer","size":1048576}]}
JSON
    curl -fsS -X PUT -H 'Content-Type: application/vnd.oci.image.manifest.v1+json' \
      --data-binary "@$TMP/made/$n.manifest" "http://$FULL_UPSTREAM/v2/image/$n/manifests/latest"
  done
}

full_digest() { echo "sha256:$(sha256sum "$TMP/made/$1.$2" | cut -d' ' -f1)"; }

# full_push N KIND: a blob; says its digest.
full_push() {
  local digest at
  digest=$(full_digest "$1" "$2")
  at=$(curl -fsS -X POST -D - -o /dev/null "http://$FULL_UPSTREAM/v2/image/$1/blobs/uploads/" | tr -d '\r' | sed -n 's/^[Ll]ocation: //p')
  curl -fsS -X PUT -H 'Content-Type: application/octet-stream' --data-binary "@$TMP/made/$1.$2" "$at&digest=$digest" >/dev/null
  echo "$digest"
}

# full_pull N: the manifest and both blobs, byte for byte; says the layer's Cache-Status.
full_pull() {
  local n=$1 at=http://$FULL/v2/image/$1
  curl -fsS --max-time 30 -H 'Accept: application/vnd.oci.image.manifest.v1+json' "$at/manifests/latest" | cmp - "$TMP/made/$n.manifest" &&
    curl -fsS --max-time 30 "$at/blobs/$(full_digest "$n" config)" | cmp - "$TMP/made/$n.config" &&
    curl -fsS --max-time 30 -D "$TMP/full.headers" "$at/blobs/$(full_digest "$n" layer)" | cmp - "$TMP/made/$n.layer" &&
    tr -d '\r' <"$TMP/full.headers" | sed -n 's/^[Cc]ache-[Ss]tatus: //p'
}

# The client has its last byte before the file is durable: a moment later it is a hit.
full_hits() { [[ $(full_pull "$1") == "larder; hit" ]]; }

full_pulls() { local n; for n in $(seq "$@"); do full_pull "$n" >/dev/null; done; }

# full_metric PATTERN: whether a line of the metrics is like that.
full_metric() { grep -q "$1" <<<"$(curl -fsS "http://$FULL_ADMIN/metrics")"; }

# full_says WORD WRITABLE: what /readyz says, with 200, and the gauge beside it.
full_says() {
  [[ $(curl -fsS "http://$FULL_ADMIN/readyz") == *"$1"* ]] && full_metric "^larder_cache_writable $2\$"
}

# start_full PREFIX…: larder on $FULL_CACHE, the command behind PREFIX.
start_full() {
  cat >"$TMP/full.yaml" <<YAML
server: {listen: "$FULL"}
admin: {listen: "$FULL_ADMIN"}
cache: {path: $FULL_CACHE, max_size: 48MiB, min_free: 2MiB, tag_ttl: 0s}
upstreams: {docker.io: {url: "http://$FULL_UPSTREAM"}}
log: {format: json}
YAML
  spawn full "$@" "$LARDER_BIN" serve --config "$TMP/full.yaml"
  wait_for 20 answers "http://$FULL/v2/"
}

# full_disk OPTIONS: an empty tmpfs. It goes with the world.
full_disk() {
  stop full
  [[ -z $FULL_MOUNT ]] || umount "$FULL_MOUNT"
  FULL_MOUNT=$TMP/full
  FULL_CACHE=$FULL_MOUNT/cache
  mkdir -p "$FULL_MOUNT"
  mount -t tmpfs -o "$1" tmpfs "$FULL_MOUNT" || { echo "tmpfs cannot be mounted here, even by root"; return 1; }
}

# Somebody else writes, 1 MiB after the other, also what larder frees to keep `min_free`, until stopped.
fill_blocks() {
  while :; do
    head -c 1048576 /dev/zero >>"$FULL_MOUNT/filler" 2>/dev/null || true
    sleep 0.05
  done
}

fill_inodes() { mkdir -p "$FULL_MOUNT/fillers"; local n=0; while : >"$FULL_MOUNT/fillers/$n"; do n=$((n + 1)); done 2>/dev/null; }

full_in_mid_flight() {
  full_pulls 1 5
  wait_for 10 full_hits 1
  fill_blocks &
  local filler=$!
  full_pulls 6 "$FULL_IMAGES"
  full_pulls 1 50
  full_metric '^larder_fills_total.result="bypassed".* [1-9]'
  wait_for 15 full_says "degraded: the cache's disk is full" 0
  full_pulls 1 20
  kill "$filler"
}

# Whatever was wrong is over: images FROM… are stored again. Nobody tells larder.
comes_back() {
  wait_for 15 full_says ok 1
  full_pull "$1" | grep -q 'fwd=uri-miss'
  wait_for 10 full_hits "$1"
}

full_of_inodes() {
  full_pulls 1 3
  fill_inodes
  full_pulls 4 53
  wait_for 10 full_hits 1
  full_says "degraded: the cache's disk is full" 0
  rm -rf "$FULL_MOUNT/fillers"
  comes_back 54
}

closed_and_opened() {
  full_pulls 1 3
  chmod 0 "$FULL_CACHE"
  full_pulls 1 50
  full_says "degraded: larder may not write" 0
  chmod 700 "$FULL_CACHE"
  comes_back 51
  wait_for 10 full_hits 1
}

moved_and_back() {
  mv "$FULL_CACHE" "$FULL_CACHE.away"
  wait_for 15 full_says "degraded: the cache directory was moved" 0
  full_pull 52 | grep -q fwd=bypass
  full_hits 1
  [[ ! -e $FULL_CACHE ]]
  mv "$FULL_CACHE.away" "$FULL_CACHE"
  comes_back 53
}

removed_while_running() {
  rm -rf "$FULL_CACHE"
  full_pulls 1 50
  wait_for 15 full_says "degraded: the cache directory was moved or removed" 0
  [[ ! -e $FULL_CACHE ]]
}

# A file system whose journal is aborted is read-only in mid-flight, whoever has files open.
read_only_in_mid_flight() {
  full_pulls 1 3
  full_pulls 4 20 &
  mount -o remount,abort "$FULL_MOUNT"
  wait $!
  full_pulls 1 50
  wait_for 10 full_hits 1
  full_says "degraded: the cache" 0
}

# An ext4 of its own, where loop devices can be had.
ext4_disk() {
  stop full
  umount "$FULL_MOUNT"
  truncate -s 256M "$TMP/full.ext4"
  mkfs.ext4 -q "$TMP/full.ext4" && mount -o loop "$TMP/full.ext4" "$FULL_MOUNT"
}

full_scenarios() {
  prepare_full_upstream
  full_disk size=64m
  start_full
  check "a disk that fills up under pulls fails none of them" full_in_mid_flight
  rm -f "$FULL_MOUNT/filler"
  check "caching resumes when the space returns" comes_back 52
  full_disk size=64m,nr_inodes=500
  start_full
  check "inodes that are used up fail no pull, and come back" full_of_inodes
  full_disk size=128m
  # Root obeys a directory's mode without the capability not to.
  start_full setpriv --bounding-set=-all --inh-caps=-all
  check "a directory that larder may not enter fails no pull, and is as it was when it may" closed_and_opened
  check "a directory that is moved away is read, and used again when it is back" moved_and_back
  check "a directory that is removed fails no pull, and is not made anew" removed_while_running
  if ext4_disk; then
    start_full
    check "a file system that becomes read-only in mid-flight serves hits and passes misses" read_only_in_mid_flight
  else
    echo "SKIP read-only in mid-flight: no loop devices here"
  fi
  stop full
  umount "$FULL_MOUNT" || true
}
