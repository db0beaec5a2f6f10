# SPDX-License-Identifier: Apache-2.0
"""The ``doctor`` command: collect, judge and print. Collecting changes nothing and needs no NPU."""

import json


def run(*, as_json: bool) -> int:
    """Print the report; 0 when a serve would work."""
    from .seams import declarations

    rows = [{"id": patch.id, "target": patch.target} for patch in declarations.patches()]
    print(json.dumps({"patches": rows}) if as_json else rows)
    return 1
