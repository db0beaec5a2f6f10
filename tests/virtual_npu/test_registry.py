# SPDX-License-Identifier: Apache-2.0
"""A reference kernel takes the place of one that torch_npu registered from Python, whatever this torch thinks of that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from vllm_ascend_patch.virtual_npu import registry

REAL = torch.library.Library.impl


def of_2_7(self: Any, op_name: str, fn: Any, dispatch_key: str = "", *, with_keyset: bool = False) -> None:
    """Torch 2.7: a second kernel from Python is an error, whatever one says."""
    REAL(self, op_name, fn, dispatch_key, with_keyset=with_keyset, allow_override=False)


def of_2_8(
    self: Any, op_name: str, fn: Any, dispatch_key: str = "", *, with_keyset: bool = False, allow_override: bool = False
) -> None:
    """Torch 2.8 to 2.11: an error unless it is asked for."""
    REAL(self, op_name, fn, dispatch_key, with_keyset=with_keyset, allow_override=allow_override)


@pytest.mark.skipif("allow_override" not in (REAL.__kwdefaults__ or {}), reason="this is torch 2.7 itself")
@pytest.mark.parametrize("impl", [REAL, of_2_8, of_2_7])
@pytest.mark.filterwarnings("ignore:.*Overriding a previously registered kernel.*")
def test_a_kernel_registered_from_python_is_replaced(
    impl: Callable[..., None], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    namespace = f"replaced{request.node.callspec.indices['impl']}"
    monkeypatch.setattr(torch.library.Library, "impl", impl)
    definitions = torch.library.Library(namespace, "DEF")
    definitions.define("double(Tensor x) -> Tensor")
    theirs, ours = (torch.library.Library(namespace, "IMPL") for _ in range(2))
    theirs.impl("double", lambda x: x + x, "PrivateUse1")
    with pytest.raises(RuntimeError, match="already a kernel registered"):
        REAL(ours, "double", lambda x: x * 2, "PrivateUse1", allow_override=False)

    registry._register(ours, "double", lambda x: x * 2)

    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"{namespace}::double", "PrivateUse1")
