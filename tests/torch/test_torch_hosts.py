"""A host dies: `torchrun` starts all again, from the checkpoint, as if nothing had happened."""

import sys

from processes import assert_as_if_nothing_had_died, dying, example, random_step, run

STEPS, EVERY = 24, 8


def test_a_run_goes_on_after_one_of_two_processes_was_killed(tmp_path):
    died = random_step(STEPS, EVERY)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    launch += ["--max-restarts", "1", "--monitor-interval", "0.1", *example("hosts_torch")[1:]]
    command = [*launch, str(tmp_path), "--steps", str(STEPS), "--every", str(EVERY)]
    # Else those that `torchrun` starts again look for the dead in the first ones' store: PyTorch's issue 167288.
    environment = {**dying(died), "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    (code,), outputs = run(tmp_path, [command], [environment])
    assert code == 0, outputs
    assert (tmp_path / "died").exists()
    assert_as_if_nothing_had_died(outputs, died, STEPS, EVERY)
