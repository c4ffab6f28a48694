"""The built-in scenes: the same everywhere, exact in every mask, and with the one property the study turns on."""

import hashlib
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
from bad_input import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from apd.data.scenes import GENERATOR_VERSION, Scenes, border_width, draw_scene
from apd.data.scenes.layout import Dice, draw_layout
from apd.data.scenes.objects import paint_object
from apd.data.scenes.street import begin, paint_street
from apd.data.specs import SCENES, SegmentationDataset

SIDE = st.integers(32, 150)
SETTINGS = {"height": 48, "width": 48, "context_shift": 0.5, "seed": 0, "split": "train"}
FEW = [(0, 0, 48, 64, 0.0), (7, 3, 96, 96, 0.5), (1, 2, 130, 40, 1.0)]
# Of three scenes at three sizes and context shifts. When a change of the generator is meant: raise GENERATOR_VERSION,
# look at the scenes, and put the new value here. Records made with the old scenes no longer compare.
GOLDEN = (1, "d572f893a1317bdb081e88686651485b8a417d8aff6cdfa6d419b8587ad47f57")


def test_scenes_have_not_changed_since_this_generator_version():
    content = hashlib.sha256()
    for seed, index, height, width, shift in FEW:
        for array in draw_scene(seed, index, height=height, width=width, context_shift=shift):
            content.update(np.ascontiguousarray(array).tobytes())
    assert (GENERATOR_VERSION, content.hexdigest()) == GOLDEN


def test_the_context_shift_changes_the_image_continuously_and_nothing_else():
    for index in range(3):
        scenes = [draw_scene(0, index, height=48, width=48, context_shift=s) for s in np.linspace(0, 1, 41)]
        for name in ("labels_HW", "instances_HW", "instance_classes_N", "boxes_N4"):
            assert all(np.array_equal(getattr(scenes[0], name), getattr(other, name)) for other in scenes)
        images = [scene.image_HW3.astype(float) for scene in scenes]
        steps = [np.abs(b - a).mean() for a, b in pairwise(images)]
        assert max(steps) < 6, "a step of 0.025 is a small change of brightness"
        assert np.abs(images[-1] - images[0]).mean() > 15


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**6), SIDE, SIDE, st.floats(0, 1), st.sampled_from(["train", "test"]))
def test_labels_instances_classes_and_boxes_agree_in_any_scene(seed, index, height, width, shift, split):
    scene = draw_scene(seed, index, height=height, width=width, context_shift=shift, split=split)
    assert scene.image_HW3.shape == (height, width, 3)
    assert scene.image_HW3.dtype == scene.labels_HW.dtype == np.uint8
    assert set(np.unique(scene.labels_HW)) <= {*range(SCENES.num_classes), 255}
    counted = [SCENES.index(name) for name in SCENES.thing_names]
    count = len(scene.instance_classes_N)
    assert set(np.unique(scene.instances_HW)) == {*range(count + 1)}
    assert scene.boxes_N4.shape == (count, 4)
    assert set(scene.instance_classes_N) <= set(counted)
    # Away from borders a pixel is an object's exactly when its label is, and the label is that object's class.
    labelled = scene.labels_HW != 255
    np.testing.assert_array_equal((scene.instances_HW > 0)[labelled], np.isin(scene.labels_HW, counted)[labelled])
    class_of = np.array([255, *scene.instance_classes_N])
    on_object = labelled & (scene.instances_HW > 0)
    np.testing.assert_array_equal(class_of[scene.instances_HW][on_object], scene.labels_HW[on_object])
    for number, (x0, y0, x1, y1) in enumerate(scene.boxes_N4, start=1):
        mask_HW = scene.instances_HW == number
        cut = mask_HW[y0:y1, x0:x1]
        assert cut.sum() == mask_HW.sum() > 0
        assert all(side.any() for side in (cut[0], cut[-1], cut[:, 0], cut[:, -1]))


@pytest.mark.parametrize(("height", "width", "border"), [(96, 96, 1), (359, 500, 1), (480, 640, 2), (1024, 2048, 4)])
def test_labels_are_the_classes_of_the_regions_and_borders_grow_with_the_image_and_stay_thin(height, width, border):
    assert border_width(height, width) == border
    if height == 1024:
        height, width = 960, 600  # the same border width in less time
    layout = draw_layout(Dice(0, 0, 1, 0))
    view = begin(layout, 2 * height, 2 * width)
    paint_street(view, layout)
    for each in layout.objects:
        paint_object(view, each)
    canvas = view.canvas  # no border is drawn yet; every second row and column are the upper left corners of pixels
    region_HW, known = np.array(canvas.region_of_part)[canvas.parts_HW[::2, ::2]], np.array(canvas.regions)
    scene = draw_scene(0, 1, height=height, width=width)
    ignored_HW = scene.labels_HW == 255
    assert np.array_equal(scene.labels_HW[~ignored_HW], known[region_HW, 0][~ignored_HW])
    assert np.array_equal(scene.instances_HW > 0, known[region_HW, 1] == 1)
    meet_HW = np.zeros(region_HW.shape, dtype=bool)
    meet_HW[:, :-1] = region_HW[:, 1:] != region_HW[:, :-1]
    meet_HW[:-1] |= region_HW[1:] != region_HW[:-1]
    assert ignored_HW[meet_HW].all()
    near_HW = ndimage.maximum_filter(meet_HW, border // 2 * 2 + 1, mode="constant")
    assert not (ignored_HW & ~near_HW).any()


def colour_accuracy(shift):
    """Shares of pixels whose nearest class mean in colour and contrast, over other images and over the very image, is
    the right one."""

    def read(index, split):
        scene = draw_scene(0, index, height=48, width=48, context_shift=shift, split=split)
        grey = np.pad(scene.image_HW3.mean(axis=2), 1, mode="edge")
        contrast = np.lib.stride_tricks.sliding_window_view(grey, (3, 3)).std(axis=(2, 3))
        labelled = scene.labels_HW != 255
        return np.dstack([scene.image_HW3, 1.5 * contrast])[labelled], scene.labels_HW[labelled]

    def means(features, labels):
        return np.array([features[labels == k].mean(axis=0) if (labels == k).any() else [1e6] * 4 for k in range(10)])

    def right(features, labels, of):
        return (((features[:, None] - of) ** 2).sum(axis=2).argmin(axis=1) == labels).mean()

    common = means(*map(np.concatenate, zip(*(read(index, "train") for index in range(60)), strict=True)))
    unseen = [read(index, "test") for index in range(25)]
    return np.mean([(right(*one, common), right(*one, means(*one))) for one in unseen], axis=0)


def test_context_shift_takes_the_colours_of_classes_apart_between_images_but_not_within_one():
    """The premise of the study: what is lost to a common classifier is still there for the image's own one."""
    common, own = zip(*(colour_accuracy(shift) for shift in (0, 0.25, 0.5, 0.75, 1)), strict=True)
    assert all(b < a for a, b in pairwise(common)), common
    assert common[0] > 0.75
    assert 0.4 < common[2] < 0.7, "halfway is moderate"
    assert common[-1] < 0.3
    assert min(own) > 0.8, own
    assert max(own) - min(own) < 0.06, "the images themselves stay equally readable"


def test_the_data_set_hands_out_samples_of_its_own_and_ends_and_its_fingerprint_is_that_of_its_settings():
    data = Scenes(4, height=40, width=56, context_shift=0.5, seed=2, split="val")
    assert isinstance(data, SegmentationDataset)
    samples = list(data)
    assert len({sample.name for sample in samples}) == len(data) == 4
    scene = draw_scene(2, 3, height=40, width=56, context_shift=0.5, split="val")
    for sample in (samples[3], data[3]):
        np.testing.assert_array_equal(sample.image_3HW.permute(1, 2, 0), scene.image_HW3)
        np.testing.assert_array_equal(sample.labels_HW, scene.labels_HW)
        sample.image_3HW.zero_(), sample.labels_HW.zero_()
    for index in (4, -1):
        with pytest.raises(IndexError, match=rf"index {index} of a data set of 4 scenes"):
            data[index]
    same = {"count": 4, "height": 40, "width": 56, "context_shift": 1.0, "seed": 2, "split": "val"}
    changes = {"count": 5, "height": 41, "width": 57, "context_shift": 0.9, "seed": 3, "split": "test"}
    labels_HW = Scenes(**same)[1].labels_HW.numpy()
    for change in ({"seed": 1}, {"split": "test"}):
        assert (Scenes(**same | change)[1].labels_HW.numpy() != labels_HW).mean() > 0.1, "another street"
    assert (Scenes(**same)[0].labels_HW.numpy() != labels_HW).mean() > 0.1
    assert len({Scenes(**same | {name: value}).fingerprint() for name, value in [("seed", 2), *changes.items()]}) == 7
    assert Scenes(**same | {"context_shift": 1}).fingerprint() == Scenes(**same).fingerprint()


def test_an_argument_out_of_range_is_named_with_what_was_expected():
    for name, values, message in (
        ("context_shift", (-0.01, 1.01, float("nan"), "0.5"), "expected a number from 0"),
        ("height", (31, 0, 96.0), "expected an integer from 32"),
        ("seed", (-1,), "expected an integer from 0"),
        ("split", ("trian",), "expected one of train, val, test"),
        ("index", (-1, 1.5), "expected an integer from 0"),
        ("count", (0,), "expected an integer from 1"),
    ):
        makers = [each for each in ((Scenes, "count"), (draw_scene, "index")) if name in (each[1], *SETTINGS)]
        for value, (make, own) in product(values, makers):
            call = partial(make, **{own: 1, **SETTINGS, name: value})
            refused(call, ValueError, names=(f"{name}={value!r}; {message}",))
