# SPDX-License-Identifier: Apache-2.0
"""What each rank of a world checks about the backend hccl. Started by test_hccl.py; no test by itself."""

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

NPU = "npu"


def start(rank: int, size: int, seconds: float = 60, backend: str = "cpu:gloo,npu:hccl") -> None:
    """Join the world, as a user would."""
    torch.npu.set_device(rank % torch.npu.device_count())
    dist.init_process_group(backend, rank=rank, world_size=size, timeout=timedelta(seconds=seconds))


def mine(rank: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values that only this rank has."""
    count = int(torch.Size(shape).numel())
    return (torch.arange(count).view(shape) + 100 * rank).to(dtype).to(NPU)


def equal(tensor: torch.Tensor, expected: torch.Tensor) -> None:
    assert tensor.device.type == NPU
    assert torch.equal(tensor.cpu(), expected.to(tensor.dtype)), f"{tensor.cpu()} is not {expected}"


def all_reduce(rank: int, size: int) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int32, torch.int64, torch.int8, torch.float64):
        tensor = torch.full((5,), rank + 1, dtype=dtype, device=NPU)
        dist.all_reduce(tensor)
        equal(tensor, torch.full((5,), size * (size + 1) // 2))
    operations = [(dist.ReduceOp.MAX, size), (dist.ReduceOp.MIN, 1), (dist.ReduceOp.AVG, (size + 1) / 2)]
    for operation, expected in operations:
        tensor = torch.full((3, 2), rank + 1.0, device=NPU)
        dist.all_reduce(tensor, operation)
        equal(tensor, torch.full((3, 2), float(expected)))
    flags = torch.tensor([rank == 0, False], device=NPU)
    dist.all_reduce(flags)
    assert flags.tolist() == [True, False]


def all_reduce_of_many_elements(rank: int, size: int) -> None:
    tensor = (torch.arange(100_003, device=NPU) % 7 + rank).float()
    dist.all_reduce(tensor)
    equal(tensor, torch.arange(100_003) % 7 * size + size * (size - 1) // 2)
    transposed = torch.ones(300, 200, device=NPU).t()
    dist.all_reduce(transposed)
    equal(transposed, torch.full((200, 300), float(size)))


def all_gather(rank: int, size: int) -> None:
    outputs = [torch.empty(2, 3, device=NPU) for _ in range(size)]
    dist.all_gather(outputs, mine(rank, 2, 3))
    for source, output in enumerate(outputs):
        equal(output, mine(source, 2, 3).cpu())


def all_gather_into_tensor(rank: int, size: int) -> None:
    output = torch.empty(2 * size, 3, dtype=torch.bfloat16, device=NPU)
    dist.all_gather_into_tensor(output, mine(rank, 2, 3, dtype=torch.bfloat16))
    equal(output, torch.cat([mine(source, 2, 3).cpu() for source in range(size)]))


def reduce_scatter(rank: int, size: int) -> None:
    output = torch.empty(2, device=NPU)
    dist.reduce_scatter(output, [torch.full((2,), float(rank * size + to), device=NPU) for to in range(size)])
    equal(output, torch.full((2,), float(sum(source * size + rank for source in range(size)))))


def reduce_scatter_tensor(rank: int, size: int) -> None:
    output = torch.empty(2, 3, device=NPU)
    dist.reduce_scatter_tensor(output, mine(rank, 2 * size, 3))
    total = sum(mine(source, 2 * size, 3).cpu() for source in range(size))
    assert isinstance(total, torch.Tensor)
    equal(output, total[2 * rank : 2 * rank + 2])


def all_to_all(rank: int, size: int) -> None:
    outputs = [torch.empty(source + 1, device=NPU) for source in range(size)]
    dist.all_to_all(outputs, [torch.full((rank + 1,), 10.0 * rank + to, device=NPU) for to in range(size)])
    for source, output in enumerate(outputs):
        equal(output, torch.full((source + 1,), 10.0 * source + rank))


def all_to_all_single_with_uneven_splits(rank: int, size: int) -> None:
    sent = [(rank + to) % 3 for to in range(size)]
    received = [(source + rank) % 3 for source in range(size)]
    rows = torch.cat([torch.full((count, 2), 10.0 * rank + to) for to, count in enumerate(sent)]).to(NPU)
    output = torch.empty(sum(received), 2, device=NPU)
    dist.all_to_all_single(output, rows, received, sent)
    equal(output, torch.cat([torch.full((n, 2), 10.0 * source + rank) for source, n in enumerate(received)]))


def broadcast(rank: int, size: int) -> None:
    tensor = mine(rank, 4, dtype=torch.int64)
    dist.broadcast(tensor, size - 1)
    equal(tensor, mine(size - 1, 4).cpu())


def reduce_gather_scatter(rank: int, size: int) -> None:
    tensor = torch.ones(3, device=NPU)
    dist.reduce(tensor, 0)
    assert rank or tensor.tolist() == [float(size)] * 3
    gathered = [torch.empty(2, device=NPU) for _ in range(size)] if rank == 0 else None
    dist.gather(mine(rank, 2), gathered, 0)
    for source, output in enumerate(gathered or []):
        equal(output, mine(source, 2).cpu())
    output = torch.empty(2, device=NPU)
    dist.scatter(output, [mine(to, 2) for to in range(size)] if rank == 0 else None, 0)
    equal(output, mine(rank, 2).cpu())


def send_and_recv(rank: int, size: int) -> None:
    tensor = mine(rank, 50_000)
    if rank == 0:
        dist.send(tensor, 1)
        dist.send(tensor * 2, 1, tag=7)
    elif rank == 1:
        with_tag, without = torch.empty(50_000, device=NPU), torch.empty(50_000, device=NPU)
        works = [dist.irecv(with_tag, 0, tag=7), dist.irecv(without, 0)]
        for work in works:
            assert work is not None
            work.wait()
        equal(without, mine(0, 50_000).cpu())
        equal(with_tag, mine(0, 50_000).cpu() * 2)


def a_ring_of_isend_and_irecv(rank: int, size: int) -> None:
    received = torch.empty(70_000, device=NPU)
    operations = [
        dist.P2POp(dist.isend, mine(rank, 70_000), (rank + 1) % size),
        dist.P2POp(dist.irecv, received, (rank - 1) % size),
    ]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    equal(received, mine((rank - 1) % size, 70_000).cpu())


def barrier_waits_for_the_last(rank: int, size: int) -> None:
    started = time.monotonic()
    if rank == size - 1:
        time.sleep(0.4)
    dist.barrier()
    assert time.monotonic() - started >= 0.35 or rank == size - 1


def asynchronous_calls_finish_in_order(rank: int, size: int) -> None:
    tensors = [torch.full((1000 * (i + 1),), float(rank), device=NPU) for i in range(6)]
    works = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
    blocking = torch.ones(2, device=NPU)
    dist.all_reduce(blocking)
    assert blocking.tolist() == [float(size)] * 2
    for work, tensor in zip(reversed(works), reversed(tensors), strict=True):
        work.wait()
        assert work.is_completed()
        equal(tensor, torch.full(tensor.shape, size * (size - 1) / 2))


def asynchronous_calls_have_a_future(rank: int, size: int) -> None:
    tensor = torch.ones(4, device=NPU)
    future = dist.all_reduce(tensor, async_op=True).get_future()
    assert future.wait()[0].tolist() == [float(size)] * 4


def sub_groups_run_beside_each_other(rank: int, size: int) -> None:
    halves = [list(range(size // 2)), list(range(size // 2, size))]
    groups = [dist.new_group(half) for half in halves]
    everyone = dist.new_group(list(range(size)))
    side = rank // (size // 2)
    own = torch.ones(1, device=NPU)
    dist.all_reduce(own, group=groups[side])
    both = torch.ones(1, device=NPU)
    dist.all_reduce(both, group=everyone)
    assert (own.item(), both.item()) == (size // 2, size)


def the_host_has_gloo_in_the_same_group(rank: int, size: int) -> None:
    host, device = torch.ones(2), torch.ones(2, device=NPU)
    dist.all_reduce(host)
    dist.all_reduce(device)
    assert host.tolist() == device.tolist() == [float(size)] * 2
    objects: list[Any] = [None] * size
    dist.all_gather_object(objects, {"rank": rank})
    assert objects == [{"rank": other} for other in range(size)]


def communicator_names(rank: int, size: int) -> None:
    from vllm_ascend_virtual_npu import hccl

    other = dist.new_group(list(range(size)))
    names = []
    for group in (dist.group.WORLD, other):
        assert group is not None
        backend: Any = group._get_backend(torch.device(NPU))
        name = backend.get_hccl_comm_name(rank)
        assert backend.get_hccl_comm_name(rank, init_comm=False) == name
        assert 1 <= len(name) <= 127
        found = hccl.communicator(name)
        assert (found.rank, found.size) == (rank, size)
        names.append(name)
    assert names[0] != names[1]
    everybodys: list[Any] = [None] * size
    dist.all_gather_object(everybodys, names)
    assert all(theirs == names for theirs in everybodys)


def options_are_accepted(rank: int, size: int) -> None:
    import torch_npu

    options = torch_npu._C._distributed_c10d.ProcessGroupHCCL.Options()
    options.hccl_config = {"hccl_buffer_size": 300}
    group = dist.new_group(list(range(size)), backend="hccl", pg_options=options)
    tensor = torch.ones(1, device=NPU)
    dist.all_reduce(tensor, group=group)
    assert tensor.item() == size


def functional_collectives(rank: int, size: int) -> None:
    import torch.distributed._functional_collectives as functional

    group = dist.group.WORLD
    assert group is not None
    total = functional.all_reduce(torch.ones(3, device=NPU), "sum", group)
    assert (total + 0).tolist() == [float(size)] * 3
    gathered = functional.all_gather_tensor(mine(rank, 2), 0, group)
    equal(gathered + 0, torch.cat([mine(source, 2).cpu() for source in range(size)]))


CHECKS: dict[str, Callable[[int, int], None]] = {
    check.__name__: check
    for check in (
        all_reduce,
        all_reduce_of_many_elements,
        all_gather,
        all_gather_into_tensor,
        reduce_scatter,
        reduce_scatter_tensor,
        all_to_all,
        all_to_all_single_with_uneven_splits,
        broadcast,
        reduce_gather_scatter,
        send_and_recv,
        a_ring_of_isend_and_irecv,
        barrier_waits_for_the_last,
        asynchronous_calls_finish_in_order,
        asynchronous_calls_have_a_future,
        sub_groups_run_beside_each_other,
        the_host_has_gloo_in_the_same_group,
        communicator_names,
        options_are_accepted,
        functional_collectives,
    )
}


def run_all(rank: int, size: int) -> dict[str, str]:
    """Every check in one world: name -> "" or what went wrong. Stops at the first failure, which breaks the group."""
    import traceback

    start(rank, size)
    results = {}
    for name, check in CHECKS.items():
        try:
            check(rank, size)
            results[name] = ""
        except Exception:
            results[name] = traceback.format_exc()
            break
    return results


# Failures: each is one world, returns the error and how long it took to come -----------------------------------------


def _error_of(call: Callable[[], object]) -> tuple[str, float]:
    started = time.monotonic()
    try:
        call()
    except RuntimeError as error:
        return str(error), time.monotonic() - started
    return "", time.monotonic() - started


def a_rank_dies(rank: int, size: int, victim: int) -> tuple[str, float]:
    start(rank, size, seconds=30)
    dist.all_reduce(torch.ones(2, device=NPU))
    if rank == victim:
        os.kill(os.getpid(), signal.SIGKILL)
    return _error_of(lambda: dist.all_reduce(torch.ones(2, device=NPU)))


def a_rank_calls_something_else(rank: int, size: int) -> tuple[str, float]:
    start(rank, size, seconds=30)
    tensor = torch.ones(4, device=NPU)
    return _error_of(lambda: dist.broadcast(tensor, 0) if rank == 1 else dist.all_reduce(tensor))


def a_rank_has_another_size(rank: int, size: int) -> tuple[str, float]:
    start(rank, size, seconds=30)
    return _error_of(lambda: dist.all_reduce(torch.ones(4 + (rank == 1), device=NPU)))


def a_rank_has_another_type(rank: int, size: int) -> tuple[str, float]:
    start(rank, size, seconds=30)
    return _error_of(lambda: dist.all_reduce(torch.ones(4, device=NPU).to(torch.int32 if rank == 1 else torch.float32)))


def a_rank_does_not_come(rank: int, size: int) -> tuple[str, float]:
    start(rank, size, seconds=3)
    if rank == 1:
        return "", 0.0  # its process stays until all have answered
    return _error_of(lambda: dist.all_reduce(torch.ones(4, device=NPU)))


def a_failed_group_stays_failed(rank: int, size: int) -> tuple[str, float]:
    start(rank, size, seconds=30)
    tensor = torch.ones(4, device=NPU)
    _error_of(lambda: dist.broadcast(tensor, 0) if rank == 1 else dist.all_reduce(tensor))
    return _error_of(lambda: dist.all_reduce(tensor))


def nobody_sends(rank: int, size: int) -> tuple[str, float]:
    start(rank, size, seconds=3)
    if rank == 1:
        return "", 0.0  # its process stays until all have answered
    return _error_of(lambda: dist.recv(torch.empty(3, device=NPU), 1))


def a_message_has_another_size(rank: int, size: int) -> tuple[str, float]:
    start(rank, size, seconds=20)
    if rank == 0:
        return _error_of(lambda: dist.recv(torch.empty(3, device=NPU), 1))
    _error_of(lambda: dist.send(torch.empty(5, device=NPU), 0))
    return "", 0.0
