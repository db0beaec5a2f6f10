# SPDX-License-Identifier: Apache-2.0
"""The shipped records: complete, and every patch fits every release that it is declared for. No archive and no network
is needed."""

import pytest

from vllm_ascend_patch.patching import Finding, Kind, Patch
from vllm_ascend_patch.patching.compare import compare
from vllm_ascend_patch.patching.record import Record
from vllm_ascend_patch.releases import declarations, guard, records

SHIPPED = (
    "0.10.0",
    "0.10.1.1",
    "0.10.2",
    "0.11.2",
    "0.12.0",
    "0.13.0",
    "0.14.1",
    "0.15.1",
    "0.16.0",
    "0.17.1",
    "0.18.1",
    "0.19.1",
    "0.20.2",
    "0.21.0",
    "0.22.1",
    "0.23.0",
    "0.24.0",
    "0.25.1",
    "0.26.0",
    "0.27.1",
    "0.28.0",
    "0.29.0",
    "0.30.0",
    "0.31.0",
    "0.32.0",
    "0.33.0",
)
PATCHES = declarations.patches()
CASES = [
    (patch, release) for patch in PATCHES for release in records.STORE.releases() if records.covers(patch, release)
]


def record(release: str) -> Record:
    """The record of a release, which must exist."""
    found = records.STORE.get(release)
    assert found is not None
    return found


@pytest.mark.parametrize("release", SHIPPED)
def test_the_promised_releases_are_recorded(release: str) -> None:
    assert release in records.STORE.releases()
    assert record(release).release == release


@pytest.mark.parametrize("release", records.STORE.releases())
def test_a_record_holds_every_target_that_the_release_needs(release: str) -> None:
    missing = set(records.wanted(release)) - set(record(release).targets)
    assert not missing, f"run: vllm-ascend-patch upstream record --all (missing: {sorted(missing)})"


@pytest.mark.parametrize("release", records.STORE.releases())
def test_a_record_is_stored_in_its_normal_form(release: str) -> None:
    path = records.STORE.folder / f"{release}.json"
    assert path.read_text(encoding="utf-8") == record(release).dumps()


@pytest.mark.parametrize(("patch", "release"), CASES, ids=[f"{patch.id}-{release}" for patch, release in CASES])
def test_a_patch_fits_the_releases_that_it_is_declared_for(patch: Patch, release: str) -> None:
    """Its target is there (or, for an addition, is not), has what the patch reads and calls, and no copies that it does
    not know."""
    found = record(release).targets.get(patch.target)
    assert found is not None, "the target is not recorded: run vllm-ascend-patch upstream record --all"
    verdict = compare(patch, found, found, release)
    assert verdict.finding is Finding.FITS, verdict.line


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.id)
def test_what_a_patch_reads_is_in_the_signature_somewhere(patch: Patch) -> None:
    assert patch.kind is not Kind.ADD or not patch.reads
    assert any(records.covers(patch, release) for release in records.STORE.releases()), (
        "declared for no recorded release"
    )


def test_the_installed_vllm_is_what_was_recorded_for_it() -> None:
    release = guard.installed_release()
    if release is None or records.STORE.get(release) is None:
        pytest.skip("no recorded release of vLLM is installed")
    refused = [verdict.line for verdict in map(guard.examine, PATCHES) if verdict.refuses]
    assert not refused
