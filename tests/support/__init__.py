# SPDX-License-Identifier: Apache-2.0
"""What tests, demo, matrix and benchmarks share: environments, processes, ranks, engines, servers, tiny models.

Scripts import this package and no other of ``tests``; nothing here imports a test or a script. It is found from the
repository's root: programs are started there as modules (``python -m scripts.demo.run``), and processes get the root in
``PYTHONPATH`` (``environment.py``).
"""
