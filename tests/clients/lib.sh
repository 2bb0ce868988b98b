# What the scripts that drive real programs share: a world of their own, processes that end with it, and checks.
# shellcheck shell=bash

# need PACKAGE… or COMMAND=PACKAGE…: installs what is missing from Debian; the latter if there is no such command.
need() {
  local item missing=()
  for item in "$@"; do
    if [[ $item == *=* ]]; then
      PATH="$PATH:/usr/sbin:/sbin" command -v "${item%%=*}" >/dev/null || missing+=("${item#*=}")
    else
      dpkg-query -W -f '${db:Status-Status}' "$item" 2>/dev/null | grep -qx installed || missing+=("$item")
    fi
  done
  ((${#missing[@]})) || return 0
  echo "installing ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { apt-get update -qq && no_service_starts apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "cannot install ${missing[*]}; root and Debian's package server are needed" >&2
    exit 1
  fi
  rm -f "$log"
}

# from_pypi DIR ARGS…: `pip install ARGS` into a virtual environment of its own.
from_pypi() {
  local at=$1
  shift
  need python3-venv >&2
  /usr/bin/python3 -m venv "$at" >&2 && "$at/bin/pip" install --quiet --disable-pip-version-check "$@" >&2
}

# On a machine with a service manager the packages would start a dockerd and an nginx that nobody asked for.
no_service_starts() {
  local policy=/usr/sbin/policy-rc.d status=0
  [[ -e $policy ]] && policy=
  [[ -z $policy ]] || { printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"; }
  DEBIAN_FRONTEND=noninteractive "$@" </dev/null || status=$?
  [[ -z $policy ]] || rm -f "$policy"
  return "$status"
}

# enter_world SCRIPT ARGS…: runs the script again where it sees only its own processes, mounts and loopback.
# So every port is free, no client can fall back to a registry on the internet, and nothing outlives the script, even killed.
enter_world() {
  [[ ${IN_WORLD:-} != "$0" ]] || return 0
  ((EUID == 0)) || { echo "$0: must run as root" >&2; exit 1; }
  local status=0
  WORLD_TMP=$(mktemp -d "${TMPDIR:-/tmp}/larder-world.XXXXXX")
  export WORLD_TMP
  # Not exec: the temporary files must go whatever ends the world.
  # shellcheck disable=SC2064
  trap "rm -rf --one-file-system '$WORLD_TMP'" EXIT
  IN_WORLD=$0 setpriv --pdeathsig KILL unshare --mount --net --pid --fork --kill-child --mount-proc \
    bash "$@" </dev/null || status=$?
  exit "$status"
}

# prepare_world: to be called first inside; sets TMP and makes proxies of the outer world harmless.
prepare_world() {
  TMP=$WORLD_TMP
  unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY all_proxy
  export PATH="/usr/bin:/usr/sbin:/sbin:$PATH" HOME="$TMP/home" LC_ALL=C
  mkdir -p "$HOME"
  ip link set lo up
  trap end_world EXIT
  # Bash as process 1 of the namespace ignores signals that have no handler.
  trap 'exit 130' INT TERM
}

end_world() {
  local status=$?
  trap - EXIT
  ((status == 0)) || [[ -n ${WITHOUT_LOGS:-} ]] || print_logs
  stop_all
  exit "$status"
}

print_logs() {
  local log
  for log in "$TMP"/*.log; do
    [[ -s $log ]] || continue
    printf -- '---- last lines of %s\n' "${log##*/}"
    tail -n 40 "$log" | cut -c1-500
  done
}

# Name → process id of what `spawn` started.
declare -A PID=()

# spawn NAME COMMAND…: in the background, output to NAME.log.
spawn() {
  local name=$1
  shift
  "$@" >>"$TMP/$name.log" 2>&1 &
  PID[$name]=$!
}

# stop NAME: asks, waits up to 15 s, then kills.
stop() {
  local pid=${PID[$1]:-} i
  [[ -n $pid ]] || return 0
  unset "PID[$1]"
  kill "$pid" 2>/dev/null || return 0
  for ((i = 0; i < 150; i++)); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}

stop_all() {
  local name
  for name in "${!PID[@]}"; do stop "$name"; done
}

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || { echo "gave up waiting for: $*" >&2; return 1; }
    sleep 0.1
  done
}

# answers URL: any HTTP status will do.
answers() { curl -s -o /dev/null --max-time 5 "$1"; }

passed=0
failed=0

# check NAME FUNCTION ARGS…: runs it in a subshell with `set -e`; what it printed, and larder meanwhile, is shown only if it fails.
# Not to be called where bash ignores `set -e` (in a condition, before `||`).
check() {
  local name=$1 status said
  shift
  said=$(stat -c %s "$TMP/larder.log" 2>/dev/null || echo 0)
  set +e
  (
    set -eEuo pipefail
    trap 'echo "${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND"' ERR
    "$@"
  ) >"$TMP/check.out" 2>&1
  status=$?
  set -e
  if ((status == 0)); then
    passed=$((passed + 1))
    echo "PASS $name"
  else
    failed=$((failed + 1))
    echo "FAIL $name (exit $status)"
    sed 's/^/     | /' "$TMP/check.out" | tail -n 30
    # Nulls say nothing, and the lines are long.
    tail -c "+$((said + 1))" "$TMP/larder.log" | tail -n 12 | sed -E 's/"[a-z_]+":null,?//g; s/^/     larder: /' | cut -c1-700
  fi
}

# part FUNCTION: says what it took. Not in a condition either.
part() {
  local begin=$SECONDS
  "$@"
  echo "---- $((SECONDS - begin)) s $*"
}

# same WHAT EXPECTED GOT
same() {
  [[ $2 == "$3" ]] && return 0
  echo "$1: expected '$2', got '$3'"
  return 1
}

# conclude: the closing line, and the exit status.
conclude() {
  echo "$passed passed, $failed failed"
  ((failed == 0 && passed > 0))
}
