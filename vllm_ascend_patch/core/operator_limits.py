# SPDX-License-Identifier: Apache-2.0
"""What the operators' arguments may grow to with a deployment: the limits, where they are from, and what keeps them.

Pure arithmetic on sizes, without torch. Heads are ``model_support.py``'s, the dispatch and combine operators
``core/moe/limits.py``'s; the table has a row for each of them all the same. Who reads sizes out of vLLM is elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .latent_support import LATENT_RANK, ROPE_WIDTH

INT32_MAX = 2**31 - 1

# npu_fused_infer_attention_score (torch_npu operator documentation; "W" and "D" in docs/virtual-npu.md).
MAX_QUERY_HEADS = 256
MAX_GROUP = 64
"""Query heads per KV head."""
MAX_HEAD_SIZE = 512
HEAD_SIZE_MULTIPLE = 16
MAX_KV_ROW = 65535
"""KV heads x head size, the row of a page."""
MAX_QUERY_ROW = 65534
"""Query heads x head size, in the layout that is not TND."""
MAX_TND_REQUESTS = 4096
MAX_BSND_REQUESTS = 65536
TND_HEAD_SIZE = 128
"""The one that every CANN takes in layout TND with grouped heads and pages."""
MAX_BAND_HEAD_SIZE = 256
"""Of sliding windows, which are TND's: what CANN 9.1 checks ("C")."""
SINK_HEAD_SIZES = (64, 128)
"""Of attention sinks, for values as for keys."""
KERNEL_BLOCK = 128
"""The block size that every rule of the operator takes."""
MAX_BLOCK_SIZE = 512
"""Of paged attention with several query tokens; also a multiple of ``KERNEL_BLOCK``."""

# npu_grouped_matmul of int8 rows with int4 weights: K is a multiple, and has an upper limit (CANN: aclnnGroupedMatmulV5).
GROUPED_MATMUL_INT4_MULTIPLE = 256
GROUPED_MATMUL_INT4_MAX_INNER = 18432
# npu_grouped_matmul: the last dimension of x and weight is below 65536, at most 1024 groups (op-plugin reference).
GROUPED_MATMUL_MAX_DIM = 65535
GROUPED_MATMUL_MAX_GROUPS = 1024
# npu_quant_matmul: last dimensions (torch_npu operator documentation).
QUANT_MATMUL_MAX_DIM = 65535
# npu_weight_quant_batchmatmul: K and N, and inputs that share a scale (torch_npu operator documentation).
WEIGHT_QUANT_MAX_DIM = 65535
WEIGHT_QUANT_GROUP_MULTIPLE = 32
# npu_moe_init_routing_v2 (op-plugin reference).
MAX_EXPERTS = 10240
# npu_moe_token_unpermute (op-plugin reference).
UNPERMUTE_MAX_TOP_K = 512
# npu_dequant_swiglu_quant with group_index: intermediate size at most this and a multiple of 64 (op-plugin reference).
FUSED_QUANT_MAX_INTERMEDIATE = 10496
FUSED_QUANT_ALIGNMENT = 64
# npu_grouped_matmul_swiglu_quant: K and N (CANN: aclnnGroupedMatmulSwigluQuantWeightNZ). No page speaks of sizes that leave
# tiles of FRACTAL_NZ partly empty: here gates, and up, are whole tiles, so rows of the result are whole blocks of 32 bytes.
FUSED_MATMUL_MAX_INNER = 65535
FUSED_MATMUL_MAX_OUTER = 10240
FUSED_MATMUL_ALIGNMENT = 32


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What decides how large operator arguments get on one rank.

    Attributes:
        heads: query heads per rank.
        kv_heads: KV heads per rank.
        head_size: elements of a head.
        block_size: tokens of a KV block.
        kernel_block: tokens of a block as the operators see it; fewer where vLLM cuts blocks for them.
        max_model_len: longest request; None when it is fitted to the cache.
        max_num_seqs: most requests of a step.
        max_num_batched_tokens: most tokens of a step.
        num_blocks: KV blocks, where the user gave a number.
        attention_chunk: tokens of a chunk that attention stays within, where layers have such.
        experts: physical experts of a layer; 0 without experts, or where the model's configuration does not tell.
        local_experts: those of this rank.
        hidden_size: H; 0 where it is not told.
        intermediate_size: of one expert, on this rank.
        top_k: experts per token.
        int8_widths: inputs and outputs of this rank's int8 linear layers.
        int4_experts: whether experts have int4 weights.
        latent: multi-head latent attention (MLA), whose head size is that of a cached token.
        tnd_only: sliding windows or sinks, which layout TND alone has.
    """

    heads: int
    kv_heads: int
    head_size: int
    block_size: int
    kernel_block: int
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    num_blocks: int | None = None
    attention_chunk: int | None = None
    experts: int = 0
    local_experts: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    top_k: int = 0
    int8_widths: tuple[int, ...] = ()
    latent: bool = False
    tnd_only: bool = False
    int4_experts: bool = False

    @property
    def key_elements(self) -> int:
        """Elements that a block of one layer adds to what the operator takes as its paged key."""
        if self.latent:
            return latent_key_elements(self.block_size)
        return 2 * self.block_size * self.kv_heads * self.head_size


def latent_key_elements(block_size: int) -> int:
    """Of a block of latent attention: the latents are the key, the rotary parts a tensor of their own."""
    return block_size * LATENT_RANK


def most_blocks(key_elements: int) -> int:
    """Blocks of a layer's cache that attention can index: the elements of a paged key are counted in int32.

    Plain keys and values are one view of half pages (``npu/attention/layout.py``), so both count.
    """
    return INT32_MAX // key_elements


def most_requests_of_a_call(deployment: Deployment) -> int:
    """Requests of the largest attention call. Chunked layers see a request once for each chunk that its tokens are in."""
    requests = min(deployment.max_num_seqs, deployment.max_num_batched_tokens)
    if deployment.attention_chunk is None:
        return requests
    spare = deployment.max_num_batched_tokens - requests
    return requests + min(spare, requests + spare // deployment.attention_chunk)


def violations(deployment: Deployment) -> Iterator[str]:
    """What of a deployment would break an operator's limit: found, supported, and what to do."""
    yield from _attention(deployment)
    yield from _experts(deployment)
    widest = max(deployment.int8_widths, default=0)
    if widest > QUANT_MATMUL_MAX_DIM:
        yield (
            f"an int8 linear layer has {widest} inputs or outputs per rank, at most {QUANT_MATMUL_MAX_DIM} are supported on "
            "Ascend NPUs (npu_quant_matmul): raise --tensor-parallel-size"
        )


def _attention(deployment: Deployment) -> Iterator[str]:
    block, chunk = deployment.block_size, deployment.attention_chunk
    most = most_blocks(deployment.key_elements)
    if deployment.latent:
        cached, holds = "latents", f"{block} tokens with latents of {LATENT_RANK}"
    else:
        cached = "keys and values"
        holds = f"{block} tokens with {deployment.kv_heads} KV heads of size {deployment.head_size} per rank"
    why = (
        f"at most {most} can be indexed on Ascend NPUs (npu_fused_infer_attention_score: the {cached} of a layer are "
        f"at most {INT32_MAX} elements; a block of {holds} has {deployment.key_elements})"
    )
    if deployment.num_blocks is not None and deployment.num_blocks > most:
        yield f"--num-gpu-blocks-override {deployment.num_blocks}: {why}. Lower it, or leave it out"
    if deployment.max_model_len is not None:
        needed = -(-deployment.max_model_len // block) + 1  # one block is never given to a request
        if needed > most:
            fewer = (
                "raise --tensor-parallel-size, so that a rank has fewer KV heads, or "
                if deployment.kv_heads > 1
                else ""
            )
            yield (
                f"--max-model-len {deployment.max_model_len} needs {needed} KV blocks, and {why}: {fewer}lower "
                f"--max-model-len to {(most - 1) * block}"
            )
    # Prefill of latent attention, and its decoding with drafts, are TND calls whatever the sizes.
    tnd = deployment.latent or deployment.tnd_only or deployment.head_size == TND_HEAD_SIZE
    limit = MAX_TND_REQUESTS if tnd else MAX_BSND_REQUESTS
    requests = most_requests_of_a_call(deployment)
    if requests > limit:
        chunks = "" if chunk is None else f" (each counts once per chunk of {chunk} tokens)"
        yield (
            f"--max-num-seqs {deployment.max_num_seqs} lets attention meet {requests} requests in a step{chunks}, at most "
            f"{limit} are supported on Ascend NPUs with {_of(deployment)} "
            "(npu_fused_infer_attention_score): lower --max-num-seqs"
        )
    kernel_block = deployment.kernel_block
    if kernel_block > MAX_BLOCK_SIZE:
        yield (
            f"--block-size {block}: at most {MAX_BLOCK_SIZE} is supported on Ascend NPUs with this vLLM release "
            "(npu_fused_infer_attention_score): lower it, or leave it out"
        )
    if chunk is not None and chunk % kernel_block:
        yield (
            f"this model's attention stays within chunks of {chunk} tokens; only chunks of whole KV blocks are supported on "
            f"Ascend NPUs, which have {kernel_block} tokens here"
            + (": leave --block-size out" if kernel_block != KERNEL_BLOCK and chunk % KERNEL_BLOCK == 0 else "")
        )


def _of(deployment: Deployment) -> str:
    if deployment.tnd_only:
        return "sliding windows or sinks"
    return "multi-head latent attention" if deployment.latent else f"head size {deployment.head_size}"


def _experts(deployment: Deployment) -> Iterator[str]:
    if deployment.experts > MAX_EXPERTS:
        yield (
            f"{deployment.experts} experts per layer, at most {MAX_EXPERTS} are supported on Ascend NPUs "
            "(npu_moe_init_routing_v2)"
        )
    if deployment.local_experts > GROUPED_MATMUL_MAX_GROUPS:
        yield (
            f"{deployment.local_experts} experts per rank, at most {GROUPED_MATMUL_MAX_GROUPS} are supported on Ascend NPUs "
            "(npu_grouped_matmul): use more expert parallel ranks"
        )
    if deployment.int4_experts:
        problem = int4_sizes_problem(deployment.hidden_size, deployment.intermediate_size)
        if problem is not None:
            yield problem
    widest = max(deployment.hidden_size, 2 * deployment.intermediate_size)
    if deployment.local_experts and widest > GROUPED_MATMUL_MAX_DIM:
        yield (
            f"experts of hidden size {deployment.hidden_size} and intermediate size {deployment.intermediate_size} per "
            f"rank: hidden size and twice the intermediate size are at most {GROUPED_MATMUL_MAX_DIM} on Ascend NPUs "
            "(npu_grouped_matmul): use more tensor parallel ranks, without expert parallelism"
        )
    if deployment.top_k > UNPERMUTE_MAX_TOP_K:
        yield (
            f"{deployment.top_k} experts per token, at most {UNPERMUTE_MAX_TOP_K} are supported on Ascend NPUs "
            "(npu_moe_token_unpermute)"
        )


def int4_sizes_problem(hidden_size: int, intermediate_size: int) -> str | None:
    """What is wrong with the sizes of int4 experts; None for nothing."""
    multiple, most = GROUPED_MATMUL_INT4_MULTIPLE, GROUPED_MATMUL_INT4_MAX_INNER
    if all(size % multiple == 0 and size <= most for size in (hidden_size, intermediate_size)):
        return None
    return (
        f"int4 experts of hidden size {hidden_size} and intermediate size {intermediate_size} per rank: both have to be "
        f"multiples of {multiple} and at most {most} on Ascend NPUs (npu_grouped_matmul): use fewer tensor parallel ranks "
        "or --enable-expert-parallel, or a checkpoint with int8 experts"
    )


@dataclass(frozen=True)
class Row:
    """One argument in the table of ``docs/operator-limits.md``.

    Attributes:
        operator: torch_npu's name.
        argument: what grows.
        grows_with: the settings and model sizes that it grows with.
        limit: what the vendor documents.
        source: W (torch_npu wheel), D (op-plugin pages), C (CANN), as in ``docs/virtual-npu.md``.
        kept_by: what keeps the limit, and where the user meets it.
    """

    operator: str
    argument: str
    grows_with: str
    limit: str
    source: str
    kept_by: str


_ATTENTION = "npu_fused_infer_attention_score"
_REFUSED = "refused from the configuration"
_UNLIMITED = "none documented"
_MC2 = "core/moe/limits.py: a forced MC2 is refused, the automatic choice takes another method"

ROWS: tuple[Row, ...] = (
    Row(
        _ATTENTION,
        "elements of key and of value",
        "KV blocks x block size x KV heads x head size x 2",
        f"{INT32_MAX}",
        "W",
        "npu/kv_limit.py caps the cache, with a line in the log; --max-model-len and --num-gpu-blocks-override that need "
        f"more are {_REFUSED}",
    ),
    Row(
        _ATTENTION,
        "elements of key, latent attention",
        f"KV blocks x block size x {LATENT_RANK}; the rotary parts ({ROPE_WIDTH} per token) are a tensor of their own",
        f"{INT32_MAX}",
        "D",
        f"as above: {INT32_MAX // LATENT_RANK} tokens of a layer, whatever the number of heads",
    ),
    Row(
        _ATTENTION,
        "heads and head size",
        "the model's heads / TP",
        f"{MAX_QUERY_HEADS} query heads, {MAX_GROUP} per KV head; head size {MAX_HEAD_SIZE}, in steps of "
        f"{HEAD_SIZE_MULTIPLE}; KV heads x head size {MAX_KV_ROW}; query heads x head size {MAX_QUERY_ROW} unless the head "
        f"size is {TND_HEAD_SIZE}",
        "W, D",
        f"core/model_support.py: {_REFUSED}",
    ),
    Row(
        f"{_ATTENTION}_v2",
        "head size with sinks; with sliding windows, in either version",
        "the model",
        f"{', '.join(map(str, SINK_HEAD_SIZES))}, in bfloat16; {MAX_BAND_HEAD_SIZE}",
        "C, D",
        f"core/model_support.py and npu/attention_check.py, which asks the installed CANN: {_REFUSED}",
    ),
    Row(
        _ATTENTION,
        "requests of a call",
        "--max-num-seqs; for chunked attention --max-num-batched-tokens, too",
        f"{MAX_TND_REQUESTS} with head size {TND_HEAD_SIZE}, latent attention, sliding windows and sinks, else "
        f"{MAX_BSND_REQUESTS}: larger batches go through BSND",
        "W, D",
        f"{_REFUSED}",
    ),
    Row(
        _ATTENTION,
        "block_size",
        "--block-size",
        "128 to 512 in steps of 128",
        "W, D",
        f"npu/config_defaults.py: other than multiples of {KERNEL_BLOCK} {_REFUSED}, and more than {MAX_BLOCK_SIZE} where "
        f"vLLM does not cut blocks into ones of {KERNEL_BLOCK}",
    ),
    Row(
        _ATTENTION,
        "columns of block_table",
        "--max-model-len / block size",
        _UNLIMITED,
        "W",
        "block ids are int32 and twice vLLM's: they fit because the elements do",
    ),
    Row(
        _ATTENTION,
        "key lengths, query lengths",
        "--max-model-len, --max-num-batched-tokens",
        _UNLIMITED,
        "W",
        "host integers",
    ),
    Row(
        "npu_scatter_pa_kv_cache",
        "slots",
        "KV blocks x block size x 2",
        "int64",
        "W",
        "fit because the elements of a key do",
    ),
    Row(
        _ATTENTION,
        "heads and widths of latent attention",
        "the model's heads / TP; kv_lora_rank, qk_rope_head_dim, qk_nope_head_dim, v_head_dim",
        "decode: 512 + 64 elements, 1, 2, 4 ... 128 heads; prefill: 192/128 and 256/256",
        "D, C",
        f"core/latent_support.py: other heads are padded, up to 128; what else does not fit is {_REFUSED}",
    ),
    Row(
        "npu_gather_pa_kv_cache",
        "bytes of a token",
        "constant: 512 and 64 elements",
        "148 KiB",
        "C",
        "constant",
    ),
    Row(
        "npu_attention_update",
        "parts, width",
        "constant: two parts; v_head_dim",
        "16 parts; 8 to 512 elements in steps of 8",
        "W, D",
        "core/latent_support.py: widths of 128 and 256",
    ),
    Row("npu_moe_init_routing_v2", "rows, copies", "tokens of a step x top-k", _UNLIMITED, "W, D", ""),
    Row("npu_moe_init_routing_v2", "expert_num", "experts", f"{MAX_EXPERTS}", "D", _REFUSED),
    Row(
        "npu_moe_token_unpermute",
        "copies per token",
        "top-k",
        f"{UNPERMUTE_MAX_TOP_K}",
        "W, D",
        f"{_REFUSED}",
    ),
    Row(
        "npu_moe_finalize_routing",
        "rows, entries of expanded_src_to_dst_row",
        "rows that a rank gets x top-k",
        _UNLIMITED,
        "W, D",
        "positions are int32",
    ),
    Row(
        "npu_moe_gating_top_k_softmax",
        "k",
        "top-k",
        "1024 and the number of experts",
        "W",
        f"the {UNPERMUTE_MAX_TOP_K} of npu_moe_token_unpermute is reached first",
    ),
    Row(
        "npu_moe_gating_top_k",
        "experts, groups, k",
        "the model's experts and groups; top-k",
        "2048 experts, also with each group rounded up to 32; at least 3 per group; k within the groups that are kept",
        "W, D",
        "core/moe/gating.py: torch operators otherwise",
    ),
    Row(
        "npu_grouped_matmul",
        "groups",
        "experts / EP",
        f"{GROUPED_MATMUL_MAX_GROUPS}",
        "W, D",
        f"{_REFUSED}; core/moe/experts.py, by the worker",
    ),
    Row(
        "npu_grouped_matmul",
        "last dimensions of x and weight",
        "hidden size; twice the experts' intermediate size, / TP without EP",
        f"{GROUPED_MATMUL_MAX_DIM}",
        "W, D",
        f"{_REFUSED}; core/moe/experts.py, by the worker",
    ),
    Row(
        "npu_grouped_matmul",
        "groups of inputs that share a scale",
        "the checkpoint's groups (W4A16); the experts' intermediate size / TP without EP",
        "they divide K, and have an even size",
        "W, C",
        f"core/weight_formats.py, core/model_support.py: {_REFUSED}",
    ),
    Row(
        "npu_dequant_swiglu_quant",
        "width of an expert",
        "the experts' intermediate size",
        f"{FUSED_QUANT_MAX_INTERMEDIATE}, in steps of {FUSED_QUANT_ALIGNMENT}",
        "W, D",
        "core/moe/experts.py dequantises others in the grouped matmul",
    ),
    Row(
        "npu_grouped_matmul_swiglu_quant",
        "hidden size, width of an expert",
        "hidden size; twice the experts' intermediate size, / TP without EP",
        f"{FUSED_MATMUL_MAX_INNER}, {FUSED_MATMUL_MAX_OUTER}; here whole tiles of {FUSED_MATMUL_ALIGNMENT}",
        "C",
        "core/moe/fused_choice.py: two operators otherwise",
    ),
    Row("npu_format_cast", "elements", "the experts' first int8 weights on a rank", _UNLIMITED, "W", ""),
    Row("npu_clipped_swiglu", "last dimension", "intermediate size", "even", "W, D", "gate and up have one size"),
    Row("npu_swiglu", "last dimension", "intermediate size", "even", "W", "gate and up have one size"),
    Row("npu_dynamic_quant", "rows, width", "tokens of a step, hidden size", _UNLIMITED, "W", ""),
    Row(
        "npu_quantize",
        "rows, width",
        "tokens of a step, inputs of W8A8 layers with static activations",
        _UNLIMITED,
        "W, D",
        "",
    ),
    Row(
        "npu_quant_matmul",
        "last dimensions of x1 and x2",
        "inputs and outputs of W8A8 linear layers / TP",
        f"{QUANT_MATMUL_MAX_DIM}",
        "W",
        f"{_REFUSED}; npu/int8_linear.py, by the worker",
    ),
    Row(
        "npu_weight_quant_batchmatmul",
        "K and N; inputs that share a scale",
        "inputs and outputs of W4A16 linear layers / TP; the checkpoint's groups",
        f"{WEIGHT_QUANT_MAX_DIM}; multiples of {WEIGHT_QUANT_GROUP_MULTIPLE}",
        "W",
        f"core/weight_formats.py: other groups are {_REFUSED}; npu/int4_linear.py, by the worker",
    ),
    *(
        Row(
            f"npu_moe_distribute_{part}{version}",
            "EP, experts, tokens per rank, hidden size, top-k, HCCL_BUFFSIZE",
            "EP, the model, tokens of a step / TP",
            "by generation and operator version",
            "D",
            _MC2,
        )
        for version in ("_v2", "")
        for part in ("dispatch", "combine")
    ),
)
