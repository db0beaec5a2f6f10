# SPDX-License-Identifier: Apache-2.0
"""What loading weights leaves out upstream, for either model runner."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from vllm_ascend_patch.seams import checkpoint, serving
from vllm_ascend_patch.seams.moe.expert_slots import follow


class CheckedLoading:
    """Goes before upstream's ``GPUModelRunner`` among the bases of a runner."""

    vllm_config: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's; ``ValueError`` for a tensor that the checkpoint did not bring."""
        serving.entering(self)
        with checkpoint.marking(self.vllm_config.load_config.load_format):
            super().load_model(*args, **kwargs)  # type: ignore[misc]
        follow(self)

    def reload_weights(self, *args: Any, **kwargs: Any) -> None:
        """Upstream's. One that fails leaves layers with their old weights, or their new ones, but none without."""
        serving.entering(self)
        iterator = args[0] if args else kwargs.get("weights_iterator")  # of the caller's: it may bring some layers only
        model = self.get_model()  # type: ignore[attr-defined]
        try:
            with nullcontext() if iterator is not None else checkpoint.whole_reload(model):
                super().reload_weights(*args, **kwargs)  # type: ignore[misc]
        except Exception as error:
            checkpoint.put_back(model)
            raise RuntimeError(
                f"the weights were not reloaded: {error}. Layers that came before have the new weights, the others the old "
                "ones: load a complete checkpoint before the next request"
            ) from error
