#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the virtual environment that the demo and the tests run in, and prints its path on the last line.
# A second run finds it and does nothing. Sourced by nobody: call it as  venv=$(bash scripts/setup_env.sh | tail -n 1)
set -euo pipefail
cd "$(dirname "$0")/.."

vllm=0.32.0
while [ $# -gt 0 ]; do
  case "$1" in
    --vllm) vllm=${2:?--vllm needs a release, for example 0.32.0}; shift 2 ;;
    *) echo "setup_env.sh: unknown argument '$1'; the only one is --vllm RELEASE" >&2; exit 2 ;;
  esac
done
lock=scripts/requirements/vllm-$vllm.txt
if [ ! -f "$lock" ]; then
  echo "setup_env.sh: no pins for vLLM $vllm; there are pins for: $(ls scripts/requirements | sed 's/^vllm-//; s/\.txt$//' | tr '\n' ' ')" >&2
  exit 2
fi
# The torch stack stands in the lock's head: "# torch==X torch_npu==Y".
torch=$(sed -n 's/^# torch==\([^ ]*\) .*/\1/p' "$lock")
torch_npu=$(sed -n 's/^# torch==[^ ]* torch_npu==\([^ ]*\).*/\1/p' "$lock")

venv=$PWD/.venv
[ "$vllm" = 0.32.0 ] || venv=$PWD/.venv-$vllm
stamp=$venv/.setup-complete
want=$(cat "$lock" scripts/setup_env.sh | sha256sum | cut -d' ' -f1)

say() { printf '\033[2m[setup]\033[0m %s\n' "$*" >&2; }

if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
  say "environment for vLLM $vllm is ready: ${venv#"$PWD"/}"
else
  python=${PYTHON:-}
  for candidate in python3.11 python3; do
    [ -n "$python" ] && break
    command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' && python=$candidate
  done
  [ -n "$python" ] || { echo "setup_env.sh: Python 3.11 is needed and was not found; install it or set PYTHON=/path/to/python3.11" >&2; exit 1; }
  command -v g++ >/dev/null || { echo "setup_env.sh: a C++ compiler is needed for the virtual NPU and g++ was not found; install g++" >&2; exit 1; }
  start=$SECONDS
  rm -rf "$venv"
  say "virtual environment with $($python --version)"
  "$python" -m venv "$venv"
  "$venv/bin/pip" install -q --disable-pip-version-check uv
  say "torch $torch"
  # pip, not uv: a CPU build in a local wheel folder (pip's find-links) is preferred where there is one.
  "$venv/bin/pip" install -q --disable-pip-version-check --no-deps "torch==$torch"
  say "dependencies ($(grep -c '==' "$lock") pinned packages)"
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps -r "$lock"
  say "torch_npu $torch_npu and stock vLLM $vllm, without CUDA dependencies"
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps "torch_npu==$torch_npu" "vllm==$vllm"
  say "this project"
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation -e .
  say "bytecode, so that none of the many processes of an engine compiles vLLM and torch for itself"
  # Nothing is lost where a file cannot be compiled: some packages ship templates and tests of newer Pythons.
  "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" vllm_ascend_patch vllm_ascend_patch_entry.py >/dev/null 2>&1 || true
  say "libraries of the virtual NPU"
  "$venv/bin/python" -m vllm_ascend_patch virtual-npu build >&2
  echo "$want" > "$stamp"
  say "ready in $((SECONDS - start)) s"
fi
echo "$venv"
