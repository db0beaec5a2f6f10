# SPDX-License-Identifier: Apache-2.0
"""Launches and bytes read per layer of latent attention (MLA), absorbed and, with VLLM_MLA_DISABLE=1, as plain attention.

A DeepSeek-V3 shape at TP 8 (16 heads) is served with weights of noise, once each way. While the last layer runs, every call
is counted that reaches torch's dispatcher: launches, and what their arguments make them read of the cache, of weights and of
activations. A paged attention call reads the rows that its lengths name; a tensor that is key and value is read once.

The floor: every row of context once, every weight that takes part once. Launches of the attention module (upstream's
``MLAAttention``, cache write included) are judged; the whole layer has projections, norms, rotary embedding beside it.

    python benchmarks/mla_cost.py
"""

from __future__ import annotations

if __name__ == "__main__":
    import launch

    launch.on_npus(devices=1)  # before torch, which loads torch_npu

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

PATHS = {"absorbed": "0", "plain": "1"}  # VLLM_MLA_DISABLE
HEADS, REQUESTS, CONTEXT, NEW, STEP, LAYERS = 16, 8, 250, 512, 2048, 2  # all requests are prefilled in one step
LATENT_ROW = 576 * 2  # bytes of a token's row in bfloat16
GOAL = 8
PHASES = {
    "prefill": f"{NEW} new tokens, nothing cached",
    "chunk": f"{NEW} new tokens, {STEP} cached",
    "decode": f"{REQUESTS} requests of {CONTEXT + 2} tokens, 1 new each",
}


def measure(folder: Path) -> dict[str, Any]:
    """Serve the model in this process and return, by phase, the calls of the last layer in the phase's last step."""
    import vllm_ascend_patch  # isort: skip  # noqa: F401  (before vLLM)

    from vllm import LLM

    from tests.support.engine import engine_arguments, generate_offline
    from tests.support.latent_models import CONFIGS

    config = CONFIGS["deepseek_v3"]
    config.update({"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "max_position_embeddings": 2 * STEP})
    config.rope_parameters = {"rope_type": "default", "rope_theta": 10000.0}
    config.update({"hidden_size": 1024, "q_lora_rank": 256, "num_hidden_layers": LAYERS})
    config.architectures = ["DeepseekV3ForCausalLM"]
    config.save_pretrained(folder)
    changes = {"load_format": "dummy", "dtype": "bfloat16", "enable_prefix_caching": False, "max_model_len": 2 * STEP}
    llm = LLM(**engine_arguments(str(folder), **changes, max_num_batched_tokens=STEP, max_num_seqs=REQUESTS))
    found: list[Watch] = []

    def instrument(worker: Any) -> None:
        layer = worker.model_runner.get_model().model.layers[LAYERS - 1].self_attn
        observe(layer, found)

    llm.collective_rpc(instrument)
    prompts = {
        "prefill": ([[7] * NEW], 1),
        "chunk": ([[7] * (STEP + NEW)], 1),
        "decode": ([[7] * CONTEXT for _ in range(REQUESTS)], 3),
    }
    result = {}
    for phase, (tokens, answers) in prompts.items():
        generate_offline(llm, tokens, answers)
        result[phase] = found[-1].summary()
    return result


def observe(layer: Any, found: list[Watch]) -> None:
    """Have every forward of ``layer`` append what it called to ``found``."""
    attention = layer.mla_attn.mla_attn if hasattr(layer, "mla_attn") else layer.attn
    attention.use_direct_call = True  # not through one opaque operator, which a watch cannot look into
    in_attention, in_layer = attention.forward, layer.forward

    def watch_attention(*args: Any, **kwargs: Any) -> Any:
        found[-1].in_attention = True
        try:
            return in_attention(*args, **kwargs)
        finally:
            found[-1].in_attention = False

    def watch_layer(*args: Any, **kwargs: Any) -> Any:
        cache = attention.kv_cache[0] if isinstance(attention.kv_cache, list) else attention.kv_cache
        found[:] = [Watch(layer, cache)]
        with found[-1].mode():
            return in_layer(*args, **kwargs)

    attention.forward, layer.forward = watch_attention, watch_layer


class Watch:
    """The calls of one forward of a layer: name, whether in the attention module, bytes read by kind."""

    def __init__(self, layer: Any, cache: Any) -> None:
        import torch

        weights = [*layer.parameters(), *layer.buffers()]
        for module in layer.modules():  # absorbed ones, which older releases keep as plain attributes
            weights += [
                value for value in vars(module).values() if isinstance(value, torch.Tensor) and value is not cache
            ]
        self.weights = {weight.untyped_storage().data_ptr() for weight in weights if weight.numel()}
        self.cache = cache.untyped_storage().data_ptr()
        self.in_attention = False
        self.calls: list[tuple[str, bool, dict[str, int]]] = []
        self.used: dict[tuple[int, int], int] = {}

    def mode(self) -> Any:
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        watch = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                kwargs = kwargs or {}
                result = func(*args, **kwargs)
                if _launches(func, args, result):
                    watch.add(func, args, kwargs)
                return result

        assert torch.is_inference_mode_enabled()
        return Mode()

    def add(self, func: Any, args: Any, kwargs: Any) -> None:
        read = {"cache": 0, "weights": 0, "activations": 0}
        for tensor, size in _reads(func, args, kwargs):
            where = tensor.untyped_storage().data_ptr()
            if where == self.cache:
                read["cache"] += size
            elif where in self.weights:
                read["weights"] += size
                self.used[(tensor.data_ptr(), size)] = size
            else:
                read["activations"] += size
        self.calls.append((str(func), self.in_attention, read))

    def summary(self) -> dict[str, Any]:
        """Launches of the attention module and of the layer, bytes read, bytes of the weights that took part."""
        read = {kind: sum(call[2][kind] for call in self.calls) for kind in ("cache", "weights", "activations")}
        return {
            "attention_launches": sum(inside for _, inside, _ in self.calls),
            "layer_launches": len(self.calls),
            "read": read,
            "weights_once": sum(self.used.values()),
            "attention_calls": [name for name, inside, _ in self.calls if inside],
            "other_calls": [name for name, inside, _ in self.calls if not inside],
        }


def _launches(func: Any, args: Any, result: Any) -> bool:
    """Whether a call starts something on the device: it is no view and no allocation."""
    import torch

    name = str(func)
    if name.startswith(("aten.empty", "aten.new_empty", "aten._unsafe_view", "prim.", "aten.sym_")):
        return False
    tensors = [value for value in args if isinstance(value, torch.Tensor)]
    if not any(tensor.device.type == "npu" for tensor in [*tensors, *_tensors(result)]):
        return False
    aliases = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
    first = next(_tensors(result), None)
    if aliases and tensors and first is not None:
        return bool(first.untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr())
    return True


def _tensors(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _tensors(part)


def _reads(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, int]]:
    """Tensors that a call reads, each once, and how many bytes of them."""
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    rows: Callable[[Any], int] = lambda tensor: tensor.numel()  # noqa: E731
    paged: set[str] = set()
    if func._schema.name == "npu::npu_fused_infer_attention_score" and named.get("block_table") is not None:
        paged = {"key", "value", "key_rope"}
        total = sum(named["actual_seq_lengths_kv"])
        rows = lambda tensor: total * (tensor.numel() // (tensor.shape[0] * named["block_size"]))  # noqa: E731
    elif func._schema.name.startswith("npu::npu_gather_pa_kv_cache"):
        paged = {"key_cache", "value_cache"}
        total = named["key"].shape[0]
        rows = lambda tensor: total * (tensor.numel() // (tensor.shape[0] * tensor.shape[1]))  # noqa: E731
    elif func._schema.name.startswith("npu::npu_scatter_pa_kv_cache"):
        written |= {"key_cache", "value_cache"}
    seen: set[int] = set()
    for name, value in named.items():
        if name in written or (func._schema.name == "aten::copy_" and name == "self"):
            continue
        for tensor in _tensors(value):
            if tensor.data_ptr() not in seen:
                seen.add(tensor.data_ptr())
                yield tensor, (rows(tensor) if name in paged else tensor.numel()) * tensor.element_size()


def floor_of_cache(phase: str) -> int:
    """Bytes of context in the cache that a layer of latent attention has to read."""
    return LATENT_ROW * {"prefill": 0, "chunk": STEP, "decode": REQUESTS * (CONTEXT + 2)}[phase]


def report(found: dict[str, dict[str, Any]]) -> None:
    print(f"{HEADS} heads, bf16; one layer and step. Bytes in KiB, as arguments say")
    print(
        f"{'phase':>8} {'path':>9} {'attention':>10} {'layer':>6} {'cache':>9} {'floor':>9} {'weights':>8} {'once':>8} "
        f"{'activations':>12}"
    )
    figures: dict[str, Any] = {}
    for phase, words in PHASES.items():
        for path in PATHS:
            cost = found[path][phase]
            read, floor = cost["read"], floor_of_cache(phase)
            kib = [read["cache"], floor, read["weights"], cost["weights_once"], read["activations"]]
            print(
                f"{phase:>8} {path:>9} {cost['attention_launches']:>10} {cost['layer_launches']:>6} "
                + " ".join(f"{value / 1024:>{width}.1f}" for value, width in zip(kib, (9, 9, 8, 8, 12), strict=True))
            )
            figures[f"{phase}_{path}"] = {
                "attention_launches": cost["attention_launches"],
                "layer_launches": cost["layer_launches"],
                "cache_over_floor": round(read["cache"] / floor, 3) if floor else None,
                "weights_over_once": round(read["weights"] / max(cost["weights_once"], 1), 3),
                "bytes_read": sum(read.values()),
            }
        print(f"{'':>8} {words}")
        if os.environ.get("SHOW_KERNELS"):
            for path in PATHS:
                print(path, phase, *found[path][phase]["attention_calls"], file=sys.stderr)
                print("  beside it:", *found[path][phase]["other_calls"], file=sys.stderr)
    decode = figures["decode_absorbed"]
    launches = decode["attention_launches"]
    figures["met"] = launches <= GOAL and decode["cache_over_floor"] == 1.0
    print(f"launches of the attention module in decoding: {launches} (aim: at most {GOAL})")
    print(f"cache read over the floor in decoding: {decode['cache_over_floor']:.2f} (aim: 1.00)")
    print(json.dumps({"name": "mla_cost", "figures": figures, "ratio": launches, "goal": GOAL}))


def _in_a_process(path: str) -> dict[str, Any]:
    """The way is a matter of the environment that a process starts with."""
    environment = {**os.environ, "VLLM_MLA_DISABLE": PATHS[path], "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    done = subprocess.run(
        [sys.executable, __file__, "--path", path], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{path}: {(done.stdout + done.stderr)[-6000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--path", choices=PATHS, help="measure one way, in this process, and print JSON")
    options = parser.parse_args()
    if options.path is None:
        report({path: _in_a_process(path) for path in PATHS})
        return 0
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure(Path(folder))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
