"""Many devices: what one device finds, and vectors are all that the rule sends between them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("shards_jax.py")


@pytest.fixture(scope="module")
def said():
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, str(SCRIPT)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("layout", ["data", "input", "output", "both"])
def test_kernels_on_four_devices_are_those_of_one(said, layout):
    assert said[layout]["away"] < 1e-5
    assert said[layout]["turned"] < 1e-4  # a vector amplifies the rounding of its kernel
    assert said[layout]["norms"] == pytest.approx([1, 1], abs=1e-3)
    assert said[layout]["agree"]  # what is replicated is equal on all devices, bit for bit


@pytest.mark.parametrize("layout", ["input", "output", "both"])
def test_the_rule_gathers_no_kernel_that_is_split(said, layout):
    collectives = said[layout]["collectives"]
    assert collectives  # something is reduced
    shard = 64 * 48 // 4
    assert max(collectives.values()) < shard  # vectors: two of two kernels, twice, padded to 64 entries
    assert "all-gather" not in collectives


def test_shardings_that_are_part_of_the_types_are_kept(said):
    assert said["explicit"] == pytest.approx([1, 1], abs=1e-3)
    assert said["normalized"] == pytest.approx(1, abs=1e-3)


def test_the_rule_runs_inside_shard_map(said):
    assert said["mapped"] == pytest.approx([1, 1], abs=1e-3)
