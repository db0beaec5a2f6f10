# SPDX-License-Identifier: Apache-2.0
"""Counter-tests of the detector: whatever an upstream does to a target, the verdict and its words say so."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import pytest

from vllm_ascend_patch.patching import Finding, Kind, Patch, Target, Verdict
from vllm_ascend_patch.patching.compare import compare, diff
from vllm_ascend_patch.patching.describe import Description, Reader
from vllm_ascend_patch.patching.record import Record, RecordStore
from vllm_ascend_patch.patching.source import DirectoryTree

from .declare import patch, tagged

BEFORE = {
    "__init__": "",
    "engine": '''
        import functools
        from .tools import helper

        class Runner:
            """A class."""

            def prepare(self, output, tokens, *, flag=False):
                """Prepare."""
                size = helper(output)
                return size + self.pad(tokens)

            def pad(self, tokens):
                return tokens

            @staticmethod
            def shared(group, count=1):
                return count

            @property
            def naive(self):
                return True

        def reduce(values, group, mode="sum"):
            # a comment
            return sum(values)
        ''',
    "tools": "def helper(x):\n    return x\n",
    "user": "from pkg.engine import reduce\n",
    "late": "def use():\n    from pkg.engine import reduce\n    return reduce\n",
    "typed": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pkg.engine import reduce\n",
}
ENGINE = "engine"

PREPARE = patch(
    "pkg.engine:Runner.prepare", tagged, id="prepare", reads=("output", "tokens", "flag"), calls=("helper", "pad")
)
SHARED = patch("pkg.engine:Runner.shared", tagged, Kind.REPLACE, id="shared")
REDUCE = patch("pkg.engine:reduce", tagged, id="reduce", reads=("values", "group"), aliases=("pkg.user:reduce",))
REDUCE_ALL = patch("pkg.engine:reduce", tagged, Kind.REPLACE, id="reduce", aliases=("pkg.user:reduce",))
NAIVE = patch("pkg.engine:Runner.naive", tagged, id="naive")
EXTRA = patch("pkg.engine:Runner.extra", tagged, Kind.ADD, id="extra")


def package(folder: Path, files: dict[str, str]) -> Reader:
    """Write a package and read it."""
    for name, source in files.items():
        path = folder / "pkg" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    return Reader(DirectoryTree("pkg", folder / "pkg"))


@pytest.fixture
def judge(tmp_path: Path) -> Any:
    """``judge(patch, (old, new), ...)`` replaces text in the engine module and compares with what was recorded
    before."""
    recorded = package(tmp_path / "before", BEFORE)

    def verdict(one: Patch, *changes: tuple[str, str], files: dict[str, str | None] | None = None) -> Verdict:
        now = dict(BEFORE)
        for old, new in changes:
            assert old in now[ENGINE], f"the mutation {old!r} does not apply: the test tests nothing"
            now[ENGINE] = now[ENGINE].replace(old, new)
        for name, source in (files or {}).items():
            if source is None:
                del now[name]
            else:
                now[name] = source
        found = package(tmp_path / "now", now).describe(one.place)
        return compare(one, recorded.describe(one.place), found, "2.0")

    return verdict


@pytest.mark.parametrize(
    "one", [PREPARE, SHARED, REDUCE, REDUCE_ALL, NAIVE, EXTRA], ids=lambda one: f"{one.id}-{one.kind}"
)
def test_an_unchanged_upstream_fits(judge: Any, one: Patch) -> None:
    assert judge(one) == Verdict(Finding.FITS, "2.0")


@pytest.mark.parametrize("one", [PREPARE, REDUCE, REDUCE_ALL], ids=lambda one: f"{one.id}-{one.kind}")
def test_comments_docstrings_annotations_and_formatting_do_not_matter(judge: Any, one: Patch) -> None:
    verdict = judge(
        one,
        ("# a comment", "# another comment"),
        ('"""Prepare."""', '"""Prepare, in other words."""'),
        (
            'def reduce(values, group, mode="sum"):',
            "def reduce(\n        values: list[int], group: object,\n        mode: str = 'sum',\n        ) -> int:",
        ),
        ("return sum(values)", "return (\n                sum( values )\n            )"),
        ("size = helper(output)", "size: int = helper(output)"),
    )
    assert verdict == Verdict(Finding.FITS, "2.0")


# fmt: off
# ruff: noqa: E501 (a table)
MUTATIONS = [
    ("renamed method", PREPARE, [("def prepare(", "def prepare_inputs(")], Finding.GONE, "has no prepare"),
    ("renamed class", PREPARE, [("class Runner", "class ModelRunner")], Finding.GONE, "no class Runner"),
    ("dropped parameter", PREPARE, [("output, tokens, *", "output, *")], Finding.DRIFTED, "parameter 'tokens' is gone"),
    ("dropped keyword", PREPARE, [(", *, flag=False", "")], Finding.DRIFTED, "parameter 'flag' is gone"),
    ("reordered", PREPARE, [("output, tokens, *", "tokens, output, *")], Finding.DRIFTED, "moved from position 1 to 2"),
    ("put in front", PREPARE, [("self, output", "self, extra, output")], Finding.DRIFTED, "moved from position 1 to 2"),
    ("became keyword-only", PREPARE, [("output, tokens, *", "output, *, tokens")], Finding.DRIFTED, "is keyword-only"),
    ("changed default", PREPARE, [("flag=False", "flag=True")], Finding.DRIFTED, "'flag=False' is now 'flag=True'"),
    ("lost call", PREPARE, [("self.pad(tokens)", "tokens")], Finding.DRIFTED, "no longer calls pad"),
    ("turned static", PREPARE, [("def prepare(self, ", "@staticmethod\n            def prepare(")], Finding.DRIFTED, "is a static method"),
    ("turned async", PREPARE, [("def prepare(", "async def prepare(")], Finding.DRIFTED, "is a async function"),
    ("turned generator", PREPARE, [("return size", "yield size")], Finding.DRIFTED, "is a generator function"),
    ("decorated", PREPARE, [("def prepare(", "@functools.cache\n            def prepare(")], Finding.DRIFTED, "decorators"),
    ("property to method", NAIVE, [("@property\n            def naive", "def naive")], Finding.DRIFTED, "was a property"),
    ("static to class method", SHARED, [("@staticmethod", "@classmethod")], Finding.DRIFTED, "is a class method"),
    ("replaced body", SHARED, [("return count", "return count + 1")], Finding.DRIFTED, "body changed"),
    ("replaced signature", SHARED, [("group, count=1", "group, count=1, more=2")], Finding.DRIFTED, "(group, count=1, more=2)"),
    ("replaced function body", REDUCE_ALL, [("sum(values)", "max(values)")], Finding.DRIFTED, "body changed"),
    ("became a value", REDUCE, [("def reduce(values, group, mode=\"sum\"):", "reduce = 1\n        def other(values):")], Finding.DRIFTED, "is a value"),
    ("copied in its class", PREPARE, [("def pad(", "other = prepare\n\n            def pad(")], Finding.DRIFTED, "pkg.engine:Runner.other"),
    ("addition exists", EXTRA, [("def pad(", "def extra(self):\n                pass\n\n            def pad(")], Finding.GONE, "exists by now"),
]
# fmt: on


@pytest.mark.parametrize(("name", "one", "changes", "finding", "words"), MUTATIONS, ids=[case[0] for case in MUTATIONS])
def test_a_mutation_is_caught(judge: Any, name: str, one: Patch, changes: Any, finding: Finding, words: str) -> None:
    verdict = judge(one, *changes)
    assert verdict.finding is finding
    assert words in verdict.line


def test_a_removed_module_is_caught(judge: Any) -> None:
    verdict = judge(REDUCE, files={"engine": None})
    assert verdict.finding is Finding.GONE


def test_a_method_that_moved_to_a_base_class_is_caught_and_named(judge: Any) -> None:
    verdict = judge(
        NAIVE,
        (
            "class Runner:",
            "class Base:\n            @property\n            def naive(self):\n                return True\n\n        class Runner(Base):",
        ),
        (
            "            @property\n            def naive(self):\n                return True\n\n        def reduce",
            "        def reduce",
        ),
    )
    assert verdict.finding is Finding.DRIFTED
    assert "inherited from pkg.engine" in verdict.line


def test_a_function_that_moved_behind_a_re_export_is_caught_and_named(judge: Any) -> None:
    moved = "from .other import reduce\n"
    verdict = judge(
        REDUCE, files={"engine": moved, "other": "def reduce(values, group, mode='sum'):\n    return sum(values)\n"}
    )
    assert verdict.finding is Finding.DRIFTED
    assert "pkg.other:reduce" in verdict.line


@pytest.mark.parametrize(
    ("files", "site"),
    [
        ({"new": "from pkg.engine import reduce\n"}, "pkg.new:reduce"),
        ({"new": "from .engine import reduce as shrink\n"}, "pkg.new:shrink"),
        ({"new": "try:\n    from .engine import reduce\nexcept ImportError:\n    reduce = None\n"}, "pkg.new:reduce"),
        ({"new": "from .user import reduce\n"}, "pkg.new:reduce"),
        ({"new": "from .engine import *\n"}, "pkg.new:reduce"),
        ({"__init__": "from .engine import reduce\n", "new": "from pkg import reduce as again\n"}, "pkg.new:again"),
        ({"sub/__init__": "from ..engine import reduce\n"}, "pkg.sub:reduce"),
    ],
    ids=["plain", "renamed", "guarded", "second hand", "star", "through the package", "relative"],
)  # fmt: skip
def test_a_new_copy_is_caught_and_named(judge: Any, files: dict[str, str], site: str) -> None:
    verdict = judge(REDUCE, files=files)
    assert verdict.finding is Finding.DRIFTED
    assert f"copies that the patch does not know: {site}" in verdict.line or site in verdict.line


def test_imports_that_make_no_copy_are_not_copies(tmp_path: Path) -> None:
    """Inside a function, or for the type checker only."""
    found = package(tmp_path, BEFORE).describe(REDUCE.place)
    assert found.aliases == ("pkg.user:reduce",)


def test_a_copy_that_went_away_is_no_drift(judge: Any) -> None:
    assert judge(REDUCE, files={"user": ""}).finding is Finding.FITS


def test_a_wrap_lives_with_new_parameters_and_a_new_body(judge: Any) -> None:
    verdict = judge(
        PREPARE, ("flag=False", "flag=False, newer=None"), ("size = helper(output)", "size = helper(output) + 1")
    )
    assert verdict.finding is Finding.FITS
    assert "body changed" in verdict.line


def test_a_wrap_does_not_depend_on_parameters_that_it_does_not_read(judge: Any) -> None:
    careless = dataclasses.replace(PREPARE, reads=("output",))
    assert judge(careless, ("output, tokens, *", "output, *, tokens=None")).finding is Finding.FITS


def test_a_target_that_was_not_recorded_is_unknown(tmp_path: Path) -> None:
    found = package(tmp_path, BEFORE).describe(REDUCE.place)
    assert compare(REDUCE, None, found).finding is Finding.UNKNOWN
    assert compare(REDUCE, Description("absent", reason="x"), found).finding is Finding.UNKNOWN


def test_the_diff_shows_the_normal_form_of_what_changed(tmp_path: Path) -> None:
    before = package(tmp_path / "a", BEFORE).describe(REDUCE.place)
    changed = {
        **BEFORE,
        ENGINE: BEFORE[ENGINE].replace("sum(values)", "max(values)").replace("# a comment", "# changed"),
    }
    now = package(tmp_path / "b", changed).describe(REDUCE.place)
    text = diff("pkg.engine:reduce", before, now, ("1.0", "2.0"))
    assert "-    return sum(values)\n+    return max(values)\n" in text
    assert "comment" not in text
    assert text.startswith("--- 1.0/pkg.engine:reduce\n+++ 2.0/pkg.engine:reduce\n")


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    tree = package(tmp_path, BEFORE).tree
    wanted = {one.target: frozenset(one.calls) for one in (PREPARE, SHARED, REDUCE, NAIVE, EXTRA)}
    made = Record.make("1.0", "a test", tree, wanted)
    store = RecordStore(tmp_path / "records")
    store.write(made)
    read = RecordStore(tmp_path / "records").get("1.0")
    assert read is not None
    assert read.dumps() == made.dumps()
    for one in (PREPARE, SHARED, REDUCE, NAIVE, EXTRA):
        assert compare(one, read.targets[one.target], Reader(tree).describe(one.place)).finding is Finding.FITS


def test_the_closest_record_is_the_newest_before(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "records")
    for release in ("0.9.0", "0.10.0", "0.10.2"):
        store.write(Record("pkg", release, "a test", {}))
    assert store.releases() == ["0.9.0", "0.10.0", "0.10.2"]
    closest = {release: store.closest(release).release for release in ("0.8.0", "0.9.5", "0.10.1", "0.11.0")}  # type: ignore[union-attr]
    assert closest == {"0.8.0": "0.9.0", "0.9.5": "0.9.0", "0.10.1": "0.10.0", "0.11.0": "0.10.2"}


def test_nested_and_conditional_definitions_are_found(tmp_path: Path) -> None:
    source = """
        import sys
        if sys.version_info > (3, 0):
            def chosen(a):
                return 1
        else:
            def chosen(b):
                return 2
        class Outer:
            class Inner:
                def deep(self):
                    return 1
        """
    reader = package(tmp_path, {"__init__": "", "engine": source})
    assert reader.describe(Target.parse("pkg.engine:Outer.Inner.deep")).kind == "function"
    assert reader.describe(Target.parse("pkg.engine:chosen")).present
