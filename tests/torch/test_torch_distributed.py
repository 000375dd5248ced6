"""Two processes train as one: kernels and vectors stay equal, bit for bit."""

import sys
from pathlib import Path

import pytest
import torch
from modules import norm
from processes import run
from replicas_torch import train


@pytest.fixture(scope="module")
def replicas(tmp_path_factory):
    """Return what each of two processes ends with."""
    folder = tmp_path_factory.mktemp("replicas")
    script = Path(__file__).with_name("replicas_torch.py")
    command = [sys.executable, "-W", "ignore", str(script)]
    codes, outputs = run(folder, [[*command, str(rank), "2", str(folder)] for rank in (0, 1)], [None, None])
    assert codes == [0, 0], outputs
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("kind", ["constrained", "normalized"])
def test_two_processes_hold_what_one_does_at_the_same_batch(kind, replicas):
    first, second = (one[kind] for one in replicas)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    alone = [one.detach() for one in train(kind)]
    for kernel, wanted in zip(first[:3], alone[:3], strict=True):
        torch.testing.assert_close(kernel, wanted, rtol=1e-5, atol=1e-5)
    for vectors, wanted in zip(first[3:], alone[3:], strict=True):  # the leading one: others amplify rounding
        torch.testing.assert_close(vectors[0], wanted[0], rtol=1e-3, atol=1e-4)
    if kind == "constrained":
        assert [norm(one) for one in first[:3]] == pytest.approx([1.0] * 3, rel=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_kernels_in_shards_are_held_without_ever_being_gathered(axis, replicas):
    first, second = (one[f"shards {axis}"] for one in replicas)
    alone = [one.detach() for one in train("constrained")[:3]]
    for kernel, other, wanted in zip(first["kernels"], second["kernels"], alone, strict=True):
        assert torch.equal(kernel, other)
        assert norm(kernel) == pytest.approx(1.0, rel=1e-3)
        torch.testing.assert_close(kernel, wanted.detach(), rtol=1e-4, atol=1e-5)
    assert first["sizes"] == second["sizes"]
    assert 0 < max(first["sizes"]) <= 2 * 24  # two vectors of the longest side; the kernels have 96 to 576 entries
    lower, upper = (first["norms"][f"spectral_{end}/2.weight"] for end in ("lower", "upper"))
    assert lower <= norm(first["kernels"][1]) <= upper


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["clipped", "clipped with a margin", "orthogonal"])
def test_kernels_in_shards_are_clipped_and_made_orthogonal_as_whole_ones(kind, axis, replicas):
    first, second = (one[f"{kind} {axis}"] for one in replicas)
    alone = [one.detach() for one in train(kind)[:3]]
    for kernel, other, wanted in zip(first, second, alone, strict=True):
        assert torch.equal(kernel, other)
        torch.testing.assert_close(kernel, wanted, rtol=1e-4, atol=1e-4)
        values = torch.linalg.svdvals(kernel.double())
        assert values.max() <= 1 + 1e-4
        if kind == "orthogonal":
            assert values.min() >= 1 - 1e-4


def test_clipping_shards_of_the_longer_side_sends_the_gram_matrix_of_the_shorter(replicas):
    sent = replicas[0]["alone"]
    assert not any("gather" in kind or "all_to_all" in kind for kind in sent["kinds"])
    assert max(sent["sizes"]) == 16 * 16
    u, s, vt = torch.linalg.svd(sent["start"].double(), full_matrices=False)
    torch.testing.assert_close(sent["kernel"].double(), u * s.clamp(max=0.7) @ vt, rtol=1e-5, atol=1e-5)
    assert s.max() > 0.75  # something was clipped


def test_a_process_without_a_part_of_the_kernel_takes_part(replicas):
    assert [one["single"] for one in replicas] == pytest.approx([-1.0] * 2)


def test_kernels_in_shards_that_are_several_matrices_are_refused(replicas):
    assert "where these are sharded" in replicas[0]["refused"]


@pytest.mark.parametrize("axis", [0, 1])
def test_runs_on_shards_go_on_from_a_distributed_checkpoint_with_their_vectors(axis, replicas):
    whole, resumed, without = replicas[0][f"resumed {axis}"]
    for one, two in zip(whole, resumed, strict=True):
        assert torch.equal(one, two)
    assert [norm(one) for one in resumed] == pytest.approx([1.0] * 3, rel=1e-3)
    assert max(abs(norm(one) - 1) for one in without) > 1e-2  # the vectors are what it went on from
