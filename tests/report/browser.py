"""What a browser would make of a page."""

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """What a browser would find: elements, attributes and text; unbalanced tags are collected."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open, self.wrong, self.tags, self.attributes, self.text, self.ids = [], [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def check_page(text: str) -> Page:
    page = Page(text)
    assert not page.wrong and not page.open, "balanced tags"
    assert text.startswith("<!DOCTYPE html>") and page.tags.count("h1") == 1
    assert len(page.ids) == len(set(page.ids))
    assert "script" not in page.tags and not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src", "action", "xlink:href")]
    assert links and all(link.startswith("#") and link[1:] in page.ids for link in links), "it loads nothing"
    assert "url(" not in text and "@import" not in text
    assert page.tags.count("table") == page.tags.count("caption")
    assert all(value in ("col", "row") for name, value in page.attributes if name == "scope")
    return page
