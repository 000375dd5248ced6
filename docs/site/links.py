"""Check the built site: every link leads to a file and an anchor that are there, and nothing is loaded from elsewhere.

The generator checks what is written in pages; this checks what came of them, references and menus included.

Run: python docs/site/links.py build/site
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src"}


class Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self, text):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note an element."""
        found = dict(attrs)
        self.anchors.update(found[key] for key in ("id", "name") if found.get(key))
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in LOADED and found.get(LOADED[tag]) and found.get("rel") != "canonical":
            self.loaded.append(found[LOADED[tag]])


def mistakes(site):
    """Return a line for each link that leads nowhere, and for each thing that is loaded from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name}: loads {address}" for address in page.loaded if urlsplit(address).netloc]
        for address in page.links + page.loaded:
            if not (urlsplit(address).scheme or urlsplit(address).netloc) and not leads(address, path, pages, site):
                found.append(f"{name}: {address} leads nowhere")
    return found


def leads(address, path, pages, site):
    """Return whether a relative address leads from the page at `path` to something that is there."""
    place, anchor = urldefrag(address)
    place = unquote(urlsplit(place).path)
    target = (site / place.lstrip("/") if place.startswith("/") else path.parent / place).resolve() if place else path
    if target.is_dir():
        target /= "index.html"
    return target.is_file() and (not anchor or target not in pages or unquote(anchor) in pages[target].anchors)


def main():
    """Print the mistakes; exit with 1 if there are any."""
    found = mistakes(Path(sys.argv[1]).resolve())
    print("\n".join(found) or "all links lead somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
