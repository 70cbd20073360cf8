"""The codebooks of features whose vectors are codes: arrays of a store whose rows are layers, in one unit of their own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float16

from hskstore.errors import OptionError
from hskstore.store.features import PARTS, Feature, LayerVectors
from hskstore.store.hidden import Hidden
from hskstore.store.schema import MAX_SHARD_BYTES, ArraySpec, power_of_two_below
from hskstore.store.vectors import Codes

CODEBOOKS = "codebooks"
"""What stands where a split has its name: in the paths of their arrays, and in the receipt of their unit."""

BOOKS = (CODEBOOKS, 0)
"""Their unit."""

Words = Mapping[str, Float16[np.ndarray, "layer ... stage word width"]]
"""The words of each feature that has codebooks; of attention [layer, part, ...]."""


def coded(features: Mapping[str, Feature]) -> dict[str, Hidden | LayerVectors]:
    """The features whose vectors are codes."""
    return {
        name: feature
        for name, feature in features.items()
        if isinstance(feature, Hidden | LayerVectors) and isinstance(feature.encoding, Codes)
    }


def codebook_arrays(features: Mapping[str, Feature]) -> dict[str, ArraySpec]:
    """By path: "codebooks/states/words", and "codebooks/states/error", what of the variance of vectors that they were not learnt
    from, or of all where these are few, is left after each stage."""
    found: dict[str, ArraySpec] = {}
    for name, feature in coded(features).items():
        assert isinstance(feature.encoding, Codes)
        places = (PARTS,) if isinstance(feature, LayerVectors) and "part" in feature.axes else ()
        layers = len(feature.layers)
        shard = 2 * power_of_two_below(layers)  # room for all of them
        for array, planned in feature.encoding.codebooks(places, feature.width).items():
            found[f"{CODEBOOKS}/{name}/{array}"] = planned.spec(layers, shard)
    return found


def check_codebooks(arrays: Mapping[str, ArraySpec]) -> None:
    """Raise OptionError for codebooks that are more than a reader takes, before anything is made."""
    for path, spec in arrays.items():
        if path.startswith(f"{CODEBOOKS}/") and (size := most_decoded(path, spec)) > MAX_SHARD_BYTES:
            raise OptionError(
                f"the codebooks of {path.split('/')[1]} would take {size / 2**30:.1f} GiB, more than the"
                f" {MAX_SHARD_BYTES / 2**30:g} GiB that are read: take shorter codes (--values rq4 or rq8), or fewer layers"
            )


def most_decoded(path: str, spec: ArraySpec) -> int:
    """Bytes of a shard, decoded: of codebooks those of the layers there are, which are fewer than it has room for."""
    return spec.shard_bytes * spec.shape[0] // spec.shard if path.startswith(f"{CODEBOOKS}/") else spec.shard_bytes


def codebooks_sha256(objects: Mapping[str, Mapping[str, Any]]) -> str:
    """Which words a unit's codes name, from the objects of the codebooks' receipt."""
    return "+".join(sorted(entry["sha256"] for key, entry in objects.items() if key.split("/")[2] == "words"))
