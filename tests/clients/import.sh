# Moving in: a docker-registry that has mirrored the upstream is replaced by larder, which takes over what it had.
# shellcheck shell=bash

OLD=127.0.0.1:5060
OLD_UPSTREAM=127.0.0.1:5062
OLD_ROOT=

# Debian's docker-registry as a proxy, which is what people have. It cannot sign in with a password where it is asked for
# one as our upstream asks; so what the upstream has is there for it without one.
start_old_mirror() {
  OLD_ROOT=$TMP/old
  cat >"$TMP/old_upstream.yml" <<YAML
version: 0.1
log: {level: warn}
storage: {filesystem: {rootdirectory: $TMP/upstream}}
http: {addr: "$OLD_UPSTREAM"}
YAML
  spawn old_upstream docker-registry serve "$TMP/old_upstream.yml"
  wait_for 20 answers "http://$OLD_UPSTREAM/v2/"
  cat >"$TMP/old.yml" <<YAML
version: 0.1
log: {level: warn, formatter: json}
storage: {cache: {blobdescriptor: inmemory}, filesystem: {rootdirectory: $OLD_ROOT}}
http: {addr: "$OLD", headers: {X-Content-Type-Options: [nosniff]}}
proxy: {remoteurl: "http://$OLD_UPSTREAM", username: $UPSTREAM_USER, password: $CANARY}
YAML
  spawn old docker-registry serve "$TMP/old.yml"
  wait_for 20 answers "http://$OLD/v2/"
}

old_blob() { local hex=${1#sha256:}; echo "$OLD_ROOT/docker/registry/v2/blobs/sha256/${hex:0:2}/$hex/data"; }

# It stores what it has sent, a moment later.
old_has_all() {
  local blob
  for blob in "${BIG_BLOBS[@]}" "$BIG_CONFIG" "$BIG_AMD64" "$BIG_DIGEST" "$BUSYBOX_DIGEST"; do
    [[ $(digest_of <"$(old_blob "$blob")") == "$blob" ]]
  done
}

# What the old mirror has been asked for: all platforms of one image by skopeo, what dockerd wants of both.
fill_old_mirror() {
  docker pull "$OLD/library/busybox:latest"
  docker pull "$OLD/library/big:latest"
  docker rmi -f "$OLD/library/busybox:latest" "$OLD/library/big:latest"
  skopeo --insecure-policy copy -q --all --src-tls-verify=false "docker://$OLD/library/big:latest" "dir:$TMP/filled"
  rm -rf "$TMP/filled"
  wait_for 20 old_has_all
}

import_old() { "$LARDER_BIN" import registry2 "$OLD_ROOT" --upstream docker.io --config "$TMP/larder.yaml" "$@"; }

running_larder_is_not_imported_into() {
  local status=0
  import_old 2>"$TMP/import.err" || status=$?
  cat "$TMP/import.err"
  same "exit code" 4 "$status"
  grep -q "process ${PID[larder]}; stop it" "$TMP/import.err"
}

takes_over_all() {
  import_old --json | tee "$TMP/import.json"
  # Layers of both platforms, one of them busybox's, and three configs.
  same blobs "$((${#BIG_BLOBS[@]} + 1 + 3))" "$(jq '.blobs | .reflinked + .hardlinked + .copied' "$TMP/import.json")"
  # The index, its two, and busybox's.
  same manifests 4 "$(jq .manifests.taken "$TMP/import.json")"
  same tags 2 "$(jq .tags.taken "$TMP/import.json")"
  same problems 0 "$(jq '.problems | length' "$TMP/import.json")"
}

takes_over_nothing_twice() {
  import_old --json | tee "$TMP/import.json"
  same bytes 0 "$(jq .bytes "$TMP/import.json")"
  same tags 2 "$(jq .tags.present "$TMP/import.json")"
}

dockerd_pulls_the_old_cache() {
  pull busybox
  same digest "$BUSYBOX_DIGEST" "$(pulled_digest)"
  same output ok "$(docker run --rm --network none busybox echo ok)"
  pull big
  same digest "$BIG_DIGEST" "$(pulled_digest)"
  same output ok "$(docker run --rm --network none big echo ok)"
}

skopeo_pulls_the_old_cache() {
  local out="$TMP/moved" blob
  skopeo --insecure-policy copy -q --all --src-tls-verify=false "docker://$MIRROR/library/big:latest" "dir:$out"
  for blob in "${BIG_BLOBS[@]}" "$BIG_CONFIG"; do
    same blob "$blob" "$(digest_of <"$out/${blob#sha256:}")"
  done
  rm -rf "$out"
}

nothing_was_downloaded() {
  upstream_gets
  same "upstream GETs" 0 "$(count_gets)"
  # By tag, it was asked.
  grep -q '"HEAD /v2/library/big/manifests/latest' "$TMP/upstream.log"
}

old_configuration_is_translated() {
  "$LARDER_BIN" import-config "$TMP/old.yml" >"$TMP/translated.yaml" 2>"$TMP/translated.notes"
  cat "$TMP/translated.yaml" "$TMP/translated.notes"
  "$LARDER_BIN" check-config --config "$TMP/translated.yaml"
  grep -q "dropped: http.headers: " "$TMP/translated.notes"
  grep -q "import registry2 $OLD_ROOT --upstream $OLD_UPSTREAM" "$TMP/translated.notes"
  ! grep -F "$CANARY" "$TMP/translated.yaml" "$TMP/translated.notes"
}

import_scenarios() {
  start_old_mirror
  fill_old_mirror >>"$TMP/setup.log" 2>&1
  stop old
  stop old_upstream
  forget >>"$TMP/setup.log" 2>&1 || true
  start_cold_mirror
  check "moving in: a running larder is named, and its cache left alone" running_larder_is_not_imported_into
  stop larder
  check "moving in: everything the old mirror had is taken over" takes_over_all
  check "moving in: a second time nothing is" takes_over_nothing_twice
  : >"$TMP/upstream.log"
  start_mirror
  check "moving in: dockerd pulls every image of the old mirror" dockerd_pulls_the_old_cache
  check "moving in: skopeo pulls all platforms of it" skopeo_pulls_the_old_cache
  check "moving in: and the upstream sends nothing" nothing_was_downloaded
  check "moving in: the old mirror's configuration is one of larder's" old_configuration_is_translated
  rm -rf "$OLD_ROOT"
}
