"""JAX arrays that are sharded over 8 devices, in a process of their own: devices are counted when JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")


def test_results_shardings_and_collectives():
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PYTHONPATH": paths}
    run = subprocess.run([sys.executable, here / "jax_shards.py"], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.endswith("all is well\n")
