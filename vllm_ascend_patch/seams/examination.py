# SPDX-License-Identifier: Apache-2.0
"""Compare a patch with the installed vLLM, using the records in this folder. The comparing itself is patching's."""

from functools import cache
from importlib.metadata import PackageNotFoundError, version

from ..patching.declaration import Patch
from ..patching.verdict import Finding, Verdict


@cache
def installed_release(package: str) -> str | None:
    """The installed release of a package without its local part (``0.32.0+cpu`` is 0.32.0), or None."""
    from packaging.version import Version

    try:
        return Version(version(package)).public
    except PackageNotFoundError:
        return None


def examine(patch: Patch) -> Verdict:
    """The verdict on one patch for the installed release of its package."""
    from packaging.specifiers import SpecifierSet

    release = installed_release(patch.place.package)
    if release is not None and patch.releases and not SpecifierSet(patch.releases).contains(release, prereleases=True):
        return Verdict(Finding.NOT_NEEDED, release, (f"declared for vllm {patch.releases}; found {release}",))
    return Verdict(Finding.FITS, release)
