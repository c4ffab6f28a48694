"""A file of evidence: what is read is what was written, and a damaged one is refused by the name of its entry."""

import copy
import math

import numpy as np
import pytest
from chapter_cells import book_script
from made_up_evidence import IMAGES, made_up_evidence

from apd.report.correlations import NUMBERS, Evidence, read_all_evidence, read_evidence
from apd.training.record import RecordError

maker = book_script("perspective_evidence")


def test_what_is_read_is_what_was_written_one_list_of_numbers_a_line(tmp_path):
    evidence = made_up_evidence(0.25, 3, distance=[math.nan, *[0.25] * (IMAGES - 1)])
    path = tmp_path / "some" / "one.json"
    maker.save(evidence, path)
    assert "NaN" not in path.read_text()
    assert sum('"distance"' in line for line in path.read_text().splitlines()) == 1
    assert len(path.read_text().splitlines()) < 130
    found = read_evidence(path)
    assert found.content == evidence.content
    assert all(found.number(name).shape == (IMAGES,) for name in NUMBERS)
    assert np.isnan(found.number("distance")).tolist() == [True, *[False] * (IMAGES - 1)]
    assert np.allclose(found.number("revealed"), found.number("own_right") - found.number("shared_right"))


def test_all_files_of_a_folder_are_read_by_context_shift_and_seed(tmp_path):
    for context_shift, seed in ((1.0, 0), (0.0, 1), (0.0, 0)):
        maker.save(made_up_evidence(context_shift, seed), tmp_path / f"{context_shift}-{seed}.json")
    found = [one.experiment for one in read_all_evidence(tmp_path)]
    assert [(one.data.context_shift, one.seed) for one in found] == [(0.0, 0), (0.0, 1), (1.0, 0)]
    assert read_all_evidence(tmp_path / "none") == []
    assert len(read_all_evidence()) == 25


MISSING = object()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("schema", 2, "schema 2 is not 1"),
        ("runs", MISSING, "'runs' is missing"),
        ("scores/pixel_kd", MISSING, "'pixel_kd' is missing"),
        ("runs/apd/fingerprint", "a" * 12, r"runs\.apd\.fingerprint is not that of the exper"),
        ("experiment/seed", -1, "seed"),
        ("experiment/seed", 4, "the file was edited"),
        ("valid", [1] * 3, "valid = .* expected 40 values"),
        ("furthest/0", 10, "furthest = .* null or from 0 to 9"),
        ("perspective/distance/2", 2.5, r"perspective\.distance = .* from 0 to 2"),
        ("perspective/divergence/2", math.inf, r"perspective\.divergence = .* from 0 to inf"),
        ("perspective/disagreement", MISSING, "'disagreement' is missing"),
        ("scores/apd/miou/3", -0.5, r"scores\.apd\.miou = .* from 0 to 1"),
        ("scores/teacher", [1], "list indices must be integers"),
    ],
)
def test_a_damaged_file_is_refused_by_the_name_of_its_entry(path, value, message):
    content = copy.deepcopy(made_up_evidence().content)
    *before, last = (int(part) if part.isdigit() else part for part in path.split("/"))
    at = content
    for part in before:
        at = at[part]
    if value is MISSING:
        del at[last]
    else:
        at[last] = value
    with pytest.raises(RecordError, match=message):
        Evidence(content)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}'])
def test_a_file_that_is_none_is_refused_with_its_name_and_what_to_do(tmp_path, text):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(RecordError, match=r"broken\.json.*delete it and have it made again by python book/figures"):
        read_all_evidence(tmp_path)
