# SPDX-License-Identifier: Apache-2.0
"""Which rows of ``npu_grouped_matmul``'s input belong to which expert, in the operator's three notations. No product."""

from __future__ import annotations

import torch

from .limits import require, require_dtype, require_shape

OP = "npu_grouped_matmul"
MAX_GROUPS = 1024


def group_ends(group_list: torch.Tensor, kind: int, groups: int, rows: int) -> list[int]:
    """Prefix sums of the groups' sizes from any of the three notations."""
    require_dtype(OP, "group_list", group_list, (torch.int64,))
    require(OP, kind in (0, 1, 2), "group_list_type must be 0 (sums), 1 (counts) or 2 (pairs)", kind)
    if kind == 2:
        require_shape(OP, "group_list of (expert, count) pairs", group_list, (groups, 2))
        counts = [0] * groups
        for expert, count in group_list.tolist():
            if count == 0:
                break
            require(OP, 0 <= expert < groups, f"expert of a pair must be in [0, {groups})", expert)
            counts[expert] = count
        sizes = torch.tensor(counts, dtype=torch.int64)
    else:
        require_shape(OP, "group_list (one entry per expert)", group_list, (groups,))
        sizes = group_list if kind == 1 else torch.diff(group_list, prepend=torch.zeros(1, dtype=torch.int64))
    smallest = int(sizes.min()) if groups else 0
    require(OP, smallest >= 0, "group_list must not be negative or fall", group_list.tolist())
    ends = [int(end) for end in sizes.cumsum(0)]
    require(OP, not ends or ends[-1] <= rows, f"group_list must cover at most the {rows} rows of x", ends[-1:])
    return ends
