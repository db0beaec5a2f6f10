# SPDX-License-Identifier: Apache-2.0
"""Every order of importing the target, arming, arming again, reverting, loading the plugin and spawning ends as it
must."""

import json
import math
import subprocess
import sys

import pytest

from tests.support.environment import ROOT, without_devices

from .permutations import EVENTS, expected, orders

SMALL = {
    "__init__": "",
    "target": """
def function():
    return "stock"

class Thing:
    def method(self):
        return "stock"

    @staticmethod
    def static():
        return "stock"
""",
    "copies": "from small.target import function\n",
}
SHARES = 2


def collect(commands: list[list[str]], environment: dict[str, str], seconds: float) -> dict[tuple[str, ...], list[str]]:
    """Run the drivers side by side; what each order observed."""
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=ROOT)
        for command in commands
    ]
    seen: dict[tuple[str, ...], list[str]] = {}
    try:
        for process in processes:
            output, errors = process.communicate(timeout=seconds)
            assert process.returncode == 0, errors[-4000:]
            for line in output.splitlines():
                if line.startswith("[["):
                    order, observed = json.loads(line)
                    seen[tuple(order)] = observed
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return seen


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], list[str]]:
    """What every order did to the small package."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "small").mkdir()
    for name, source in SMALL.items():
        (folder / "small" / f"{name}.py").write_text(source)
    driver = ["-m", "tests.patching.life_cycle_small"]
    site = ":".join(path for path in sys.path if path.endswith("site-packages"))
    environment = without_devices(PYTHONPATH=f"{folder}:{ROOT}:{site}", VLLM_ASCEND_PATCH="0")
    commands = [[sys.executable, *driver, str(share), str(SHARES)] for share in range(SHARES)]
    return collect(commands, environment, 200)


@pytest.fixture(scope="module")
def real(virtual_npu: list[str]) -> dict[tuple[str, ...], list[str]]:
    """What every order did to the installed vLLM."""
    driver = ["-m", "tests.patching.life_cycle_real"]
    return collect([[*virtual_npu, *driver, "0", "1"]], without_devices(VLLM_LOGGING_LEVEL="ERROR"), 570)


def test_no_order_is_missing() -> None:
    assert len(orders()) == len(set(orders())) == math.factorial(len(EVENTS)) == 720
    assert all(sorted(order) == sorted(EVENTS) for order in orders())


def test_the_model_has_teeth() -> None:
    """The expectations differ between orders: a harness that observed a constant would fail."""
    assert len({tuple(expected(order)) for order in orders()}) > 30


def test_every_order_on_the_small_package(small: dict[tuple[str, ...], list[str]]) -> None:
    assert set(small) == set(orders())
    wrong = {order: (observed, expected(order)) for order, observed in small.items() if observed != expected(order)}
    assert not wrong, next(iter(wrong.items()))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_order_on_the_installed_vllm(real: dict[tuple[str, ...], list[str]]) -> None:
    assert set(real) == set(orders())
    wrong = {order: (observed, expected(order)) for order, observed in real.items() if observed != expected(order)}
    assert not wrong, next(iter(wrong.items()))
