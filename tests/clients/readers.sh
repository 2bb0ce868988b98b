# skopeo, crane and regctl read the same through larder as from the upstream; and what asking costs the upstream.
# shellcheck shell=bash

# The clients' own credentials are for the upstream alone: larder needs none from them.
log_clients_in() {
  mkdir -p "$HOME/.docker"
  jq -n --arg host "$UPSTREAM" --arg auth "$(printf '%s:%s' "$UPSTREAM_USER" "$CANARY" | base64 -w0)" \
    '{auths: {($host): {auth: $auth}}}' >"$HOME/.docker/config.json"
  local host
  for host in "$UPSTREAM" "$MIRROR" "$PATIENT" "$API_UPSTREAM"; do
    regctl registry set --skip-check --tls disabled "$host"
  done >>"$TMP/setup.log" 2>&1
}

# More than one tag, and more than fit into what some clients take for a page at a time.
push_tags() {
  local number
  crane copy "$UPSTREAM/library/busybox:latest" "$UPSTREAM/library/tags:latest"
  for number in $(seq 12); do crane tag "$UPSTREAM/library/tags:latest" "v1.$number"; done
}

crane_head() { crane digest "$1"; }
crane_get() { crane manifest "$1" | digest_of; }
crane_platform() { crane digest --platform linux/amd64 "$1"; }
regctl_head() { regctl manifest head "$1"; }
regctl_get() { regctl manifest get --format raw-body "$1" | digest_of; }
regctl_platform() { regctl manifest head --platform linux/amd64 "$1"; }
skopeo_get() { skopeo inspect --tls-verify=false --raw "docker://$1" | digest_of; }

# reads_alike COMMAND REFERENCE DIGEST: what it says of larder, of the upstream, and what is true.
reads_alike() {
  same "$1 of $2 from the upstream" "$3" "$("$1" "$UPSTREAM/library/$2")"
  same "$1 of $2 through larder" "$3" "$("$1" "$MIRROR/library/$2")"
  same "$1 of $2 through larder by name prefix" "$3" "$("$1" "$MIRROR/docker.io/library/$2")"
}

reads_an_image() { reads_alike "$1" busybox:latest "$BUSYBOX_DIGEST"; }

reads_an_index() {
  reads_alike "$1" big:latest "$BIG_DIGEST"
  reads_alike "$1" "big@$BIG_DIGEST" "$BIG_DIGEST"
}

reads_a_platform() { reads_alike "$1" "big@$BIG_AMD64" "$BIG_AMD64"; }

finds_the_platform() { reads_alike "$1" big:latest "$BIG_AMD64"; }

crane_pulls_and_checks_every_layer() {
  crane validate --remote "$MIRROR/library/busybox:latest"
  crane validate --remote "$MIRROR/library/big@$BIG_AMD64"
}

regctl_copies_all_platforms() {
  local out="$TMP/regctl" file
  regctl image copy "$MIRROR/library/big:latest" "ocidir://$out:latest"
  same index "$BIG_DIGEST" "$(jq -r '.manifests[0].digest' "$out/index.json")"
  while read -r file; do
    same "a blob" "${file##*/}" "$(sha256sum <"$file" | cut -d' ' -f1)"
  done < <(find "$out/blobs/sha256" -type f)
  # Two of each but the layers.
  same blobs "$((1 + 2 + 2 + ${#BIG_BLOBS[@]} + 1))" "$(find "$out/blobs/sha256" -type f | wc -l)"
  rm -rf "$out"
}

crane_tags() { crane ls "$1" | sort; }
regctl_tags() { regctl tag ls "$1" | sort; }
skopeo_tags() { skopeo list-tags --tls-verify=false "docker://$1" | jq -r '.Tags[]' | sort; }

lists_tags() {
  local expected
  expected=$(curl -sSf -u "$UPSTREAM_USER:$CANARY" "http://$UPSTREAM/v2/library/tags/tags/list" | jq -r '.tags[]' | sort)
  same "number of tags" 13 "$(wc -l <<<"$expected")"
  same "from the upstream" "$expected" "$("$1" "$UPSTREAM/library/tags")"
  same "through larder" "$expected" "$("$1" "$MIRROR/library/tags")"
  same "through larder by name prefix" "$expected" "$("$1" "$MIRROR/docker.io/library/tags")"
}

# Docker Hub counts every GET of a manifest, and no HEAD.
polling_a_tag_costs_no_get() {
  local i before
  before=$(count_gets)
  for i in $(seq 50); do
    same "poll $i" "$BIG_DIGEST" "$(crane digest "$MIRROR/library/big:latest")"
  done
  same "answers" "950 200 $BIG_DIGEST" "$(
    curl -sS -I -o /dev/null -H "Accept: $MANIFEST_TYPES" -w '%{http_code} %header{docker-content-digest}\n' \
      "http://$MIRROR/v2/library/big/manifests/latest#[1-950]" | sort | uniq -c | sed 's/^ *//'
  )"
  same "upstream GETs" 0 "$(($(count_gets) - before))"
}

# With the manifest held and the tag expired, a pull asks by HEAD alone.
polling_a_held_tag_costs_no_get() {
  curl -sSf -o /dev/null -H "Accept: $MANIFEST_TYPES" "http://$MIRROR/v2/library/big/manifests/latest"
  let_tags_expire
  polling_a_tag_costs_no_get
}

reader_scenarios() {
  local reader
  push_tags >>"$TMP/setup.log" 2>&1
  start_cold_mirror
  check "1,000 polls of a tag that is not held cost no upstream GET" polling_a_tag_costs_no_get
  check "1,000 polls of a tag that is held cost no upstream GET" polling_a_held_tag_costs_no_get
  for reader in crane_head crane_get regctl_head regctl_get skopeo_get; do
    check "$reader: an image reads as from the upstream" reads_an_image "$reader"
    check "$reader: an index reads as from the upstream" reads_an_index "$reader"
    check "$reader: a platform's manifest reads as from the upstream" reads_a_platform "$reader"
  done
  for reader in crane_platform regctl_platform; do
    check "$reader: the platform is found in the index as at the upstream" finds_the_platform "$reader"
  done
  check "crane validates every layer" crane_pulls_and_checks_every_layer
  check "regctl copies all platforms" regctl_copies_all_platforms
  for reader in crane_tags regctl_tags skopeo_tags; do
    check "$reader: the list is the upstream's" lists_tags "$reader"
  done
}
