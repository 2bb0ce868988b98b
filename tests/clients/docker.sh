# dockerd with registry-mirrors: cold, warm, and with the upstream down.
# shellcheck shell=bash

# dockerd is not told about the mirror in any other way than a user would.
prepare_dockerd() {
  mkdir -p "$TMP/docker"
  cat >"$TMP/docker/daemon.json" <<JSON
{
  "registry-mirrors": ["http://$MIRROR"],
  "storage-driver": "vfs", "iptables": false, "ip6tables": false, "bridge": "none",
  "data-root": "$TMP/docker/data", "exec-root": "$TMP/docker/exec", "pidfile": "$TMP/docker/pid",
  "hosts": ["unix://$TMP/docker/socket"]
}
JSON
  export DOCKER_HOST=unix://$TMP/docker/socket
  mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup2 /sys/fs/cgroup
  local driver
  # Its own choice first; systemd's driver is the default on some machines and works only under systemd.
  for driver in "" --exec-opt=native.cgroupdriver=cgroupfs; do
    # shellcheck disable=SC2086
    spawn dockerd dockerd --config-file "$TMP/docker/daemon.json" $driver
    wait_for 30 docker version && return 0
    stop dockerd
  done
  echo "dockerd does not start here"
  return 1
}

# pull NAME: by the name a user types; keeps what docker said.
pull() { docker pull "$1" | tee "$TMP/pull.out"; }

pulled_digest() { sed -n 's/^Digest: //p' "$TMP/pull.out"; }

forget() { docker rmi -f busybox:latest big:latest >/dev/null; }

pulls_and_runs_busybox() {
  pull busybox
  same digest "$BUSYBOX_DIGEST" "$(pulled_digest)"
  same output ok "$(docker run --rm --network none busybox echo ok)"
}

pulls_and_runs_big() {
  pull big
  same digest "$BIG_DIGEST" "$(pulled_digest)"
  same "image id" "$BIG_CONFIG" "$(docker image inspect --format '{{.Id}}' big)"
  same output ok "$(docker run --rm --network none big echo ok)"
  # What docker kept is the upstream's, not only what it believed about it.
  same "bytes of a layer" "$((BIG_MIB_PER_LAYER << 20))" "$(docker run --rm --network none big cat /data0 | wc -c)"
}

first_pull_fetched_each_thing_once() {
  upstream_gets
  same "things sent twice" "" "$(upstream_gets | grep '^200 ' | sort | uniq -d)"
  # busybox: manifest and config; its layer is one of big's, and came with whichever was first.
  same "things sent" "$((2 + BIG_COST))" "$(count_gets 200)"
}

second_pull_asks_upstream_for_nothing() {
  forget
  local before
  before=$(count_gets)
  pull busybox
  same digest "$BUSYBOX_DIGEST" "$(pulled_digest)"
  pull big
  same digest "$BIG_DIGEST" "$(pulled_digest)"
  upstream_gets | tail -n "+$((before + 1))"
  same "upstream GETs" 0 "$(($(count_gets) - before))"
}

third_pull_works_without_upstream() {
  forget
  let_tags_expire
  pull big
  same digest "$BIG_DIGEST" "$(pulled_digest)"
  same output ok "$(docker run --rm --network none big echo ok)"
}

stale_is_said_in_the_log() {
  grep '"outcome":"stale"' "$TMP/larder.log" | tail -n 3
  grep -q '"outcome":"stale"' "$TMP/larder.log"
}

stale_is_counted() {
  curl -sSf "http://$ADMIN/metrics" | grep '^larder_requests_total'
  (($(metric '^larder_requests_total\{.*outcome="stale"') > 0))
}

docker_scenarios() {
  start_cold_mirror
  check "dockerd pulls and runs busybox" pulls_and_runs_busybox
  check "dockerd pulls and runs a large multi-platform image" pulls_and_runs_big
  check "the first pulls fetched everything once, a shared layer too" first_pull_fetched_each_thing_once
  check "after docker rmi the second pull makes no upstream GET" second_pull_asks_upstream_for_nothing
  stop upstream
  check "with the upstream stopped and the tag expired the third pull works" third_pull_works_without_upstream
  check "the stale answer is marked in the access log" stale_is_said_in_the_log
  check "the stale answer is counted" stale_is_counted
  start_upstream
}
