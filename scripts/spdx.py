# SPDX-License-Identifier: Apache-2.0
"""Says which source files lack the licence line among their first two: ``python -m scripts.spdx [FILE …]``.

Without files: all that git knows. Exit code 1 when there are any.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ENDINGS = (".py", ".sh", ".c", ".cpp", ".h")
LINE = "SPDX-License-Identifier: Apache-2.0"


def lacks_it(path: Path) -> bool:
    """True for a source file without the line; the second is for scripts that begin with their interpreter."""
    return path.suffix in ENDINGS and not any(LINE in line for line in path.read_text().splitlines()[:2])


def main() -> int:
    names = sys.argv[1:]
    if not names:
        listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    lacking = [name for name in names if Path(name).is_file() and lacks_it(Path(name))]
    for name in lacking:
        print(f"{name}: its first line must be a comment with {LINE}")
    return 1 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
