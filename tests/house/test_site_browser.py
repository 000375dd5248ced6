"""The built site in a real browser: pages fit a phone, nothing fails to load, the search finds. After `make docs`."""

import functools
import http.server
import threading
from pathlib import Path

import pytest
from browsers import CHROMIUM, DRIVER, started

SITE = Path(__file__).parents[2] / "build" / "site"
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
pytestmark = [
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
    pytest.mark.skipif(not PAGES, reason="needs `make docs`"),
]


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *told):
        """Say nothing."""


@pytest.fixture(scope="module")
def address():
    handler = functools.partial(Quiet, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    yield from started()


def show(browser, width, scheme):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def test_every_page_loads_whole_and_fits_a_phone(browser, address):
    show(browser, 390, "light")
    for page in PAGES:
        browser.get(f"{address}/{page}")
        assert browser.get_log("browser") == [], page
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390, page
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert [name for name in loaded if not name.startswith((address, "data:", "blob:"))] == [], page
        broken = "return [...document.images].filter(one => one.complete && !one.naturalWidth).map(one => one.src)"
        assert browser.execute_script(broken) == [], page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_scheme_follows_the_system(browser, address, scheme):
    show(browser, 1280, scheme)
    browser.get(f"{address}/index.html")
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (sum(int(part) for part in colour[4:-1].split(",")) < 3 * 128) == (scheme == "dark")


def test_the_search_finds_the_error_that_people_search_for(browser, address):
    from selenium.webdriver.support.ui import WebDriverWait

    show(browser, 1280, "light")
    browser.get(f"{address}/index.html")
    browser.find_element("css selector", "input[name=query]").send_keys("Variable u already exists disallowed")
    # Results come while one types; what the whole of it finds comes last.
    first = "return [...document.querySelectorAll('.md-search-result__link')].slice(0, 3).map(one => one.href)"
    WebDriverWait(browser, 60).until(lambda page: any("tried" in link for link in page.execute_script(first)))
