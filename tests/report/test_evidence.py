"""A file of evidence: what is read is what was written, and a damaged one is refused by the name of its entry."""

import copy
import json
import math

import numpy as np
import pytest
from made_up_evidence import IMAGES, made_up_evidence

from apd.report.evidence import NUMBERS, Evidence, evidence_folder, read_all_evidence, read_evidence
from apd.training.record import RecordError


def test_what_is_read_is_what_was_written(tmp_path):
    evidence = made_up_evidence(0.25, 3)
    evidence.save(tmp_path / "some" / "one.json")
    found = read_evidence(tmp_path / "some" / "one.json")
    assert found.content == evidence.content
    assert (found.context_shift, found.seed) == (0.25, 3)
    assert found.networks == ["teacher", "student", "pixel_kd", "apd", "apd_without_kd"]
    for name in NUMBERS:
        assert found.number(name).shape == (IMAGES,)
    assert np.allclose(found.number("revealed"), found.number("own_right") - found.number("shared_right"))


def test_a_number_that_an_image_does_not_have_is_null_in_the_file_and_nan_when_read(tmp_path):
    evidence = made_up_evidence(distance=[math.nan, *[0.25] * (IMAGES - 1)])
    text = json.dumps(evidence.save(tmp_path / "one.json").content)
    assert "NaN" not in text
    assert np.isnan(read_evidence(tmp_path / "one.json").number("distance")).tolist() == [True, *[False] * (IMAGES - 1)]


def test_a_list_of_numbers_takes_one_line_of_the_file(tmp_path):
    made_up_evidence().save(tmp_path / "one.json")
    lines = (tmp_path / "one.json").read_text().splitlines()
    assert sum('"distance"' in line for line in lines) == 1
    assert len(lines) < 130


def test_all_files_of_a_folder_are_read_in_the_order_of_the_dial(tmp_path):
    for context_shift, seed in ((1.0, 0), (0.0, 1), (0.0, 0)):
        made_up_evidence(context_shift, seed).save(tmp_path / f"{context_shift}-{seed}.json")
    found = read_all_evidence(tmp_path)
    assert [(one.context_shift, one.seed) for one in found] == [(0.0, 0), (0.0, 1), (1.0, 0)]


def test_a_folder_that_is_not_there_has_no_evidence(tmp_path):
    assert read_all_evidence(tmp_path / "none") == []
    assert evidence_folder().parts[-3:] == ("book", "results", "perspectives")


def breaking(*path, value=None, drop=False):
    def change(content):
        *before, last = path
        for key in before:
            content = content[key]
        if drop:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (breaking("schema", value=2), "schema 2 is not 1"),
        (breaking("runs", drop=True), "runs = None is not a mapping"),
        (breaking("git", value="abc"), "git = 'abc' is not a mapping"),
        (breaking("command", drop=True), "command = None is not a text"),
        (breaking("runs", "pixel_kd", drop=True), r"runs\.pixel_kd is missing"),
        (breaking("runs", "student", value={"fingerprint": "a"}), r"runs\.student must hold fingerprint and weights"),
        (breaking("runs", "apd", "fingerprint", value="a" * 12), r"runs\.apd\.fingerprint is not that of the exper"),
        (breaking("experiment", "seed", value=-1), "seed"),
        (breaking("experiment", "seed", value=4), "the file was edited"),
        (breaking("data", "images", value=True), r"data\.images = True is not a number of images"),
        (breaking("data", "class_names", value=["sky"]), r"data\.class_names must be a list of at least two"),
        (breaking("data", "fingerprint", drop=True), r"data\.fingerprint = None is not a text"),
        (breaking("valid", value=[1] * 3), "valid must be a list with one value for each of 40 images"),
        (breaking("valid", 5, value=1.5), r"valid\[5\] = 1\.5: expected null or a number"),
        (breaking("furthest", 0, value=10), r"furthest\[0\] = 10: expected null or a number from 0 to 9"),
        (breaking("perspective", "distance", 2, value=2.5), r"perspective\.distance\[2\] = 2\.5: .* from 0 to 2"),
        (breaking("perspective", "own_right", 2, value=-0.1), r"perspective\.own_right\[2\] = -0\.1"),
        (breaking("perspective", "divergence", 2, value="0"), r"perspective\.divergence\[2\] = '0'"),
        (breaking("perspective", "disagreement", drop=True), r"perspective\.disagreement must be a list"),
        (breaking("scores", "apd", "miou", 3, value=1.5), r"scores\.apd\.miou\[3\] = 1\.5"),
        (breaking("scores", "teacher", value=[1]), r"scores\.teacher\.miou must be a list"),
    ],
)
def test_a_damaged_file_is_refused_by_the_name_of_its_entry(change, told):
    content = copy.deepcopy(made_up_evidence().content)
    change(content)
    with pytest.raises(RecordError, match=told):
        Evidence(content)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}'])
def test_a_file_that_is_none_is_refused_with_its_name_and_what_to_do(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(RecordError, match=r"broken\.json.*delete it and have it made again"):
        read_all_evidence(tmp_path)
