"""The scripts in examples, in short, as a user runs them; their numbers against NumPy's and SciPy's."""

import re
import subprocess
import sys
from importlib import import_module
from math import isfinite
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.linalg import sqrtm

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBER = re.compile(r"\s(nan|inf|-?\d+\.\d+)(?!\S)")  # the numbers of a row, not those in its name


def run(script, folder):
    """Return what `script --short` prints, line by line, and the names of the files it leaves."""
    command = [sys.executable, EXAMPLES / f"{script}.py", "--short", "--output", folder]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines(), {path.name for path in folder.iterdir()}


def row(lines, name):
    """Return the numbers in the row called `name`."""
    (line,) = [line for line in lines if line.startswith(f"{name}  ")]
    return [float(number) for number in NUMBER.findall(line.removeprefix(name))]


def is_picture(path):
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000  # axes alone are smaller


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def gan(folder):
    return run("gan_digits", folder / "new" / "gan")


@pytest.fixture
def gan_digits(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return import_module("gan_digits")


def test_the_gan_draws_its_samples_and_losses_and_leaves_no_unfinished_file(gan, folder):
    _, files = gan
    assert files == {"samples.png", "losses.png", "generator.keras", "discriminator.keras"}
    assert is_picture(folder / "new" / "gan" / "samples.png")
    assert is_picture(folder / "new" / "gan" / "losses.png")


def test_the_gan_prints_finite_figures_of_every_set_of_images(gan):
    lines, _ = gan
    for name, count in (("nothing", 6), ("opnorm.SpectralNorm", 6), ("real digits", 3)):
        figures = row(lines, name)
        assert len(figures) == count
        assert all(isfinite(figure) for figure in figures)


def test_only_the_normalized_discriminator_of_the_gan_has_norm_one(gan, folder):
    lines, _ = gan
    discriminator = keras.saving.load_model(folder / "new" / "gan" / "discriminator.keras", compile=False)
    kernels = [weights[0] for layer in discriminator.layers if (weights := layer.get_weights())]
    true = [np.linalg.svd(kernel.astype("float64"), compute_uv=False)[0] for kernel in kernels]
    np.testing.assert_allclose(true, 1, atol=2e-2)  # what a cold start's updates may leave
    np.testing.assert_allclose(row(lines, "opnorm.SpectralNorm")[:3], true, atol=6e-4)  # printed with three digits
    assert min(row(lines, "nothing")[:3]) > 1.2  # a Glorot kernel's


def test_the_saved_generator_makes_images(gan, folder):
    generator = keras.saving.load_model(folder / "new" / "gan" / "generator.keras", compile=False)
    images = generator.predict(np.random.default_rng(0).standard_normal((3, 64)), verbose=0)
    assert images.shape == (3, 784)
    assert np.abs(images).max() <= 1


def test_each_update_of_the_gan_moves_one_network(gan_digits, monkeypatch):
    moved = []
    train_on_batch = keras.Sequential.train_on_batch

    def recorded(model, inputs, targets):
        before = [w.copy() for w in model.get_weights()]
        loss = train_on_batch(model, inputs, targets)
        moved.append([not np.array_equal(w, new) for w, new in zip(before, model.get_weights(), strict=True)])
        return loss

    monkeypatch.setattr(keras.Sequential, "train_on_batch", recorded)
    images = np.random.default_rng(0).uniform(-1, 1, (64, 784)).astype("float32")
    gan_digits.train(lambda discriminator: None, images, steps=2, seed=0)
    both, discriminator = [True] * 6 + [False] * 6, [True] * 6
    assert moved == [both, discriminator] * 2


def test_the_frechet_distance_is_that_of_the_matrix_square_root(gan_digits):
    draw = np.random.default_rng(0)
    x, y = draw.standard_normal((200, 5)) @ draw.standard_normal((5, 5)), 1 + draw.standard_normal((300, 5))
    X, Y = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(X + Y - 2 * sqrtm(X @ Y).real)
    assert gan_digits.frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)  # float64, condition about 1e3
    assert gan_digits.frechet_distance(x, x) == pytest.approx(0, abs=1e-9)  # as above


@pytest.fixture(scope="module")
def sngp(folder):
    return run("sngp_two_moons", folder / "sngp")


def test_sngp_draws_its_uncertainty_and_leaves_no_unfinished_file(sngp, folder):
    _, files = sngp
    assert files == {"uncertainty.png"}
    assert is_picture(folder / "sngp" / "uncertainty.png")


def test_sngp_holds_its_cap_and_is_unsure_far_from_the_data(sngp):
    lines, _ = sngp
    *_, free = row(lines, "Gaussian process")
    accuracy, auroc, near, far, norm = row(lines, "SNGP, cap 0.95")
    assert free > 1.2  # a Glorot kernel's
    assert norm <= 0.95 * 1.02  # the wrapper's sigma is an estimate from below
    assert accuracy > 0.8  # 0.5 is chance
    assert auroc > 0.8  # as above
    assert far > near


@pytest.mark.parametrize("name", ["logistic", "Gaussian process", "SNGP, cap 0.95"])
def test_sngp_prints_finite_figures_of_every_output_layer(sngp, name):
    figures = row(sngp[0], name)
    assert len(figures) == 5
    assert all(isfinite(figure) for figure in figures)


def test_the_certified_digits_are_a_table_and_a_picture(folder):
    lines, files = run("certified_digits", folder / "certified")
    assert files == {"certified.png"}
    assert is_picture(folder / "certified" / "certified.png")
    accuracy, bound, *certified, whole, product = row(lines, "norm 1, logits x 10")
    assert bound < 10 * 1.03  # the scale, and what an update may leave of two norms
    assert certified == sorted(certified, reverse=True)
    assert product <= whole <= certified[1] <= accuracy
