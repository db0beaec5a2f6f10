# SPDX-License-Identifier: Apache-2.0
"""Memory accounting, streams, events, random numbers and torch.accelerator of a device whose work completes at once."""

import gc
import time
from collections.abc import Callable

import pytest
import torch
import torch_npu

pytestmark = pytest.mark.usefixtures("npu")

MIB = 1024**2


def test_free_memory_falls_with_tensors_and_rises_when_they_go() -> None:
    gc.collect()
    torch.npu.empty_cache()
    free, total = torch.npu.mem_get_info()
    kept = torch.empty(64 * MIB, dtype=torch.uint8, device="npu")
    during, same_total = torch.npu.mem_get_info()
    assert free - during >= 64 * MIB
    assert same_total == total
    del kept
    gc.collect()
    torch.npu.empty_cache()
    assert torch.npu.mem_get_info()[0] == free


def test_what_operators_allocate_is_counted_and_returned() -> None:
    a = torch.ones(16 * MIB // 4, device="npu")
    before = torch.npu.memory_allocated()
    torch.npu.reset_peak_memory_stats()
    b = a * 2
    assert torch.npu.memory_allocated() - before >= 16 * MIB
    c = (a * 2) + (a * 3)
    assert torch.npu.max_memory_allocated() - before >= 3 * 16 * MIB
    del b, c
    assert torch.npu.memory_allocated() == before
    assert torch.npu.memory_stats()["allocated_bytes.all.current"] == before


def test_each_device_counts_for_itself() -> None:
    before = torch.npu.memory_allocated(0)
    kept = torch.empty(8 * MIB, dtype=torch.uint8, device="npu:1")
    assert torch.npu.memory_allocated(0) == before
    assert torch.npu.memory_allocated(1) >= 8 * MIB
    result = kept + 1
    assert result.device.index == 1
    assert torch.npu.current_device() == 0
    assert torch.npu.memory_allocated(0) == before


def test_an_operators_tensors_are_freed_with_their_last_reference_and_not_by_garbage_collection() -> None:
    x = torch.ones(1024, 1024, dtype=torch.bfloat16).npu()
    gc.collect()
    gc.disable()
    try:
        before = torch.npu.memory_allocated()
        for _ in range(3):
            torch_npu.npu_swiglu(x)
        assert torch.npu.memory_allocated() == before
        y = torch_npu.npu_swiglu(x)
        del x
        assert torch.npu.memory_allocated() == before - 2 * MIB + y.nbytes
    finally:
        gc.enable()


def test_too_large_a_tensor_is_torch_npus_out_of_memory_error() -> None:
    total = torch.npu.mem_get_info()[1]
    with pytest.raises(
        torch.OutOfMemoryError if torch.__version__ > "2.8" else RuntimeError, match="NPU out of memory"
    ):
        torch.empty(2 * total, dtype=torch.uint8, device="npu")
    assert torch.ones(2, device="npu").sum().item() == 2


def test_work_on_every_stream_is_complete() -> None:
    stream = torch.npu.Stream()
    event = torch.npu.Event()
    with torch.npu.stream(stream):
        value = torch.ones(4, device="npu") * 3
        event.record()
    torch.npu.current_stream().wait_stream(stream)
    torch.npu.current_stream().wait_event(event)
    value.record_stream(stream)
    assert stream.query()
    assert event.query()
    event.synchronize()
    stream.synchronize()
    torch.npu.synchronize()
    assert value.tolist() == [3.0] * 4


def test_events_measure_the_time_between_their_records() -> None:
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    time.sleep(0.02)
    end.record()
    assert 20 <= start.elapsed_time(end) < 2000


def says_yes(question: Callable[[], bool]) -> bool:
    """The answer of a generic stream or event; torch_npu 2.7 leaves such questions open on any device, and says so."""
    if torch.__version__ < "2.8":
        with pytest.raises(RuntimeError, match="Backend doesn't support"):
            question()
        return True
    return question()


def test_generic_events_and_streams() -> None:
    start, end = (torch.Event(device="npu", enable_timing=True) for _ in range(2))
    stream = torch.Stream(device="npu")
    start.record()
    end.record(stream)
    end.wait()
    assert end.query()
    assert says_yes(stream.query)
    assert says_yes(lambda: start.elapsed_time(end) >= 0)


def test_torch_accelerator_is_the_npu() -> None:
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    assert torch.accelerator.device_count() == torch.npu.device_count()
    torch.accelerator.synchronize()
    assert says_yes(torch.accelerator.current_stream().query)


def test_a_seed_makes_random_numbers_reproducible() -> None:
    def draw() -> list[torch.Tensor]:
        x = torch.ones(40, device="npu")
        return [
            torch.randn(7, device="npu"),
            torch.rand(7, device="npu"),
            torch.randint(0, 100, (7,), device="npu"),
            torch.randperm(20, device="npu"),
            torch.multinomial(x, 5),
            torch.bernoulli(x / 2),
            torch.nn.functional.dropout(x),
            torch.empty(7, device="npu").exponential_(),
        ]

    torch.npu.manual_seed(3)
    first = [tensor.cpu() for tensor in draw()]
    second = [tensor.cpu() for tensor in draw()]
    torch.npu.manual_seed(3)
    again = [tensor.cpu() for tensor in draw()]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_random_numbers_on_the_device_leave_the_hosts_alone() -> None:
    state = torch.get_rng_state()
    torch.randn(3, device="npu")
    torch.randperm(9, device="npu")
    torch.nn.functional.dropout(torch.ones(9, device="npu"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_saved_state_continues_where_it_was() -> None:
    torch.npu.manual_seed(11)
    torch.randn(5, device="npu")
    state = torch.npu.get_rng_state()
    expected = torch.randn(5, device="npu")
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.randn(5, device="npu"), expected)


def test_generators() -> None:
    generator = torch.Generator("npu").manual_seed(5)
    default = torch.npu.get_rng_state()
    first = torch.randn(6, device="npu", generator=generator)
    assert torch.equal(torch.npu.get_rng_state(), default)
    assert torch.equal(torch.randn(6, device="npu", generator=generator.manual_seed(5)), first)
    with pytest.raises(RuntimeError, match="generator"):
        torch.empty(6, device="npu").normal_(generator=torch.Generator("cpu"))


def test_random_numbers_have_their_distribution() -> None:
    torch.npu.manual_seed(0)
    normal = torch.stack([torch.randn(50, device="npu") for _ in range(200)]).cpu()
    assert abs(normal.mean().item()) < 0.05
    assert abs(normal.std().item() - 1) < 0.05
    assert normal.unique().numel() > 9900, "draws do not repeat each other"


def test_autocast() -> None:
    layer = torch.nn.Linear(4, 4).to("npu")
    with torch.autocast("npu", dtype=torch.bfloat16):
        assert layer(torch.ones(2, 4, device="npu")).dtype == torch.bfloat16
