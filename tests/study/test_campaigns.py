"""Campaigns are planned so that what is finished at any moment is a fair comparison."""

from dataclasses import fields, replace
from itertools import product

import pytest

from apd.config.identity import fingerprint
from apd.distillers.base import DISTILLERS
from apd.report.statistics import method_of
from apd.study import published_recipes as published
from apd.study.ablations import OTHER_METHODS, plain_variants, stronger, variant_names, variant_of_strength
from apd.study.campaigns import CAMPAIGNS, experiments_of
from apd.study.recipes import METHOD_NAMES, METHODS


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_the_studys_campaigns_go_seed_by_seed_and_name_every_experiment_once(name):
    experiments = experiments_of(name)
    seeds = [experiment.seed for experiment in experiments]
    assert seeds == sorted(seeds)
    assert len({fingerprint(e) for e in experiments}) == len({e.name for e in experiments}) == len(experiments)


@pytest.mark.parametrize(("name", "seeds", "settings"), [("scenes-tiny", 5, 2), ("camvid-small", 3, 1)])
def test_the_evidence_has_every_method_with_enough_seeds_under_one_recipe(name, seeds, settings):
    experiments = experiments_of(name)
    groups = [[e for e in experiments if e.data == data] for data in {e.data for e in experiments}]
    assert [len(group) for group in groups] == [len(experiments) / settings] * settings
    for group in groups:
        for seed in range(seeds):  # any number of whole seeds is a fair comparison
            assert {e.name.split("-")[0] for e in group if e.seed == seed} == set(METHODS)
        assert len({replace(e, name="-", seed=0, distillers=(), training=group[0].training) for e in group}) == 1
        trainings = {(e.name.split("-")[0], e.training) for e in group}
        assert len(trainings) == len(METHODS), "a method has one learning rate and schedule"


@pytest.mark.parametrize("kind", DISTILLERS.values())
def test_a_stronger_method_has_its_weights_multiplied_and_nothing_else(kind):
    plain, ten_times = kind(), stronger(kind(), 10.0)
    ours = "alignment observation target non_target logits features batch_pixels pixel_memory region_memory inter intra"
    changed = {f.name for f in fields(kind) if getattr(plain, f.name) != getattr(ten_times, f.name)}
    assert changed == {n for n in {f.name for f in fields(kind)} & {*ours.split(), "weight"} if getattr(plain, n)}
    assert all(getattr(ten_times, name) == pytest.approx(10 * getattr(plain, name)) for name in changed)


def test_every_method_gets_the_same_trials_of_its_weights_and_pixel_kd_beside_it_none():
    planned = [method_of(e, METHOD_NAMES | variant_names()) for e in experiments_of("scenes-rivals-tuning")]
    tried = {(key.rsplit("_x", 1)[0], float(key.rsplit("_x", 1)[1])) for key in planned}
    assert tried == set(product(["pixel_kd", "apd", *OTHER_METHODS], [0.1, 10.0]))
    assert len(planned) == len(tried)
    for variant in plain_variants():
        *beside, main = variant_of_strength(variant, 10.0).distillers
        assert (main, tuple(beside)) == (stronger(variant.distillers[-1], 10.0), variant.distillers[:-1])


def test_variants_of_detection_differ_in_nothing_but_their_distillers():
    planned = experiments_of("scenes-detection")
    assert len({replace(e, name="-", seed=0, distillers=()) for e in planned}) == 1
    variants = published.detection_variants()
    assert [e.name for e in planned] == [f"{variant}-seed{seed}" for seed in range(3) for variant in variants]
    *_, added = variants[f"roi_apd_and_{published.BEST_OTHER_DETECTION_METHOD}"]
    assert (added.pixel_kd == 0) == (published.BEST_OTHER_DETECTION_METHOD == "roi_dkd"), "logits are compared once"
