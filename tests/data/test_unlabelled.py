"""Images without labels: beside a folder's splits, or where labels are taken away; learned from the teacher alone."""

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from bad_input import refused
from own_folders import leave, make, trained
from small_experiments import outcome, prepared_run, stopped, tiny, undisturbed

from apd.cli import using
from apd.config.datasets import build_split
from apd.config.experiment import DataConfig
from apd.data.batches import Batch
from apd.data.dataset_yaml import unlabelled_images
from apd.data.image_folder import PartlyLabelled
from apd.data.images import DataError
from apd.data.scenes import Scenes
from apd.data.specs import UNLABELLED
from apd.losses import upsample
from apd.study.campaigns import experiments_of
from apd.training.checkpoint import CheckpointError
from apd.training.run import in_steps, run_folder, train

pytestmark = pytest.mark.usefixtures("own_runs")
NOWHERE = ["images/empty", "no/*.png", "images/train", "dataset.*", r"a\0", "images/*"]
FAULTS = dict.fromkeys(NOWHERE, "leads to no image that train has not")
FAULTS["images/**"] = "val000.png is unlabelled and in val (2 such images)"


def folder_of(tmp_path, place="images/more"):
    """Four labelled images, and beside one of train two more, which are copies of val's."""
    folder = make(tmp_path / "fields", yaml=f'classes: [soil, crop]\nunlabelled: "{place}"\n')
    (folder / "images/more/below").mkdir(parents=True)
    for name, number in (("a.png", 0), ("below/b.png", 1)):
        (folder / "images/more" / name).write_bytes((folder / f"images/val/val00{number}.png").read_bytes())
    (folder / "images/more/c.png").symlink_to(folder / "images/train/train000.png")
    return folder


@pytest.mark.parametrize("place", ["images/more", "images/more/**/*", "images/*/a.png", "{tmp}/fields/images/more"])
def test_a_folder_or_a_pattern_names_images_that_follow_the_labelled_ones_of_train(tmp_path, capsys, place):
    folder, names = folder_of(tmp_path, place.replace("{tmp}", str(tmp_path))), ["a.png", "b.png"]
    names = names[:1] if "a.png" in place else names
    assert [path.name for path in unlabelled_images(folder)] == names, "train has labels of the third"
    data = DataConfig(name="folder", folder=str(folder), height=0, width=0)
    labelled, both = build_split(data, "train"), build_split(replace(data, unlabelled=True), "train")
    assert (len(both), both.labelled) == (4 + len(names), 4)
    for one, other in zip(labelled, both, strict=False):
        assert torch.equal(one.labels_HW, other.labels_HW)
    assert torch.equal(both[4].image_3HW, build_split(data, "val")[0].image_3HW)
    assert (both[-1].labels_HW == UNLABELLED).all()
    known = {labelled.fingerprint(), both.fingerprint()}
    (folder / "images/more/a.png").write_bytes((folder / "images/val/val001.png").read_bytes())
    assert len(known | {build_split(replace(data, unlabelled=True), "train").fingerprint()}) == 3
    assert leave("check", folder) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == [["images", "4", "2"], ["unlabelled", str(len(names)), "0"]]


@pytest.mark.parametrize("place", FAULTS)
def test_a_place_without_images_and_an_image_that_is_scored_are_refused_before_training(tmp_path, capsys, place):
    folder, message = folder_of(tmp_path, place), FAULTS[place]
    (folder / "images/empty").mkdir()
    refused(lambda: unlabelled_images(folder), DataError, names=(message,))
    assert trained(folder) == 1
    assert message in capsys.readouterr().err


def test_a_damaged_one_is_named_and_a_student_needs_a_distiller_for_them(tmp_path, capsys):
    folder = folder_of(tmp_path)
    for options, words in (
        ((), r"2 images without labels, learned from the teacher(.*\n)*data: folder, 6 images"),
        (("--data.no-unlabelled",), r"2 images without labels, left out(.*\n)*data: folder, 4 images"),
        (("--method", "student"), r"2 images without labels, left out: they need a distiller(.*\n)*.* 4 images"),
    ):
        assert trained(folder, *options, "--dry-run") == 0
        captured = capsys.readouterr()
        assert re.search(words, captured.out)
        assert ("2 images without labels are left out" in captured.err) == ("--data.no-unlabelled" in options)
    assert trained(folder, "--method", "student", "--data.unlabelled") != 0
    assert "unlabelled = True: expected False without a distiller" in capsys.readouterr().err
    (folder / "images/more/a.png").write_bytes(b"\x89PNG")
    assert trained(folder) == 1
    assert "a.png: cannot be read as an image" in capsys.readouterr().err


def test_a_share_of_the_labels_is_spread_over_the_data_and_the_rest_is_unlabelled_or_left_out():
    scenes = Scenes(10, height=32, width=48, context_shift=0.5, seed=0)
    some, few, one = (PartlyLabelled(scenes, share, unlabelled=share > 0.25) for share in (0.3, 0.2, 1e-9))
    assert ["".join(sample.name[-1] for sample in data) for data in (some, few, one)] == ["0361245789", "05", "0"]
    assert [bool((sample.labels_HW == UNLABELLED).all()) for sample in some] == [False] * 3 + [True] * 7
    assert not (scenes[1].labels_HW == UNLABELLED).any(), "the data set's own"
    others = PartlyLabelled(scenes, 0.3, unlabelled=False), PartlyLabelled(scenes, 0.3, unlabelled=True, more=scenes)
    assert len({data.fingerprint() for data in (some, few, one, scenes, *others)}) == 6
    refused(lambda: PartlyLabelled(scenes, 1.0, unlabelled=True), DataError, names=("all 10 training images have",))
    scenes.spec = mock.Mock(num_classes=255)
    refused(lambda: PartlyLabelled(scenes, 0.5, unlabelled=False), DataError, names=("expected at most 254",))


def half(method, **training):
    """A tiny experiment that has the labels of every other image."""
    experiment = tiny(method, **training)
    return replace(experiment, data=replace(experiment.data, labelled_share=0.5, unlabelled=True))


@pytest.mark.parametrize("method", ["both", "pixel_kd"])
def test_the_task_loss_counts_labelled_pixels_alone_and_distillers_get_the_teachers_predictions(tmp_path, method):
    run = prepared_run(half(method), tmp_path)
    images, labels = torch.rand(4, 3, 32, 48), torch.randint(10, (4, 32, 48))
    labels[0, :9], labels[2:], labels[3, :5] = 255, UNLABELLED, 255  # the last as padding is
    run.student.eval()

    def terms(labels, part=slice(None)):
        teacher = run.task.teacher_outputs(Batch(images[part], labels[part]))
        return run.task(images[part], labels[part], teacher), upsample(teacher.logits, (32, 48)).argmax(1)

    found, predicted = terms(labels)
    known, _ = terms(torch.where(labels == UNLABELLED, predicted, labels))
    known["task"] = terms(labels, slice(2))[0]["task"]
    assert found.pop("loss") != known.pop("loss")
    torch.testing.assert_close(found, known)
    alone = terms(labels, slice(2, None))[0]
    assert alone["task"] == 0 < alone["loss"]


@pytest.mark.parametrize("there", [False, True])
def test_a_run_on_them_resumes_bit_equal_and_not_on_other_images(there, capsys):
    experiment = half("both", batch_size=4, accumulation=2, device_augmentation=there)
    assert experiment.teacher_experiment().data == replace(experiment.data, unlabelled=False)
    stopped(experiment, 3)
    with mock.patch.object(PartlyLabelled, "fingerprint", return_value="other"):
        refused(lambda: train(experiment), CheckpointError, names=("fingerprint of the split train",))
    train(experiment, workers=0 if there else 1)
    assert outcome(experiment) == undisturbed(experiment)
    assert leave("evaluate", run_folder(experiment), "--split", "train") == 0
    printed = capsys.readouterr()
    assert "3 images of train" in printed.out
    assert "are not those that the record was made from" not in printed.err


def test_the_labelled_images_of_train_are_scored_as_large_as_those_of_val(tmp_path, capsys):
    folder = make(tmp_path / "fields", size=(64, 96))
    size = ["--data.height=0", "--data.width=0", "--data.long-side", "48", "--data.labelled-share", "0.5"]
    assert trained(folder, "--method", "student", *size) == 0
    run = capsys.readouterr().out.splitlines()[-1]
    with mock.patch.object(using, "LongSide", wraps=using.LongSide) as shrunk:
        assert leave("evaluate", run, "--split", "train") == 0
    assert [call.args[1] for call in shrunk.call_args_list] == [48]
    assert "2 images of train" in capsys.readouterr().out


def test_epochs_of_a_student_are_passes_over_all_images_and_of_its_teacher_over_labelled_ones():
    given = {"iterations": 1000, "epochs": 4, "batch_size": 2}
    experiment = half("both", **given)
    training = replace(experiment.teacher.training, **given)
    found = in_steps(replace(experiment, teacher=replace(experiment.teacher, training=training)))
    assert (found.training.iterations, found.teacher.training.iterations) == (12, 6)


def test_the_campaign_of_few_labels_has_one_teacher_and_differs_in_what_is_seen():
    experiments = experiments_of("facade-few-labels")
    assert [e.name[:-6] for e in experiments] == ["student", "apd", "apd_unlabelled", "pixel_kd_unlabelled"] * 3
    assert len({e.teacher_experiment() for e in experiments if e.distillers}) == 1
    assert {(e.data.labelled_share, e.data.unlabelled) for e in experiments} == {(0.1, False), (0.1, True)}
