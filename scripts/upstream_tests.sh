#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs vLLM's own tests, from the release's source archive, under the patch on virtual NPUs, and compares with what passed
# before. Arguments: lanes (scripts/upstream_tests/lanes.py has them), --only FILE, --record, --folder PATH.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/writable_cache.sh
venv=$(bash scripts/setup_env.sh | tail -n 1)
exec "$venv/bin/python" -m scripts.upstream_tests.run "$@"
