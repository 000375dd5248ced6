"""What a comparison sums up, and how tuned matrices lie to their base: against NumPy's own decompositions."""

import json

import numpy as np
import pytest
from network_files import norm, write
from typer.testing import CliRunner

from opnorm.auditing.comparison import DiffReport
from opnorm.auditing.differences import diff
from opnorm.auditing.subspaces import effective_rank, subspaces
from opnorm.cli import main as cli


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def orthogonal(seed, n):
    return np.linalg.qr(normal(seed, n, n))[0]


def compared(tmp_path, base, tuned, **options):
    return diff(write(tmp_path / "b.safetensors", base), write(tmp_path / "t.safetensors", tuned), **options)


def test_the_summary_counts_what_changed_and_names_what_changed_most(tmp_path):
    W = {f"l.{i}.weight": np.eye(4) * (i + 1) for i in range(4)}
    changes = [0.0, 0.5, 0.3, 0.1]
    found = compared(tmp_path, W, {name: w * (1 + c) for (name, w), c in zip(W.items(), changes, strict=True)})
    summary = json.loads(found.to_json())["summary"]
    assert (summary["compared"], summary["changed"], summary["failed"], summary["ranks"]) == (4, 3, 0, None)
    assert summary["largest"] == {"name": "l.1.weight", "relative": pytest.approx(0.5, rel=1e-5)}
    assert summary["median"] == pytest.approx(0.3, rel=1e-5)
    assert "3 of 4 weights changed; most l.1.weight, by 0.5 of its norm; the median 0.3\n" in found.to_text()


def test_the_summary_of_an_adapter_has_the_sum_of_its_ranks(tmp_path):
    tuned = {}
    for i, rank in enumerate((2, 3)):
        tuned |= {f"l.{i}.lora_A.weight": normal(i, rank, 6), f"l.{i}.lora_B.weight": normal(9, 5, rank)}
    found = compared(tmp_path, {f"l.{i}.weight": normal(i, 5, 6) for i in (0, 1)}, tuned | {"x.oft_r": normal(0, 2, 2)})
    assert [row.rank for row in found.rows] == [2, 3, None]
    assert found.to_dict()["summary"]["ranks"] == 5
    assert "ranks up to 5 in all; 1 NOT known" in found.to_text()


def test_dora_has_no_rank(tmp_path):
    tuned = {
        "l.lora_A.weight": normal(1, 2, 6),
        "l.lora_B.weight": normal(2, 5, 2),
        "l.lora_magnitude_vector": np.ones(5),
    }
    (row,) = compared(tmp_path, {"l.weight": normal(0, 5, 6)}, tuned).rows
    assert (row.status, row.rank) == ("DoRA", None)


def test_a_summary_of_nothing_is_told_too(tmp_path):
    found = compared(tmp_path, {"a.bias": np.ones(3)}, {"a.bias": np.ones(3)})
    assert "0 of 0 weights changed" in found.to_text()


def test_the_effective_rank_of_equal_singular_values_is_their_number():
    assert effective_rank(np.array([2.0, 2.0, 2.0, 0.0])) == pytest.approx(3)
    assert effective_rank(np.zeros(3)) == 0


def test_a_rank_one_update_of_a_new_direction_is_one_intruder():
    U, V = orthogonal(0, 40), orthogonal(1, 30)
    base = U[:, :30] @ np.diag(np.linspace(3, 1, 30)) @ V.T
    u, v = U[:, 35], V[:, 4]
    found = subspaces(base, base + 10 * np.outer(u, v))
    assert found["intruders"] == 1
    assert found["effective_rank"] == pytest.approx(1)
    assert found["leading"] == 1
    assert found["overlap_out"] == pytest.approx(0, abs=1e-12)
    assert found["overlap_in"] == pytest.approx(0, abs=1e-12)


def test_a_change_within_the_leading_directions_is_no_intruder():
    U, V = orthogonal(0, 12), orthogonal(1, 15)
    values = np.linspace(5, 1, 12)
    base = U @ np.diag(values) @ V[:12]
    found = subspaces(base, base + U[:, :3] @ np.diag([0.1, 0.1, 0.1]) @ V[:3])
    assert (found["intruders"], found["leading"]) == (0, 3)
    assert found["overlap_out"] == pytest.approx(1)
    assert found["overlap_in"] == pytest.approx(1)
    assert found["effective_rank"] == pytest.approx(3)


def test_the_numbers_are_those_of_their_definitions():
    base, tuned = normal(0, 20, 14), normal(0, 20, 14) + normal(1, 20, 14)
    found = subspaces(base, tuned)
    (U, _, V), (C, s, D), (T, _, _) = map(np.linalg.svd, (base, tuned - base, tuned))
    shares = s / s.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert found["overlap_out"] == pytest.approx(np.linalg.norm(U[:, :10].T @ C[:, :10]) ** 2 / 10)
    assert found["overlap_in"] == pytest.approx(np.linalg.norm(V[:10] @ D[:10].T) ** 2 / 10)
    assert found["intruders"] == sum(max(abs(U[:, :14].T @ t)) < 0.5 for t in T.T[:10])


def test_subspaces_are_columns_of_every_form_where_asked_for(tmp_path):
    base = {"a.weight": normal(0, 8, 6), "c.weight": normal(1, 4, 3, 3, 3), "e.embed.weight": normal(5, 9, 4)}
    tuned = {name: value + 0.1 * normal(2, *value.shape) for name, value in base.items()}
    assert all(row.subspaces is None for row in compared(tmp_path, base, tuned).rows)
    found = compared(tmp_path, base, tuned, subspaces=True)
    a, c, e = found.rows
    assert a.subspaces == subspaces(base["a.weight"], tuned["a.weight"])
    assert c.subspaces is None  # a convolution is no one matrix
    assert e.subspaces == subspaces(base["e.embed.weight"].T, tuned["e.embed.weight"].T)
    assert DiffReport.from_dict(json.loads(found.to_json())) == found
    assert f"effective rank {a.subspaces['effective_rank']:.4g}, overlap of 6: " in found.to_text()
    assert "intruders" in found.to_text()


def test_subspaces_of_an_adapter_are_those_of_the_merged_weight(tmp_path):
    W, A, B = normal(0, 12, 9), normal(1, 2, 9), normal(2, 12, 2)
    found = compared(
        tmp_path, {"q.weight": W}, {"q.lora_A.weight": A, "q.lora_B.weight": B}, subspaces=True, include=["q*"]
    )
    truth = subspaces(W, W + B @ A)
    assert found.rows[0].subspaces == pytest.approx(truth)
    assert found.rows[0].subspaces["leading"] == 2


def test_without_time_or_memory_there_are_no_subspaces_and_the_brackets_stand(tmp_path):
    base, tuned = {"a.weight": normal(0, 64, 64)}, {"a.weight": normal(1, 64, 64)}
    for limits in ({"time_limit": 0}, {"memory_limit": 3 * 64 * 64 * 8}):
        (row,) = compared(tmp_path, base, tuned, subspaces=True, **limits).rows
        assert row.subspaces is None
        assert row.difference[0] <= norm(tuned["a.weight"] - base["a.weight"]) <= row.difference[1]


def test_the_command_shows_them(tmp_path):
    base = write(tmp_path / "b.safetensors", {"a.weight": normal(0, 8, 6), "b.weight": normal(1, 8, 6)})
    tuned = write(tmp_path / "t.safetensors", {"a.weight": normal(2, 8, 6), "b.weight": 1.1 * normal(1, 8, 6)})
    options = ["diff", str(base), str(tuned), "--subspaces", "--top", "1", "--sort", "relative"]
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 0
    _, line, *rest = result.stdout.splitlines()
    assert line.startswith("a.weight")
    assert "intruders" in line
    assert any("2 of 2 weights changed; most a.weight" in line for line in rest)
    assert not any(line.startswith("b.weight") for line in rest)


def test_a_sandboxed_comparison_tells_the_same(tmp_path):
    base, tuned = {"a.weight": normal(0, 8, 6)}, {"a.weight": normal(1, 8, 6)}
    here = compared(tmp_path, base, tuned, subspaces=True)
    there = compared(tmp_path, base, tuned, subspaces=True, sandbox=True)
    assert there.rows[0].subspaces == pytest.approx(here.rows[0].subspaces)
    assert there.to_dict()["summary"] == here.to_dict()["summary"]
