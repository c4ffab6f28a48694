"""Images with objects: maps of classes, the scenes' objects, their augmentation and their batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apd.data.augment import InstanceAugmentation, augment_instances
from apd.data.batches import evaluation_instance_batches, training_instance_batches
from apd.data.instances import InstanceDataset, InstanceSample, InstanceSpec, as_target, class_map
from apd.data.scenes import SceneInstances, Scenes
from apd.data.specs import IMAGE_PADDING

SIZE = dict(height=64, width=96, context_shift=0.5, seed=0)


def made_up(seed: int = 0, objects: int = 6, height: int = 20, width: int = 30) -> InstanceSample:
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


def slow_class_map(sample: InstanceSample) -> torch.Tensor:
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


def box_around(mask_HW: torch.Tensor) -> list[float]:
    rows, columns = torch.nonzero(mask_HW, as_tuple=True)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


def test_small_objects_lie_on_large_ones_and_crowds_below_all():
    for seed, objects in enumerate((8, 8, 8, 0)):
        sample = made_up(seed, objects=objects, height=12, width=14)
        assert torch.equal(class_map(sample.masks_NHW, sample.labels_N, sample.crowd_N), slow_class_map(sample))
    augmentation = InstanceAugmentation(scale=(0.5, 2), colour=0.3)
    changed = augment_instances(made_up(objects=0), augmentation, np.random.default_rng(0))
    assert (changed.masks_NHW.shape, changed.boxes_N4.shape) == ((0, 20, 30), (0, 4))


def test_a_target_counts_classes_from_one_and_leaves_crowds_and_too_thin_boxes_to_the_class_map():
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


def test_wrong_specs_and_settings_are_named():
    for arguments, message in (
        (("pets", ()), "class_names is empty"),
        (("pets", ("cat", "cat")), "names a class twice"),
        (("pets", ("cat", "dog"), (17,)), "1 category_ids for 2 class_names"),
    ):
        with pytest.raises(ValueError, match=message):
            InstanceSpec(*arguments)
    for field, value in (("flip", 1.5), ("scale", (0, 1)), ("scale", (2, 1)), ("colour", 1.0), ("colour", -0.1)):
        with pytest.raises(ValueError, match=rf"{field}="):
            InstanceAugmentation(**{field: value})


def test_a_scenes_objects_are_those_of_the_scene_with_boxes_around_their_masks():
    objects, scenes = SceneInstances(4, **SIZE, least_pixels=9), Scenes(4, **SIZE)
    assert isinstance(objects, InstanceDataset)
    seen = 0
    for index in range(4):
        sample, scene = objects[index], scenes.scene(index)
        assert torch.equal(sample.image_3HW, scenes[index].image_3HW)
        assert [objects.spec.class_names[label] for label in sample.labels_N] == [
            scenes.spec.class_names[label] for label in scene.instance_classes_N
        ]
        assert torch.equal(sample.masks_NHW.any(0), torch.from_numpy(scene.instances_HW > 0))
        assert sample.masks_NHW.sum(0).max() <= 1
        assert [box_around(mask) for mask in sample.masks_NHW] == sample.boxes_N4.tolist()
        assert torch.equal(sample.crowd_N, sample.masks_NHW.flatten(1).sum(1) < 9)
        assert torch.equal(sample.areas_N, sample.masks_NHW.flatten(1).sum(1).float())
        seen += len(sample.labels_N)
    assert seen > 20
    with pytest.raises(IndexError, match="index 4 of a data set of 4"):
        objects[4]


def test_the_fingerprint_differs_between_settings():
    settings = [(4, {}), (4, {}), (5, {}), (4, {"split": "val"}), (4, {"least_pixels": 4})]
    prints = [SceneInstances(count, **SIZE, **more).fingerprint() for count, more in settings]
    assert (prints[0] == prints[1], len(set(prints))) == (True, 4)
    with pytest.raises(ValueError, match="least_pixels=0; expected an integer from 1"):
        SceneInstances(4, **SIZE, least_pixels=0)


def test_a_flip_mirrors_image_masks_and_boxes_and_twice_is_nothing():
    sample = made_up()
    once = augment_instances(sample, InstanceAugmentation(flip=1.0), np.random.default_rng(0))
    assert torch.equal(once.image_3HW, sample.image_3HW.flip(-1))
    assert [box_around(mask) for mask in once.masks_NHW] == once.boxes_N4.tolist()
    assert all(torch.equal(a, b) for a, b in zip(sample[:-1], made_up()[:-1], strict=True)), "never changed"
    assert not torch.equal(once.boxes_N4, sample.boxes_N4)
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
        around = torch.tensor([box_around(mask) for mask in augmented.masks_NHW])
        assert (around - boxes_N4).abs().max() <= 0.5 + 1e-3


def test_a_batch_depends_on_seed_and_iteration_only():
    def stream(start=0, workers=0, seed=1):
        settings = {"batch_size": 2, "augmentation": InstanceAugmentation(scale=(0.8, 1.2)), "iterations": 4}
        places = {"seed": seed, "start_iteration": start, "workers": workers}
        return list(training_instance_batches(SceneInstances(5, **SIZE), **settings, **places))

    whole = stream()
    torch.rand(3)
    for others in (stream(start=2), stream(start=2, workers=1)):
        for batch, other in zip(whole[2:], others, strict=True):
            torch.testing.assert_close(tuple(batch), tuple(other), rtol=0, atol=0)
    assert not torch.equal(whole[0].images[0], stream(seed=2)[0].images[0])
    assert {image.shape for batch in whole for image in batch.images} == {(3, 64, 96)}


def test_evaluation_visits_every_image_once_in_order_as_it_is():
    data, names = SceneInstances(5, **SIZE), []
    for images, samples in evaluation_instance_batches(data, 2):
        names += [sample.name for sample in samples]
        assert torch.equal((255 * images[0]).round().to(torch.uint8), samples[0].image_3HW)
    assert names == [sample.name for sample in data]
    with pytest.raises(ValueError, match="batch_size=0"):
        next(evaluation_instance_batches(data, 0))
