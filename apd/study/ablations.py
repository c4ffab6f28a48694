"""The variants of the ablations and of the comparison with other methods; they differ in their distillers alone."""

from dataclasses import replace
from itertools import product
from typing import NamedTuple

from apd.distillers.apd import APDConfig
from apd.distillers.base import DistillerConfig
from apd.distillers.cirkd import CIRKDConfig
from apd.distillers.features import AttentionTransferConfig, CWDConfig, FitNetConfig, MGDConfig
from apd.distillers.logits import DISTConfig, DKDConfig, LSKDConfig, PixelKDConfig
from apd.distillers.relations import I2CKDConfig, IDDConfig, IFVDConfig, SKDConfig


class Variant(NamedTuple):
    """One setting of an experiment's distillers."""

    key: str  #: Its name in labels of runs and records; unique among all variants and methods.
    name: str  #: Its name in figures and tables.
    group: str  #: What it varies.
    distillers: tuple[DistillerConfig, ...]


TERMS = {"regularisation": "R", "alignment": "A", "observation": "O", "pixel_kd": "KD"}
"""The terms of APD by field, with the letters that stand for them in the names of variants."""
BY_CONSTRUCTION = {"": "student", "KD": "pixel_kd", "R": "student", "R+KD": "pixel_kd"}
"""Combinations of terms that need no run of their own: the regularisation alone never reaches the student."""
COMPLETE = {"R+A+O": "apd_without_kd", "R+A+O+KD": "apd"}  # Combinations that are methods of the study.


def term_variants() -> list[Variant]:
    """Every on/off combination of the four terms that needs runs of its own, each at its default weight."""
    variants = []
    for on in product((False, True), repeat=len(TERMS)):
        letters = combination(on)
        if letters not in BY_CONSTRUCTION and letters not in COMPLETE:
            off = {term: 0.0 for term, is_on in zip(TERMS, on, strict=True) if not is_on}
            key = "terms_" + letters.replace("+", "_").lower()
            variants.append(Variant(key, letters.replace("+", " + "), "terms", (APDConfig(**off),)))
    return variants


def combination(on: tuple[bool, ...]) -> str:
    """The letters of the terms that are on, such as R+O."""
    return "+".join(letter for letter, is_on in zip(TERMS.values(), on, strict=True) if is_on)


def without_kd() -> Variant:
    """All terms but pixel KD, for data on which the method of these terms has a learning rate of its own."""
    return Variant("terms_r_a_o", "R + A + O at APD’s learning rate", "terms", (APDConfig(pixel_kd=0.0),))


def option_variants() -> list[Variant]:
    """The complete method with one option changed."""
    released = dict(reduction="element", observation=10.0, pixel_kd=10.0)  # with the released code's weights
    settings = [
        ("scope", "scope_batch", "prototypes of the batch", dict(scope="batch")),
        ("reduction", "reduction_element", "element means, weights 10", released),
        ("absent classes", "absent_zero", "absent classes at 0", dict(absent="zero")),
        ("labels", "labels_teacher", "labels from the teacher", dict(labels_from="teacher")),
        ("gradient", "detached", "student's prototypes constant", dict(detach_prototypes=True)),
        *(("scale", f"scale_{scale}", f"scale {scale}", dict(scale=float(scale))) for scale in (5, 20)),
        *(("width of heads", f"width_{width}", f"heads {width} wide", dict(width=width)) for width in (32, 512)),
        ("teacher's head", "head_1e-5", "learning rate 1e-5 (released)", dict(teacher_head_rate=1e-5)),
        ("teacher's head", "head_1e-4", "learning rate 1e-4", dict(teacher_head_rate=1e-4)),
        ("teacher's head", "head_1e-2", "learning rate 1e-2", dict(teacher_head_rate=1e-2)),
        ("teacher's head", "head_poly", "learning rate falls (poly)", dict(teacher_head_schedule="poly")),
    ]
    for field, tried in {"alignment": (1, 100), "observation": (0.3, 3), "pixel_kd": (0.3, 3)}.items():
        key, name = ("kd", "pixel KD") if field == "pixel_kd" else (field, field)
        settings += [("weights", f"{key}_{weight}", f"{name} {weight}", {field: float(weight)}) for weight in tried]
    return [Variant(key, name, group, (APDConfig(**changed),)) for group, key, name, changed in settings]


OTHER_METHODS: dict[str, tuple[str, DistillerConfig]] = {
    "fitnet": ("FitNet", FitNetConfig()),
    "attention_transfer": ("AT", AttentionTransferConfig()),
    "skd": ("SKD", SKDConfig()),
    "ifvd": ("IFVD", IFVDConfig()),
    "i2ckd": ("I2CKD", I2CKDConfig()),
    "idd": ("IDD", IDDConfig()),
    "cwd": ("CWD", CWDConfig()),
    "cirkd": ("CIRKD", CIRKDConfig()),
    "mgd": ("MGD", MGDConfig()),
    "dist": ("DIST", DISTConfig()),
    "dkd": ("DKD", DKDConfig()),
    "lskd": ("LSKD", LSKDConfig()),
}
"""The other methods at their published weights, by key (those of I2CKD and IDD are own choices)."""
IN_PLACE_OF_KD = ("dist", "dkd", "lskd")
"""Methods on the logits that are published as replacements of pixel KD; the others have it beside them, weight 1."""
FACTORS = (0.1, 1.0, 10.0)
"""What the weights of a method are multiplied by in its trials: every method gets the same three."""
BEST: dict[str, float] = {
    **dict.fromkeys(("attention_transfer", "ifvd", "idd", "cwd", "cirkd", "mgd", "lskd"), 0.1),
    "skd": 10.0,
    "i2ckd": 10.0,
}
"""The factor with which a method's trial was best on val, where that is not 1; a test holds it to the records."""


def other_method_variants() -> list[Variant]:
    """The other methods at their published weights."""
    return [
        Variant(key, name, "published weight", (config,) if key in IN_PLACE_OF_KD else (PixelKDConfig(), config))
        for key, (name, config) in OTHER_METHODS.items()
    ]


def plain_variants() -> list[Variant]:
    """The methods whose weights are tried, as they are compared elsewhere: pixel KD, APD and the others."""
    pixel_kd = Variant("pixel_kd", "pixel KD", "", (PixelKDConfig(),))
    return [pixel_kd, Variant("apd", "APD", "", (APDConfig(),)), *other_method_variants()]


def stronger(config: DistillerConfig, factor: float) -> DistillerConfig:
    """A method's configuration with the weights of all that reaches the student multiplied, but for its pixel KD."""
    names = [name for name in config.terms if name not in ("regularisation", "pixel_kd")] or ["weight"]
    return replace(config, **{name: float(f"{factor * getattr(config, name):.12g}") for name in names})


def variant_of_strength(variant: Variant, factor: float) -> Variant:
    """A method at its weights times a factor, the method as it is for 1; pixel KD beside another keeps its weight."""
    if factor == 1:
        return variant
    *beside, main = variant.distillers
    key, name = f"{variant.key}_x{factor:g}", f"{variant.name} × {factor:g}"
    return Variant(key, name, "weight", (*beside, stronger(main, factor)))


def trial_variants() -> list[Variant]:
    """All trials that need runs of their own, factor by factor."""
    return [variant_of_strength(variant, factor) for factor in FACTORS if factor != 1 for variant in plain_variants()]


def at_best(key: str) -> str:
    """The key of a method's variant at the best of its trials, such as cwd_x0.1."""
    return f"{key}_x{BEST[key]:g}" if key in BEST else key


def variant_at_best(variant: Variant) -> Variant:
    """A method at the best of its trials."""
    return variant_of_strength(variant, BEST.get(variant.key, 1.0))


def tuned_variants() -> list[Variant]:
    """The methods that another weight than the published one serves better on val, at that weight."""
    return [variant_at_best(variant) for variant in plain_variants() if variant.key in BEST]


def with_apd(variant: Variant) -> Variant:
    """A method added to APD, whose own pixel KD takes the place of the one beside the method."""
    main = variant.distillers[-1]
    return Variant(f"apd_and_{main.method}", f"APD + {variant.name}", "APD added", (APDConfig(), main))


def combined_variants() -> list[Variant]:
    """APD, its pixel KD included, with each of the other methods added at the best of its weights."""
    return [with_apd(variant_at_best(variant)) for variant in other_method_variants()]


WITHOUT_HEADS = Variant("no_heads", "+ APD without heads", "heads", (APDConfig(width=None, regularisation=0.0),))
"""APD on the networks' own features; without heads nothing of the teacher's side is left to regularise."""


def variant_names() -> dict[str, str]:
    """The name of every variant, by key."""
    several = (term_variants, option_variants, other_method_variants, combined_variants, trial_variants)
    variants = [variant for make in several for variant in make()] + [WITHOUT_HEADS, without_kd()]
    return {variant.key: variant.name for variant in variants}
