#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs the patch set on every supported vLLM release, in one environment (torch of the default line), or with --pinned in one
# for each torch that releases pin, and writes docs/matrix.json and the tables of releases. Arguments: releases,
# --only 1|mla|dp2|tp2dp2|w8a8|modelslim|graphs|full|v2, --pinned, --seconds N, --keep.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/writable_cache.sh
venv=$(bash scripts/setup_env.sh | tail -n 1)
exec "$venv/bin/python" -m scripts.matrix.run "$@"
