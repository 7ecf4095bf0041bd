"""Reports: self-contained, with the ledger's figures, escaped, and refused for another network."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from expressive_losses.bounds import BoundedNetwork
from expressive_losses.errors import UserError
from expressive_losses.verify import Settings, build_stages, verify
from expressive_losses.verify.radius import certified_radii
from expressive_losses.verify.report import write_report

PNG = b"\x89PNG\r\n\x1a\n"

SETTINGS = Settings(dataset="<b>mine</b>", split="test", progress=False)


def network(seed: int = 0) -> BoundedNetwork:
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)]
    return BoundedNetwork(nn.Sequential(*layers), (1, 4, 4), 3, mean=[0.5], std=[0.1])


def data(count: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    labels = network()(images / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return images, labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out, (images, labels) = tmp_path_factory.mktemp("run"), data()
    stages = build_stages("ibp,crown")
    verify(network(), images, labels, 0.03, stages, out, SETTINGS)
    certified_radii(network(), images, labels, 0.1, stages, out, SETTINGS, steps=4)
    return out


class Page(HTMLParser):
    """Collects headings, images, text, and whether all tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.headings, self.sources, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.sources.append(dict(attributes)["src"])
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if self.open and self.open[-1] == "h2":
            self.headings.append(text)
        self.text += text


SECTIONS = [
    "Who decided what", "By class", "Certified accuracy by radius", "Bounds by layer", "Counterexamples",
    "Close calls", "What was asked",
]  # fmt: skip


def test_the_page_is_whole_and_self_contained(tmp_path, folder):
    path = write_report(folder, network(), *data(), out=tmp_path)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and page.headings == SECTIONS
    assert len(page.sources) == 6
    for source in page.sources:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(PNG)
    assert not re.search(r"(src|href)=['\"]?(https?:|//)|<script|@import|url\(", text)
    assert "<b>mine</b>" not in text and "<b>mine</b>" in page.text  # escaped


def test_figures_are_those_of_the_summary(tmp_path, folder):
    images, labels = data()
    stages = build_stages("ibp,crown")
    path = write_report(folder, network(), images, labels, out=tmp_path)
    summary = verify(network(), images, labels, 0.03, stages, folder, replace(SETTINGS, resume=True))
    text, markdown = Page(path.read_text(encoding="utf-8")).text, (tmp_path / "report.md").read_text(encoding="utf-8")
    for key in ("natural", "adversarial", "verified"):
        figure = summary[key]
        said = f"95 % interval {figure['low']:.2f} to {figure['high']:.2f}; {figure['count']} of 30"
        assert f"{figure['percent']:.2f} %" in text and said in text and said in markdown


def test_markdown_refers_to_pictures_that_are_there(tmp_path, folder):
    write_report(folder, network(), *data(), out=tmp_path)
    markdown = (tmp_path / "report.md").read_text(encoding="utf-8")
    pictures = re.findall(r"\]\((report/[a-z]+\.png)\)", markdown)
    assert len(pictures) == 6
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in pictures)
    assert [line.removeprefix("## ") for line in markdown.splitlines() if line.startswith("## ")] == SECTIONS


def test_without_the_network_what_needs_it_is_left_out(tmp_path, folder):
    page = Page(write_report(folder, out=tmp_path).read_text(encoding="utf-8"))
    assert page.headings == [name for name in SECTIONS if name not in ("Bounds by layer", "Counterexamples")]


def test_an_empty_ledger_makes_a_report(tmp_path):
    images, labels = data()
    verify(network(), images, labels, 0.03, build_stages("ibp"), tmp_path, Settings(progress=False, budget=0.0))
    text = write_report(tmp_path, network(), images, labels).read_text(encoding="utf-8")
    assert "30 images were not reached and count as wrong" in text


def test_another_network_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="weights_sha256"):
        write_report(folder, network(1), *data(), out=tmp_path)
    with pytest.raises(UserError, match="or none of them"):
        write_report(folder, network(), out=tmp_path)
    with pytest.raises(UserError, match="expected a folder that verify.py wrote"):
        write_report(tmp_path / "nowhere")
