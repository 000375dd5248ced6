"""A host dies: all workers of a `MultiWorkerMirroredStrategy` are started again, as if nothing had happened."""

import json

import keras
import pytest
from processes import assert_a_death_is_made_good, dying, example, free_port, run

STEPS, EVERY = 24, 8

pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="tf.distribute")


def test_a_run_goes_on_after_one_of_two_processes_was_killed(tmp_path):
    assert_a_death_is_made_good(trained, tmp_path, STEPS, EVERY)


def trained(folder, died):
    """Return what two processes ended with; the second kills itself after the step `died`."""
    workers = [f"localhost:{free_port()}" for _ in "01"]
    told = [{"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}} for i in (0, 1)]
    environments = [{**dying(step), "TF_CONFIG": json.dumps(one)} for step, one in zip((None, died), told, strict=True)]
    command = [*example("hosts_tensorflow"), str(folder), "--steps", str(STEPS), "--every", str(EVERY)]
    return run(folder, [command, command], environments)
