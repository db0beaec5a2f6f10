# SPDX-License-Identifier: Apache-2.0
"""Whether multi-head latent attention (MLA) is served with a release of vLLM: by its patches.

Imports neither torch nor vLLM.
"""

from __future__ import annotations

from vllm_ascend_patch.releases.declared.latent import LATENT_LAYER

from . import records


def first_release() -> str:
    """The oldest recorded release that serves it."""
    return next(release for release in records.STORE.releases() if records.covers(LATENT_LAYER, release))


def latent_obstacle(release: str) -> str | None:
    """Why ``release`` does not serve it, in words that name the first that does; None if it does."""
    if records.covers(LATENT_LAYER, release):
        return None
    return f"vLLM {release} is older than {first_release()}, the first release that serves it"
