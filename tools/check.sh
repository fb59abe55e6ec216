#!/usr/bin/env bash
# What a developer runs before a commit, and what CI runs: files, format, lint, types, documentation, tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
python tools/check_files.py
python -m ruff format --check .
python -m ruff check .
python -m mypy
tools/docs.sh
python -m pytest "$@"
