# skopeo, podman and plain HTTP: different ways to name one thing, one cache entry.
# shellcheck shell=bash

skopeo_by_name_prefix() {
  local out="$TMP/skopeo" file
  skopeo --insecure-policy --override-os linux --override-arch amd64 copy --src-tls-verify=false \
    "docker://$MIRROR/docker.io/library/big:latest" "dir:$out"
  same manifest "$BIG_AMD64" "$(digest_of <"$out/manifest.json")"
  for file in "${BIG_BLOBS[@]}" "$BIG_CONFIG"; do
    same blob "$file" "$(digest_of <"$out/${file#sha256:}")"
  done
  rm -rf "$out"
}

podman_by_registries_conf() {
  cat >"$TMP/registries.conf" <<TOML
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "$MIRROR/docker.io"
insecure = true
TOML
  echo '{"default":[{"type":"insecureAcceptAnything"}]}' >"$TMP/policy.json"
  export CONTAINERS_REGISTRIES_CONF="$TMP/registries.conf"
  local podman=(podman --root "$TMP/podman/root" --runroot "$TMP/podman/run" --storage-driver vfs)
  "${podman[@]}" pull --signature-policy "$TMP/policy.json" docker.io/library/big:latest
  same "image id" "${BIG_CONFIG#sha256:}" "$("${podman[@]}" image inspect --format '{{.Id}}' docker.io/library/big)"
  "${podman[@]}" image inspect --format '{{json .RepoDigests}}' docker.io/library/big | grep -F "$BIG_DIGEST"
}

# The ways to name the same repository at the mirror: PATH before the kind, QUERY.
URL_FORMS=(
  "/v2/library/big"
  "/docker.io/v2/library/big"
  "/v2/docker.io/library/big"
  "/v2/library/big ?ns=docker.io"
  "/docker.io/v2/library/big ?ns=docker.io"
)

# plain_http PATH [QUERY]: index, manifest, config and layers.
plain_http() {
  local base="http://$MIRROR$1" query=${2:-} blob
  get() { curl -sSf -H "Accept: $MANIFEST_TYPES" "$base/$1$query" | digest_of; }
  same "index by tag" "$BIG_DIGEST" "$(get manifests/latest)"
  same "index by digest" "$BIG_DIGEST" "$(get "manifests/$BIG_DIGEST")"
  same manifest "$BIG_AMD64" "$(get "manifests/$BIG_AMD64")"
  for blob in "$BIG_CONFIG" "${BIG_BLOBS[@]}"; do
    same blob "$blob" "$(get "blobs/$blob")"
  done
}

all_together_cost_one_pull() {
  upstream_gets
  same "things sent" "$BIG_COST" "$(count_gets 200)"
  same "things sent twice" "" "$(upstream_gets | grep '^200 ' | sort | uniq -d)"
}

other_scenarios() {
  local form
  start_cold_mirror
  check "skopeo by a docker.io name prefix" skopeo_by_name_prefix
  check "podman by registries.conf" podman_by_registries_conf
  for form in "${URL_FORMS[@]}"; do
    # shellcheck disable=SC2086
    check "plain HTTP by ${form// /}" plain_http $form
  done
  check "all of them cost the upstream one pull" all_together_cost_one_pull
}
