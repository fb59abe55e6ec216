#!/usr/bin/env bash
# Build the documentation as a site in site/. Every warning is an error: a missing page, a link or an anchor that leads nowhere.
set -euo pipefail
cd "$(dirname "$0")/.."
# The theme tells of another generator at every build.
NO_MKDOCS_2_WARNING=1 python -m mkdocs build --strict --quiet "$@"
