# SPDX-License-Identifier: Apache-2.0
"""Recognises a ModelSlim checkpoint by its description, in the user's process, and refuses what is not served.

vLLM learns of quantisation from ``config.json``, which in these checkpoints says nothing of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from vllm_ascend_patch.core import modelslim
from vllm_ascend_patch.core.modelslim import Description, ModelSlimError
from vllm_ascend_patch.core.modelslim_files import file_problems
from vllm_ascend_patch.core.stored_tensors import stored_tensors
from vllm_ascend_patch.npu.compressed_check import FROM_FILES
from vllm_ascend_patch.npu.config_check import NotServable
from vllm_ascend_patch.releases import guard
from vllm_ascend_patch.releases.modelslim import modelslim_obstacle

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(__name__)


def register() -> None:
    """Make the method known to vLLM, once per process."""
    from vllm.model_executor.layers import quantization

    from .config import ModelSlimConfig

    if modelslim.METHOD not in quantization.QUANTIZATION_METHODS:
        quantization.register_quantization_config(modelslim.METHOD)(ModelSlimConfig)


def recognise(vllm_config: VllmConfig) -> None:
    """Give the model, and a drafter from such a checkpoint, the method that its description asks for. ``ValueError`` for
    a checkpoint, or a release of vLLM, that is not served."""
    model = vllm_config.model_config
    if model is None:
        return
    drafter = getattr(vllm_config.speculative_config, "draft_model_config", None)
    for each in (model, drafter):
        if each is not None and each.quantization is None and modelslim.find(each.model) is not None:
            _check_release(each.model)
            register()
            each.quantization = modelslim.METHOD
            logger.info("Ascend NPU: %s is a ModelSlim checkpoint, by its description.", each.model)
    if model.quantization != modelslim.METHOD:
        return
    _check_release(model.model)
    if vllm_config.quant_config is None:
        vllm_config.quant_config = type(vllm_config).get_quantization_config(model, vllm_config.load_config)
    config: Any = vllm_config.quant_config
    for problem in modelslim.problems(config.description, drafts=drafter is not None):
        raise ValueError(problem)
    if not config.files_checked and str(vllm_config.load_config.load_format) in FROM_FILES:
        _check_files(model.model, config.description)
        config.files_checked = True


def describe(model: str) -> Description:
    """The description of a checkpoint, a folder or a model on the hub; ``NotServable`` where it cannot be had."""
    try:
        path = modelslim.find(model)
        if path is not None:
            return modelslim.read(path)
        content = _from_hub(model)
        if content is not None:
            return Description.of(f"{model}/{modelslim.FILE}", content)
    except ModelSlimError as error:
        raise NotServable(str(error)) from None
    raise NotServable(
        f"--quantization {modelslim.METHOD} needs a ModelSlim checkpoint, and {model} has no {modelslim.FILE}: leave the "
        "option out, or give the folder that msModelSlim exported to"
    )


def _from_hub(model: str) -> Any:
    from vllm.transformers_utils.repo_utils import get_hf_file_to_dict

    return get_hf_file_to_dict(modelslim.FILE, model)


def _check_files(model: str, description: Description) -> None:
    """``ValueError`` for the first thing in which a folder's files are not what the description says."""
    if modelslim.find(model) is None:
        return  # on the hub: nothing is here before the workers load it
    for problem in file_problems(description, stored_tensors(Path(model))):
        raise ValueError(f"{problem}.")


def _check_release(model: str) -> None:
    release = guard.installed_release()
    obstacle = modelslim_obstacle(release) if release is not None else None
    if obstacle is not None:
        raise ValueError(f"{model}: {obstacle}. Install such a release, or use the unquantised checkpoint.")
