"""A host dies: all processes of `jax.distributed` are started again, from the checkpoint, as if it had not."""

from processes import assert_a_death_is_made_good, dying, example, free_port, run

STEPS, EVERY = 24, 8


def test_a_run_goes_on_after_one_of_two_processes_was_killed(tmp_path):
    assert_a_death_is_made_good(trained, tmp_path, STEPS, EVERY)


def trained(folder, died):
    """Return what two processes ended with; the second kills itself after the step `died`."""
    common = [*example("hosts_jax"), str(folder), "--steps", str(STEPS), "--every", str(EVERY)]
    common += ["--coordinator", f"localhost:{free_port()}", "--processes", "2", "--process"]
    return run(folder, [[*common, "0"], [*common, "1"]], [dying(None), dying(died)])
