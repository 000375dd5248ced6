"""The page in a real browser: it loads without an error, sorts, filters, and shows the JSON's numbers."""

import json

import pytest
from browsers import CHROMIUM, DRIVER, started
from network_files import HOSTILE, tensors, write

from opnorm.auditing.audits import audit
from opnorm.auditing.report import Report, Row
from opnorm.auditing.text import OPTIMIZER

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return audit(write(tmp_path_factory.mktemp("html") / "model.safetensors"), spectra=True)


@pytest.fixture(scope="module")
def browser():
    yield from started()


@pytest.fixture
def page(browser, report, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(report.to_html(), encoding="utf-8")
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def find(page, selector):
    return page.find_elements("css selector", selector)


def names(page):
    return [cell.get_property("textContent") for cell in find(page, "#rows tbody th")]


def column(page, key):
    place = [b.get_attribute("data-key") for b in find(page, "#rows thead button")].index(key) + 1
    return find(page, f"#rows tbody tr > :nth-child({place})")


def sort(page, key):
    find(page, f'#rows thead button[data-key="{key}"]')[0].click()


def test_every_tensor_has_a_line(page):
    assert names(page) == [row["name"] for row in json.loads(page.execute_script("return JSON.stringify(report.rows)"))]
    assert sorted(names(page)) == sorted(tensors())


def test_the_numbers_are_those_of_the_json(page, report):
    rows = json.loads(report.to_json())["rows"]
    for key in ("lower", "upper", "matrix_norm", "frobenius", "stable_rank", "rms_norm", "seconds"):
        for row, cell in zip(rows, column(page, key), strict=True):
            shown = cell.get_attribute("data-value")
            assert (row[key] is None) == (shown is None)
            if shown is not None:
                assert float(shown) == row[key]
                if key != "seconds":
                    assert float(cell.text) == pytest.approx(row[key], rel=5e-6)  # six digits


def test_a_number_that_is_not_known_is_a_dash(page, report):
    place = [row.name for row in report.rows].index("layer.2.weight")
    assert column(page, "upper")[place].text == "\u2013"


def test_nothing_from_a_name_runs(page):
    assert HOSTILE in names(page)
    assert "owned" not in page.title
    assert find(page, "img") == []


def test_a_click_sorts_and_another_one_turns_the_order_round(page, report):
    sort(page, "upper")
    known = [float(c.get_attribute("data-value")) for c in column(page, "upper") if c.get_attribute("data-value")]
    assert known == sorted(known, reverse=True)
    assert names(page)[0] == max(report.rows, key=lambda row: row.upper or 0).name
    header = find(page, 'th:has(> button[data-key="upper"])')[0]
    assert header.get_attribute("aria-sort") == "descending"
    sort(page, "upper")
    turned = [float(c.get_attribute("data-value")) for c in column(page, "upper") if c.get_attribute("data-value")]
    assert turned == known[::-1]
    assert header.get_attribute("aria-sort") == "ascending"
    assert column(page, "upper")[-1].text == "\u2013"  # what is not known stays last


def test_names_sort_as_text(page):
    sort(page, "name")
    assert names(page)[-5:] == sorted(name for name in tensors() if name.startswith("layer"))[-5:]


def test_the_filter_keeps_what_matches_all_words(page):
    box = find(page, "#filter")[0]
    box.send_keys("LAYER weight")
    assert names(page) == [f"layer.{i}.weight" for i in range(5)]
    assert find(page, "#shown")[0].text == "5 of 8 tensors"
    box.clear()
    box.send_keys("no such tensor")
    assert names(page) == []


def test_the_status_can_be_chosen(page):
    from selenium.webdriver.support.select import Select

    Select(find(page, "#status")[0]).select_by_visible_text("failed")
    assert names(page) == ["layer.2.weight"]


def test_the_table_is_sorted_with_the_keyboard_alone(page):
    from selenium.webdriver.common.keys import Keys

    button = find(page, '#rows thead button[data-key="frobenius"]')[0]
    page.execute_script("document.querySelector('#status').focus()")
    active = page.switch_to.active_element
    for _ in range(20):
        if active == button:
            break
        active.send_keys(Keys.TAB)
        active = page.switch_to.active_element
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert (active == button, outline) == (True, "solid")
    active.send_keys(Keys.ENTER)
    assert names(page)[0] == "layer.0.weight"


def test_arrow_keys_read_the_plots(page):
    from selenium.webdriver.common.keys import Keys

    plot = find(page, "#norms svg")[0]
    page.execute_script("arguments[0].focus()", plot)
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    reading = find(page, "#norms + .reading")[0].text
    first = page.execute_script("return drawn[0].name")
    assert reading.startswith(first)


def test_all_plots_are_drawn(page, report):
    drawn = [row for row in report.rows if row.lower]
    assert len(find(page, "#norms .bracket")) == len(drawn)
    assert len(find(page, "#ranks .dot")) == len(drawn)
    assert len(find(page, "#spectra .line")) == len(drawn)


@pytest.mark.parametrize("system", ["light", "dark"])
def test_the_theme_follows_the_system_until_the_button_is_pressed(page, system):
    emulated = {"features": [{"name": "prefers-color-scheme", "value": system}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)

    def is_dark():
        colour = page.execute_script("return getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in colour[4:-1].split(",")) < 3 * 128

    assert is_dark() == (system == "dark")
    find(page, "#theme")[0].click()
    assert is_dark() != (system == "dark")


def test_a_phone_scrolls_the_table_and_not_the_page(page):
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    assert page.execute_script(
        "const box = document.querySelector('.scroll'); return box.scrollWidth > box.clientWidth"
    )
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_report_without_bounded_rows_is_drawn(browser, report, tmp_path):
    path = tmp_path / "empty.html"
    path.write_text(type(report)("f", "npz", ()).to_html(), encoding="utf-8")
    browser.get(path.as_uri())
    assert find(browser, "#norms")[0].text == "Nothing to draw."
    assert browser.get_log("browser") == []


def shown(browser, path, rows, spectra=()):
    path.write_text(Report("f", "npz", tuple(rows), spectra=dict(spectra)).to_html(), encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.get_log("browser") == []


def bounded(name, norm=1.0):
    row = Row(name, "Dense", (2, 2), "float32", "matrix", False, "bounded", norm, norm, "", "certificate")
    return row._replace(matrix_norm=norm, frobenius=norm, stable_rank=1.0, rms_norm=norm)


def test_names_of_the_languages_own_objects_are_names(browser, tmp_path):
    hostile = ["toString", "constructor", "__proto__", "hasOwnProperty"]
    shown(browser, tmp_path / "a.html", map(bounded, hostile), {"toString": ((1, 2.0), (2, 1.0))})
    assert names(browser) == hostile
    assert len(find(browser, "#spectra .line")) == 1


def test_twenty_thousand_tensors_are_all_there_and_sorted(browser, tmp_path):
    count = 20_000
    shown(browser, tmp_path / "a.html", (bounded(f"layer.{i}", 1.0 + i) for i in range(count)))
    assert find(browser, "#shown")[0].text == f"{count} of {count} tensors"
    assert browser.execute_script("return document.querySelectorAll('#norms .bracket').length") == count
    browser.execute_script("document.querySelector('#rows thead button[data-key=upper]').click()")
    assert browser.execute_script("return document.querySelector('#rows tbody th').textContent") == f"layer.{count - 1}"
    find(browser, "#filter")[0].send_keys(f"layer.{count // 2}")
    assert names(browser) == [f"layer.{count // 2}"]


def scroll(browser, **ends):
    """Scroll the table, and wait until its lines are drawn."""
    browser.execute_async_script(
        "Object.assign(scroller, arguments[0]); requestAnimationFrame(() => requestAnimationFrame(arguments[1]))", ends
    )


def test_lines_are_drawn_as_one_scrolls_and_all_can_be_reached(browser, tmp_path):
    count = 20_000
    shown(browser, tmp_path / "a.html", (bounded(f"layer.{i}") for i in range(count)))
    seen = {}
    for place in (0, count // 2, count - 1):
        scroll(browser, scrollTop=place * browser.execute_script("return height"))
        listed = names(browser)
        assert len(listed) < 200
        assert f"layer.{place}" in listed
        seen[place] = browser.execute_script(
            "const line = [...body.rows].find(line => line.entry.index === arguments[0]).getBoundingClientRect(),"
            " box = scroller.getBoundingClientRect(); return line.top >= box.top - 1 && line.bottom <= box.bottom + 1",
            place,
        )
    assert seen == {0: True, count // 2: True, count - 1: True}
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script("return body.rows.length") == count  # paper has no scroll bar


def test_the_table_stands_although_a_plot_fails(browser, tmp_path):
    page = Report("f", "npz", (bounded("w"),)).to_html()
    (tmp_path / "a.html").write_text(page.replace("function logScale(", "function unused("), encoding="utf-8")
    browser.get((tmp_path / "a.html").as_uri())
    assert names(browser) == ["w"]
    assert "logScale" in browser.get_log("browser")[0]["message"]


def test_the_state_of_an_optimizer_is_shown_on_request(browser, tmp_path):
    state = Row("optimizer.m", "unknown", (2, 2), "float32", "", True, "skipped", reason=OPTIMIZER)
    shown(browser, tmp_path / "a.html", [bounded("w"), state])
    assert names(browser) == ["w"]
    box = find(browser, "#optimizer")[0]
    assert "1 tensors of optimizer state" in box.find_element("xpath", "..").text
    box.click()
    assert names(browser) == ["w", "optimizer.m"]


def test_other_readings_of_a_tensor_are_named(browser, tmp_path):
    shown(browser, tmp_path / "a.html", [bounded("w")._replace(readings=(("depthwise", 0.5, 0.75),))])
    assert column(browser, "otherwise")[0].text == "0.5 to 0.75"
    column(browser, "shape")[0].click()
    assert "or 0.5 to 0.75 as depthwise" in find(browser, "#detail")[0].text
    find(browser, "#detail button")[0].click()
    assert not find(browser, "#detail")[0].is_displayed()


def test_a_mark_stands_for_what_tensors_have_in_common_and_chooses_them(page, report):
    item = next(item for item in find(page, "#marks button") if "Cholesky certificate" in item.text)
    mark = item.find_element("css selector", ".mark").text
    item.click()
    chosen = [row.name for row in report.rows if row.method == "Cholesky certificate"]
    assert names(page) == chosen
    assert {cell.text for cell in column(page, "how")} == {mark}
    item.click()
    assert len(names(page)) == len(report.rows)


def test_blocks_and_plots_stand_in_their_natural_order(browser, tmp_path):
    shown(browser, tmp_path / "a.html", [bounded(f"h.{i}.w", 1.0 + i) for i in (0, 1, 10, 11, 2)])
    assert names(browser) == [f"h.{i}.w" for i in (0, 1, 2, 10, 11)]
    heights = [float(mark.get_attribute("y2")) for mark in find(browser, "#norms .bracket")]
    assert heights == sorted(heights, reverse=True)  # larger norms are higher up


PHONE = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
LONG = "model.layers.{}.post_attention_layernorm.weight"  # 47 characters, the longest of a Llama


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["conv{}.weight", LONG])
def test_names_are_whole_and_held_and_numbers_stand_beside_them(browser, tmp_path, name, width, theme):
    size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        shown(browser, tmp_path / "a.html", (bounded(name.format(i), 12.3456) for i in range(30)))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
        for left in (0, 150):
            scroll(browser, scrollLeft=left)
            box = find(browser, "#scroll")[0].rect
            header = find(browser, "#rows tbody th")[0]
            assert header.rect["x"] == pytest.approx(box["x"], abs=2)
            assert header.rect["height"] < 40  # one line: two would have 53
            assert browser.execute_script("const t = arguments[0]; return t.scrollWidth <= t.clientWidth", header)
            assert header.rect["width"] <= box["width"]
            if left == 0:
                for key in ("lower", "upper"):
                    place = column(browser, key)[0].rect
                    assert box["x"] <= place["x"]
                    assert place["x"] + place["width"] <= box["x"] + box["width"]
        assert browser.execute_script("return [...body.rows[0].cells].every(c => c.scrollWidth <= c.clientWidth)")
        assert contrast(browser, "#rows tbody th") > 7
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_end_of_a_name_that_is_longer_than_a_phone_is_wide_can_be_scrolled_to(browser, tmp_path):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        shown(browser, tmp_path / "a.html", [bounded("decoder." * 40 + "end")])
        scroll(browser, scrollLeft=1_000_000)
        box, header = find(browser, "#scroll")[0].rect, find(browser, "#rows tbody th")[0].rect
        assert header["x"] + header["width"] <= box["x"] + box["width"] + 1
        assert header["height"] < 40
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def contrast(browser, selector):
    """Return the contrast of a text with the page, as WCAG has it."""
    colours = browser.execute_script(
        "return [getComputedStyle(document.querySelector(arguments[0])).color,"
        " getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    one, other = (luminance([int(part) / 255 for part in text[4:-1].split(",")]) for text in colours)
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


def luminance(colour):
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def step(name, constant, share, kind="Dense"):
    return {"name": name, "kind": kind, "constant": constant, "rule": "why", "share": share}


def test_a_network_shows_which_steps_and_which_neighbours_cost_most(browser, tmp_path):
    steps = [step("a", 8.0, 0.75), step(HOSTILE, 0.5, -0.25, "Mean"), step("c", None, None, "Mul")]
    pairs = [{"first": HOSTILE, "second": "a", "loss": 3.25}, {"first": "a", "second": "c", "loss": 1.5}]
    network = {"lower": None, "upper": None, "method": "none", "unknown": ["c (Mul): why"], "steps": steps, "notes": []}
    for document in ({**network, "pairs": pairs}, network):  # reports of before have no pairs
        page = Report("f", "npz", (bounded("w"),), network=document).to_html()
        (tmp_path / "a.html").write_text(page, encoding="utf-8")
        browser.get((tmp_path / "a.html").as_uri())
        assert browser.get_log("browser") == []
        assert find(browser, "#pairs")[0].is_displayed() == ("pairs" in document)
        if "pairs" in document:
            assert "norms multiply to 3.25 times that of both" in find(browser, "#network dl")[0].text
            find(browser, "#pairs summary")[0].click()
            cells = [[cell.text for cell in find(browser, f"#pairs tbody tr:nth-child({i}) > *")] for i in (1, 2)]
            assert cells == [[HOSTILE, "a", "3.25"], ["a", "c", "1.5"]]
        find(browser, "#steps summary")[0].click()
        assert [cell.text for cell in find(browser, "#steps td.share")] == ["75 %", "-25 %", "\u2013"]
        bars = "return [...document.querySelectorAll('#steps td.share')].map(c => c.style.getPropertyValue('--bar'))"
        assert browser.execute_script(bars) == ["1.000", "0.333", "0.000"]
        assert find(browser, "img") == []
