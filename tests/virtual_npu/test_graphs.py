# SPDX-License-Identifier: Apache-2.0
"""Captured graphs of one process: a replay does what the eager calls do, and what a device could not capture is refused."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_npu
from torch.utils._python_dispatch import TorchDispatchMode

pytestmark = pytest.mark.usefixtures("npu")

NPU = "npu:0"
OLD = torch.__version__ < "2.8"

# Its allocator still counts a capture that failed as under way, so that no later one of the process can begin.
fails_a_capture = pytest.mark.skipif(OLD, reason="torch_npu 2.7 cannot capture again after a capture that failed")


def captured(function: Callable[[], Any], **options: Any) -> tuple[Any, Any]:
    graph = torch.npu.NPUGraph()
    # The inner context: torch_npu's empty_cache walks over the devices in use, and leaves another one current when it fails.
    with torch.npu.graph(graph, **options), torch.npu.device(NPU):
        result = function()
    return graph, result


def half(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float16, device=NPU)


def decode_layer(hidden: torch.Tensor, weight: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A decode-like mix: gather, norm, matmul, views, in-place and out= operators, an operator of namespace npu."""
    x = hidden + table[ids]
    normed, _ = torch_npu.npu_rms_norm(x, torch.ones_like(weight[0]), 1e-6)
    both = normed @ weight.t()
    gate, up = both.chunk(2, dim=-1)
    gate.mul_(2)
    out = torch.empty_like(gate)
    torch.mul(torch.nn.functional.silu(gate), up, out=out)
    scores, chosen = torch.topk(torch.softmax(out.float(), -1), 2, dim=-1)
    return torch.cat([out[:, ::2], scores.half(), chosen.half()], dim=1)


def test_a_replay_equals_the_eager_calls_for_changed_inputs() -> None:
    hidden, weight, table = half(4, 16), half(32, 16), half(10, 16)
    ids = torch.tensor([1, 2, 3, 4], device=NPU)
    graph, result = captured(lambda: decode_layer(hidden, weight, table, ids))
    for step in range(3):
        hidden.copy_(half(4, 16))
        ids.copy_(torch.tensor([step, 9 - step, 0, 5], device=NPU))
        graph.replay()
        assert torch.equal(result, decode_layer(hidden, weight, table, ids))


class Recorder(TorchDispatchMode):
    """Names of the operators that ran while it was active."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_calls_of_a_capture_and_none_of_a_replay() -> None:
    """Some kernels call other operators: these are the replay's, too."""
    x = torch.tensor([1, 5, 9], device=NPU)
    recorder = Recorder()
    with recorder:
        graph, result = captured(lambda: torch.remainder(x, 4))
        assert "aten.remainder.Scalar" in recorder.seen
        recorder.seen.clear()
        graph.replay()
        assert not [name for name in recorder.seen if "remainder" in name]  # torch_npu sets its seed before a replay
    assert result.tolist() == [1, 1, 1]


def test_nothing_has_run_when_a_capture_ends() -> None:
    counter, x = torch.zeros(3, device=NPU), torch.ones(3, device=NPU)
    graph, result = captured(lambda: (counter.add_(1), x * 2, torch.arange(3, device=NPU)))
    assert counter.tolist() == [0, 0, 0]
    assert result[1].isnan().all()
    assert result[2].tolist() == [-1, -1, -1]
    graph.replay()
    graph.replay()
    assert counter.tolist() == [2, 2, 2]
    assert result[1].tolist() == [2, 2, 2]
    assert result[2].tolist() == [0, 1, 2]


def test_large_memory_that_is_only_written_is_written_at_a_replay_alone() -> None:
    cache, rows = torch.zeros(80 << 20, dtype=torch.uint8, device=NPU), torch.ones(4, dtype=torch.uint8, device=NPU)
    graph, _ = captured(lambda: cache.index_copy_(0, torch.arange(4, device=NPU), rows))
    assert cache[:4].tolist() == [0, 0, 0, 0]
    graph.replay()
    assert cache[:5].tolist() == [1, 1, 1, 1, 0]


def test_an_out_argument_that_is_resized_by_the_call_has_its_memory_at_a_replay() -> None:
    x, out = torch.ones(4, device=NPU), torch.empty(0, device=NPU)
    graph, _ = captured(lambda: torch.add(x, 1, out=out))
    x.fill_(5)
    graph.replay()
    assert out.tolist() == [6, 6, 6, 6]


def test_metadata_changed_in_place_is_not_changed_again_by_a_replay() -> None:
    x = torch.arange(6.0, device=NPU).reshape(2, 3)

    def transpose() -> torch.Tensor:
        y = x + 0
        return y.t_() * 2

    graph, result = captured(transpose)
    for _ in range(2):
        graph.replay()
        assert torch.equal(result, x.t() * 2)


def test_a_host_value_that_changed_is_refused_since_a_replay_takes_that_of_the_capture() -> None:
    x, factor = torch.ones(2, device=NPU), torch.tensor(3.0)
    graph, result = captured(lambda: x * factor)
    graph.replay()
    assert result.tolist() == [3, 3]
    factor.fill_(7.0)
    with pytest.raises(RuntimeError, match=r"mul.Tensor: argument other is on the host and has changed since the call"):
        graph.replay()


def test_random_numbers_go_on_as_they_would_without_a_graph() -> None:
    def draw() -> list[torch.Tensor]:
        return [torch.rand(4, device=NPU), half(4), torch.bernoulli(torch.full((8,), 0.5, device=NPU))]

    graph, result = captured(draw)
    torch.npu.manual_seed(11)
    eager = [draw() for _ in range(2)]
    torch.npu.manual_seed(11)
    for expected in eager:
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(result, expected, strict=True))


def test_graphs_share_a_pool_whose_memory_nobody_else_gets() -> None:
    pool = torch.npu.graph_pool_handle()
    x = torch.ones(1 << 18, device=NPU)
    first, a = captured(lambda: (x + 1) * 2, pool=pool)
    second, b = captured(functools.partial(torch.add, a, 3), pool=pool)
    others = [torch.zeros(1 << 18, device=NPU) for _ in range(8)]
    first.replay()
    second.replay()
    assert a[0].item() == 4
    assert b[0].item() == 7
    assert all(not other.any() for other in others)
    reserved = torch.npu.memory_reserved()
    del first, second, a, b, others
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() < reserved


def test_pinned_memory_is_read_and_written_at_every_replay() -> None:
    source, target = torch.zeros(3).pin_memory(), torch.zeros(3).pin_memory()
    staged = torch.empty(3, device=NPU)

    def through() -> None:
        staged.copy_(source, non_blocking=True)
        target.copy_(staged * 2, non_blocking=True)

    graph, _ = captured(through)
    source.copy_(torch.tensor([1.0, 2.0, 3.0]))
    graph.replay()
    torch.npu.synchronize()
    assert target.tolist() == [2, 4, 6]


def test_a_stream_that_waits_for_the_captured_one_is_captured_too() -> None:
    x, side = torch.ones(2, device=NPU), torch.npu.Stream()

    def fork() -> torch.Tensor:
        main = torch.npu.current_stream()
        y = x + 1
        side.wait_stream(main)
        with torch.npu.stream(side):
            assert torch.npu.is_current_stream_capturing()
            z = y * 2
        main.wait_stream(side)
        return z + 1

    graph, result = captured(fork)
    x.fill_(4)
    graph.replay()
    assert result.tolist() == [11, 11]
    with torch.npu.stream(side):
        assert not torch.npu.is_current_stream_capturing()
        assert (x + 1).tolist() == [5, 5]


def test_a_function_can_be_graphed_with_its_backward() -> None:
    layer = torch.nn.Linear(4, 4).to(NPU)
    x = torch.randn(2, 4, device=NPU, requires_grad=True)
    graphed = torch.npu.make_graphed_callables(torch.nn.Sequential(layer, torch.nn.Tanh()), (x,))
    y = torch.randn(2, 4, device=NPU, requires_grad=True)
    graphed(y).sum().backward()
    expected = y.detach().cpu().requires_grad_()
    torch.tanh(layer.cpu()(expected)).sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(y.grad.cpu(), expected.grad, rtol=1e-4, atol=1e-5)


def test_a_dump_lists_the_calls(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    x = torch.ones(2, device=NPU)
    graph = torch.npu.NPUGraph()
    graph.enable_debug_mode()
    with torch.npu.graph(graph):
        y = x + 1
        y.mul_(2)
    if OLD:  # prints, where newer ones write a file
        capfd.readouterr()
        graph.debug_dump()
        printed = capfd.readouterr().err
        dump = printed[printed.index("{") : printed.rindex("}") + 1]
    else:
        graph.debug_dump(str(tmp_path / "graph.json"))
        dump = (tmp_path / "graph.json").read_text()
    names = [event["name"] for event in json.loads(dump)["traceEvents"]]
    assert names == ["aten::add.Tensor", "aten::mul_.Tensor"]


# Task groups ----------------------------------------------------------------------------------------------------------


def in_task_group(call: Callable[[], Any]) -> Any:
    """Make the call on a stream that is captured; the handle of a task group that holds it."""
    stream = torch.npu.current_stream()
    torch.npu.graph_task_group_begin(stream)
    call()
    return torch.npu.graph_task_group_end(stream)


def update_group(stream: Any, handle: Any, call: Callable[[], Any]) -> None:
    torch.npu.graph_task_update_begin(stream, handle)
    try:
        with torch.npu.stream(stream):
            call()
    finally:
        torch.npu.graph_task_update_end(stream)


class Decode:
    """One query token of two requests over paged keys and values."""

    def __init__(self) -> None:
        self.query, self.key, self.value = half(2, 4, 128), half(6, 128, 256), half(6, 128, 256)
        self.arguments = {
            "block_table": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device=NPU),
            "num_heads": 4,
            "num_key_value_heads": 2,
            "block_size": 128,
            "input_layout": "TND",
            "scale": 0.09,
            "sparse_mode": 3,
            "atten_mask": torch.ones(2048, 2048, dtype=torch.int8, device=NPU).triu(1),
            "actual_seq_lengths": [1, 2],
        }

    def attend(self, lengths: list[int], **out: Any) -> torch.Tensor:
        call = torch_npu.npu_fused_infer_attention_score.out if out else torch_npu.npu_fused_infer_attention_score
        return call(self.query, self.key, self.value, actual_seq_lengths_kv=lengths, **self.arguments, **out)[0]


def test_an_update_replaces_the_lengths_of_captured_attention() -> None:
    case = Decode()
    out: dict[str, Any] = {
        "workspace": torch.empty(8, device=NPU),
        "out": [torch.empty_like(case.query), torch.empty(0, device=NPU)],
    }

    graph, handle = captured(lambda: in_task_group(lambda: case.attend([5, 9], **out)))
    update = torch.npu.Stream()
    for lengths in ([7, 130], [200, 1]):
        update_group(update, handle, functools.partial(case.attend, lengths, **out))
        graph.replay()
        assert torch.equal(out["out"][0], case.attend(lengths))


@pytest.mark.parametrize(
    "wait",
    [
        lambda update, result: update.wait_stream(torch.npu.current_stream()),
        lambda update, result: torch.npu.current_stream().synchronize(),
        lambda update, result: torch.npu.synchronize(),
        lambda update, result: result.tolist(),
        lambda update, result: None,
        lambda update, result: update.synchronize(),
        lambda update, result: result.to("cpu", non_blocking=True),
    ],
    ids=["wait_stream", "synchronize", "device", "read", "nothing", "other stream", "unfinished copy"],
)
def test_an_update_may_not_overtake_the_replay_before_it(
    wait: Callable[[Any, torch.Tensor], Any], request: pytest.FixtureRequest
) -> None:
    x, y = torch.ones(2, device=NPU), torch.zeros(2, device=NPU)
    graph, handle = captured(lambda: in_task_group(lambda: y.add_(x)))
    update = torch.npu.Stream()
    update_group(update, handle, lambda: y.add_(x, alpha=2))  # before the first replay nothing can be overtaken
    graph.replay()
    wait(update, y)
    if request.node.callspec.id in ("nothing", "other stream", "unfinished copy"):
        with pytest.raises(RuntimeError, match="may overtake the last replay of its graph"):
            torch.npu.graph_task_update_begin(update, handle)
    else:
        update_group(update, handle, lambda: y.add_(x, alpha=5))
        graph.replay()
        assert y.tolist() == [7, 7]


def test_an_update_knows_what_the_stream_it_waits_for_has_waited_for() -> None:
    x, y = torch.ones(2, device=NPU), torch.zeros(2, device=NPU)
    graph, handle = captured(lambda: in_task_group(lambda: y.add_(x)))
    update, between, event = torch.npu.Stream(), torch.npu.Stream(), torch.npu.Event()
    graph.replay()
    between.wait_stream(torch.npu.current_stream())
    event.record(between)
    graph.replay()
    update.wait_event(event)  # knows the first replay, not the second
    with pytest.raises(RuntimeError, match="may overtake the last replay of its graph"):
        torch.npu.graph_task_update_begin(update, handle)
    between.wait_stream(torch.npu.current_stream())
    update.wait_stream(between)
    update_group(update, handle, lambda: y.add_(x))


def test_a_replay_with_some_of_its_task_groups_updated_is_refused() -> None:
    x, y = torch.ones(2, device=NPU), torch.zeros(2, device=NPU)

    def two() -> list[Any]:
        return [in_task_group(lambda: y.add_(x)) for _ in range(2)]

    graph, handles = captured(two)
    update = torch.npu.Stream()
    update_group(update, handles[0], lambda: y.add_(x, alpha=2))
    with pytest.raises(RuntimeError, match="1 of the graph's 2 task groups were updated since its last replay"):
        graph.replay()
    update_group(update, handles[1], lambda: y.add_(x, alpha=3))
    graph.replay()
    assert y.tolist() == [5, 5]


def test_lengths_on_the_host_that_changed_without_an_update_are_refused() -> None:
    query, pages = half(2, 4, 128), (half(6, 128, 2, 128), half(6, 128, 2, 128))
    table = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32, device=NPU)
    lengths, out = torch.tensor([5, 9], dtype=torch.int32), torch.empty_like(query)

    def attend() -> None:
        torch_npu._npu_paged_attention(
            query=query,
            key_cache=pages[0],
            value_cache=pages[1],
            num_kv_heads=2,
            num_heads=4,
            scale_value=0.09,
            block_table=table,
            context_lens=lengths,
            out=out,
        )

    graph, handle = captured(lambda: in_task_group(attend))
    graph.replay()
    lengths.add_(1)
    with pytest.raises(RuntimeError, match="argument context_lens is on the host and has changed since the call"):
        graph.replay()
    update = torch.npu.Stream()
    update.wait_stream(torch.npu.current_stream())
    update_group(update, handle, attend)
    graph.replay()
    replayed = out.clone()
    attend()
    assert torch.equal(replayed, out)


def test_torch_npus_own_dispatch_mode_updates_captured_attention() -> None:
    case = Decode()
    graph, result = captured(lambda: case.attend([5, 9]), auto_dispatch_capture=True)
    for lengths in ([7, 130], [200, 1]):
        graph.update(cpu_update_input=[{"actual_seq_lengths_kv": lengths}])
        graph.replay()
        assert torch.equal(result[0] if result.dim() == 4 else result, case.attend(lengths))


def test_a_replay_before_the_update_is_refused_instead_of_waiting_for_ever() -> None:
    case = Decode()
    graph, _ = captured(lambda: case.attend([5, 9]), auto_dispatch_capture=True)
    graph.update(cpu_update_input=[{"actual_seq_lengths_kv": [6, 7]}])
    graph.replay()
    with pytest.raises(RuntimeError, match="external event that nothing has recorded"):
        graph.replay()


def test_an_update_must_make_the_same_calls() -> None:
    x, y = torch.ones(2, device=NPU), torch.zeros(2, device=NPU)

    graph, handle = captured(lambda: in_task_group(lambda: y.add_(x)))
    update = torch.npu.Stream()

    def replace(call: Callable[[], Any]) -> None:
        update_group(update, handle, call)

    replace(lambda: y.add_(x, alpha=5))
    assert y.tolist() == [0, 0]
    graph.replay()
    assert y.tolist() == [5, 5]
    for call, message in (
        (lambda: y.mul_(x), "calls aten::mul_.Tensor where aten::add_.Tensor was captured"),
        (lambda: x + 1, "its result would be new memory"),
    ):
        with pytest.raises(RuntimeError) as found:
            replace(call)
        assert message in str(found.value.__context__)
        assert "the update replaced 0 of the task group's 1 call" in str(found.value)


# Refusals -------------------------------------------------------------------------------------------------------------

VALUE = "the host has to wait for a value or a size that the device computes"
COPY = "needs pinned host memory and non_blocking=True"


@fails_a_capture
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.sum().item(), f"aten::_local_scalar_dense cannot be captured into a graph: {VALUE}"),
        (lambda x: bool((x > 0).all()), f"aten::_local_scalar_dense cannot be captured into a graph: {VALUE}"),
        (lambda x: x.nonzero(), f"aten::nonzero cannot be captured into a graph: {VALUE}"),
        (lambda x: x[x > 0], "aten::index.Tensor cannot be captured into a graph: .* a mask selects"),
        (lambda x: torch.masked_select(x, x > 0), f"aten::masked_select cannot be captured into a graph: {VALUE}"),
        (lambda x: torch.unique(x), f"aten::_unique2 cannot be captured into a graph: {VALUE}"),
        (lambda x: x.cpu(), f"aten::copy_ cannot be captured into a graph: .* {COPY}"),
        (lambda x: x.to("cpu", non_blocking=True), None),
        (lambda x: torch.ones(3).to(NPU), f"aten::copy_ cannot be captured into a graph: .* {COPY}"),
        (lambda x: torch.ones(3).pin_memory().to(NPU), f"aten::copy_ cannot be captured into a graph: .* {COPY}"),
        (
            lambda x: x[torch.tensor([0, 1])],
            r"aten::index.Tensor cannot be captured .* argument indices is on the host",
        ),
        (lambda x: torch.npu.synchronize(), "aclrtSynchronizeDevice is not allowed while a stream is captured"),
        (
            lambda x: torch.npu.current_stream().synchronize(),
            "aclrtSynchronizeStream is not possible on a stream that is",
        ),
        (lambda x: torch.npu.empty_cache(), "aclrtSynchronizeDevice is not allowed while a stream is captured"),
    ],
)
def test_what_needs_the_host_is_refused_by_name(call: Callable[[torch.Tensor], Any], message: str | None) -> None:
    x = torch.tensor([1.0, -1.0, 2.0], device=NPU)
    if message is None:  # torch_npu brings the result to pinned memory, as a device would
        captured(lambda: call(x))
        return
    with pytest.raises(RuntimeError) as found:
        captured(lambda: call(x))
    assert found.value.__context__ is not None
    found.match("no graph was captured")
    with pytest.raises(RuntimeError, match=f"(?s){message}"):
        raise found.value.__context__
    assert (x + 1).tolist() == [2, 0, 3], "the device goes on working"


@fails_a_capture
def test_an_event_of_a_capture_cannot_be_waited_for() -> None:
    event = torch.npu.Event()

    def record_and_wait() -> None:
        event.record()
        event.synchronize()

    with pytest.raises(RuntimeError) as found:
        captured(record_and_wait)
    assert "the event was recorded on a stream that is captured" in str(found.value.__context__ or found.value)


@fails_a_capture
def test_a_caught_refusal_still_gives_no_graph() -> None:
    x = torch.ones(2, device=NPU)

    def carry_on() -> torch.Tensor:
        with pytest.raises(RuntimeError):
            x.sum().item()
        return x + 1

    with pytest.raises(RuntimeError, match="no graph was captured: aten::_local_scalar_dense"):
        captured(carry_on)


@fails_a_capture
def test_a_group_that_was_not_ended_gives_no_graph() -> None:
    with pytest.raises(RuntimeError, match="a task group was begun and not ended"):
        captured(lambda: torch.npu.graph_task_group_begin(torch.npu.current_stream()))
