"""What a result is in a notebook."""

from __future__ import annotations

import dataclasses
from base64 import b64decode
from html.parser import HTMLParser

from PIL import Image

from candela import Request, read_record
from candela.engine.result import SHOWN
from tests.conftest import pixels

PROMPT = 'a <script>alert("1")</script> & \'star\' onerror="x"'


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


def test_a_notebook_shows_the_pictures_with_their_seeds(demo, tmp_path):
    result = demo.generate(Request(PROMPT, steps=1, seed=7, count=2))
    page = Page(result._repr_html_())
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert {tag for tag, _ in page.tags} == {"div", "figure", "img", "figcaption"}, "the prompt is text, never a tag"
    assert [set(image) for image in images] == [{"style", "width", "height", "src", "alt"}] * 2
    assert [image["alt"] for image in images] == [PROMPT] * 2
    assert "".join(page.text) == f"seed 7: {PROMPT}seed 8: {PROMPT}"
    for image, made, seed in zip(images, result.images, (7, 8)):
        file = tmp_path / f"{seed}.png"
        file.write_bytes(b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True))
        assert pixels(Image.open(file)) == pixels(made)
        assert read_record(file).seed == seed, "a picture saved from the page can be made again"


def test_a_great_many_are_cut_and_it_says_so(demo):
    one = demo.generate(Request("x" * 100, steps=1))
    number = SHOWN + 3
    many = dataclasses.replace(one, images=one.images * number, records=one.records * number, seeds=[*range(number)])
    page = Page(many._repr_html_())
    assert sum(tag == "img" for tag, _ in page.tags) == SHOWN
    assert page.text[0] == f"seed 0: {'x' * 80}..."
    assert page.text[-1] == "and 3 more: show them with result.images[16:]"
