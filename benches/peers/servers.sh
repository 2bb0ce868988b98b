# The upstream and the mirrors in front of it, all at the same paths, each on its own port.
# shellcheck shell=bash

REGISTRY=127.0.0.1:5100
# What mirrors call upstream: counts requests, and sends the blobs of cold images slowly so that clients overlap.
UPSTREAM=127.0.0.1:5101
declare -A PORT=([larder]=5000 [registry]=5200 [nginx-cache]=5300 [nginx-static]=5301)

start_upstream() {
  registry_config "$REGISTRY" upstream >"$TMP/registry-upstream.yml"
  spawn registry-upstream docker-registry serve "$TMP/registry-upstream.yml"
  wait_for 20 answers "http://$REGISTRY/v2/"
  nginx_config upstream "
    server {
      listen $UPSTREAM;
      access_log $TMP/upstream.access;
      proxy_set_header Host \$http_host;
      # Straight through: no spool file that would hide the rate.
      proxy_max_temp_file_size 0;
      location / { proxy_pass http://$REGISTRY; }
      location ~ /v2/library/cold\\d+/blobs/ { limit_rate ${COLD_RATE_MIB}m; proxy_pass http://$REGISTRY; }
    }"
  start_nginx upstream "$UPSTREAM"
}

start_mirrors() {
  start_larder larder "$LARDER_BIN" 5001
  [[ -z ${LARDER_BEFORE:-} ]] || start_larder before "$LARDER_BEFORE" 5401
  start_registry_proxy
  start_nginx_cache
  start_nginx_static
}

# start_larder NAME BINARY ADMIN_PORT
start_larder() {
  cat >"$TMP/$1.yaml" <<YAML
server: {listen: "127.0.0.1:${PORT[$1]}"}
admin: {listen: "127.0.0.1:$3"}
cache: {path: $TMP/$1, max_size: 20GiB, tag_ttl: 1h}
default_upstream: docker.io
upstreams:
  docker.io: {url: "http://$UPSTREAM", tag_ttl: 1h}
log: {format: json, level: info}
YAML
  mkdir -p "$TMP/$1"
  spawn "$1" "$2" serve --config "$TMP/$1.yaml"
  wait_for 20 answers "http://127.0.0.1:${PORT[$1]}/v2/"
}

start_registry_proxy() {
  {
    registry_config "127.0.0.1:${PORT[registry]}" proxy
    echo "proxy: {remoteurl: \"http://$UPSTREAM\"}"
  } >"$TMP/registry.yml"
  spawn registry docker-registry serve "$TMP/registry.yml"
  wait_for 20 answers "http://127.0.0.1:${PORT[registry]}/v2/"
}

# registry_config ADDRESS DIR: as quick as it goes, with its descriptor cache and without access log.
registry_config() {
  cat <<YAML
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: $TMP/$2}, cache: {blobdescriptor: inmemory}}
http: {addr: "$1"}
YAML
}

# With the lock that makes it comparable: one request to upstream for what several want.
start_nginx_cache() {
  nginx_config nginx-cache "
    proxy_cache_path $TMP/nginx-cache.data keys_zone=all:10m max_size=20g inactive=1d use_temp_path=off;
    server {
      listen 127.0.0.1:${PORT[nginx-cache]};
      access_log $TMP/nginx-cache.access;
      location / {
        proxy_pass http://$UPSTREAM;
        proxy_set_header Host \$http_host;
        proxy_cache all;
        proxy_cache_key \$uri;
        proxy_cache_valid 200 1h;
        proxy_cache_lock on;
        proxy_cache_lock_age 1h;
        proxy_cache_lock_timeout 1h;
      }
    }"
  start_nginx nginx-cache "127.0.0.1:${PORT[nginx-cache]}"
}

# The files themselves: no mirror is expected to be quicker.
start_nginx_static() {
  local root="$TMP/static/v2/library/warm"
  mkdir -p "$root/manifests" "$root/blobs"
  curl -sSf -H "Accept: $MANIFEST_TYPE" -o "$root/manifests/latest" "http://$REGISTRY/v2/library/warm/manifests/latest"
  ln -s latest "$root/manifests/$(manifest_digest warm)"
  local digest
  for digest in "$(blob_digest warm)" "$(config_digest warm)"; do
    curl -sSf -o "$root/blobs/$digest" "http://$REGISTRY/v2/library/warm/blobs/$digest"
  done
  nginx_config nginx-static "
    server {
      listen 127.0.0.1:${PORT[nginx-static]};
      access_log $TMP/nginx-static.access;
      location / { root $TMP/static; default_type $MANIFEST_TYPE; }
    }"
  start_nginx nginx-static "127.0.0.1:${PORT[nginx-static]}"
}

# nginx_config NAME SERVERS
nginx_config() {
  local temp
  cat >"$TMP/$1.conf" <<CONF
user root;
worker_processes auto;
daemon off;
pid $TMP/$1.pid;
error_log $TMP/$1.log warn;
events { worker_connections 1024; }
http {
  sendfile on;
  tcp_nopush on;
  keepalive_requests 1000000;
$(for temp in client_body proxy fastcgi uwsgi scgi; do echo "  ${temp}_temp_path $TMP/$1.temp/$temp;"; done)
$2
}
CONF
  mkdir -p "$TMP/$1.temp"
}

# start_nginx NAME ADDRESS
start_nginx() {
  spawn "$1" nginx -c "$TMP/$1.conf" -e "$TMP/$1.log"
  wait_for 20 answers "http://$2/v2/"
}

MANIFEST_TYPE=application/vnd.oci.image.manifest.v1+json

# push_image NAME MIB: one layer of random bytes, straight to the registry.
push_image() {
  local layout="$TMP/layout"
  # shellcheck disable=SC2153
  python3 "$ROOT/tests/clients/image.py" "$layout" /bin/true "$2" 2
  skopeo --insecure-policy --override-os linux --override-arch amd64 copy -q --dest-tls-verify=false \
    "oci:$layout:latest" "docker://$REGISTRY/library/$1:latest"
  rm -rf "$layout"
}

manifest() { curl -sSf -H "Accept: $MANIFEST_TYPE" "http://$REGISTRY/v2/library/$1/manifests/latest"; }
manifest_digest() { printf 'sha256:%s\n' "$(manifest "$1" | sha256sum | cut -d' ' -f1)"; }
config_digest() { manifest "$1" | jq -r '.config.digest'; }
blob_digest() { manifest "$1" | jq -r '.layers[0].digest'; }
