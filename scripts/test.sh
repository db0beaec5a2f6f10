#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing and runs the checks and the test suite on virtual NPUs. Arguments go to pytest;
# --vllm RELEASE picks the vLLM release. Without arguments: everything except what is marked slow.
set -euo pipefail
cd "$(dirname "$0")/.."
setup=()
rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    --vllm) setup=(--vllm "${2:?--vllm needs a release}"); shift 2 ;;
    *) rest+=("$1"); shift ;;
  esac
done
venv=$(bash scripts/setup_env.sh "${setup[@]}" | tail -n 1)
if [ ${#rest[@]} -eq 0 ]; then
  "$venv/bin/ruff" check .
  "$venv/bin/ruff" format --check .
  "$venv/bin/mypy"
  # The data-parallel core needs no device, and its tests fork: they run without torch_npu's runtime in the process.
  TORCH_DEVICE_BACKEND_AUTOLOAD=0 "$venv/bin/python" -m pytest tests/dp -m "not slow"
  rest=(--ignore=tests/dp -m "not slow")
fi
exec "$venv/bin/python" -m vllm_ascend_patch virtual-npu --devices 8 -- "$venv/bin/python" -m pytest "${rest[@]}"
