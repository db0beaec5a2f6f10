#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes the virtual environment that the demo and the tests run in, and prints its path on the last line.
# A second run finds it and does nothing; one that was interrupted goes on where it stopped. Sourced by nobody: call it as
#   venv=$(bash scripts/setup_env.sh | tail -n 1)
# With --torch, --torch-npu and --into it makes another one, without vLLM: the matrix runs releases on the stack that they pin.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/writable_cache.sh

say() { printf '\033[2m[setup]\033[0m %s\n' "$*" >&2; }
fail() { echo "setup_env.sh: $*" >&2; exit 1; }

vllm=0.32.0 torch= torch_npu= venv=
while [ $# -gt 0 ]; do
  case "$1" in
    --vllm) vllm=${2:?--vllm needs a release, for example 0.32.0}; shift 2 ;;
    --torch) torch=${2:?--torch needs a version}; shift 2 ;;
    --torch-npu) torch_npu=${2:?--torch-npu needs a version}; shift 2 ;;
    --into) venv=${2:?--into needs a folder}; shift 2 ;;
    *) echo "setup_env.sh: unknown argument '$1'; there are --vllm RELEASE, and --torch X --torch-npu Y --into FOLDER" >&2; exit 2 ;;
  esac
done
lock=scripts/requirements/vllm-$vllm.txt
if [ ! -f "$lock" ]; then
  lines=$(ls scripts/requirements | sed -n 's/^vllm-\(.*\)\.txt$/\1/p' | tr '\n' ' ')
  echo "setup_env.sh: no pins for vLLM $vllm; there are pins for: $lines" >&2
  exit 2
fi
stack=$torch$torch_npu$venv
if [ -z "$stack" ]; then
  # The torch stack stands in the lock's head: "# torch==X torch_npu==Y".
  torch=$(sed -n 's/^# torch==\([^ ]*\) .*/\1/p' "$lock")
  torch_npu=$(sed -n 's/^# torch==[^ ]* torch_npu==\([^ ]*\).*/\1/p' "$lock")
  venv=$PWD/.venv
  [ "$vllm" = 0.32.0 ] || venv=$PWD/.venv-$vllm
elif [ -z "$torch" ] || [ -z "$torch_npu" ] || [ -z "$venv" ]; then
  fail "--torch, --torch-npu and --into go together"
fi
stamp=$venv/.setup-complete
steps=$venv/.setup-steps
want=$({ cat "$lock" scripts/setup_env.sh; echo "$stack"; } | sha256sum | cut -d' ' -f1)

# An interpreter that runs: names on the path may be shims with no Python behind them.
choose_python() {
  local candidate version found=() candidates=(python3.11 python3.12 python3.13 python3.10 python3)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    case $version in
      3.11|3.12|3.13) echo "$candidate"; return ;;
    esac
    found+=("$candidate is Python $version;")
  done
  fail "Python 3.11, 3.12 or 3.13 is needed (vLLM 0.32 needs 3.11, and no pins were resolved for others), but of" \
    "${PYTHON:-those on the path} none is that: ${found[*]:-none runs;} install one, or set PYTHON=/path/to/python3.11"
}

# What pip was told, uv is told too: it reads none of pip's configuration. What the user told uv stays.
pip_setting() {
  local variable=PIP_$(tr 'a-z-' 'A-Z_' <<<"$1")
  if [ -n "${!variable:-}" ]; then
    echo "${!variable}"
  else
    "$venv/bin/pip" config get "global.$1" 2>/dev/null || "$venv/bin/pip" config get "install.$1" 2>/dev/null || true
  fi
}
hand_to_uv() { # PIP'S_NAME UV'S_VARIABLE [OTHER VARIABLES THAT SAY THE SAME]
  local value name words=()
  for name in "${@:2}"; do [ -z "${!name:-}" ] || return 0; done
  read -r -d '' -a words < <(pip_setting "$1") || true
  value=${words[*]}
  [ "$2" != UV_FIND_LINKS ] || value=${value// /,}
  [ -z "$value" ] || export "$2=$value"
}
configure_uv() {
  hand_to_uv cert SSL_CERT_FILE
  hand_to_uv trusted-host UV_INSECURE_HOST
  hand_to_uv find-links UV_FIND_LINKS
  hand_to_uv index-url UV_DEFAULT_INDEX UV_INDEX_URL
  hand_to_uv extra-index-url UV_INDEX UV_EXTRA_INDEX_URL
  export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} # pip's: the best version of all indexes
}

# One step of the set-up, done once. What was begun and not done may be half there: $again then makes it whole.
again=
step() { # NAME COMMAND...
  if grep -qx "done $1" "$steps"; then return; fi
  again=
  if grep -qx "begun $1" "$steps"; then again=--reinstall; fi
  echo "begun $1" >> "$steps"
  "${@:2}"
  echo "done $1" >> "$steps"
}

install() { "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps $again "$@"; }

last_line() { sed -n '/./{s/^ *//;h};${g;p}' "$1"; }

get_uv() { "$venv/bin/pip" install -q --disable-pip-version-check ${again:+--force-reinstall} uv; }

# A CUDA build of torch loads gigabytes of CUDA libraries, and only on virtual NPUs does torch_npu bear a newer one: it is
# the last resort. The build that the configured index would give is known before anything large is downloaded: by what it
# requires.
get_torch() {
  local resolved= libraries= errors=$venv/.setup-errors
  say "torch $torch"
  if [ "$(uname -m)" != x86_64 ]; then
    install "torch==$torch" # on other machines the default build is the CPU's
    return
  fi
  resolved=$("$venv/bin/uv" pip compile -q --no-annotate --no-header --python "$venv/bin/python" - \
    <<<"torch==$torch" 2>"$errors") || say "pip's index and wheel folders: $(last_line "$errors")"
  libraries=$(grep -E '^(nvidia-|cuda-)' <<<"$resolved" || true)
  if [ -n "$resolved" ] && [ -z "$libraries" ]; then
    install "$(grep '^torch==' <<<"$resolved")"
  elif install --torch-backend cpu "torch==$torch" 2>"$errors"; then
    say "torch: a CPU build from PyTorch's own index"
  elif [ -n "$libraries" ]; then
    say "torch: there is no CPU build here ($(last_line "$errors")); the CUDA build with its libraries (7 GB), which" \
      "virtual NPUs take. A folder with torch-$torch+cpu in PIP_FIND_LINKS, or a mirror of PyTorch's CPU index in" \
      "PIP_EXTRA_INDEX_URL, saves that"
    # shellcheck disable=SC2086 # one argument for each library
    install "torch==$torch" $libraries
  else
    fail "torch $torch is neither in pip's index nor in PyTorch's index of CPU builds ($(last_line "$errors")). Download" \
      "torch-$torch+cpu for $("$venv/bin/python" --version) to a folder and set PIP_FIND_LINKS=/that/folder"
  fi
}

# uv takes a pinned version from the first place that has it, and pip's extra ones come first: where these have no wheel for
# this machine, it is not what pip would take. So they are asked for what the index has not.
get_dependencies() {
  say "dependencies ($(grep -c '==' "$lock") pinned packages)"
  (unset UV_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS; install -r "$lock") 2>"$venv/.setup-errors" || install -r "$lock"
}

get_torch_npu() {
  say "torch_npu $torch_npu"
  install "torch_npu==$torch_npu"
}

get_vllm() {
  say "torch_npu $torch_npu and stock vLLM $vllm, without CUDA dependencies"
  install "torch_npu==$torch_npu" "vllm==$vllm"
}

get_project() { say "this project"; install --no-build-isolation -e .; }

compile_bytecode() {
  say "bytecode, so that none of the many processes of an engine compiles vLLM and torch for itself"
  # Nothing is lost where a file cannot be compiled: some packages ship templates and tests of newer Pythons.
  "$venv/bin/python" -m compileall -q -j 0 "$venv/lib" vllm_ascend_patch vllm_ascend_patch_entry.py >/dev/null 2>&1 || true
}

build_libraries() {
  say "libraries of the virtual NPU"
  "$venv/bin/python" -m vllm_ascend_patch virtual-npu build >&2
}

# The interpreter is asked too: an environment outlives the Python that it was made with.
runs() { "$venv/bin/python" -c '' 2>/dev/null; }
ready() { [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && runs; }

# Two set-ups at once would undo each other's work: the second waits, and then finds the environment made.
if ! ready && command -v flock >/dev/null; then
  exec 9<scripts/setup_env.sh
  flock --nonblock 9 || { say "waiting for another set-up"; flock 9; }
fi
if ready; then
  say "environment for ${stack:+torch $torch, with the packages of }vLLM $vllm is ready: ${venv#"$PWD"/}"
else
  command -v g++ >/dev/null || fail "a C++ compiler is needed for the virtual NPU and g++ was not found; install g++"
  start=$SECONDS
  if [ "$(head -n 1 "$steps" 2>/dev/null)" = "$want" ] && runs; then
    say "going on with a set-up that was interrupted"
  else
    python=$(choose_python)
    rm -rf "$venv"
    say "virtual environment with $("$python" --version)"
    "$python" -m venv "$venv" || fail "$python cannot make a virtual environment; on Debian and Ubuntu install python3-venv"
    echo "$want" > "$steps"
  fi
  step uv get_uv
  configure_uv
  step torch get_torch
  step dependencies get_dependencies
  if [ -n "$stack" ]; then step torch_npu get_torch_npu; else step vllm get_vllm; fi
  step project get_project
  step bytecode compile_bytecode
  step libraries build_libraries
  rm -f "$venv/.setup-errors"
  echo "$want" > "$stamp"
  say "ready in $((SECONDS - start)) s"
fi
echo "$venv"
