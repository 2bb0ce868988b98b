# The OCI's own conformance suite, as far as it goes without a push, on what olareg has behind larder.
# shellcheck shell=bash

conformance_scenarios() { check "the OCI conformance suite, read-only" conforms; }

# Judged by its report: where it may not push, its exit status is that of a crash while it writes another report. For the
# same reason it misses the digests of manifests in answers that have them (OCI_API_MANIFESTS_DIGEST_HEADER); other checks look.
conforms() {
  local repository=library/conformance at="$API_UPSTREAM/library/conformance" manifest blobs report="$TMP/conformance.out"
  tar -C "$TMP" -cf "$TMP/conformance.tar" sbom.json
  crane append --oci-empty-base -f "$TMP/conformance.tar" -t "$at:one"
  crane tag "$at:one" two
  manifest=$(crane digest "$at:one")
  blobs=$(crane manifest "$at:one" | jq -r '[.config.digest, .layers[].digest] | join(" ")')
  attach "$at@$manifest" conformance
  mkdir -p "$TMP/conformance"
  # By the prefix of the upstream's name in larder.
  (cd "$TMP/conformance" && env OCI_REGISTRY="$PATIENT" OCI_TLS=disabled OCI_VERSION=1.1 \
    OCI_REPO1="$API_NAME/$repository" OCI_REPO2="$API_NAME/$repository" OCI_API_PUSH=false \
    OCI_API_BLOBS_DELETE=false OCI_API_MANIFESTS_DELETE=false OCI_API_TAGS_DELETE=false \
    OCI_RO_DATA_TAGS="one two" OCI_RO_DATA_MANIFESTS="$manifest" OCI_RO_DATA_BLOBS="$blobs" \
    OCI_RO_DATA_REFERRERS="$manifest" OCI_API_BLOBS_DIGEST_HEADER=true conformance) >"$report" 2>&1 || true
  grep -E '^  (Pass|FAIL|Error)\.*:' "$report" || tail -n 5 "$report"
  grep -qE '^  FAIL\.*: +0$' "$report" && grep -qE '^  Error\.*: +0$' "$report"
  (($(sed -nE 's/^  Pass\.*: +([0-9]+)$/\1/p' "$report") >= 18))
}
