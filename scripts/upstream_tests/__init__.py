# SPDX-License-Identifier: Apache-2.0
"""Upstream's own tests as a judge: those of vLLM's source archive, under the patch on (virtual) NPUs.

Three tables: what is run (``lanes.py``), what is changed in the copy of the tests (``changes.py``), and why a test does not
pass (``reasons.py``).
"""
