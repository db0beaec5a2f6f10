# SPDX-License-Identifier: Apache-2.0
"""Operators on a virtual NPU give what PyTorch's CPU gives, on any layout, and are refused where a device refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("npu")

relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
]
FLOATS = [dtype for dtype in DTYPES if dtype.is_floating_point]


@st.composite
def twins(draw: st.DrawFn, dtypes: list[torch.dtype] = DTYPES, least: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The same values and the same view of a larger storage, on the CPU and on an NPU: (cpu, npu)."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(st.lists(st.integers(least, 4), min_size=1, max_size=4))
    padded = [size * draw(st.integers(1, 2)) + draw(st.integers(0, 2)) for size in shape]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    base = torch.randint(-5, 6, padded, generator=generator)
    base = (base > 0) if dtype == torch.bool else (base.abs() if dtype == torch.uint8 else base).to(dtype)
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 2)) for _ in shape]

    def view(tensor: torch.Tensor) -> torch.Tensor:
        for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
            step = step if (size - 1) * step < padded[axis] else 1
            start = padded[axis] - ((size - 1) * step + 1) if size else 0
            tensor = tensor.narrow(axis, start, (size - 1) * step + 1 if size else 0)
            index = [slice(None)] * len(shape)
            index[axis] = slice(None, None, step)
            tensor = tensor[tuple(index)]
        return tensor.permute(order)

    on_npu = torch.empty_strided(base.size(), base.stride(), dtype=dtype, device="npu")
    on_npu.copy_(base)
    return view(base), view(on_npu)


def same(npu: torch.Tensor, cpu: torch.Tensor) -> None:
    assert npu.device.type == "npu"
    assert (npu.shape, npu.dtype) == (cpu.shape, cpu.dtype)
    torch.testing.assert_close(npu.cpu(), cpu, rtol=0, atol=0, equal_nan=True)


@relaxed
@given(twins())
def test_a_view_has_the_same_values_strides_and_offset(pair: tuple[torch.Tensor, torch.Tensor]) -> None:
    cpu, npu = pair
    same(npu, cpu)
    assert npu.stride() == cpu.stride()
    assert npu.storage_offset() == cpu.storage_offset()


UNARY: list[Callable[[torch.Tensor], Any]] = [
    lambda t: t.clone(),
    lambda t: t.contiguous(),
    lambda t: t + t,
    lambda t: t * 2,
    lambda t: t == t.roll(1, 0),
    lambda t: t.sum(0),
    lambda t: t.reshape(-1),
    lambda t: t.flip(0),
    lambda t: torch.cat([t, t], 0),
    lambda t: torch.stack([t, t], -1),
    lambda t: t.to(torch.float32).mean(),
    lambda t: torch.where(t > 0, t, t + 1),
    lambda t: t.unsqueeze(1).expand(-1, 3, *t.shape[1:]).contiguous(),
    lambda t: t.to(torch.int64).cumsum(0),
    lambda t: t.any(),
]


@relaxed
@given(twins(), st.sampled_from(range(len(UNARY))))
def test_operators_agree_with_the_cpu(pair: tuple[torch.Tensor, torch.Tensor], index: int) -> None:
    cpu, npu = pair
    same(UNARY[index](npu), UNARY[index](cpu))


MUTATING: list[Callable[[torch.Tensor], Any]] = [
    lambda t: t.zero_(),
    lambda t: t.fill_(1),
    lambda t: t.add_(t),
    lambda t: t.mul_(t),
    lambda t: t.copy_(t.flip(0)),
    lambda t: t[0].fill_(1),
    lambda t: t.masked_fill_(t > 0, 1),
    lambda t: t.index_fill_(0, torch.zeros(1, dtype=torch.int64, device=t.device), 1),
]


@relaxed
@given(twins(least=1), st.sampled_from(range(len(MUTATING))))
def test_in_place_operators_change_the_view_and_nothing_around_it(
    pair: tuple[torch.Tensor, torch.Tensor], index: int
) -> None:
    cpu, npu = pair
    MUTATING[index](cpu)
    MUTATING[index](npu)
    base = [torch.empty(0, dtype=t.dtype, device=t.device).set_(t.untyped_storage()) for t in (cpu, npu)]
    same(base[1][: base[0].numel()], base[0])


def test_in_place_and_out_return_the_tensor_that_was_given() -> None:
    given_tensor = torch.ones(3, device="npu")
    assert given_tensor.add_(1) is given_tensor
    out = torch.empty(3, device="npu")
    assert torch.add(given_tensor, 1, out=out) is out
    same(out, torch.full((3,), 3.0))
    values, indices = torch.empty(1, device="npu"), torch.empty(1, dtype=torch.int64, device="npu")
    result = torch.topk(out, 1, out=(values, indices))
    assert result[0] is values
    assert result[1] is indices


def test_an_out_argument_of_another_size_is_resized_on_the_device() -> None:
    out = torch.empty(0, device="npu:1")
    view = out[:0]
    torch.add(torch.ones(1000, 7, device="npu:1"), 1, out=out)
    same(out, torch.full((1000, 7), 2.0))
    assert out.device == torch.device("npu", 1)
    assert out.untyped_storage().nbytes() >= 28000
    assert view.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
    same(out.view(7, 1000) * 2, torch.full((7, 1000), 4.0))


def test_an_out_view_keeps_its_strides() -> None:
    out = torch.zeros(3, 5, device="npu")
    torch.add(torch.ones(5, 3, device="npu"), 1, out=out.t())
    same(out, torch.full((3, 5), 2.0))


def test_views_that_operators_return_share_the_memory() -> None:
    base = torch.arange(12.0, device="npu")
    with torch.inference_mode():
        for view in (
            base.view(3, 4),
            base.reshape(3, 4),
            base.unflatten(0, (3, 4)),
            torch.atleast_2d(base)[0].view(3, 4),
        ):
            assert view.untyped_storage().data_ptr() == base.untyped_storage().data_ptr()
        base.view(3, 4)[1].zero_()
    same(base, torch.tensor([0.0, 1, 2, 3, 0, 0, 0, 0, 8, 9, 10, 11]))


def test_lists_optionals_and_scalars() -> None:
    tensors = [torch.ones(2, device="npu"), torch.ones(3, device="npu")]
    torch._foreach_mul_(tensors, 3)
    torch._foreach_add_(tensors, tensors)
    assert [tensor.tolist() for tensor in tensors] == [[6.0] * 2, [6.0] * 3]
    grid = torch.arange(12, device="npu").view(3, 4)
    same(grid[torch.tensor([0, 2], device="npu"), :, None], torch.arange(12).view(3, 4)[[0, 2], :, None])
    grid[None, torch.tensor([1], device="npu")] = -1
    assert grid[1].tolist() == [-1] * 4
    same(torch.nn.functional.layer_norm(torch.ones(2, 4, device="npu"), (4,), None, None), torch.zeros(2, 4))
    assert torch.tensor(3.5, device="npu").item() == 3.5
    same(torch.ones(2, device="npu") * torch.tensor(2.0), torch.full((2,), 2.0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tensors_without_elements(dtype: torch.dtype) -> None:
    empty = torch.empty(0, 3, dtype=dtype, device="npu")
    same(empty.sum(0), torch.empty(0, 3, dtype=dtype).sum(0))
    same(torch.cat([empty, torch.ones(1, 3, dtype=dtype, device="npu")]), torch.ones(1, 3, dtype=dtype))
    assert (empty.float() @ torch.ones(3, 2, device="npu")).shape == (0, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("non_blocking", [False, True])
def test_copies_between_host_and_two_devices(dtype: torch.dtype, non_blocking: bool) -> None:
    host = torch.arange(24).view(2, 3, 4).to(dtype)
    first = host.to("npu:0", non_blocking=non_blocking)
    second = first.transpose(0, 2).to("npu:1", non_blocking=non_blocking)
    torch.npu.synchronize()
    assert (first.device.index, second.device.index) == (0, 1)
    same(second, host.transpose(0, 2))
    back = torch.empty(4, 3, 2, dtype=dtype, pin_memory=True).copy_(second, non_blocking=non_blocking)
    assert torch.equal(back, host.transpose(0, 2))
    first[:, ::2].copy_(second.transpose(0, 2)[:, :1])
    host[:, ::2] = host[:, :1].clone()
    same(first, host)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_copy_converts(dtype: torch.dtype) -> None:
    values = torch.tensor([1.5, -2.25, 3.0])
    target = torch.empty(3, dtype=dtype, device="npu")
    target.copy_(values)
    same(target, values.to(dtype))


def test_pinned_memory() -> None:
    pinned = torch.empty(5, pin_memory=True)
    assert pinned.is_pinned()
    assert torch.ones(3).pin_memory().is_pinned()
    assert not torch.ones(3).is_pinned()
    pinned.fill_(4)
    same(pinned.to("npu", non_blocking=True), torch.full((5,), 4.0))


REFUSED: list[Callable[[torch.Tensor, torch.Tensor], Any]] = [
    lambda npu, other: npu + other,
    lambda npu, other: npu @ other,
    lambda npu, other: torch.cat([npu, other]),
    lambda npu, other: npu.add_(other),
    lambda npu, other: torch.where(npu > 0, npu, other),
    lambda npu, other: torch.nn.functional.linear(npu, other),
    lambda npu, other: torch.mul(npu, npu, out=other),
    lambda npu, other: torch._foreach_add([npu], [other]),
    lambda npu, other: npu.masked_fill(other > 0, 1),
]


@pytest.mark.parametrize("index", range(len(REFUSED)))
@pytest.mark.parametrize("device", ["cpu", "npu:1"])
def test_tensors_of_two_devices_are_refused_and_named(index: int, device: str) -> None:
    npu, other = torch.ones(3, 3, device="npu:0"), torch.ones(3, 3, device=device)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device") as caught:
        REFUSED[index](npu, other)
    assert "npu:0" in str(caught.value)
    assert device in str(caught.value)
    assert "aten::" in str(caught.value)


def test_a_scalar_on_the_host_is_accepted_but_never_written() -> None:
    scalar = torch.tensor(2.0)
    same(torch.ones(2, device="npu") + scalar, torch.full((2,), 3.0))
    with pytest.raises(RuntimeError, match="same device"):
        scalar.add_(torch.ones((), device="npu"))


def test_an_operator_without_a_kernel_names_itself() -> None:
    gates, state = torch.ones(2, 9, device="npu"), torch.ones(2, 3, device="npu")
    with pytest.raises(NotImplementedError, match="aten::_thnn_fused_gru_cell cannot run on the virtual NPU"):
        torch.ops.aten._thnn_fused_gru_cell(gates, gates, state)


def test_autograd_gives_the_gradients_of_the_cpu() -> None:
    torch.manual_seed(0)
    grads = []
    host = [torch.randn(5, 8), torch.randn(8, 8), torch.randn(1, 2, 5, 8)]
    for device in ("cpu", "npu"):
        x, w, q = (tensor.clone().to(device).requires_grad_() for tensor in host)
        y = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum(1)[0]
        z = torch.where(x > 0, (x @ w).softmax(-1), x).gather(1, torch.zeros(5, 1, dtype=torch.int64, device=device))
        (z.pow(2).sum() + (y * x).sum()).backward()
        grads.append([tensor.grad.cpu() for tensor in (x, w, q) if tensor.grad is not None])
    assert len(grads[0]) == 3
    torch.testing.assert_close(grads[1], grads[0])


def test_packed_sequences_keep_their_batch_sizes_on_the_host() -> None:
    padded = torch.randn(4, 3, 2, device="npu")
    packed = torch.nn.utils.rnn.pack_padded_sequence(padded, torch.tensor([4, 2, 1]))
    assert packed.data.device.type == "npu"
    assert packed.batch_sizes.device.type == "cpu"
    restored, lengths = torch.nn.utils.rnn.pad_packed_sequence(packed)
    assert lengths.tolist() == [4, 2, 1]
    same(restored[:, 0], padded[:, 0].cpu())


def test_a_large_zeroed_tensor_costs_the_host_nothing_until_it_is_written() -> None:
    def resident() -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024

    before = resident()
    cache = torch.zeros(1 << 29, dtype=torch.bfloat16, device="npu")
    assert resident() - before < 256
    cache[1000:5_000_000] = 3
    assert cache[4_000_000].item() == 3
    cache[2000:4_900_000].zero_()
    assert [cache[i].item() for i in (1999, 2000, 3_000_000, 4_899_999, 4_900_000)] == [3, 0, 0, 0, 3]
