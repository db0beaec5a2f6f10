# SPDX-License-Identifier: Apache-2.0
# Sourced by the scripts beside it, from the repository's root. Gives a process whose home cannot be written (a container's
# arbitrary user, a read-only image) a cache folder in the tree: uv, the virtual NPU's build, checkpoints and vLLM all use it.
if ! { mkdir -p "${XDG_CACHE_HOME:-${HOME:-/dev/null}/.cache}" && [ -w "${XDG_CACHE_HOME:-$HOME/.cache}" ]; } 2>/dev/null; then
  export XDG_CACHE_HOME=$PWD/.venv-cache
  echo "${HOME:-the home} cannot be written; caches are in ${XDG_CACHE_HOME#"$PWD"/}" >&2
fi
