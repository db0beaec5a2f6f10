# SPDX-License-Identifier: Apache-2.0
"""Which tensors a checkpoint's safetensors files hold, by their headers: no weight is read. No torch, no vLLM.

The format: eight bytes with the header's length, the header as JSON, the tensors' bytes (safetensors' README).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

_BITS = {"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "C64": 64}
_LENGTH = 8
_LONGEST = 100_000_000  # bytes of a header, which safetensors itself refuses to exceed
INDEX = "model.safetensors.index.json"
"""Which file has which tensor; where it exists, vLLM reads no other files than it lists."""


class StoredTensorError(ValueError):
    """A file that is no safetensors file, or not all of one."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file.

    Attributes:
        file: its name, without the folder.
        dtype: as safetensors has it, ``I8``, ``BF16``.
        shape: as stored.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """What the tensor takes in the file."""
        bits = _BITS.get(self.dtype) or int(self.dtype.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ").partition("_")[0])
        return prod(self.shape) * bits // 8

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)} in {self.file}"


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of the folder's safetensors files, of those in its index if it has one, by name.

    Raises:
        StoredTensorError: a file is damaged, a tensor is in two files, there is no file, or not what the index lists.
    """
    found: dict[str, StoredTensor] = {}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise StoredTensorError(f"{folder} has no safetensors file: copy the checkpoint's weights there")
    listed = _index(folder / INDEX)
    if listed:
        absent = sorted(set(listed.values()) - {file.name for file in files})
        if absent:
            raise StoredTensorError(
                f"{folder / INDEX} lists {', '.join(absent)}, which is not in the folder: copy what is missing from the "
                "checkpoint's source"
            )
        files = [file for file in files if file.name in set(listed.values())]
    for file in files:
        for name, tensor in _read(file):
            if name in found:
                raise StoredTensorError(
                    f"{name} is in {found[name].file} and in {file.name} of {folder}: remove the files that do not belong "
                    "to this checkpoint"
                )
            found[name] = tensor
    lacking = next((name for name in listed if name not in found), None)
    if lacking is not None:
        raise StoredTensorError(
            f"{folder / INDEX} says that {lacking} is in {listed[lacking]}, which has it not: copy both anew from the "
            "checkpoint's source"
        )
    return found


def _index(path: Path) -> dict[str, str]:
    """Tensor -> name of its file; empty without an index."""
    if not path.is_file():
        return {}
    try:
        return {str(name): str(file) for name, file in json.loads(path.read_text())["weight_map"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(path, f"it lists no tensors ({type(error).__name__})") from error


def _read(file: Path) -> Iterator[tuple[str, StoredTensor]]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(_LENGTH), "little")
        if size < _LENGTH or not 2 <= length <= min(size - _LENGTH, _LONGEST):
            raise _damaged(file, f"its header would have {length} bytes, the file has {size}")
        text = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        tensors = [
            (name, StoredTensor(file.name, str(entry["dtype"]), tuple(entry["shape"])), tuple(entry["data_offsets"]))
            for name, entry in header.items()
        ]
        end = max((offsets[1] for _, _, offsets in tensors), default=0)
        wrong = next((name for name, tensor, offsets in tensors if offsets[1] - offsets[0] != tensor.bytes), None)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise _damaged(file, f"its header cannot be read ({type(error).__name__})") from error
    if wrong is not None:
        raise _damaged(file, f"{wrong} has another size than its shape")
    if _LENGTH + length + end != size:
        raise _damaged(file, f"its tensors end at byte {_LENGTH + length + end}, the file at {size}")
    yield from ((name, tensor) for name, tensor, _ in tensors)


def _damaged(file: Path, what: str) -> StoredTensorError:
    return StoredTensorError(
        f"{file} is damaged or not complete: {what}. Copy the file anew from the checkpoint's source"
    )
