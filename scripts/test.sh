#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing and runs the checks and the test suite on virtual NPUs. Arguments go to pytest;
# --vllm RELEASE picks the vLLM release. Without arguments: everything except what is marked slow; on another release than
# the default one, of what depends on the release one test of each kind (scripts/test.sh --vllm RELEASE tests/serve, and
# tests/dp with -m slow, run the rest).
set -euo pipefail
cd "$(dirname "$0")/.."
line=0.32.0
rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    --vllm) line=${2:?--vllm needs a release}; shift 2 ;;
    *) rest+=("$1"); shift ;;
  esac
done
venv=$(bash scripts/setup_env.sh --vllm "$line" | tail -n 1)
if [ ${#rest[@]} -gt 0 ]; then
  :
elif [ "$line" = 0.32.0 ]; then
  "$venv/bin/ruff" check .
  "$venv/bin/ruff" format --check .
  "$venv/bin/mypy"
  # The data-parallel core needs no device, and its tests fork: they run without torch_npu's runtime in the process.
  TORCH_DEVICE_BACKEND_AUTOLOAD=0 "$venv/bin/python" -m pytest tests/dp -m "not slow"
  rest=(--ignore=tests/dp -m "not slow")
else
  # Random schedules through the release's own decision code; on the CPU, in many processes.
  TORCH_DEVICE_BACKEND_AUTOLOAD=0 "$venv/bin/python" -m pytest tests/dp/test_fuzz.py -m "not slow"
  oracle=tests/serve/test_oracle.py::test_greedy_tokens_equal_transformers
  graphs=tests/serve/test_graphs.py::test_tokens_equal_transformers_with_graphs
  rest=(-m "not slow" "$oracle[qwen2_moe-one device]" "$oracle[mixtral-dp 2 with ep]" "$graphs[mixtral_wide-1-2-A3-methods1]"
    tests/serve/test_refusals.py tests/releases tests/patching/test_real_vllm.py)
fi
exec "$venv/bin/python" -m vllm_ascend_patch virtual-npu --devices 8 -- "$venv/bin/python" -m pytest "${rest[@]}"
