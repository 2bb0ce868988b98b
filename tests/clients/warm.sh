# Warming: `larder pull` fetches what nobody has asked for yet; then clients pull it, though the upstream is gone.
# shellcheck shell=bash

warm() { "$LARDER_BIN" pull --config "$TMP/larder.yaml" "$@"; }

pull_makes_it_complete() {
  warm busybox docker.io/library/big --platform linux/amd64
  # Both manifests and configs, the index, and the layers, of which one is shared.
  same "things sent" "$BOTH_COST" "$(count_gets 200)"
}

# From a list, with a summary for programs. By now the tags have expired: that is a HEAD each.
pulling_again_downloads_nothing() {
  let_tags_expire
  printf 'busybox # small\n\nbig:latest\n' | warm -f - --platform linux/amd64 --json | tee "$TMP/warm.json"
  same complete 2 "$(jq .complete "$TMP/warm.json")"
  same "bytes fetched" 0 "$(jq .fetched_bytes "$TMP/warm.json")"
  same "things sent" "$BOTH_COST" "$(count_gets 200)"
}

what_is_not_there_is_named() {
  local status=0
  warm nothing big --platform linux/amd64 >"$TMP/warm.out" || status=$?
  cat "$TMP/warm.out"
  same "exit code" 1 "$status"
  grep -q '^docker.io/library/nothing:latest: INCOMPLETE: ' "$TMP/warm.out"
  grep -q '^docker.io/library/big:latest: complete, ' "$TMP/warm.out"
}

dockerd_pulls_what_was_warmed() {
  let_tags_expire
  pull busybox
  same digest "$BUSYBOX_DIGEST" "$(pulled_digest)"
  pull big
  same digest "$BIG_DIGEST" "$(pulled_digest)"
  same output ok "$(docker run --rm --network none big echo ok)"
}

a_stopped_larder_is_warmed_too() {
  warm big --platform linux/arm64
  warm big --platform all --json | tee "$TMP/warm.json"
  same complete 1 "$(jq .complete "$TMP/warm.json")"
}

skopeo_pulls_all_platforms() {
  skopeo --insecure-policy copy -q --all --src-tls-verify=false "docker://$MIRROR/library/big:latest" "dir:$TMP/warmed"
  same index "$BIG_DIGEST" "$(digest_of <"$TMP/warmed/manifest.json")"
  rm -rf "$TMP/warmed"
}

warm_scenarios() {
  forget >>"$TMP/setup.log" 2>&1 || true
  start_cold_mirror
  check "warming: larder pull fetches what nobody has asked for, each thing once" pull_makes_it_complete
  check "warming: a second time nothing is fetched" pulling_again_downloads_nothing
  check "warming: what is not to be had is named, exit 1" what_is_not_there_is_named
  stop upstream
  check "warming: with the upstream stopped dockerd pulls it" dockerd_pulls_what_was_warmed
  start_upstream
  stop larder
  check "warming: a stopped larder's directory is warmed for all platforms" a_stopped_larder_is_warmed_too
  stop upstream
  start_mirror
  check "warming: with the upstream stopped skopeo pulls all of them" skopeo_pulls_all_platforms
  start_upstream
}
