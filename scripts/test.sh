#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up what is missing and runs the checks and the test suite on virtual NPUs. Arguments go to pytest;
# --vllm RELEASE picks the vLLM release. Without arguments: everything except what is marked slow; on another release than
# the default one, of what depends on the release one test of each kind. What is run, and how, stands in noxfile.py.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/writable_cache.sh
line=0.32.0
rest=()
while [ $# -gt 0 ]; do
  case "$1" in
    --vllm) line=${2:?--vllm needs a release}; shift 2 ;;
    *) rest+=("$1"); shift ;;
  esac
done
nox=$(bash scripts/setup_env.sh --vllm "$line" | tail -n 1)/bin/nox
if [ "$line" != 0.32.0 ]; then
  exec "$nox" -s release -- "$line" "${rest[@]}"
elif [ ${#rest[@]} -gt 0 ]; then
  exec "$nox" -s test -- "${rest[@]}"
else
  exec "$nox" -s check test
fi
