#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Serves tiny models of MoE families on virtual NPUs, holds their tokens against transformers', and writes
# vllm_ascend_patch/releases/served_models.json and docs/models.md. Arguments: families, --list, --workers N.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/writable_cache.sh
venv=$(bash scripts/setup_env.sh | tail -n 1)
exec "$venv/bin/python" -m scripts.models.run "$@"
