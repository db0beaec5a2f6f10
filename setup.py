# SPDX-License-Identifier: Apache-2.0
"""Makes wheel and source archive the same, byte for byte, whenever and wherever they are built with one
``SOURCE_DATE_EPOCH``. Everything else that is built is said in setup.cfg.

setuptools' source archive carries the times, owners and modes of the files that it was made from, and its wheel the modes.
"""

import gzip
import io
import os
import tarfile
import time

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.sdist import sdist


def normalised(archive: bytes, moment: int) -> bytes:
    """A ``.tar.gz`` with its members in the order of their names, each of the time ``moment`` (seconds since 1970) and of
    nobody."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as before,
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=moment) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before.getmembers(), key=lambda member: member.name):
            member.mtime, member.pax_headers = moment, {}
            member.uid, member.gid, member.uname, member.gname = 0, 0, "", ""
            member.mode = 0o755 if member.isdir() else 0o644
            after.addfile(member, before.extractfile(member))
    return packed.getvalue()


class ReproducibleSdist(sdist):
    """``sdist`` whose archives follow ``SOURCE_DATE_EPOCH``."""

    def make_archive(self, *args, **kwargs):
        path = super().make_archive(*args, **kwargs)
        with open(path, "rb") as file:
            archive = file.read()
        with open(path, "wb") as file:
            file.write(normalised(archive, int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
        return path


class ReproducibleWheel(bdist_wheel):
    """``bdist_wheel`` whose files have one mode, not that of the checkout."""

    def egg2dist(self, *args, **kwargs):
        super().egg2dist(*args, **kwargs)
        for folder, _, files in os.walk(self.bdist_dir):
            for name in files:
                os.chmod(os.path.join(folder, name), 0o644)


os.umask(0o022)
setup(cmdclass={"bdist_wheel": ReproducibleWheel, "sdist": ReproducibleSdist})
