"""The weights of the four terms: their defaults, those of the released code, and the check of what a caller gives."""

import difflib
from collections.abc import Mapping

from apd.validation import check_positive

DEFAULT_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 1.0, "pixel_kd": 1.0}
"""Own choice, for ``reduction="pixel"``. The released code's weight of 10 in front of its element means is 10 / K or
10 / (classes present) per pixel, about 0.1 to 2 on its data sets, so the two KL terms get 1 here. The alignment does
not depend on the reduction and keeps 10."""

RELEASED_WEIGHTS = {"regularisation": 1.0, "alignment": 10.0, "observation": 10.0, "pixel_kd": 10.0}
"""The released code's, for ``reduction="element"``."""


def checked_weights(given: Mapping[str, float], *, has_heads: bool) -> dict[str, float]:
    """Defaults overlaid with ``given``; refuses unknown names, values that are no weight, and all zeros."""
    if not isinstance(given, Mapping):
        raise TypeError(f"weights is a {type(given).__name__}: expected a dict of terms and numbers")
    for name, value in given.items():
        if name not in DEFAULT_WEIGHTS:
            near = difflib.get_close_matches(str(name), DEFAULT_WEIGHTS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"weights has no term {name!r}: {hint}the terms are {', '.join(DEFAULT_WEIGHTS)}")
        check_positive(f"weights[{name!r}]", value, or_zero=True)
    if not has_heads and given.get("regularisation"):
        raise ValueError(
            f"weights['regularisation']={given['regularisation']} with width=None: this term trains the teacher's "
            "head and there is none; give a width, or weight 0"
        )
    defaults = DEFAULT_WEIGHTS if has_heads else DEFAULT_WEIGHTS | {"regularisation": 0.0}
    weights = {name: float(given.get(name, default)) for name, default in defaults.items()}
    if not any(weights.values()):
        raise ValueError("weights are all 0: nothing would be distilled; give at least one term a positive weight")
    return weights
