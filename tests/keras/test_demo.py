"""The whole demo once, in short, on the backend of this process; its numbers against NumPy's."""

import re

import keras
import numpy as np
import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner

from opnorm.cli import main as cli
from opnorm.demo import recorder as demo_recorder
from opnorm.demo import report as demo_report
from opnorm.demo import training as demo

SEED = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small SVDs in many threads wait for each other, for minutes where the machine is busy."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def digits():
    return demo.load_digits(SEED)


@pytest.fixture(scope="module")
def few(digits):
    """Four batches of the digits."""
    count = 4 * demo.BATCH_SIZE
    return demo.Digits(
        digits.train_images[:count], digits.train_labels[:count], digits.test_images[:50], digits.test_labels[:50]
    )


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What `opnorm demo --epochs 1` printed, what it measured, and where it wrote."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    measured = []
    with pytest.MonkeyPatch.context() as patch:
        run = demo.run
        patch.setattr(demo, "run", lambda **arguments: measured.append(run(**arguments)) or measured[-1])
        result = CliRunner().invoke(cli.app, ["demo", "--epochs", "1", "--seed", str(SEED), "--output", str(folder)])
    assert result.exit_code == 0, result.output
    return result, measured[0], folder


def kernel(layer):
    """The stored kernel, in float64."""
    dense = layer.layer if isinstance(layer, keras.layers.Wrapper) else layer
    return keras.ops.convert_to_numpy(dense.kernel).astype(np.float64)


def trained_network(variant, digits):
    model, layers = demo.build_network(variant, digits.train_images.shape[1], SEED)
    model.fit(digits.train_images, digits.train_labels, verbose=0)
    return model, layers


@pytest.mark.parametrize("variant", demo.VARIANTS, ids=lambda variant: variant.name)
def test_the_measured_matrices_are_those_of_predict(variant, few):
    model, layers = trained_network(variant, few)
    values = few.test_images.astype(np.float64)
    for depth, layer in enumerate(layers):
        matrix = demo_recorder.applied_matrix(layer)
        # float32's resolution is 6e-8, biases and weights are below 1
        np.testing.assert_allclose(matrix, kernel(layer), atol=3e-7)
        bias = keras.ops.convert_to_numpy(layer(np.zeros((1, len(matrix)), "float32"), training=False))
        values = (values if depth == 0 else np.maximum(values, 0)) @ matrix + bias
    expected = demo.LOGIT_SCALE * values
    # float32 sums of 784 terms
    np.testing.assert_allclose(model.predict(few.test_images, verbose=0), expected, atol=1e-4 * np.abs(expected).max())


def test_the_norms_over_the_steps_are_those_of_a_hand_written_loop(few):
    variant = demo.VARIANTS[-1]
    outcome = demo.train(variant, few, epochs=5, seed=SEED, on_step=lambda: None)
    assert outcome.steps == [0, 1, 20]
    model, layers = demo.build_network(variant, few.train_images.shape[1], SEED)
    norms = [[np.linalg.norm(kernel(layer), 2) for layer in layers]]
    for step in range(20):
        batch = slice((step % 4) * demo.BATCH_SIZE, (step % 4 + 1) * demo.BATCH_SIZE)
        model.train_on_batch(few.train_images[batch], few.train_labels[batch])
        if step + 1 in outcome.steps:
            norms.append([np.linalg.norm(kernel(layer), 2) for layer in layers])
    # twenty float32 steps of the same computation, compiled apart
    np.testing.assert_allclose(outcome.norms, norms, rtol=1e-3)
    assert abs(norms[2][0] - norms[0][0]) > 0.1  # so that a recorder that never saw an update would fail


def test_the_mean_step_leaves_out_the_first_half_and_the_recording(monkeypatch, few):
    _, layers = demo.build_network(demo.VARIANTS[0], few.train_images.shape[1], SEED)
    recorder = demo_recorder.Recorder(layers, every=2, on_step=lambda: None)
    clock = iter([0, 9, 20, 21, 30, 33, 40, 42])  # seconds at which steps begin and end
    monkeypatch.setattr(demo_recorder, "perf_counter", lambda: next(clock))
    recorder.on_train_begin()
    for step in range(4):
        recorder.on_train_batch_begin(step)
        recorder.on_train_batch_end(step)
    recorder.on_train_end()
    assert recorder.milliseconds == 2500  # of steps of 3 and 2 seconds
    assert recorder.steps == [0, 1, 2, 4]


def test_every_variant_starts_from_the_same_weights(ran):
    _, results, _ = ran
    first, *others = (outcome.before for outcome in results.outcomes)
    for before in others:
        np.testing.assert_array_equal(np.concatenate(before), np.concatenate(first))


def test_the_digits_are_real_split_and_seeded(digits):
    assert digits.train_images.shape == (4000, 784)
    assert digits.test_images.shape == (1000, 784)
    assert sorted(set(digits.test_labels)) == list(range(10))
    np.testing.assert_array_equal(demo.load_digits(SEED).test_images, digits.test_images)
    assert (demo.load_digits(SEED + 1).test_labels != digits.test_labels).any()


def test_the_networks_learn_and_opnorm_holds_their_norms(ran):
    _, results, _ = ran
    for outcome in results.outcomes:
        assert outcome.accuracy > 0.8  # one epoch gives 0.87 to 0.92; guessing gives 0.1
        assert 0.1 < outcome.noisy_accuracy < outcome.accuracy
        if outcome.variant.name.startswith("opnorm"):
            assert outcome.product < (1 + 1e-3) ** 3  # three layers, each within the design's tolerance
        if outcome.variant.name == "unconstrained":
            assert outcome.product > 4  # the starting weights have about 6


def test_a_sentence_says_who_keeps_the_target(ran):
    _, results, _ = ran
    for outcome in results.outcomes:
        keeps = outcome.variant.controlled and max(outcome.layer_norms) <= 1 + demo_report.SLACK
        assert ("keeps its target" in demo_report.finding(outcome)) == keeps


def test_the_table_shows_every_measurement_within_eighty_columns(ran):
    result, results, _ = ran
    lines = result.stdout.splitlines()
    for outcome in results.outcomes:
        line = next(line for line in lines if line.startswith(outcome.variant.name))
        numbers = [float(number) for number in re.findall(r"[\d.]+", line.removeprefix(outcome.variant.name))]
        shares = [100 * outcome.accuracy, 100 * outcome.noisy_accuracy]
        norms = [values[0] for values in outcome.after]
        # half a unit of the last digit shown
        np.testing.assert_allclose(numbers, [*shares, *norms, np.prod(norms), outcome.milliseconds], atol=0.0501)
    assert max(map(len, lines[: 2 + len(results.outcomes)])) <= 80
    assert "\x1b" not in result.stdout


def test_the_page_is_printed_whole_and_loads_nothing(ran):
    result, results, folder = ran
    page = folder.resolve() / "report.html"
    assert result.stdout.splitlines()[-1] == f"Report: {page}"
    assert list(folder.iterdir()) == [page]
    text = page.read_text()
    for outcome in results.outcomes:
        for cell in demo_report.cells(outcome):
            assert f"<td>{cell}</td>" in text
    own = text.replace(demo_report.get_plotlyjs(), "")
    assert len(own) < len(text)  # plotly's script is in the page
    assert not re.findall(r"""(?:src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org)""", own)


def test_an_interrupted_write_leaves_the_old_page(ran, monkeypatch, tmp_path):
    _, results, _ = ran
    page = demo_report.write_page(results, tmp_path)
    before = page.read_text()
    monkeypatch.setattr(demo_report, "render", lambda results: "\ud800 cannot be encoded")
    with pytest.raises(UnicodeEncodeError):
        demo_report.write_page(results, tmp_path)
    assert page.read_text() == before
