"""Reading a sealed store: nothing unsealed is opened, and no row of a shard is returned before its sha256 was checked."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Shaped

from hskstore.errors import StoreError
from hskstore.store.codebooks import CODEBOOKS, most_decoded
from hskstore.store.commit import CONDEMNED, FILES, MANIFEST, PLAN, TEACHER, TOKENIZER, Manifest, faults, receipts, repair
from hskstore.store.encode import decode_layers, decode_shard
from hskstore.store.features import OfLayers
from hskstore.store.hidden import Hidden
from hskstore.store.layout import Unit
from hskstore.store.masks import unpack_mask
from hskstore.store.objects import MAX_OBJECT_BYTES
from hskstore.store.places import Place, place_of
from hskstore.store.plan import Plan
from hskstore.store.schema import MAX_SHARD_BYTES, MAX_SHARD_CHUNKS, MAX_UNITS, ArraySpec
from hskstore.store.shard import chunk_ranges, index_bytes, layer_sha256
from hskstore.store.vectors import Codes


class Store:
    """A sealed store. `digest` is the sha256 of its manifest: two stores with one digest hold the same bytes."""

    def __init__(self, place: Place, plan: Plan, manifest: Manifest) -> None:
        self.place = place
        self.plan = plan
        self.manifest = manifest
        self.digest = manifest.digest
        self._words: dict[str, Float16[np.ndarray, "layer ... stage word width"]] = {}

    @property
    def identity(self) -> str:
        """Names what is read, for whoever goes on with it later."""
        return self.digest

    @property
    def root(self) -> str:
        """Its folder or URL, as messages name it."""
        return self.place.root

    def sizes(self) -> dict[str, int]:
        """Bytes of every object the seal covers."""
        return {key: entry["size"] for key, entry in self.manifest.objects.items()}

    def file(self, key: str) -> bytes:
        """One object's bytes, checked against the seal. Raises StoreError where it is missing or damaged."""
        entry = self._entry(key)
        data = self.place.get(key)
        if data is None or hashlib.sha256(data).hexdigest() != entry["sha256"]:
            state = "is missing" if data is None else "is damaged: its sha256 is not the sealed one"
            raise StoreError(f"{self.root}/{key} {state}{_of_unit(key)}. {repair(self.root)}")
        return data

    def tokenizer_files(self) -> dict[str, bytes]:
        """The tokenizer's files by name. Raises StoreError as `file` does."""
        return {key.removeprefix("tokenizer/"): self.file(key) for key in self.manifest.objects if key.startswith("tokenizer/")}

    def has(self, path: str) -> bool:
        """Whether it holds an array, such as train/hidden/values."""
        return path in self.plan.arrays

    def read(self, path: str, unit: int, layers: Sequence[int] | None = None) -> Shaped[np.ndarray, "row ..."]:
        """One array of one unit [rows, ...], or of a feature's array some layers [rows, layers, ...], which alone are then
        fetched where they lie apart.

        Raises StoreError where the shard, or one of these layers, is missing or damaged.
        """
        spec = self._spec(path)
        key = spec.key(path, unit)
        try:
            if layers is None or not spec.layered or list(layers) == list(range(spec.layers)):
                whole = decode_shard(spec, unit, self.file(key))
                apart = layers is None or spec.layered or path.split("/")[1] not in self.plan.features
                return whole if apart or layers is None else whole[:, list(layers)]
            return decode_layers(spec, unit, self._layer_chunks(spec, key, unit, layers))
        except ValueError as error:
            raise StoreError(f"{self.root}/{key} cannot be decoded ({error}){_of_unit(key)}. {repair(self.root)}") from None

    def _layer_chunks(self, spec: ArraySpec, key: str, unit: int, layers: Sequence[int]) -> list[list[bytes]]:
        """The chunks of some layers, fetched alone, each layer checked against the seal."""
        entry = self._entry(key)
        size, digests = entry["size"], entry.get("layers")
        if not isinstance(digests, list) or len(digests) != spec.layers:
            raise ValueError("the seal has no hashes of its layers")
        (index,) = self.place.ranges(key, [range(max(0, size - index_bytes(spec)), size)])
        places = chunk_ranges(spec, unit, index, size)
        wanted = [place for layer in layers for place in places[layer]]
        chunks = iter(self.place.ranges(key, wanted))
        found = [[next(chunks) for _ in places[layer]] for layer in layers]
        for layer, parts in zip(layers, found, strict=True):
            if layer_sha256(parts) != digests[layer]:
                raise ValueError(f"its layer {layer} has another sha256 than the sealed one")
        return found

    def words(self, feature: str) -> dict[str, Float16[np.ndarray, "layer ... stage word width"]]:
        """As "words" the codebooks of a feature's layers, which its codes are decoded with; empty where its vectors are numbers.
        They are read once, and then held.

        Raises StoreError as `read` does, and for words that are no finite numbers.
        """
        path = f"{CODEBOOKS}/{feature}/words"
        if not self.has(path):
            return {}
        if feature not in self._words:
            found = self.read(path, 0)
            if not np.isfinite(found).all():
                raise StoreError(f"{self.root}: {path} holds what is no finite number: the store is damaged")
            self._words[feature] = found
        return {"words": self._words[feature]}

    def left_over(self, feature: str) -> Float32[np.ndarray, "layer ..."] | None:
        """What its codes leave of the variance of a feature's vectors, by layer, and of attention by part; None of numbers.

        Raises StoreError as `read` does, and where it is no share of anything.
        """
        path = f"{CODEBOOKS}/{feature}/error"
        if not self.has(path):
            return None
        found: np.ndarray = self.read(path, 0)[..., -1]
        if not ((found >= 0) & np.isfinite(found)).all():
            raise StoreError(f"{self.root}: {path} is no share of a variance: the store is damaged")
        return found

    def read_all(self, path: str) -> Shaped[np.ndarray, "row ..."]:
        """One array, all its rows [N, ...]."""
        spec = self._spec(path)
        units = -(-spec.shape[0] // spec.shard)
        return np.concatenate([self.read(path, unit) for unit in range(units)]) if units else np.empty(spec.shape)

    def rows_sha256(self, split: str) -> str:
        """Of a split's rows as the teacher reads them: token ids, lengths and row ids. It is the same in every store of the same
        rows in the same order, whatever is kept of them and however they are cut into units."""
        digests = {name: hashlib.sha256() for name in ("input_ids", "n_tokens", "row_id")}
        for unit in range(self.plan.splits[split].units):
            ids, n_tokens, row_id = (self.read(f"{split}/{name}", unit) for name in digests)
            real = ids[np.arange(ids.shape[1]) < n_tokens[:, None]]
            for digest, array in zip(digests.values(), (real, n_tokens, row_id), strict=True):
                digest.update(array.tobytes())
        return hashlib.sha256("".join(digest.hexdigest() for digest in digests.values()).encode()).hexdigest()

    def _spec(self, path: str) -> ArraySpec:
        spec = self.plan.arrays.get(path)
        if spec is None:
            raise StoreError(f"{self.root} holds no {path}")
        return spec

    def _entry(self, key: str) -> dict[str, Any]:
        entry = self.manifest.objects.get(key)
        if entry is None:
            raise StoreError(f"{self.root} holds no {key}")
        return entry

    def row(self, split: str, index: int) -> dict[str, Shaped[np.ndarray, "..."]]:
        """One stored row, every array by its name; values of features decoded to float32, `hidden/mask` to bool [D, L, d].

        Raises StoreError for a split or a row that it has not, and as `read` does.
        """
        rows = self.plan.splits.get(split)
        if rows is None:
            raise StoreError(f"{self.root} has the splits {', '.join(self.plan.splits)}, not {split}")
        if not 0 <= index < rows.rows:
            raise StoreError(f"{self.root}: {split} has rows 0 to {rows.rows - 1}, not {index}")
        unit, offset = divmod(index, rows.unit_rows)
        found = {path.removeprefix(split + "/"): self.read(path, unit)[offset] for path in self.plan.arrays_of(split)}
        for name, feature in self.plan.said.items() if split == "train" else ():
            if f"{name}/values" not in found:
                continue
            stored = {array: found[f"{name}/{array}"][None] for array in ("values", "scale") if f"{name}/{array}" in found}
            (values,) = feature.encoding.decode(stored | self.words(name), feature.width)
            if isinstance(feature.encoding, Codes):  # the codes of what is no token name words too
                if isinstance(feature, Hidden):
                    values[found["hidden/token"] < 0] = 0
                elif isinstance(feature, OfLayers) and "token" in feature.axes:
                    values[..., int(found["n_tokens"]) :, :] = 0
            found[f"{name}/values"] = values.astype(np.float32)
        if "hidden/mask" in found and self.plan.hidden is not None:
            found["hidden/mask"] = unpack_mask(found["hidden/mask"], self.plan.hidden.hidden_size)
        return found


def open_store(root: str | Path) -> Store:
    """Open a sealed store on disk, at an object-store URL or on the hub.

    Checks the seal, the metadata's hashes, and that every sealed object is there with its size. Raises StoreError.
    """
    return open_at(place_of(root))


def open_at(place: Place) -> Store:
    """`open_store` for a place at hand."""
    plan = read_plan(place)
    sealed = place.get(MANIFEST)
    if sealed is None:
        done, total = len(receipts(place)), plan.n_units
        condemned = place.get(CONDEMNED) is not None
        raise StoreError(
            f"{place.root} is not sealed: {done} of {total} units are done."
            + (" What was bad was condemned." if condemned else "")
            + " Run the same hsk extract (derive, pull, push) again: it goes on where it stopped"
            + (f"; or hsk pull GOOD_COPY {place.root}" if condemned else "")
        )
    try:
        manifest = Manifest.from_bytes(sealed)
    except ValueError as error:
        raise StoreError(f"{place.root}/{MANIFEST} is damaged ({error}). {repair(place.root)}") from None
    found = unsealed(manifest, plan) or faults(place, place.sizes(), manifest.objects, deep=False)
    for key, what in found.items():
        raise StoreError(f"{place.root}/{key} {what}{_of_unit(key)}. {repair(place.root)}")
    store = Store(place, plan, manifest)
    for key, document in plan.documents().items():
        if not describes(store.file(key), document):
            raise StoreError(f"{place.root}/{key} does not describe the planned arrays: the store is damaged")
    if hashlib.sha256(store.file(PLAN)).hexdigest() != manifest.store_id:
        raise StoreError(f"{place.root}: the seal belongs to another plan: the store is damaged")
    return store


def unsealed(manifest: Manifest, plan: Plan) -> dict[str, str]:
    """What is wrong with a seal for a plan, before either is believed: as `faults` says it."""
    listed = manifest.objects
    for key, entry in listed.items():
        if entry["size"] > MAX_OBJECT_BYTES:
            return {key: f"would have {entry['size']} bytes, which no store's objects have; refused"}
    if sum(split.units * len(plan.arrays_of(name)) for name, split in plan.splits.items()) > len(listed):
        return {MANIFEST: "lists fewer objects than the plan has units"}
    planned = {spec.key(path, unit) for split, unit in plan.units() for path, spec in plan.arrays_of(split).items()}
    planned |= {PLAN, *plan.documents()}
    return {MANIFEST: f"does not list {min(planned - listed.keys())}"} if planned - listed.keys() else {}


def describes(document: bytes, planned: bytes) -> bool:
    """Whether a `zarr.json` is the planned one; the root's may carry arrays of a later version besides."""
    if document == planned:
        return True
    try:
        found, expected = json.loads(document), json.loads(planned)
        nodes = found["consolidated_metadata"]["metadata"]
        known = expected["consolidated_metadata"]["metadata"]
        return bool(all(nodes.get(path) == node for path, node in known.items()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _of_unit(key: str) -> str:
    """Say which unit a shard is of."""
    unit = unit_of(key)
    return "" if unit in (None, FILES) else " (unit {1} of {0})".format(*unit)


def unit_of(key: str) -> Unit | None:
    """The unit that an object belongs to, by its key; None for what the plan alone decides, and for receipts."""
    split, _, rest = key.partition("/")
    if key == TEACHER or key.startswith(TOKENIZER):
        return FILES
    number = rest.partition("/c/")[2].partition("/")[0]
    return (split, int(number)) if number.isdecimal() and len(number) < 10 else None


def _holds(objects: Place, key: str) -> bool:
    """Whether there is an object that can be read; a link in a folder that is no store is nobody's business."""
    try:
        return objects.get(key) is not None
    except StoreError:
        return False


def read_plan(objects: Place) -> Plan:
    """The plan of a store, sealed or not. Raises StoreError where there is none, or where its arrays are beyond all reason."""
    data = objects.get(PLAN)
    if data is None and not objects.exists():
        missing = "folder" if objects.local else "repository, or your token does not see it"
        raise StoreError(f"{objects.root} is not a store: there is no such {missing}")
    if data is None:
        stores = [folder for folder in objects.folders() if _holds(objects, f"{folder}/{PLAN}")]
        hint = (
            f"; it holds the stores {', '.join(stores)}: name one of them"
            if stores
            else "; hsk extract makes stores below its --out"
        )
        raise StoreError(f"{objects.root} is not a store: it has no {PLAN}{hint}")
    plan = Plan.from_bytes(data, objects.root)
    for path, spec in plan.arrays.items():
        if (size := most_decoded(path, spec)) > MAX_SHARD_BYTES:
            raise StoreError(f"{objects.root}: the plan asks for shards of {size} bytes in {path}; refused")
        if spec.chunks_per_shard > MAX_SHARD_CHUNKS:
            raise StoreError(f"{objects.root}: the plan asks for shards of {spec.chunks_per_shard} chunks in {path}; refused")
    if plan.n_units > MAX_UNITS:
        raise StoreError(f"{objects.root}: the plan asks for more than {MAX_UNITS} units; refused")
    return plan
