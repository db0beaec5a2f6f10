#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The main job, end to end: sets up what is missing, then serves a real MoE model with stock vLLM on two NPUs (virtual
# ones on a machine that has none) and checks every answer. Options are those of scripts/demo/run.py; --vllm RELEASE
# picks the vLLM release.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/writable_cache.sh
setup=()
rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    --vllm) setup=(--vllm "${2:?--vllm needs a release}"); shift 2 ;;
    *) rest+=("$1"); shift ;;
  esac
done
venv=$(bash scripts/setup_env.sh "${setup[@]}" | tail -n 1)
exec "$venv/bin/python" -m scripts.demo.run "${rest[@]}"
