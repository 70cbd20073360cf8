"""What a configuration reads of a teacher's knowledge: bytes on disk, and units of HSK."""

from collections.abc import Mapping, Sequence

import numpy as np

from hskstore.config import units_of_hsk
from hskstore.explore.show import array_bytes
from hskstore.methods import Phase
from hskstore.stage_one.sizes import encoded_bytes
from hskstore.store import Store
from hskstore.store.codebooks import CODEBOOKS
from hskstore.store.derive import admitted_tokens
from hskstore.store.hidden import Hidden, planned_units

SAMPLED_ROWS = 1024
"""Of a view, whose arrays are encoded to know their bytes: as many units as have so many rows."""


def bytes_read(store: Store, phases: Sequence[Phase], sizes: Mapping[str, int]) -> int:
    """On disk, of train: inputs, and of what is learnt from the layers that are read, whose shares of an array are taken as
    equal, and the words of their codebooks; spans, which have none, whole. `sizes` are the arrays' bytes, by path."""
    wanted: dict[str, set[int]] = {}
    for want in (want for phase in phases for want in phase.reads):
        wanted.setdefault(want.kind.name, set()).update(want.places(store.plan.features[want.kind.name]))
    terms = {term for phase in phases for term in phase.weights}
    total = 0.0
    for path, size in sizes.items():
        split, _, array = path.partition("/")
        feature = array.partition("/")[0]
        if split == CODEBOOKS and array.endswith("/words"):
            feature = array.removesuffix("/words")
        elif split != "train":
            continue
        if feature in store.plan.features:
            layers = store.plan.features[feature].layers
            total += size * (len(wanted.get(feature, ())) / len(layers) if layers else feature in wanted)
        elif array == "label":
            total += size * any(phase.reads_labels for phase in phases)
        elif array == "logits":
            total += size * ("prediction" in terms)
        elif array in ("input_ids", "token_type_ids", "n_tokens"):
            total += size
    return round(total)


def sizes_with_view(store: Store) -> dict[str, int]:
    """The arrays' bytes on disk, by path; those of a view's `hidden`, which lies nowhere, as a store of them would have them:
    the first SAMPLED_ROWS encoded, and counted up to all."""
    train = store.plan.splits["train"]
    found = array_bytes(store)
    selected = store.identity != store.digest
    lying = [path for path in store.plan.arrays if selected and path.startswith(f"train/{Hidden.name}/")]
    units = range(min(train.units, -(-SAMPLED_ROWS // train.unit_rows)))
    share = train.rows / sum(train.rows_of(unit) for unit in units)
    encoded = dict.fromkeys(lying, 0)
    for unit in units:
        for path in lying:
            encoded[path] += encoded_bytes(store.plan.arrays[path], store.read(path, unit))
    return found | {path: round(size * share) for path, size in encoded.items()}


def hsk_units(store: Store, phases: Sequence[Phase]) -> tuple[float | None, float | None]:
    """A^HSK as planned for a row (section 5.1 of the paper); and as a share of everything: what is kept of the rows as they are,
    of all the tokens that may be ranked of every layer, whole. 0 where nothing of the inside is read, None where it is not
    `hidden` that is."""
    kinds = {want.kind.name for phase in phases for want in phase.reads}
    hidden = store.plan.hidden
    if not kinds:
        return 0.0, 0.0
    if kinds != {Hidden.name} or hidden is None:
        return None, None
    admitted = admitted_tokens(store, hidden.strategy)
    width = hidden.width / hidden.hidden_size
    kept = units_of_hsk(len(hidden.pairs), float(np.minimum(admitted, hidden.length).mean()), width)
    everything = units_of_hsk(hidden.strategy.student_layers + 1, float(admitted.mean()), 1)
    return planned_units(hidden, kept), kept / everything
