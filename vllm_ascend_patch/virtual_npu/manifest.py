# SPDX-License-Identifier: Apache-2.0
"""The capability manifest: which npu:: and atb:: operators have a reference kernel, what it covers, and how strict it is.

Data and its rendering as a documentation table; no torch here. A test holds it against the kernels that are registered.
Sources: W the torch_npu wheel (schemas, Meta kernels, docstrings), D op-plugin's operator pages, C CANN's ops-transformer
kernel pages, R a reference implementation printed in one of them. Where they differ, the newest is followed and both are
named.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One operator.

    Attributes:
        names: dispatcher names with overloads that share the kernel.
        covers: what works.
        not_modelled: what raises NotImplementedError although the device may have it.
        limits: what raises RuntimeError because the vendor documents it as unsupported.
        source: where the limits come from, and the choice made where sources differ.
    """

    names: tuple[str, ...]
    covers: str
    not_modelled: str
    limits: str
    source: str


ROWS: tuple[Row, ...] = (
    Row(
        ("npu::npu_moe_distribute_dispatch_v2",),
        "A2 full mesh, A3 full mesh v1 and v2; bf16, fp16; dynamic int8 (quant_mode 2) with and without smooth factors; "
        "1-D mask (2-D on A3); unequal batches; counts or prefix sums; performance_info",
        "shared-expert ranks; zero, copy and constant experts; y_dtype, x_dtype, scales_dtype",
        "A2: EP 2-8, 16, 32, 64, 128, 192, 256, 384 (hierarchy 16, 32, 64), E <= 1024 (512), batch 1-256 (512), hidden <= "
        "7168 (10240) and % 32, K <= 16, expert_scales needed, 1-D mask only (hierarchy none). A3: EP 2-768 (hierarchy "
        "16-256 in steps of 16), E <= 1024 (512), L*EP <= 2048 (512), batch 1-512 (v2 and hierarchy 256), hidden "
        "1024-8192 (<= 7168), K <= 16 (v2 12), expert_scales refused but for hierarchy, group_tp differs from group_ep. "
        "Both: int32 ids in range, no expert twice in a row, True before False, no mask with unequal batches, global_bs, "
        "equal settings on all ranks, HCCL_BUFFSIZE floor, plain storage format, a missing rank is named after "
        "HCCL_EXEC_TIMEOUT (default here 300 s)",
        "D and C, newest. Mid-2025 D: A2 full mesh only EP 16-256 and L <= 24. A2 2-D mask: D experimental, C no; refused. "
        "A2 hidden size: D 7168, C 10240; 7168. elastic_info: mid-2025 D yes, newest no; refused",
    ),
    Row(
        ("npu::npu_moe_distribute_combine_v2",),
        "as dispatch_v2; shared_expert_x on A3; comm_quant_mode 2 on A3; performance_info",
        "zero, copy and constant experts",
        "as dispatch_v2; float32 router weights; bf16 or fp16 rows; expand_scales needed on A2, refused on A3 but for "
        "hierarchy; shared_expert_x refused on A2; comm_quant_mode 2 on A2 with hierarchy only; ids, mask, counts and "
        "assist info must be those of dispatch (checked against what every rank sent). Rows without an active route stay "
        "unwritten",
        "D, C. shared_expert_x on A3: C and D's combine_add_rms_norm say without shared ranks, D's v2 page the opposite; "
        "the former",
    ),
    Row(
        ("npu::npu_moe_distribute_dispatch",),
        "as dispatch_v2 without mask and comm_alg",
        "shared-expert ranks",
        "A2: EP 16, 32, 64; L <= 24; batch 1-256; hidden <= 7168 and % 32; K <= 16. A3: EP 8, 16, 32, 64, 128, 144, 256, "
        "288; batch 1-512; hidden 7168; K <= 8. E <= 512. Mask refused",
        "D. HCCL_BUFFSIZE floor on A2: the full-mesh formula of version 2",
    ),
    Row(
        ("npu::npu_moe_distribute_combine",),
        "as combine_v2 without mask",
        "-",
        "as dispatch; reserved arguments must keep their defaults",
        "D",
    ),
    Row(
        ("npu::npu_fused_infer_attention_score", "npu::npu_fused_infer_attention_score.out"),
        "BSH, BSND, BNSD, BNSD_BSND, TND; dense or paged (both cache layouts); sparse modes 0-4; GQA; log-sum-exp; "
        "absorbed latent attention: rope inputs on two paged caches (BSND, TND; sparse modes 0 and 3)",
        "rope inputs in other layouts, with head size 128, dense, int8 or with sparse mode 4; quantised keys and values, "
        "pse, shared prefix, left padding, NTD and other layouts, sparse mode 9",
        "fp16, bf16; contiguous; mask exactly 2048x2048, 1 above the diagonal, for modes 2-4; TND: cumulative query "
        "lengths that end with T, key lengths per request when paged, head sizes 128/128, 192/128, 192/192 (no GQA, no "
        "pages), 64/64, 256/256 (no GQA, no pages), equal ones up to 256 and % 16 (pages [blocks, block_size, width] of "
        "up to 512 tokens, mode 0 without GQA only), mode 0 without or 3, 4 with mask, queries <= keys in modes 3 and 4; "
        "with --cann 8.5 no mode 4, 64/64 without GQA only, no equal ones beyond those named; at most 4096 requests; "
        "otherwise head size <= 512 and % 16; block size % 16 up to 1024 (TND), 128-512 in steps "
        "of 128 (prefill), % 16 up to 512 (decode); BSH and BSND queries want [blocks, block_size, width] pages; width <= "
        "65535; heads <= 256; group <= 64; block ids in range. With rope inputs: head size 512 + 64, 1, 2, 4 ... 128 "
        "heads, one key/value head, all contiguous and of one dtype, caches [blocks, block, D] or [blocks, 1, block, D], "
        "block size % 16 up to 1024, fewer than 2**31 elements, mode 3 with mask for 2-16 queries per request, no "
        "log-sum-exp",
        "W, D. W: TND only bf16, without pages; newest D: fp16, pages, head size 64 without GQA; D followed. Mode 4, 64 "
        "with GQA and equal head sizes up to 256: C (CANN 9.1; 8.x refuses them), D does not name the sizes. % 16 is read "
        "from the other layouts. Rope inputs: D, C; at most 16 queries and no "
        "log-sum-exp are CANN 8.x. W asks queries < keys in mode 3: read as <=. W: at least as many blocks as all "
        "requests need together; not enforced, prefix caching shares blocks",
    ),
    Row(
        ("npu::npu_fused_infer_attention_score_v2", "npu::npu_fused_infer_attention_score_v2.out"),
        "as version 1; learnable_sink",
        "as version 1",
        "as version 1; learnable_sink bf16 [heads] beside bf16, TND, head sizes 64, 128, 192 / 64, 128, inner_precise 0, "
        "not with --cann 8.5",
        "W, D, C (dtype, sizes). V5's page also names fp16",
    ),
    Row(
        (
            "npu::_npu_fused_infer_attention_score_get_max_workspace",
            "npu::_npu_fused_infer_attention_score_infer_output",
            "npu::_npu_fused_infer_attention_score_v2_get_max_workspace",
            "npu::_npu_fused_infer_attention_score_v2_infer_output",
        ),
        "layouts of version 1; allocate only",
        "NTD layouts",
        "-",
        "W (signature). The workspace is nominal: the reference kernel uses none",
    ),
    Row(
        ("npu::npu_scatter_pa_kv_cache",),
        "ND and FRACTAL_NZ caches; keys and values of different head sizes",
        "compressed caches (4-D keys)",
        "contiguous; one dtype; slots int32 or int64, in range (no -1), distinct; cache_mode must fit the cache's shape",
        "W",
    ),
    Row(
        ("npu::npu_gather_pa_kv_cache",),
        "ND caches of different head sizes; lengths or sums; offsets",
        "FRACTAL_NZ caches",
        "contiguous; one dtype; int32 or int64 tables and lengths; offsets are multiples of the block size; rows equal the "
        "sum of the lengths; a token at most 148 KiB; block ids in range",
        "W (signature), C. That offsets are whole blocks: read from its predecessor in ATB",
    ),
    Row(
        ("npu::npu_attention_update",),
        "update_type 0 and 1",
        "other update types",
        "1-16 parts; lse float32 [rows]; float32, fp16 or bf16 [rows, D], D % 8 from 8 to 512; contiguous",
        "W, D",
    ),
    Row(
        ("npu::npu_scatter_nd_update_",),
        "any depth",
        "-",
        "int32 or int64 indices in range; one dtype; exact shapes",
        "W",
    ),
    Row(
        ("atb::_npu_reshape_and_cache",),
        "ND caches",
        "FRACTAL_NZ caches (310P)",
        "fp16, bf16, int8; int32 slots in range, distinct; contiguous caches",
        "W (signature), D. The schema is defined here where libatb.so is absent",
    ),
    Row(
        ("atb::_npu_paged_attention",),
        "decode, GQA; context_lens from host or device",
        "-",
        "fp16, bf16; block size % 16; int32 table and lengths in range; contiguous",
        "W (signature), D. The schema is defined here where libatb.so is absent",
    ),
    Row(
        ("npu::npu_moe_init_routing_v2",),
        "no quantisation, dynamic int8; expert range; active_num; gather and scatter indices; counts, sums, pairs",
        "drop/pad, static quantisation, fp8 and int4 modes",
        "int32 ids in [0, expert_num); range within it; scale shapes; torch_npu 2.7.1: range given, flag set, type 1 or "
        "2, active_num == T*K. Rows past the kept copies stay unwritten",
        "W, D. Prefix sums (type 0): the docstring says only 1 and 2, D and the Meta kernel of 2.13 take 0",
    ),
    Row(
        ("npu::npu_moe_init_routing",),
        "whole",
        "-",
        "int32; fewer than 2**24 elements; row indices in range",
        "W, R",
    ),
    Row(
        ("npu::npu_moe_compute_expert_tokens",),
        "whole",
        "-",
        "int32, never falling, in range; at most 2048 experts; fewer than 2**24 rows",
        "W. The binary search is read as prefix sums (rows of experts 0..i)",
    ),
    Row(
        ("npu::npu_moe_finalize_routing",),
        "drop_pad_mode 0-3, skips, bias; index -1 adds nothing",
        "-",
        "one dtype for rows, scales, skips and bias, fp32 scales also beside bf16 rows (not with 2.7.1); int32 indices in "
        "range; skip2 needs skip1",
        "D (scales: aclnnMoeFinalizeRoutingV2 of CANN 8.5), R (index -1). W's docstring admits only mode 0",
    ),
    Row(
        ("npu::npu_moe_re_routing",),
        "whole",
        "tokens_dtype",
        "fp16, bf16, int8; hidden < 16384; counts sum to the rows; type 1, idx 0",
        "D",
    ),
    Row(
        ("npu::npu_moe_token_permute",),
        "whole",
        "padded_mode",
        "K <= 512; fewer than 16777215 indices, in range",
        "W, D. W says bf16 tokens only; newest D adds fp16 and fp32",
    ),
    Row(
        ("npu::npu_moe_token_unpermute", "npu::_npu_moe_token_unpermute"),
        "whole",
        "padded_mode",
        "int32 indices in [0, rows), distinct (no -1); K <= 512",
        "D. W says bf16 only; newest D adds fp16 and fp32",
    ),
    Row(
        ("npu::npu_moe_gating_top_k",),
        "softmax and sigmoid, groups, bias",
        "hash routing",
        "E <= 2048; bias of the same dtype; group rules; renorm 0",
        "W, R. Sigmoid renormalises, softmax does not",
    ),
    Row(
        ("npu::npu_moe_gating_top_k_softmax",),
        "2-D and 3-D, finished rows",
        "-",
        "k <= min(E, 1024)",
        "W",
    ),
    Row(
        ("npu::npu_moe_gating_top_k_softmax_v2",),
        "as version 1, renorm, output_softmax",
        "-",
        "k <= min(E, 1024); renorm 0 or 1",
        "W. 3-D with output_softmax: x's shape is returned; the Meta kernel of 2.13 compares a method with 3",
    ),
    Row(
        ("npu::npu_moe_update_expert",),
        "both balance modes, pruning",
        "-",
        "A3 only; world 2-768; replica counts in range; mask True first, needs scales and threshold",
        "W, R",
    ),
    Row(
        ("npu::npu_grouped_matmul", "npu::npu_grouped_matmul.List"),
        "group_type -1 and 0; fp16, bf16, fp32; W8A8 with per-channel and per-token scales or int32 output; int8 rows with "
        "int4 weights (A8W4); float rows with int4 weights (A16W4), per channel or in groups; weight lists; act_type",
        "group_type 2, Python-list group_list, float rows with int8 weights, int64 scales of W8A8, offsets, A4W4, fp8",
        "group_type must be passed; int64 group_list; <= 1024 groups, <= 128 list entries; inner dimensions < 65536; bias "
        "dtype by x; bf16 scale for bf16 output, float32 for fp16; pairs for int8 only. A8W4: counts; K a multiple of 256, "
        "<= 18432; int64 scale [E, G, N]; bias required. A16W4: scale and offset of x's dtype, [E, N] or [E, G, N], G "
        "divides K, K / G even for transposed weights, offset zero with groups. Rows past the groups stay unwritten",
        "W, D, C. A8W4's page has G = K / 256; the host code takes G from the scale, so G = 1 is taken. W: group_list must "
        "sum to M; a smaller sum is taken, as dispatch's padded rows need it",
    ),
    Row(
        ("npu::npu_grouped_matmul_swiglu_quant",),
        "FRACTAL_NZ weights",
        "-",
        "weight must be in FRACTAL_NZ, with its storage; K <= 65535, N <= 10240; prefix sums only; bias and offset None. "
        "Rows past the groups stay unwritten",
        "W, C",
    ),
    Row(
        ("npu::npu_grouped_matmul_swiglu_quant_v2",),
        "W8A8; prefix sums or counts",
        "int4 weights, mx types",
        "one weight, in FRACTAL_NZ; K <= 65535, N <= 10240; float32 scales; default quantisation arguments",
        "W, D, C",
    ),
    Row(
        ("npu::npu_swiglu",),
        "whole",
        "-",
        "fp16, bf16, fp32; even size along dim",
        "W",
    ),
    Row(
        ("npu::npu_clipped_swiglu",),
        "whole",
        "-",
        "fp16, bf16, fp32; contiguous; more than 1 dimension; even size along dim; int64 counts, sum <= rows. Rows past the "
        "counts stay unwritten",
        "W, D",
    ),
    Row(
        ("npu::npu_swiglu_quant",),
        "dynamic int8",
        "static quantisation (the default), int4",
        "last dimension even, <= 8192; int32 groups",
        "W",
    ),
    Row(
        ("npu::npu_dequant_swiglu_quant",),
        "dynamic int8, groups, swiglu_mode 0-2",
        "static quantisation (the default), bias, other activate_dim",
        "int32 x needs both scales, bf16 x neither; int64 counts, sum <= M; H <= 10496 and % 64 with groups. Rows past "
        "the counts stay unwritten",
        "W, D",
    ),
    Row(
        ("npu::npu_dynamic_quant",),
        "per token, smooth factors, groups",
        "per channel, per tensor, int4",
        "fp16, bf16; 2-D or more; factors of x's dtype; int32 prefix sums that end with the rows",
        "W",
    ),
    Row(
        ("npu::npu_quant_matmul",),
        "int8 operands; int8, fp16, bf16, int32 output; per-token scales; int64 scales for fp16; 1-D bias; offset",
        "int64 scales for int8, int4, fp8, group_sizes, y_scale, bias of more dimensions",
        "dtype table of scale, bias and output; last dimensions <= 65535; an int64 scale is the bits of a float32, of which "
        "19 count, and goes without per-token scales",
        "W, C",
    ),
    Row(
        ("npu::npu_weight_quant_batchmatmul",),
        "fp16 and bf16 rows with int4 weights, plain or transposed; per channel or in groups; offsets; bias",
        "int8 weights, FRACTAL_NZ, int8 output, int64 scales, a last group that is not full",
        "scale and offset of x's dtype and of one shape; groups of 32 to K - 1 in steps of 32; K, N <= 65535; bias fp16 for "
        "fp16, float32 for bf16; inner_precise 0; nothing empty",
        "W",
    ),
    Row(
        ("npu::npu_quantize",),
        "int8 by division or multiplication; scales and offsets of a tensor or of an axis",
        "uint8, int32, int4, fp8; scales of more dimensions; fp16 by division, of which D and C want different scales",
        "scales of x's dtype, or float32 and bf16 for float32 by division; offsets integral by division (bf16 beside bf16), "
        "of the scales' dtype by multiplication; 1-D, one element or the axis; 1 to 8 dimensions",
        "W, D, C",
    ),
    Row(
        ("npu::npu_rms_norm",),
        "whole",
        "-",
        "fp16, bf16, fp32; gamma of x's dtype and trailing shape",
        "W",
    ),
    Row(
        ("npu::npu_add_rms_norm",),
        "whole",
        "-",
        "as npu_rms_norm; equal shapes and dtypes",
        "W",
    ),
    Row(
        ("npu::npu_rotary_mul",),
        "half and interleave",
        "argument rotate",
        "4-D; even head size < 896; full-size cos and sin that broadcast; B, N < 1000; interleave: cos varies over S only",
        "W",
    ),
    Row(
        ("npu::npu_mrope",),
        "rope and three-section mrope, half and interleave",
        "cache_mode interleave",
        "positions in range; rotary_dim % 32 (fp32: 16); whole heads; sections sum to rotary_dim / 2",
        "W",
    ),
    Row(
        ("npu::npu_apply_rotary_pos_emb",),
        "BSND, TND, in place",
        "-",
        "head size 64 or 128; half only; one dtype; not empty",
        "W",
    ),
    Row(
        (
            "npu::npu_format_cast",
            "npu::npu_format_cast.Tensor",
            "npu::_npu_format_cast",
            "npu::_npu_format_cast.aclnn",
            "npu::_npu_format_cast.input_dtype",
        ),
        "ND and FRACTAL_NZ; get_npu_format agrees",
        "other formats, customize_dtype, the in-place forms",
        "2 dimensions for FRACTAL_NZ. Only the descriptor changes: elements stay in ND order",
        "W",
    ),
)

HONESTY = (
    "A virtual NPU cannot show: how long anything takes on a device; real memory pressure and fragmentation; the numerics "
    "of the vendor's kernels (reference kernels accumulate in float32 and round once); how vector cores are scheduled, "
    "hence deadlocks of captured graphs that share them; races between the host's threads; anything "
    "about links between devices. A limit that the vendor does not document is not found here either."
)


def names() -> frozenset[str]:
    """Every operator of the manifest, by dispatcher name."""
    return frozenset(name for row in ROWS for name in row.names)


def markdown() -> str:
    """The documentation table, and what a virtual NPU cannot show."""
    lines = [
        "| Operator | Covered | Not modelled (NotImplementedError) | Limits (RuntimeError) | Source |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        shown = "<br>".join(f"`{name}`" for name in row.names)
        cells = (row.covers, row.not_modelled, row.limits, row.source)
        lines.append(f"| {shown} | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    sources = "W: torch_npu wheel. D: op-plugin pages. C: CANN ops-transformer pages. R: reference code in one of them."
    return "\n".join([*lines, "", sources, "", HONESTY, ""])
