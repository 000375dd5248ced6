import csv
import io
import json
import math

import pytest
from network_files import FORMULA, HOSTILE, write
from rich.console import Console

from opnorm.auditing.audits import audit
from opnorm.auditing.report import Report, Row
from opnorm.auditing.text import printable

CONTRACT = {
    "name",
    "kind",
    "shape",
    "dtype",
    "lower",
    "upper",
    "reason",
    "method",
    "matrix_norm",
    "frobenius",
    "stable_rank",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return audit(write(tmp_path_factory.mktemp("report") / "model.safetensors"))


def strict(text):
    def refuse(constant):
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


def of_one(**fields):
    row = Row("w", "Dense", (2, 2), "float32", "matrix", False)._replace(**fields)
    return Report("file", "npz", (row,))


def test_the_json_keeps_the_contract(report):
    document = strict(report.to_json())
    assert set(document) == {"schema", "tool", "file", "format", "notes", "rows", "network"}
    assert document["schema"] == 1
    for row in document["rows"]:
        assert set(row) >= CONTRACT
        assert (row["lower"] is None) <= bool(row["reason"])


def test_the_json_holds_the_numbers_of_the_rows_exactly(report):
    for row, written in zip(report.rows, strict(report.to_json())["rows"], strict=True):
        for key in ("lower", "upper", "matrix_norm", "frobenius", "stable_rank", "rms_norm", "seconds"):
            assert written[key] == getattr(row, key), (row.name, key)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_the_json_has_no_token_that_is_no_json(number):
    report = of_one(upper=number, constraint={"value": number})
    row = strict(report.to_json())["rows"][0]
    assert row["upper"] is None
    assert row["constraint"] == {"value": None}


def test_the_json_is_ascii_whatever_the_names():
    name = "käse\ud800\x1b[31m"
    text = of_one(name=name).to_json()
    assert text.isascii()
    assert json.loads(text)["rows"][0]["name"] == name


def test_the_csv_has_one_line_a_row_and_the_same_numbers(report):
    lines = list(csv.DictReader(io.StringIO(report.to_csv())))
    assert len(lines) == len(report.rows)
    for row, line in zip(report.rows, lines, strict=True):
        assert line["upper"] == ("" if row.upper is None else repr(row.upper))


@pytest.mark.parametrize(
    "name", [FORMULA, "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "\uff0b1", "\uff0d1", "\uff201", " =1"]
)
def test_no_text_in_the_csv_is_a_formula(name):
    (line,) = csv.DictReader(io.StringIO(of_one(name=name).to_csv(), newline=""))
    assert line["name"] == "'" + printable(name)


@pytest.mark.parametrize("name", ["a\r\n=cmd()w", "a\tb", "a\x1b[31m", "a\x85b"])
def test_no_cell_of_the_csv_holds_a_control_character(name):
    text = of_one(name=name).to_csv()
    assert len(text.splitlines()) == 2
    assert all(c.isprintable() for c in text.replace("\n", ""))


def test_negative_numbers_are_no_formulas():
    (line,) = csv.DictReader(io.StringIO(of_one(lower=-1e-9).to_csv()))
    assert line["lower"] == "-1e-09"


def test_the_text_has_every_name_in_full_on_a_line_of_its_own(report):
    lines = report.to_text().splitlines()
    for row in report.rows:
        assert sum(line.startswith(row.name + " ") for line in lines) == 1
    assert "8 tensors: 6 bounded, 1 are no linear map, 1 NOT bounded" in lines


@pytest.mark.parametrize("text", ["\x1b[31mred", "two\nlines", "back\rover", "\u202ereversed", "\ud800"])
def test_what_a_terminal_would_act_on_is_escaped(text):
    report = of_one(name=text, dtype=text, reason=text)
    console = Console(file=io.StringIO(), width=200)
    console.print(report)
    for shown in (report.to_text(), console.file.getvalue()):
        assert text not in shown
        assert not set(text) & set("\x1b\r\u202e\ud800") & set(shown)


def test_rich_draws_names_as_text_not_as_markup():
    console = Console(file=io.StringIO(), width=200)
    console.print(of_one(name="[red]w[/red]"))
    assert "[red]w[/red]" in console.file.getvalue()


def test_the_page_needs_no_network_and_holds_names_only_as_data(report):
    page = report.to_html()
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert HOSTILE not in page
    assert page.count("</script>") == 3  # the report, the spectra and the page's own script
    assert "default-src 'none'" in page


def test_a_hostile_file_name_is_text_in_the_page(report):
    page = Report("<script>alert(1)</script>", "npz", report.rows, ("<b>note</b>",)).to_html()
    assert "<script>alert" not in page
    assert "<b>note" not in page
