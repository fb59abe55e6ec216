#!/usr/bin/env bash
# Build the documentation as a site in site/. Every warning is an error: a missing page, a link or an anchor that leads nowhere.
# Arguments go to mkdocs. Not --quiet: what is not logged is not counted as a warning.
set -euo pipefail
cd "$(dirname "$0")/.."
# The theme tells of another generator at every build.
log=$(NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict "$@" 2>&1) || {
  echo "$log" >&2
  exit 1
}
