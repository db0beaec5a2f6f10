# SPDX-License-Identifier: Apache-2.0
"""The table of operators in the documentation is the manifest's."""

from tests.support.environment import ROOT
from vllm_ascend_patch.virtual_npu import manifest

PAGE = ROOT / "docs" / "virtual-npu.md"


def test_the_page_ends_with_the_manifests_table() -> None:
    assert PAGE.read_text().rstrip().endswith(manifest.markdown().rstrip())
