"""JAX arrays on several devices and in several processes: each by a script, as devices are counted when JAX starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")
HERE = Path(__file__).parent
PROCESSES = 3


def start(script, *args, devices):
    """A process of its own on so many devices that are CPUs in truth."""
    paths = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    command = [sys.executable, HERE / script, *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def check_all_is_well(*runs):
    """Wait for the processes, at most ten minutes in all, and leave none behind."""
    try:
        said = [run.communicate(timeout=600) for run in runs]
    finally:
        for run in runs:
            run.kill()
    for run, (out, error) in zip(runs, said, strict=True):
        assert run.returncode == 0, error[-3000:]
        assert out.endswith("all is well\n")


@pytest.mark.parametrize("script", ["jax_shards.py", "jax_mapped.py"])
def test_results_shardings_and_collectives(script):
    check_all_is_well(start(script, devices=8))


def processes(*options):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [start("jax_processes.py", port, PROCESSES, rank, *options, devices=2) for rank in range(PROCESSES)]


def test_groups_over_several_processes():
    check_all_is_well(*processes())


def test_groups_over_several_processes_can_fail():
    with pytest.raises(AssertionError, match="bounded"):
        check_all_is_well(*processes("--alone"))
