"""The page of finished runs: what it shows is what the records say, it fetches nothing, and bad input is one line."""

import re
import shutil
import sys
from unittest.mock import Mock

import pytest
from chapter_cells import ROOT, run_cells
from made_up_records import made_up_record
from papermill import PapermillExecutionError
from small_experiments import tiny

from apd.cli import report as page
from apd.cli.app import main
from apd.study.recipes import recipe
from apd.training.run import run_folder, train

STOPPED = Mock(side_effect=PapermillExecutionError(0, 3, "", "ValueError", "no such thing", []))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A student with a teacher and one without, by the name of their experiment: folder and record."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APD_RUNS", str(tmp_path_factory.mktemp("runs")))
        found = {experiment: train(experiment, device="cpu") for experiment in (tiny("both"), tiny("student"))}
        yield {record.experiment.name: (run_folder(experiment), record) for experiment, record in found.items()}


def said(shown, capsys):
    return "\n".join([*map(repr, shown), capsys.readouterr().out])


def test_a_page_of_two_runs_shows_their_scores_terms_and_images_and_fetches_nothing(runs, tmp_path, capsys):
    target = tmp_path / "page.html"
    assert main(["report", *(str(folder) for folder, _ in runs.values()), "--to", str(target), "--images", "3"]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    html = target.read_text()
    for name, (folder, record) in runs.items():
        assert f"<td>{100 * record.scores.miou:.1f}</td>" in re.sub(r"<td [^>]*>", "<td>", html)
        assert name in html
        assert folder.name in html[: html.index("<style>")]
    assert all(f">{term}<" in html for term in ("pixel_kd.pixel_kd", "apd.alignment", "loss"))
    assert "The worst, the median and the best image" in html
    assert html.count("<img") == 3 * (2 + 3)  # image and labels, two runs and the teacher
    assert '<h2 id="Cost">' in html
    assert not re.search(r"""(src|href)=["'](?!data:|#)|@import|url\((?!#)|import pandas""", html)
    addresses = set(re.findall(r"https?://[^\"'<\s]*", html))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)


def test_what_is_gone_is_named_and_runs_may_be_one_text(runs, tmp_path, monkeypatch, capsys):
    ((folder, record), (other, _)) = runs.values()
    (tmp_path / "alone").mkdir()
    shutil.copy(folder / "record.json", tmp_path / "alone")
    text = said(run_cells("10_your_run", run=f"{tmp_path / 'alone'},{other / 'record.json'}", images=2), capsys)
    assert re.search("0 images are shown: .*weights.safetensors is missing", text)
    assert f"{100 * record.teacher_scores.miou:.1f}" in text
    monkeypatch.setenv("APD_RUNS", str(tmp_path))
    text = said(run_cells("10_your_run", run=[str(folder)], images=2), capsys)
    assert "The teacher is not shown: teacher weights" in text
    assert "2 of 3 images are looked at, 1 networks" in text


def test_scores_on_other_images_are_not_compared(runs, tmp_path, capsys):
    ((folder, _), _) = runs.values()
    made_up_record(tiny("both", seed=1), images="a" * 64).save(tmp_path / "record.json")
    text = said(run_cells("10_your_run", run=[str(folder), str(tmp_path)], images=0), capsys)
    assert "their scores cannot be compared" in text
    assert "0 images are shown: images were not asked for" in text


def test_a_detectors_page_has_its_average_precision(tmp_path, capsys):
    record = next((ROOT / "book" / "results" / "scenes-detection").glob("roi_apd-seed0*.json"))
    shutil.copy(record, tmp_path / "record.json")
    text = said(run_cells("10_your_run", run=[str(tmp_path)]), capsys)
    assert re.search(r"AP of boxes, % +AP50 of boxes, %", text)
    assert "box AP on val" in text
    assert "`apd evaluate RUN --pictures FOLDER` draws what a detector finds" in text
    assert not re.search(r"\bnan\b", text)


BAD = {
    "no run": ([], "needs at least one run"),
    "no record": (["{empty}"], "is not the folder of a finished run"),
    "twice": (["{one}", "{one}/record.json"], "is named more than once"),
    "other classes": (["{one}", "{camvid}"], "have other tasks or classes"),
    "no page": (["{one}", "--to", "{empty}"], r"expected NAME\.html in a folder"),
    "no folder": (["{one}", "--to", "{empty}/none/a.html"], r"expected NAME\.html in a folder"),
    "images": (["{one}", "--images", "-1"], "--images -1: expected a whole number"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_reported_is_refused_in_one_line(kind, runs, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    made_up_record(recipe("small", "apd")).save(tmp_path / "camvid" / "record.json")
    places = {name: tmp_path / name for name in ("empty", "camvid")}
    ((places["one"], _), _) = runs.values()
    arguments, message = BAD[kind]
    assert main(["report", *(argument.format(**places) for argument in arguments)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.setitem(sys.modules, "papermill", None), r"needs the package papermill: .*'\.\[book\]'"),
        (lambda m: m.setattr(page, "NOTEBOOK", ROOT / "none.ipynb"), "install a clone of the project"),
        (lambda m: m.setattr("papermill.execute_notebook", STOPPED), r"its cell In \[3\]: ValueError: no such thing"),
    ],
)
def test_what_the_page_needs_is_named(change, message, runs, tmp_path, monkeypatch, capsys):
    change(monkeypatch)
    ((folder, _), _) = runs.values()
    assert main(["report", str(folder), "--to", str(tmp_path / "page.html")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(message, line)
    assert not (tmp_path / "page.html").exists()
