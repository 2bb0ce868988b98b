# The registry that larder mirrors: Debian's docker-registry behind a password, with two images.
# shellcheck shell=bash

UPSTREAM=127.0.0.1:5100
UPSTREAM_USER=larder
# Looked for afterwards wherever it must not be. Random, so that no file can hold it by chance.
CANARY=canary-$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')

BIG_LAYERS=6
BIG_MIB_PER_LAYER=22

prepare_upstream() {
  htpasswd -Bbn "$UPSTREAM_USER" "$CANARY" >"$TMP/htpasswd"
  printf '%s\n' "$CANARY" >"$TMP/password"
  cat >"$TMP/upstream.yml" <<YAML
version: 0.1
log: {level: info, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: $TMP/upstream}}
http: {addr: "$UPSTREAM"}
auth: {htpasswd: {realm: upstream, path: $TMP/htpasswd}}
YAML
  start_upstream
  push_images
}

start_upstream() {
  spawn upstream docker-registry serve "$TMP/upstream.yml"
  wait_for 20 answers "http://$UPSTREAM/v2/"
}

# One image as `docker push` makes them, and the index of a large one as buildx does.
push_images() {
  local layout="$TMP/layout"
  python3 "$HERE/image.py" "$layout/small" /bin/busybox 1 1
  push "$layout/small" busybox --format v2s2
  python3 "$HERE/image.py" "$layout/big" /bin/busybox "$BIG_MIB_PER_LAYER" "$BIG_LAYERS"
  push "$layout/big" big --all
  rm -rf "$layout"
}

# push LAYOUT NAME OPTIONS…
push() {
  local layout=$1 name=$2
  shift 2
  skopeo --insecure-policy --override-os linux --override-arch amd64 copy -q "$@" \
    --dest-tls-verify=false --dest-creds "$UPSTREAM_USER:$CANARY" \
    "oci:$layout:latest" "docker://$UPSTREAM/library/$name:latest"
}

MANIFEST_TYPES='application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json,
 application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json'
MANIFEST_TYPES=${MANIFEST_TYPES//$'\n'/}

# upstream_manifest NAME REFERENCE: the bytes as the upstream has them.
upstream_manifest() {
  curl -sSf -u "$UPSTREAM_USER:$CANARY" -H "Accept: $MANIFEST_TYPES" "http://$UPSTREAM/v2/library/$1/manifests/$2"
}

digest_of() { printf 'sha256:%s\n' "$(sha256sum | cut -d' ' -f1)"; }

# What the images are, asked of the upstream once, before anything is counted.
# shellcheck disable=SC2034
learn_images() {
  BUSYBOX_DIGEST=$(upstream_manifest busybox latest | digest_of)
  BIG_DIGEST=$(upstream_manifest big latest | digest_of)
  local index
  index=$(upstream_manifest big latest)
  BIG_AMD64=$(jq -r '.manifests[] | select(.platform.architecture == "amd64").digest' <<<"$index")
  upstream_manifest big "$BIG_AMD64" >"$TMP/big.amd64.json"
  BIG_CONFIG=$(jq -r .config.digest "$TMP/big.amd64.json")
  mapfile -t BIG_BLOBS < <(jq -r '.layers[].digest' "$TMP/big.amd64.json")
  # Index, manifest, config, layers.
  BIG_COST=$((3 + ${#BIG_BLOBS[@]}))
  # busybox is a manifest, a config and the layer that big has too, which comes once.
  upstream_manifest busybox latest | jq -e --arg last "${BIG_BLOBS[-1]}" '.layers | length == 1 and .[0].digest == $last' >/dev/null
  BOTH_COST=$((BIG_COST + 2))
}

# upstream_gets: the paths of all manifests and blobs the upstream was asked to send, refused requests included.
upstream_gets() {
  sed -nE 's#.*"GET (/v2/[^ ]+/(manifests|blobs)/[^ ]+) HTTP[^"]*" ([0-9]+).*#\3 \1#p' "$TMP/upstream.log"
}

# count_gets [STATUS]: how many of them, of that status only if one is given.
count_gets() { upstream_gets | grep -c "^${1:-}" || true; }
