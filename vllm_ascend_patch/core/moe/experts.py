# SPDX-License-Identifier: Apache-2.0
"""The experts of this rank: their weights in the layout the grouped matmul wants, and the one expert MLP function.

No communication and no routing here: rows come in sorted by local expert, rows go out in the same order.

W8A8 means per-token symmetric int8 activations, computed on the fly, and per-output-channel symmetric int8 weights, as
compressed-tensors checkpoints store them. W4A8 has the same activations and int4 weights (``int4_weights.py``), W4A16 float
rows and int4 weights (``core/packed_int4.py``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from vllm_ascend_patch.core.operator_limits import (
    FUSED_QUANT_ALIGNMENT,
    FUSED_QUANT_MAX_INTERMEDIATE,
    GROUPED_MATMUL_MAX_DIM,
    GROUPED_MATMUL_MAX_GROUPS,
)
from vllm_ascend_patch.core.packed_int4 import PER_WORD

from .activations import SWIGLU, Activation
from .constants import zero_rows
from .errors import MoEConfigError
from .fractal_nz import to_nz

FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """Weights of this rank's experts: views of the tensors that the checkpoint was loaded into, in the same memory.

    Whoever writes to those tensors, a reload or load balancing, is seen by the next forward. The operator takes transposed
    views (op-plugin reference of ``npu_grouped_matmul``), so nothing is laid out anew.

    E = local experts, H = hidden size, I = intermediate size on this rank.

    Attributes:
        w13: gate and up projection, ``[E, H, 2I]``, float or int8; ``[E, H, I]`` for an activation without a gate.
        w2: down projection, ``[E, I, H]``, same dtype as ``w13``.
        output_dtype: dtype of the MLP's output, and of its input unless that is quantised.
        w13_scale: W8A8 only, ``[E, 2I]``: fp32 for the fused dequant-swiglu-quant operator, else ``w2_scale``'s dtype.
        w2_scale: W8A8 only, ``[E, H]``: bf16 for bf16 output, fp32 for fp16 output, as the operator demands.
        activation: between the two products, and how ``w13``'s columns lie.
        w13_bias: float experts only, ``[E, 2I]`` of ``bias_dtype``, or None.
        w2_bias: as ``w13_bias``, ``[E, H]``. A rank with a slice of every expert has it if its partial sums are to have it.
        w13_scale_bias: W4A8 only, float32 ``[E, 2I]``; then ``w13`` is int32 ``[E, H, 2I / 8]`` and ``w13_scale`` int64
            ``[E, 1, 2I]``.
        w2_scale_bias: W4A8 only, float32 ``[E, H]``; ``w2`` and ``w2_scale`` likewise.
        w13_group_scale: W4A16 only, of ``output_dtype``: ``[E, G, 2I]``, a scale for each of G groups of inputs, or per
            channel ``[E, 2I]``; then ``w13`` is int32 ``[E, H / 8, 2I]``.
        w2_group_scale: W4A16 only, ``[E, G, H]`` or ``[E, H]``; ``w2`` likewise.
        fused: W8A8 only, whether ``w13`` is in FRACTAL_NZ, for the operator that goes on to SwiGLU and int8. It is then no
            view of what a checkpoint is loaded into.
    """

    w13: torch.Tensor
    w2: torch.Tensor
    output_dtype: torch.dtype
    w13_scale: torch.Tensor | None = None
    w2_scale: torch.Tensor | None = None
    activation: Activation = SWIGLU
    w13_bias: torch.Tensor | None = None
    w2_bias: torch.Tensor | None = None
    w13_scale_bias: torch.Tensor | None = None
    w2_scale_bias: torch.Tensor | None = None
    w13_group_scale: torch.Tensor | None = None
    w2_group_scale: torch.Tensor | None = None
    fused: bool = False

    @classmethod
    def from_loaded(
        cls,
        w13: torch.Tensor,
        w2: torch.Tensor,
        *,
        activation: str | Activation,
        w13_scale: torch.Tensor | None = None,
        w2_scale: torch.Tensor | None = None,
        output_dtype: torch.dtype | None = None,
        w13_bias: torch.Tensor | None = None,
        w2_bias: torch.Tensor | None = None,
    ) -> ExpertWeights:
        """Check weights in the layout that vLLM loads, and view them as the operators take them.

        Scales and biases of another dtype than the operators demand are copied; see ``scale_dtypes`` and ``bias_dtype``.

        Args:
            w13: ``[E, 2I, H]``, gate rows then up rows, or as the activation has them; bf16, fp16, fp32, or int8 with
                scales.
            w2: ``[E, H, I]``.
            activation: vLLM's activation name, where its own numbers hold, or an ``Activation``.
            w13_scale: ``[E, 2I]`` or ``[E, 2I, 1]``, weight = int8 * scale. Required for int8.
            w2_scale: ``[E, H]`` or ``[E, H, 1]``. Required for int8.
            output_dtype: bf16 or fp16, required for int8; float weights give their own dtype.
            w13_bias: ``[E, 2I]`` beside ``w13``'s rows, or None.
            w2_bias: ``[E, H]``, or None.

        Raises:
            MoEConfigError: unsupported activation, dtype, shape or missing scales.
        """
        if not isinstance(activation, Activation):
            activation = Activation.of(activation)
        _check_shapes(w13, w2, activation)
        biases = {"w13_bias": w13_bias, "w2_bias": w2_bias}
        if w13.dtype in FLOAT_DTYPES:
            if w13_scale is not None or w2_scale is not None:
                raise MoEConfigError(f"weight scales were given for {w13.dtype} experts; only int8 experts have scales")
            for (name, bias), weight in zip(biases.items(), (w13, w2), strict=True):
                if bias is not None and bias.shape != weight.shape[:2]:
                    raise MoEConfigError(
                        f"{name} has shape {tuple(bias.shape)}, expected {tuple(weight.shape[:2])}: one per row"
                    )
            dtype = bias_dtype(w13.dtype)
            w13_bias, w2_bias = (None if bias is None else bias.to(dtype) for bias in biases.values())
            return cls.of(w13, w2, w13.dtype, activation=activation, w13_bias=w13_bias, w2_bias=w2_bias)
        if w13_bias is not None or w2_bias is not None:
            raise MoEConfigError(
                f"experts of {w13.dtype} with biases are not supported; biases are for bf16, fp16 and fp32 experts"
            )
        if w13.dtype != torch.int8:
            raise MoEConfigError(
                f"expert weights of {w13.dtype} are not supported; use bf16, fp16, fp32 or W8A8 int8 experts"
            )
        if w13_scale is None or w2_scale is None or output_dtype not in (torch.bfloat16, torch.float16):
            raise MoEConfigError(
                "W8A8 experts need w13_scale, w2_scale and an output dtype of bf16 or fp16, "
                f"found output dtype {output_dtype}"
            )
        w13_scale = _channel_scale(w13_scale, w13, "w13_scale")
        w2_scale = _channel_scale(w2_scale, w2, "w2_scale")
        dtype13, dtype2 = scale_dtypes(w2.shape[2], output_dtype, activation)
        return cls.of(w13, w2, output_dtype, w13_scale.to(dtype13), w2_scale.to(dtype2), activation)

    @classmethod
    def of(
        cls,
        w13: torch.Tensor,
        w2: torch.Tensor,
        output_dtype: torch.dtype,
        w13_scale: torch.Tensor | None = None,
        w2_scale: torch.Tensor | None = None,
        activation: Activation = SWIGLU,
        w13_bias: torch.Tensor | None = None,
        w2_bias: torch.Tensor | None = None,
        *,
        fused: bool = False,
    ) -> ExpertWeights:
        """The views alone, of tensors that ``from_loaded`` accepts; scales and biases have the operators' dtypes already.

        ``fused``: int8 ``w13`` is ``[E, H, 2I]`` in FRACTAL_NZ already.
        """
        w13, w2 = w13 if fused else w13.transpose(1, 2), w2.transpose(1, 2)
        if w13_scale is not None and w2_scale is not None:
            w13_scale, w2_scale = (
                scale.view(weight.shape[0], weight.shape[2]) for scale, weight in ((w13_scale, w13), (w2_scale, w2))
            )
        return cls(w13, w2, output_dtype, w13_scale, w2_scale, activation, w13_bias, w2_bias, fused=fused)

    def in_fractal_nz(self) -> ExpertWeights:
        """The same W8A8 experts with a copy of ``w13`` for the fused operator, if ``fused_choice.py`` says that it fits."""
        return replace(self, w13=to_nz(self.w13), fused=True)

    @classmethod
    def of_int4(
        cls,
        w13: torch.Tensor,
        w2: torch.Tensor,
        w13_scale: torch.Tensor,
        w2_scale: torch.Tensor,
        *,
        activation: Activation = SWIGLU,
    ) -> ExpertWeights:
        """Views of W4A16 weights.

        Args:
            w13: int32 ``[E, 2I, H / 8]``, signed (``packed_int4.to_signed``).
            w2: int32 ``[E, H, I / 8]``.
            w13_scale: bf16 or fp16 ``[E, 2I, G]`` of ``packed_int4.group_scales``; ``G`` 1 is per channel.
            w2_scale: ``[E, H, G]``.
            activation: as in ``from_loaded``.
        """
        scales = (scale.mT.squeeze(1) for scale in (w13_scale, w2_scale))
        w13_group_scale, w2_group_scale = scales
        return cls(
            w13.mT,
            w2.mT,
            w13_scale.dtype,
            activation=activation,
            w13_group_scale=w13_group_scale,
            w2_group_scale=w2_group_scale,
        )

    @property
    def num_local(self) -> int:
        """Experts on this rank."""
        return self.w13.shape[0]

    @property
    def hidden_size(self) -> int:
        """Size of a token's hidden state."""
        return self.w13.shape[1] * self._inputs_per_row

    @property
    def intermediate_size(self) -> int:
        """Intermediate size on this rank."""
        return self.w2.shape[1] * self._inputs_per_row

    @property
    def _inputs_per_row(self) -> int:
        return 1 if self.w13_group_scale is None else PER_WORD

    @property
    def quantized(self) -> bool:
        """True for W8A8 and W4A8: the MLP takes int8 rows with one fp32 scale each."""
        return self.w13_scale is not None


def scale_dtypes(
    intermediate_size: int, output_dtype: torch.dtype, activation: Activation = SWIGLU
) -> tuple[torch.dtype, torch.dtype]:
    """The dtypes that the operators demand of ``w13_scale`` and ``w2_scale``, for ``I`` on this rank and bf16 or fp16."""
    matmul = torch.bfloat16 if output_dtype == torch.bfloat16 else torch.float32
    return torch.float32 if _fits_fused_quant(intermediate_size, activation) else matmul, matmul


def bias_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that the grouped matmul demands of biases, for experts of ``dtype`` (op-plugin reference)."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def quantize_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token dynamic int8: ``[A, H]`` bf16 or fp16 -> (int8 ``[A, H]``, fp32 scale ``[A]``), row = int8 * scale."""
    import torch_npu

    if rows.shape[0] == 0:
        return rows.new_empty(rows.shape, dtype=torch.int8), rows.new_empty((0,), dtype=torch.float32)
    quantized, scale = torch_npu.npu_dynamic_quant(rows)
    return quantized, scale


def expert_mlp(
    rows: torch.Tensor,
    counts: torch.Tensor,
    weights: ExpertWeights,
    row_scales: torch.Tensor | None = None,
    sums: bool = False,
) -> torch.Tensor:
    """``down(activation(up(x)))`` of every row with its expert, with the experts' biases. Router weights are not applied.

    Args:
        rows: ``[A, H]`` sorted by local expert: ``output_dtype``, or int8 for quantised weights. ``A`` may exceed
            ``counts.sum()``: the rows past it are neither read nor, in the result, written.
        counts: int64 ``[E]`` on the device, rows per local expert.
        weights: this rank's experts.
        row_scales: fp32 ``[A]``, the scales of int8 rows; None for float rows.
        sums: whether ``counts`` are prefix sums; for fused weights only.

    Returns:
        ``[A, H]`` of ``weights.output_dtype``. Rows past ``counts.sum()`` hold whatever was in memory, NaN included.
    """
    if rows.shape[0] == 0:
        return rows.new_empty(rows.shape, dtype=weights.output_dtype)
    if weights.quantized:
        if row_scales is None or rows.dtype != torch.int8:
            raise MoEConfigError(f"quantised experts need int8 rows with scales, found {rows.dtype} rows")
        if weights.fused:
            return _mlp_fused(rows, counts, weights, row_scales, sums)
        if weights.w13_scale_bias is not None:
            return _mlp_w4a8(rows, counts, weights, row_scales)
        return _mlp_w8a8(rows, counts, weights, row_scales)
    return _mlp_float(rows, counts, weights)


def _mlp_float(rows: torch.Tensor, counts: torch.Tensor, weights: ExpertWeights) -> torch.Tensor:
    # Nested, so that the widest tensor is free before the result is allocated.
    return _grouped_matmul(
        weights.activation(
            _grouped_matmul(rows, weights.w13, counts, bias=weights.w13_bias, group_scale=weights.w13_group_scale),
            counts,
        ),
        weights.w2,
        counts,
        bias=weights.w2_bias,
        group_scale=weights.w2_group_scale,
    )


def _mlp_fused(
    rows: torch.Tensor, counts: torch.Tensor, weights: ExpertWeights, row_scales: torch.Tensor, sums: bool
) -> torch.Tensor:
    import torch_npu

    assert weights.w13_scale is not None
    ends = counts if sums else counts.cumsum(0)
    middle, middle_scale, _ = torch_npu.npu_grouped_matmul_swiglu_quant(
        rows, weights.w13, ends, weights.w13_scale, row_scales
    )
    return _grouped_matmul(
        middle,
        weights.w2,
        ends,
        scale=weights.w2_scale,
        row_scales=middle_scale,
        output_dtype=weights.output_dtype,
        sums=True,
    )


def _mlp_w8a8(
    rows: torch.Tensor, counts: torch.Tensor, weights: ExpertWeights, row_scales: torch.Tensor
) -> torch.Tensor:
    import torch_npu

    assert weights.w13_scale is not None
    if _fits_fused_quant(weights.intermediate_size, weights.activation):
        gate_up = _grouped_matmul(rows, weights.w13, counts, output_dtype=torch.int32)
        middle, middle_scale = torch_npu.npu_dequant_swiglu_quant(
            gate_up,
            weight_scale=weights.w13_scale,
            activation_scale=row_scales.unsqueeze(1),
            group_index=counts,
            activate_left=True,
            quant_mode=1,
        )
    else:
        gate_up = _grouped_matmul(
            rows, weights.w13, counts, scale=weights.w13_scale, row_scales=row_scales, output_dtype=weights.output_dtype
        )
        middle, middle_scale = torch_npu.npu_dynamic_quant(weights.activation(gate_up, counts))
    del gate_up  # the widest tensor is free before the result is allocated
    return _grouped_matmul(
        middle, weights.w2, counts, scale=weights.w2_scale, row_scales=middle_scale, output_dtype=weights.output_dtype
    )


def _mlp_w4a8(
    rows: torch.Tensor, counts: torch.Tensor, weights: ExpertWeights, row_scales: torch.Tensor
) -> torch.Tensor:
    import torch_npu

    gate_up = _grouped_matmul(
        rows,
        weights.w13,
        counts,
        scale=weights.w13_scale,
        row_scales=row_scales,
        bias=weights.w13_scale_bias,
        output_dtype=weights.output_dtype,
    )
    middle, middle_scale = torch_npu.npu_dynamic_quant(torch_npu.npu_swiglu(gate_up))
    del gate_up  # the widest tensor is free before the result is allocated
    return _grouped_matmul(
        middle,
        weights.w2,
        counts,
        scale=weights.w2_scale,
        row_scales=middle_scale,
        bias=weights.w2_scale_bias,
        output_dtype=weights.output_dtype,
    )


def _grouped_matmul(
    rows: torch.Tensor,
    weight: torch.Tensor,
    counts: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    row_scales: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    output_dtype: torch.dtype | None = None,
    sums: bool = False,
) -> torch.Tensor:
    """``[A, K] x [E, K, N] (+ [E, N]) -> [A, N]``, the rows of expert e being those after ``counts[:e].sum()``.

    ``sums``: ``counts`` are prefix sums.
    """
    import torch_npu

    # The operator wants an offset beside the scales; one zero buffer serves all layers.
    offset = None if group_scale is None else zero_rows(group_scale.numel(), group_scale.view(-1)).view_as(group_scale)

    return torch_npu.npu_grouped_matmul(
        [rows],
        [weight],
        bias=None if bias is None else [bias],
        scale=None if scale is None else [scale],
        antiquant_scale=None if group_scale is None else [group_scale],
        antiquant_offset=None if offset is None else [offset],
        per_token_scale=None if row_scales is None else [row_scales],
        group_list=counts,
        split_item=2,
        group_type=0,
        group_list_type=0 if sums else 1,
        output_dtype=output_dtype,
    )[0]


def _fits_fused_quant(intermediate_size: int, activation: Activation) -> bool:
    fits = intermediate_size <= FUSED_QUANT_MAX_INTERMEDIATE and intermediate_size % FUSED_QUANT_ALIGNMENT == 0
    return fits and activation.plain_swiglu


def _channel_scale(scale: torch.Tensor, weight: torch.Tensor, name: str) -> torch.Tensor:
    expected = tuple(weight.shape[:2])
    if tuple(scale.shape) not in (expected, (*expected, 1)):
        raise MoEConfigError(
            f"{name} has shape {tuple(scale.shape)}; only per-channel scales of shape {expected} or {(*expected, 1)} "
            "are supported"
        )
    return scale.reshape(expected)


def _check_shapes(w13: torch.Tensor, w2: torch.Tensor, activation: Activation) -> None:
    fits = (
        w13.dim() == w2.dim() == 3
        and w13.shape[0] == w2.shape[0]
        and w13.shape[1] == activation.width * w2.shape[2]
        and w13.shape[2] == w2.shape[1]
        and w13.dtype == w2.dtype
    )
    if not fits:
        rows = "2I" if activation.gated else "I"
        raise MoEConfigError(
            f"expert weights have to be w13 [E, {rows}, H] and w2 [E, H, I] of one dtype, found "
            f"{tuple(w13.shape)} {w13.dtype} and {tuple(w2.shape)} {w2.dtype}"
        )
    if w13.shape[0] > GROUPED_MATMUL_MAX_GROUPS or max(w13.shape[1:]) > GROUPED_MATMUL_MAX_DIM:
        raise MoEConfigError(
            f"expert weights {tuple(w13.shape)} exceed the grouped matmul's limits: at most {GROUPED_MATMUL_MAX_GROUPS} "
            f"experts per rank, dimensions at most {GROUPED_MATMUL_MAX_DIM}; use more expert or tensor parallel ranks"
        )
