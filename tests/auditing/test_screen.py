"""What a terminal of 80 columns and a prompt show: names in full, a line a tensor, and nothing said twice."""

import io
import re

import pandas as pd
import pytest
from rich.console import Console

from opnorm.auditing.comparison import DiffReport, DiffRow
from opnorm.auditing.ordering import depth_order
from opnorm.auditing.report import Report, Row
from opnorm.auditing.text import OPTIMIZER
from opnorm.networks.bound import NetworkBound, Step

HOSTILE = "<img src=x>\x1b[31m.weight"
BIAS = "a bias is added, not multiplied"


def matrix(name, norm=12.3456, shape=(4096, 14336), **fields):
    row = Row(name, "Linear", shape, "bfloat16", "matrix (out, in)", True, "bounded", norm, norm, "", "certificate")
    return row._replace(matrix_norm=norm, frobenius=3 * norm, stable_rank=9.0, **fields)


def without_norm(name, reason=BIAS, status="skipped"):
    return Row(name, "unknown", (4096,), "bfloat16", "no linear map", False, status, reason=reason)


def convolution(name, **fields):
    return matrix(name, shape=(3, 3, 512, 512), **fields)._replace(matrix_norm=7.5, geometry="convolution")


def on_screen(report, width=80, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(report.drawn(**options))
    return console.file.getvalue().splitlines()


MODELS = {
    "GPT-2": [matrix(f"transformer.h.{i}.attn.c_attn.weight") for i in range(12)],
    "Llama": [matrix(f"model.layers.{i}.self_attn.q_proj.weight") for i in range(12)],
    "VGG-16": [convolution(f"sequential/block{i}_conv{j}/kernel") for i in range(1, 6) for j in range(1, 4)],
}


@pytest.mark.parametrize("model", MODELS)
def test_on_80_columns_a_tensor_is_one_line_with_its_name_and_its_bracket(model):
    lines = on_screen(Report("f", "npz", tuple(MODELS[model])))
    assert max(map(len, lines)) <= 80
    for row in MODELS[model]:
        (line,) = [line for line in lines if line.startswith(f"{row.name} ")]
        assert line.split()[1] == "x".join(map(str, row.shape))
        assert line.split()[2:4] == ["12.3456", "12.3456"]


@pytest.mark.parametrize("width", [80, 120])
def test_a_name_that_leaves_no_room_for_its_numbers_has_a_line_of_its_own(width):
    name = "encoder.block.7.layer.1.DenseReluDense.experts.expert_12.projection.wi_0.weight" * (width // 40)
    lines = on_screen(Report("f", "npz", (matrix("short"), matrix(name))), width)
    assert name in "".join(lines)
    assert max(map(len, lines)) <= width
    numbers = [line.split() for line in lines if "12.3456" in line]
    assert numbers[0][:4] == ["short", "4096x14336", "12.3456", "12.3456"]
    assert numbers[1][:3] == ["4096x14336", "12.3456", "12.3456"]


@pytest.mark.parametrize("width", [2, 12, 30])
def test_however_narrow_a_screen_is_nothing_is_cut(width):
    rows = (matrix("model.layers.0.self_attn.q_proj.weight"), matrix("\N{CJK UNIFIED IDEOGRAPH-6F22}" * 30 + "end"))
    shown = "".join("".join(on_screen(Report("f", "npz", rows), width)).split())
    for row in rows:
        assert row.name in shown
        assert "4096x1433612.345612.3456" in shown


def test_a_column_that_says_nothing_new_is_left_out():
    assert "matrix" not in "".join(on_screen(Report("f", "npz", (matrix("w"),)))[:3]).replace("matrix (", "")
    assert "matrix" in on_screen(Report("f", "npz", (convolution("w"), matrix("v"))))[0]


def test_what_many_rows_have_in_common_stands_once_in_a_legend():
    rows = [matrix(f"h.{i}.w") for i in range(50)] + [convolution("conv.w")]
    text = "\n".join(on_screen(Report("f", "npz", tuple(rows)), 100))
    assert text.count("matrix (out, in)") == 1
    assert "a  matrix (out, in) (assumed); certificate (50)" in text
    assert "b  convolution (assumed); certificate (1)" in text


def test_other_readings_are_a_number_in_the_row_and_explained_once():
    readings = (("depthwise", 5.124, 5.125), ("dilated", 6.0, 7.0))
    lines = on_screen(Report("f", "npz", (convolution("conv.w", readings=readings), matrix("v"))), 100)
    assert "5.124 to 7" in next(line for line in lines if line.startswith("conv.w"))
    assert sum(line.startswith("or else  ") for line in lines) == 1


def test_what_has_no_norm_is_a_count_and_what_is_not_bounded_a_row():
    rows = (
        [without_norm(f"h.{i}.bias") for i in range(30)]
        + [without_norm("m", OPTIMIZER)]
        + [without_norm("odd", "codes without a scale", "failed"), matrix("w")]
    )
    lines = on_screen(Report("f", "npz", tuple(rows)))
    text = "\n".join(lines)
    assert f"not shown (--all): 30 {BIAS}; 1 optimizer state" in text
    assert "bias " not in text.replace("a bias ", "")
    assert any(line.startswith("odd ") for line in lines)
    assert "not bounded: codes without a scale (1)" in text
    everything = on_screen(Report("f", "npz", tuple(rows)), all_rows=True)
    assert sum(".bias " in line for line in everything) == 30


# ---- the order ----


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["h.0", "h.1", "h.10", "h.11", "h.2"], ["h.0", "h.1", "h.2", "h.10", "h.11"]),
        (
            ["conv1", "bn1", "conv2", "bn2", "fc"],
            ["conv1", "bn1", "conv2", "bn2", "fc"],
        ),  # the order of the layers stays
        (["h.1.b", "h.1.a", "h.0.a", "h.0.b", "wte"], ["h.0.b", "h.0.a", "h.1.b", "h.1.a", "wte"]),
        (["m.10.e.2", "m.2.e.10", "m.2.e.9", "z"], ["m.2.e.9", "m.2.e.10", "m.10.e.2", "z"]),
        (["w9" * 40, "w9" * 40 + "1", "9" * 5000, ""], ["w9" * 40, "w9" * 40 + "1", "9" * 5000, ""]),
    ],
)
def test_blocks_2_come_before_10_and_the_order_of_layers_stays(names, ordered):
    assert [names[i] for i in depth_order(names)] == ordered


def first_words(lines):
    return [line.split()[0] for line in lines if re.match(r"h\.\d+\.w ", line)]


def test_rows_are_sorted_and_cut_on_request():
    rows = [matrix(f"h.{i}.w", norm) for i, norm in ((0, 3.0), (10, 5.0), (2, 4.0))]
    report = Report("f", "npz", (*rows, without_norm("h.3.w", "codes", "failed")))
    assert first_words(report.to_text().splitlines()) == ["h.0.w", "h.2.w", "h.3.w", "h.10.w"]
    for shown in (report.to_text(sort="norm").splitlines(), on_screen(report, sort="norm")):
        assert first_words(shown) == ["h.10.w", "h.2.w", "h.0.w", "h.3.w"]  # what is not known comes last
    for shown in (report.to_text(top=2).splitlines(), on_screen(report, top=2)):
        assert first_words(shown) == ["h.10.w", "h.2.w"]
        assert "the first 2 of 4 rows by norm" in shown
        assert any("4 tensors: 3 bounded" in line and "1 NOT bounded" in line for line in shown)
    assert first_words(report.to_text(sort="file").splitlines()) == ["h.0.w", "h.10.w", "h.2.w", "h.3.w"]
    assert first_words(report.to_text(sort="name", top=1).splitlines()) == ["h.0.w"]


@pytest.mark.parametrize(("name", "value"), [("sort", "size of it"), ("top", 0), ("top", True), ("all_rows", 1)])
def test_arguments_that_make_no_sense_are_named(name, value):
    for shown in (Report("f", "npz", (matrix("w"),)), DiffReport("a", "b", ())):
        with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}={value!r}"):
            shown.to_text(**{name: value})


# ---- prompts and notebooks ----


def test_a_prompt_shows_the_head_and_the_tail_of_twenty_thousand_rows():
    text = repr(Report("model.safetensors", "safetensors", tuple(matrix(f"h.{i}.w") for i in range(20_000))))
    lines = text.splitlines()
    assert lines[0] == "Report on model.safetensors (safetensors)"
    assert first_words(lines) == [f"h.{i}.w" for i in (*range(10), *range(19_990, 20_000))]
    assert "... 19,980 more" in lines
    assert lines[-1] == "20000 tensors: 20000 bounded, 0 are no linear map"
    assert len(lines) < 40


def compared(name, difference, **fields):
    return DiffRow(name, (2, 2), "compared", (1.0, 1.0), (2.0, 2.0), (difference, difference), difference)._replace(
        **fields
    )


def test_a_comparison_on_screen_folds_what_is_in_one_file_alone():
    only = [DiffRow(f"x{i}", (2, 2), "only in base") for i in range(40)]
    found = DiffReport("base", "tuned", (compared("w.2", 1.0), *only, compared("w.10", 3.0)), common=2)
    lines = on_screen(found, top=1)
    assert [line.split()[0] for line in lines if line.startswith("w.")] == ["w.10"]
    assert "not shown (--all): 40 only in base" in lines
    assert repr(found).startswith("DiffReport of tuned and base\n")
    assert sum("only in base" in line for line in on_screen(found, all_rows=True)) == 1  # in the legend
    piped = found.to_text().splitlines()
    assert sum(line.startswith(("w.", "x")) for line in piped) == 42  # in a pipe a line a tensor


BOUND = NetworkBound(
    None, None, "product", (Step(HOSTILE, "Mul", None, "a product of two inputs"), Step("d", "Dense", 2.5, "norm"))
)


@pytest.mark.parametrize(
    "shown", [Report(HOSTILE, "npz", (matrix(HOSTILE),)), DiffReport(HOSTILE, "b", (compared(HOSTILE, 1.0),)), BOUND]
)
def test_prompts_and_notebooks_escape_names(shown):
    assert "\x1b" not in repr(shown) + shown.to_text() + shown._repr_html_()
    assert "<img" not in shown._repr_html_()
    assert "&lt;img" in shown._repr_html_()


def test_a_bound_of_a_network_says_at_a_prompt_what_is_unknown():
    assert "lower=-, upper=-: no constant of <img src=x>\\x1b[31m.weight (Mul)" in repr(BOUND)
    known = NetworkBound(1.0, 2.5, "product of the layers' norms", BOUND.steps[1:])
    assert (
        repr(known)
        == "NetworkBound(lower=1, upper=2.5, by product of the layers' norms; 1 steps: .to_text() lists them)"
    )
    assert known.to_text().splitlines()[1].split() == ["d", "Dense", "2.5", "100%", "norm"]


def test_data_frames_hold_the_numbers_and_nan_where_there_are_none():
    rows = (matrix("w", readings=(("depthwise", 0.5, 0.75),)), without_norm("b"))
    frame = Report("f", "npz", rows).to_pandas()
    assert list(frame.columns) == list(Row._fields)
    assert frame["upper"].dtype == float
    assert frame.set_index("name")["upper"]["w"] == 12.3456
    assert frame["upper"].isna().tolist() == [False, True]
    found = DiffReport("a", "b", (compared("w", 0.5), DiffRow("x", (2,), "only in base"))).to_pandas()
    assert found["difference_upper"].tolist()[0] == 0.5
    assert found["base_lower"].isna().tolist() == [False, True]
    assert BOUND.to_pandas()["constant"].dtype == float
    assert len(Report("f", "npz", ()).to_pandas()) == 0
    assert isinstance(frame, pd.DataFrame)


def test_without_pandas_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        Report("f", "npz", ()).to_pandas()


def test_quantized_layers_share_a_mark_and_a_count_though_their_texts_name_other_tensors():
    names = [f"layers.{i}.up.weight" for i in range(9)]
    rows = [matrix(name)._replace(geometry=f"matrix (out, in); int8 times '{name}_scale'") for name in names]
    rows += [without_norm(f"{name}_scale", f"a part of the weight in the row of '{name}'") for name in names]
    rows += [without_norm("odd", "no codes fit 'layers.0.odd'", "failed")]
    report = Report("f", "npz", tuple(rows))
    text = " ".join("\n".join(on_screen(report)).split())
    assert "int8 times '...weight_scale' (assumed); certificate (9)" in text
    assert "not shown (--all): 9 a part of the weight in the row of '...weight'" in text
    assert "no codes fit 'layers.0.odd'" in text
    assert "int8 times 'layers.3.up.weight_scale'" in report.to_text()  # a pipe gets the whole text
