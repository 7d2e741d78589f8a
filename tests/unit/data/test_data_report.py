"""`data_report.html`: what stands in it is what was counted, whatever the documents say, and nothing is fetched."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bigtrain.cli import main
from bigtrain.data.clean.funnel import Funnel
from bigtrain.data.clean.pipeline import Pipeline, apply
from bigtrain.data.documents import Document
from bigtrain.data.shards import read_manifest
from bigtrain.data.sources import Source
from bigtrain.data.text_data import TextData
from bigtrain.errors import UserError
from bigtrain.report.data_page import report_on, write_data_report

HOSTILE = '<script>alert(1)</script>\u202e\x07 & "quoted" </pre></html> '
DOOR = "bigtrain.data.clean"
STEPS = [
    {"_target_": f"{DOOR}.control_characters"},
    {"_target_": f"{DOOR}.length", "min_characters": 12_000},
    {"_target_": f"{DOOR}.exact_dedup"},
]


class Page(HTMLParser):
    """The visible text, the tags, and every attribute that could fetch something."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href", "action", "data")]

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1] != "style":
            self.words.append(data)


def funnel_of(sources: list[Source], chapters: list[str]) -> Funnel:
    """Chapters through the steps; one is hostile, one is there twice."""
    pipeline = Pipeline(STEPS)
    funnel = pipeline.funnel()
    texts = [HOSTILE + chapters[0], "short " + HOSTILE, *chapters[1:], max(chapters[1:], key=len)]
    documents = [Document(text, index % len(sources), 7 * index) for index, text in enumerate(texts)]
    left = list(apply(funnel.before.count(documents), pipeline.before, funnel, sources))
    step, alive = pipeline.corpus[0].run, np.ones(len(left), bool)
    kept = step.duplicates(step.sketch([d.text for d in left]), alive, lambda index: left[index].text)
    lengths = np.array([len(d.text) for d in left])
    funnel.steps[2].deduplicated(step.reason, lengths, alive, kept, left.__getitem__)
    list(funnel.after.count(d for d, other in zip(left, kept, strict=True) if other < 0))
    return funnel


@pytest.fixture
def folder(prepared: TextData, chapters: list[str], tmp_path: Path) -> Path:
    """Prepared data with a funnel beside it."""
    copy = tmp_path / "prepared"
    copy.mkdir()
    for file in prepared.folder.iterdir():
        (copy / file.name).symlink_to(file)
    sources = [Source(**source) for source in read_manifest(copy)["sources"]]
    (copy / "funnel.json").unlink(missing_ok=True)
    funnel_of(sources, chapters).write(copy / "funnel.json")
    return copy


def test_the_page_says_what_was_counted(folder: Path, tmp_path: Path) -> None:
    out = write_data_report({"data": folder}, tmp_path / "new" / "data_report.html")
    page = Page(out.read_text())
    funnel, manifest = Funnel.read(folder / "funnel.json"), read_manifest(folder)
    dropped = funnel.before.documents - funnel.after.documents
    assert 2 < dropped < funnel.before.documents and funnel.steps[2].documents_in > funnel.steps[2].documents_out
    assert f"{funnel.after.documents:,} of {funnel.before.documents:,} documents are left" in page.text
    assert f"{manifest['splits']['train']['tokens']:,}" in page.text
    for step in funnel.steps:
        assert step.name in page.text and f" {step.documents_out:,} " in page.text
        for name, reason in step.reasons.items():
            assert f"{step.name}: {name}" in page.text and f"{reason.documents:,} · " in page.text
            for example in reason.examples:
                name = Path(manifest["sources"][example.source]["name"]).name
                assert re.search(rf"{re.escape(name)} (byte|row) {example.offset:,} ", page.text)
    assert "the same" in page.text and "stays:" in page.text  # the copy beside what stays
    assert f"{funnel.steps[0].changed:,} changed" in page.text


def test_nothing_of_a_document_becomes_a_part_of_the_page(folder: Path, tmp_path: Path) -> None:
    html = write_data_report({"<b>data": folder, "two": folder}, tmp_path / "r.html").read_text()
    page = Page(html)
    assert "script" not in page.tags and not page.links and html.count("</html>") == 1
    assert "default-src 'none'" in html and "http" not in html.replace("http-equiv", "")
    assert "<script>alert(1)</script>" in page.text and "U+202E" in page.text and "\u202e" not in html
    assert {"<b>data", "two"} <= {word.strip() for word in page.words}


def test_a_mixture_shows_its_domains_and_weights(folder: Path, prepared: TextData, tmp_path: Path) -> None:
    mixture = SimpleNamespace(folders={"sea": folder, "land": prepared.folder}, weights={"sea": 0.7, "land": 0.3})
    assert report_on(mixture, tmp_path) == [tmp_path / "data_report.html"]
    page = Page((tmp_path / "data_report.html").read_text())
    assert "70.0%" in page.text and "30.0%" in page.text and "sea + land" in page.text
    assert "Read as it is: data.clean names no steps" in page.text


def test_other_peoples_data_have_no_page(tmp_path: Path) -> None:
    assert report_on(object()) == [] and report_on(object(), tmp_path) == [] and not list(tmp_path.iterdir())


def test_a_page_that_cannot_be_written_says_so(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/r\.html"):
        write_data_report({"data": folder}, tmp_path / "file" / "r.html")
    (folder / "funnel.json").write_text(json.dumps({"steps": 3}))
    with pytest.raises(UserError, match=r"funnel\.json is no funnel of a cleaning"):
        write_data_report({"data": folder}, tmp_path / "r.html")


def test_prepare_leaves_the_page_in_the_prepared_folder(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"data.path={corpus}", "data.vocab_size=300", "data.document_separator=null"]
    assert main(["prepare", "recipe=quickstart", *settings, f"data.cache={tmp_path}"]) == 0
    folder = Path(capsys.readouterr().out.splitlines()[-1])
    assert "documents" in Page((folder / "data_report.html").read_text()).text
