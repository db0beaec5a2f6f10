# SPDX-License-Identifier: Apache-2.0
"""A declaration says at once what is wrong with it, and declaring has no side effect."""

import dataclasses
import sys
from typing import Any, cast

import pytest

from tests.support.processes import run_python
from vllm_ascend_patch.patching import InvalidPatch, Kind, PatchSet, Target

from .declare import patch, tagged


@pytest.mark.parametrize(
    "text", ["", "module", "module:", ":name", "module.name", "a:b:c", "a b:c", "a:b()", "1a:b", None]
)
def test_a_malformed_target_is_refused_with_the_right_form(text: str) -> None:
    with pytest.raises(InvalidPatch, match=r"package\.module:name"):
        patch(text, tagged)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": "Not An Id"}, "patch id"),
        ({"kind": "wrapp"}, "wrap, replace, add"),
        ({"why": " "}, "why is empty"),
        ({"upstream": ""}, "upstream is empty"),
        ({"remove_when": ""}, "remove_when is empty"),
        ({"reads": ["a"]}, "reads must be a tuple"),
        ({"aliases": ("nonsense",)}, r"package\.module:name"),
    ],
)
def test_a_malformed_field_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidPatch, match=message):
        patch("a.b:c", tagged, **fields)


def test_a_target_is_split_into_module_owner_and_name() -> None:
    target = Target.parse("a.b:C.D.e")
    assert (target.package, target.module, target.owner, target.name, str(target)) == (
        "a",
        "a.b",
        "C.D",
        "e",
        "a.b:C.D.e",
    )


def test_a_patch_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        patch("a:b", tagged).target = "c:d"  # type: ignore[misc]


def test_two_patches_with_one_id_are_refused() -> None:
    with pytest.raises(InvalidPatch, match="two patches"):
        PatchSet([patch("a:b", tagged), patch("a:c", tagged)])


def test_a_dotted_implementation_is_not_imported_by_declaring_or_arming_it() -> None:
    patches = PatchSet([patch("nowhere.at.all:name", "no.such.module:function")])
    patches.arm()
    assert "no" not in sys.modules


def test_the_kind_may_be_given_as_a_word() -> None:
    assert patch("a:b", tagged, kind=cast(Kind, "replace")).kind is Kind.REPLACE


def test_all_declarations_together_import_neither_torch_nor_vllm() -> None:
    run_python("""
        import sys
        from vllm_ascend_patch.releases import declarations
        assert declarations.patches()
        heavy = {"torch", "torch_npu", "vllm"} & set(sys.modules)
        assert not heavy, heavy
    """)
