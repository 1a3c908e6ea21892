"""Reads the pages that gen1-data and gen1-train write."""

from html.parser import HTMLParser
from pathlib import Path

VOID = {"br", "img", "meta", "rect", "line", "path"}


class Page(HTMLParser):
    """The rows of all tables, the elements, and all text; an element that is not closed in its place is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_bytes().decode()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(self.raw)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"style", "script"} & set(self.open):
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        """The cells that follow, of the only row with that first cell."""
        (found,) = [row for row in self.rows if row[0] == first]
        return found[1:]

    def count(self, tag: str, of_class: str | None = None) -> int:
        classes = [(attributes.get("class") or "").split() for name, attributes in self.elements if name == tag]
        return sum(of_class is None or of_class in found for found in classes)
