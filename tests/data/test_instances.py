"""Images with objects: COCO instances files compared with pycocotools, scenes, class maps, augmentation and batches."""

import contextlib
import copy
import io
import json
import unicodedata

import numpy as np
import pytest
import torch
from bad_input import refused
from hypothesis import given
from hypothesis import strategies as st
from miniatures import COCO_CONTENT as CONTENT
from miniatures import write_shapes
from PIL import Image
from torchvision.ops import masks_to_boxes

from apd.data.augment import InstanceAugmentation, augment_instances
from apd.data.batches import InstanceStream, evaluation_instance_batches, training_batches
from apd.data.census import require_labels
from apd.data.coco import CocoInstances, coco_split
from apd.data.images import DataError, MissingData
from apd.data.instances import InstanceDataset, InstanceSample, InstanceSpec, as_target, class_map
from apd.data.scenes import SceneInstances, Scenes
from apd.data.specs import IMAGE_PADDING

SIZE = dict(height=64, width=96, context_shift=0.5, seed=0)


@pytest.fixture
def folder(tmp_path):
    return write_shapes(tmp_path)


def write(folder, content):
    file = folder / "shapes" / "annotations" / "instances_train.json"
    file.write_text(json.dumps(content))
    return file


def read(folder, **options):
    shapes = folder / "shapes"
    return CocoInstances(shapes / "annotations" / "instances_train.json", shapes / "train", **options)


def test_categories_are_numbered_densely_in_the_order_of_their_ids_and_degenerate_boxes_left_out(folder):
    data = read(folder)
    assert isinstance(data, InstanceDataset)
    assert data.spec == InstanceSpec("instances_train", ("square", "disc", "bar"), (2, 18, 44))
    refused(lambda: InstanceSpec("pets", ("cat", "dog"), (17,)), ValueError, names=("1 category_ids for 2 class_",))
    assert [sample.name for sample in data] == ["wide", "tall", "empty"]
    wide, tall, empty = data
    assert wide.labels_N.tolist() == [2, 0]
    assert wide.crowd_N.tolist() == [False, True]
    assert wide.boxes_N4.tolist() == [[2, 1, 14, 5], [0, 0, 20, 12]]
    assert wide.areas_N.tolist() == [48, 120]
    assert tall.boxes_N4.tolist() == [[0, 10.5, 6, 20]]  # cut off at the image's edge
    assert (empty.masks_NHW.shape, empty.boxes_N4.shape) == ((0, 8, 8), (0, 4))
    assert empty.image_3HW.shape == (3, 8, 8)  # a grey image has three equal channels


def test_accents_may_be_stored_in_another_form_and_stems_may_repeat_in_folders(folder):
    content = copy.deepcopy(CONTENT)
    for image, name in zip(content["images"], ("tür/1.png", "b/1.jpg", "b/2.png"), strict=True):
        place = folder / "shapes" / "train" / unicodedata.normalize("NFD", name)
        place.parent.mkdir(exist_ok=True)
        (folder / "shapes" / "train" / image["file_name"]).rename(place)
        image["file_name"] = name
    write(folder, content)
    assert [sample.name for sample in read(folder)] == ["tür/1", "b/1", "b/2"]
    assert len(read(folder).fingerprint()) == 64


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
def test_masks_are_those_of_pycocotools(folder):
    from pycocotools.coco import COCO

    data = read(folder)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(folder / "shapes" / "annotations" / "instances_train.json")
    for sample, image in zip(data, CONTENT["images"], strict=True):
        entries = [entry for entry in CONTENT["annotations"] if entry["image_id"] == image["id"] and entry["id"] != 4]
        wanted = [torch.from_numpy(reference.annToMask(copy.deepcopy(entry))).bool() for entry in entries]
        assert [torch.equal(a, b) for a, b in zip(sample.masks_NHW, wanted, strict=True)] == [True] * len(wanted)
    assert [mask.sum().item() for sample in data for mask in sample.masks_NHW] == [54, 120, 54]


def test_boxes_alone_need_no_segmentation(folder):
    content = copy.deepcopy(CONTENT)
    for entry in content["annotations"]:
        del entry["segmentation"]
    write(folder, content)
    refused(lambda: read(folder), DataError, names=("annotation 1 has no segmentation: ", "masks=False"))
    sample = read(folder, masks=False)[0]
    assert sample.masks_NHW is None
    assert sample.labels_N.tolist() == [2, 0]


def test_samples_are_the_callers_own_read_at_once_or_later_and_the_fingerprint_follows_what_they_hold(folder):
    at_once, later = read(folder), read(folder, cache=False)
    for a, b in zip(at_once, later, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[:-1], b[:-1], strict=True))
    at_once[0].masks_NHW.zero_()
    assert at_once[0].masks_NHW.any()
    before = at_once.fingerprint()
    assert before == later.fingerprint()
    assert before != read(folder, masks=False).fingerprint()
    write(folder, {**CONTENT, "annotations": CONTENT["annotations"][1:]})
    assert before != read(folder).fingerprint()
    write(folder, {**CONTENT, "annotations": []})
    refused(lambda: require_labels({"val": read(folder)}), DataError, names=("the split val has no annotation;",))
    write(folder, CONTENT)
    Image.new("RGB", (20, 12)).save(folder / "shapes" / "train" / "wide.png")
    assert before != read(folder).fingerprint()


def test_a_split_is_found_below_the_data_folder_and_files_that_are_no_json_or_not_there_are_named(folder, monkeypatch):
    file = write(folder, CONTENT)
    refused(lambda: CocoInstances(folder / "nothing.json", folder), MissingData, names=("nothing.json is missing",))
    refused(lambda: CocoInstances(file, folder / "nowhere"), MissingData, names=("nowhere/wide.png is missing",))
    monkeypatch.setenv("APD_DATA", str(folder))
    data = coco_split("shapes", "train")
    assert (len(data), data.spec.name) == (3, "shapes")
    refused(lambda: coco_split("shapes", "val"), MissingData, names=("_val.json is missing: ", " shapes/annotations/"))
    refused(lambda: coco_split("coco", "val2017"), MissingData, names=("no folder coco/.", "coco.py fetch DEST"))
    message = refused(lambda: coco_split("pets", "day"), MissingData, names=("no folder pets/.",))
    assert message.endswith("Set APD_DATA to the folder that contains pets/.")
    monkeypatch.delenv("APD_DATA")
    refused(lambda: coco_split("coco", "val2017"), MissingData, names=("coco is needed", "APD_DATA is not set"))


def made_up(seed=0, objects=6, height=20, width=30):
    """Overlapping rectangles, and an image whose pixels say where they come from."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.stack([torch.randint(0, side - 5, (objects,), generator=random) for side in (width, height)], dim=1)
    ends = corners + torch.randint(2, 6, (objects, 2), generator=random)
    masks = torch.zeros(objects, height, width, dtype=torch.bool)
    for place, ((x0, y0), (x1, y1)) in enumerate(zip(corners.tolist(), ends.tolist(), strict=True)):
        masks[place, y0:y1, x0:x1] = True
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return InstanceSample(
        torch.stack([8 * rows, 8 * columns, rows + columns]).to(torch.uint8),
        torch.cat([corners, ends], dim=1).float(),
        torch.randint(0, 3, (objects,), generator=random),
        masks,
        torch.rand(objects, generator=random) < 0.3,
        masks.flatten(1).sum(1).float(),
        "made up",
    )


def slow_class_map(sample):
    pixels, result = sample.masks_NHW.flatten(1).sum(1).tolist(), torch.zeros(sample.masks_NHW.shape[1:]).long()
    for i, j in np.ndindex(result.shape):
        here = [n for n in range(len(pixels)) if sample.masks_NHW[n, i, j]]
        objects = [n for n in here if not sample.crowd_N[n]]
        if objects:
            smallest = min(pixels[n] for n in objects)
            result[i, j] = int(sample.labels_N[[n for n in objects if pixels[n] == smallest][-1]]) + 1
        elif here:
            result[i, j] = -1
    return result


def boxes_around(masks_NHW):
    return masks_to_boxes(masks_NHW) + torch.tensor([0, 0, 1, 1])


def test_small_objects_lie_on_large_ones_and_crowds_below_all_and_a_target_leaves_crowds_and_thin_boxes_to_this_map():
    for seed, objects in enumerate((8, 8, 8, 0)):
        sample = made_up(seed, objects=objects, height=12, width=14)
        assert torch.equal(class_map(sample.masks_NHW, sample.labels_N, sample.crowd_N), slow_class_map(sample))
    crowd_N = torch.tensor([True, False, False, True, False, False])
    sample, kept = made_up()._replace(crowd_N=crowd_N), [1, 5]
    sample.boxes_N4[2, 2] = sample.boxes_N4[2, 0] + 1e-3
    sample.boxes_N4[4, 3] = sample.boxes_N4[4, 1]
    target = as_target(sample)
    assert torch.equal(target["labels"], sample.labels_N[kept] + 1)
    assert torch.equal(target["boxes"], sample.boxes_N4[kept])
    assert target["masks"].dtype == torch.uint8
    assert torch.equal(target["masks"].bool(), sample.masks_NHW[kept])
    assert (target["class_map"] == -1).any()
    assert sorted(as_target(sample._replace(masks_NHW=None))) == ["boxes", "labels"]


def test_a_scenes_objects_are_those_of_the_scene_with_boxes_around_their_masks_and_settings_change_the_fingerprint():
    objects, scenes = SceneInstances(4, **SIZE, least_pixels=9), Scenes(4, **SIZE)
    assert isinstance(objects, InstanceDataset)
    seen = 0
    for index in range(4):
        sample, scene = objects[index], scenes.scene(index)
        assert torch.equal(sample.image_3HW, scenes[index].image_3HW)
        names = [scenes.spec.class_names[label] for label in scene.instance_classes_N]
        assert [objects.spec.class_names[label] for label in sample.labels_N] == names
        assert torch.equal(sample.masks_NHW.any(0), torch.from_numpy(scene.instances_HW > 0))
        assert sample.masks_NHW.sum(0).max() <= 1
        assert torch.equal(boxes_around(sample.masks_NHW), sample.boxes_N4)
        assert torch.equal(sample.crowd_N, sample.masks_NHW.flatten(1).sum(1) < 9)
        assert torch.equal(sample.areas_N, sample.masks_NHW.flatten(1).sum(1).float())
        seen += len(sample.labels_N)
    assert seen > 20
    refused(lambda: objects[4], IndexError, names=("index 4 of a data set of 4",))
    settings = [(4, {}), (4, {}), (5, {}), (4, {"split": "val"}), (4, {"least_pixels": 4})]
    prints = [SceneInstances(count, **SIZE, **more).fingerprint() for count, more in settings]
    assert (prints[0] == prints[1], len(set(prints))) == (True, 4)
    refused(lambda: SceneInstances(4, **SIZE, least_pixels=0), ValueError, names=("least_pixels=0", "from 1"))


def test_a_flip_mirrors_image_masks_and_boxes_and_twice_is_nothing_and_an_image_may_have_no_object():
    scaled = InstanceAugmentation(scale=(0.5, 2), colour=0.3)
    changed = augment_instances(made_up(objects=0), scaled, np.random.default_rng(0))
    assert (changed.masks_NHW.shape, changed.boxes_N4.shape) == ((0, 20, 30), (0, 4))
    sample = made_up()
    once = augment_instances(sample, InstanceAugmentation(flip=1.0), np.random.default_rng(0))
    assert torch.equal(once.image_3HW, sample.image_3HW.flip(-1))
    assert torch.equal(boxes_around(once.masks_NHW), once.boxes_N4)
    assert all(torch.equal(a, b) for a, b in zip(sample[:-1], made_up()[:-1], strict=True)), "never changed"
    assert not torch.equal(once.boxes_N4, sample.boxes_N4)
    refused(lambda: InstanceAugmentation(flip=1.5), ValueError, names=("flip=1.5",))
    twice = augment_instances(once, InstanceAugmentation(flip=1.0), np.random.default_rng(1))
    assert all(torch.equal(a, b) for a, b in zip(twice[:-1], sample[:-1], strict=True))


@given(seed=st.integers(0, 10_000), factor=st.floats(0.3, 3.0))
def test_scaled_objects_stay_with_their_pixels_inside_the_image(seed, factor):
    augmentation = InstanceAugmentation(flip=0.5, scale=(factor, factor))
    augmented = augment_instances(made_up(seed % 7), augmentation, np.random.default_rng(seed))
    count, boxes_N4 = len(augmented.labels_N), augmented.boxes_N4
    padded = (augmented.image_3HW == torch.tensor(IMAGE_PADDING).byte()[:, None, None]).all(0).sum()
    assert padded == 0 if factor >= 1 else padded >= 600 - (20 * factor + 1) * (30 * factor + 1)
    assert (augmented.image_3HW.shape, augmented.masks_NHW.shape) == ((3, 20, 30), (count, 20, 30))
    assert len(boxes_N4) == len(augmented.areas_N) == len(augmented.crowd_N) == count <= 6
    if count:
        assert boxes_N4.min() >= 0
        assert (boxes_N4 <= torch.tensor([30, 20, 30, 20])).all()
        assert (boxes_N4[:, 2:] - boxes_N4[:, :2] >= 1).all()
        # rectangles stay rectangles: their masks' bounds differ from their boxes by the rounding of pixels
        assert (boxes_around(augmented.masks_NHW) - boxes_N4).abs().max() <= 0.5 + 1e-3


def test_a_batch_depends_on_seed_and_iteration_only_and_evaluation_visits_every_image_once_in_order_as_it_is():
    def stream(start=0, workers=0, seed=1):
        settings = {"batch_size": 2, "augmentation": InstanceAugmentation(scale=(0.8, 1.2)), "iterations": 4}
        places = {"seed": seed, "start_iteration": start, "workers": workers}
        return list(training_batches(SceneInstances(5, **SIZE), **settings, **places, stream=InstanceStream))

    whole = stream()
    torch.rand(3)
    for others in (stream(start=2), stream(start=2, workers=1)):
        for batch, other in zip(whole[2:], others, strict=True):
            torch.testing.assert_close(tuple(batch), tuple(other), rtol=0, atol=0)
    assert not torch.equal(whole[0].images[0], stream(seed=2)[0].images[0])
    assert {image.shape for batch in whole for image in batch.images} == {(3, 64, 96)}
    data, names = SceneInstances(5, **SIZE), []
    for images, samples in evaluation_instance_batches(data, 2):
        names += [sample.name for sample in samples]
        assert torch.equal((255 * images[0]).round().to(torch.uint8), samples[0].image_3HW)
    assert names == [sample.name for sample in data]
    refused(lambda: next(evaluation_instance_batches(data, 0)), ValueError, names=("batch_size=0",))
