"""A shard says where its chunks lie and what they decode to; it is asked before memory is taken, and believed where it can be."""

import json
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

from hskstore.errors import StoreError
from hskstore.store import open_store
from hskstore.store.encode import decode_layers, decode_shard, encode_shard
from hskstore.store.features import Cls, States
from hskstore.store.objects import Objects
from hskstore.store.schema import ArraySpec
from hskstore.store.shard import (
    ABSENT,
    BLOSC_HEADER,
    ZSTD_MAGIC,
    check_chunk,
    chunk_ranges,
    index_bytes,
    layer_sha256,
    ranges_of,
    shard_fingerprint,
    take_chunks,
)
from tests.store.conftest import edit_signed, flipped, forge, forged_shard, make_plan, whole, write_store

VALUES = "train/hidden/values"
LAYERED = ArraySpec((21, 3, 2, 4), "float16", 8, 2, "values", "NaN")
PLAIN = ArraySpec((21, 5), "int32", 8, 2, "packed", -1)


def random_rows(spec: ArraySpec, unit: int = 0) -> np.ndarray:
    shape = (len(spec.rows(unit)), *spec.shape[1:])
    return (np.random.default_rng(unit).normal(size=shape) * 100).astype(spec.dtype)


# --- where the chunks lie


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_chunks_lie_where_the_index_says_layer_by_layer(unit):
    rows = random_rows(LAYERED, unit)
    blob = encode_shard(LAYERED, unit, rows)
    found = ranges_of(LAYERED, unit, blob)
    assert [len(layer) for layer in found] == [-(-len(rows) // 2)] * 3, "runs that hold no row have no chunk"
    for layer, places in enumerate(found):
        for run, chunk in enumerate(take_chunks(blob, places)):
            decoded = np.frombuffer(Blosc().decode(chunk[:-4]), "float16").reshape(LAYERED.chunk_shape)[:, 0]
            wanted = rows[2 * run : 2 * run + 2, layer]
            np.testing.assert_array_equal(decoded[: len(wanted)], wanted)


def test_an_array_without_layers_has_one_list_of_chunks():
    rows = random_rows(PLAIN)
    blob = encode_shard(PLAIN, 0, rows)
    (chunks,) = (take_chunks(blob, places) for places in ranges_of(PLAIN, 0, blob))
    decoded = [np.frombuffer(Zstd().decode(chunk[:-4]), "int32").reshape(2, 5) for chunk in chunks]
    np.testing.assert_array_equal(np.concatenate(decoded), rows)


def test_chunks_fill_a_shard_to_the_last_byte_but_its_index():
    blob = encode_shard(LAYERED, 0, random_rows(LAYERED))
    places = sorted((place.start, place.stop) for layer in ranges_of(LAYERED, 0, blob) for place in layer)
    assert [start for start, _ in places] == [0, *(stop for _, stop in places[:-1])]
    assert places[-1][1] + index_bytes(LAYERED) == len(blob)
    assert index_bytes(LAYERED) == 12 * 16 + 4


def edited_index(blob: bytes, spec: ArraySpec, chunk: int, offset: int, size: int) -> bytes:
    index = bytearray(blob[-index_bytes(spec) :])
    index[16 * chunk : 16 * chunk + 16] = np.array([offset, size], "<u8").tobytes()
    return blob[: -index_bytes(spec)] + bytes(index)


BODY = len(encode_shard(PLAIN, 0, random_rows(PLAIN))) - index_bytes(PLAIN)


@pytest.mark.parametrize(
    ("offset", "size", "message"),
    [
        (ABSENT, ABSENT, "its index says that a chunk is absent"),
        (0, ABSENT, "its index leads out of it"),
        (0, BODY + 1, "its index leads out of it"),
        (BODY, 5, "its index leads out of it"),
        (BODY - 4, 5, "its index leads out of it"),
        (2**64 - 2, 8, "its index leads out of it"),
        (2**63, 2**63, "its index leads out of it"),
        (0, 0, "its index leads out of it"),
        (0, 4, "its index leads out of it"),
        (0, BODY, "its index names some bytes twice"),
    ],
)
@pytest.mark.parametrize("chunk", [0, 3])
def test_an_index_that_leads_anywhere_but_to_its_own_chunks_is_refused(chunk, offset, size, message):
    blob = encode_shard(PLAIN, 0, random_rows(PLAIN))
    with pytest.raises(ValueError, match=f"^{message}$"):
        ranges_of(PLAIN, 0, edited_index(blob, PLAIN, chunk, offset, size))


def test_a_shard_that_names_one_chunk_again_and_again_is_refused():
    spec = replace(PLAIN, shape=(2**14, 5), shard=2**14, chunk=1)
    payload = Zstd().encode(bytes(spec.chunk_bytes))
    blob = forged_shard(spec, [payload])
    index = np.array([[0, len(payload) + 4]] * 2**14, "<u8").tobytes() + bytes(4)
    with pytest.raises(ValueError, match="its index names some bytes twice"):
        decode_shard(spec, 0, blob[: -index_bytes(spec)] + index)


@pytest.mark.parametrize("size", range(0, index_bytes(PLAIN) + 1, 17))
def test_a_shard_that_is_shorter_than_its_index_is_refused(size):
    with pytest.raises(ValueError, match=r"its index leads out of it|it is shorter than its own index"):
        ranges_of(PLAIN, 0, bytes(size))


def test_an_index_of_another_length_is_refused():
    blob = encode_shard(PLAIN, 0, random_rows(PLAIN))
    with pytest.raises(ValueError, match="it is shorter than its own index"):
        chunk_ranges(PLAIN, 0, blob[-index_bytes(PLAIN) + 1 :], len(blob))


# --- one layer alone


@settings(max_examples=40)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True), st.integers(0, 2))
def test_some_layers_decode_to_the_slice_of_the_whole(layers, unit):
    rows = random_rows(LAYERED, unit)
    blob = encode_shard(LAYERED, unit, rows)
    places = ranges_of(LAYERED, unit, blob)
    found = decode_layers(LAYERED, unit, [take_chunks(blob, places[layer]) for layer in layers])
    assert (found.shape, found.dtype) == (rows[:, layers].shape, rows.dtype)
    assert found.tobytes() == rows[:, layers].tobytes()


@pytest.mark.parametrize("values", ["f16", "q4", "rq4"])
def test_a_store_reads_some_layers_as_the_slice_of_a_whole_read(values, tmp_path):
    plan = make_plan(values, others=(States((0, 6), 20, values), Cls((3, 5), 20, values)))
    write_store(tmp_path, plan)
    store = open_store(tmp_path)
    for path in plan.arrays_of("train"):
        for unit in range(3):
            every = store.read(path, unit)
            for layers in ([0], [1], [1, 0], [0, 1]):
                found = store.read(path, unit, layers)
                assert found.tobytes() == (every[:, layers] if path.split("/")[1] in plan.features else every).tobytes()


def test_of_layers_that_are_not_read_nothing_is_fetched(sealed_once, monkeypatch):
    store = open_store(sealed_once)
    key = store.plan.arrays[VALUES].key(VALUES, 0)
    places = ranges_of(store.plan.arrays[VALUES], 0, store.file(key))
    fetched = []
    ranges = Objects.ranges
    monkeypatch.setattr(Objects, "ranges", lambda self, key, parts: (fetched.extend(parts), ranges(self, key, parts))[1])
    monkeypatch.delattr(Objects, "get")
    store.read(VALUES, 0, [1])
    assert set(fetched) == {*places[1], range(places[-1][-1].stop, store.sizes()[key])}


def test_the_hash_of_a_layer_is_that_of_its_chunks_one_after_the_other(sealed_once):
    store = open_store(sealed_once)
    spec = store.plan.arrays[VALUES]
    blob = store.file(spec.key(VALUES, 1))
    entry = store.manifest.objects[spec.key(VALUES, 1)]
    assert entry == shard_fingerprint(spec, 1, blob)
    assert entry["layers"] == [layer_sha256(take_chunks(blob, layer)) for layer in ranges_of(spec, 1, blob)]
    assert len(set(entry["layers"])) == 2
    assert layer_sha256([b"ab", b"c"]) == layer_sha256([b"abc"]) != layer_sha256([b"c", b"ab"])


def test_a_bit_flipped_in_a_layer_is_found_by_a_read_of_that_layer_and_not_by_one_of_another(plan, sealed):
    store = open_store(sealed)
    spec = plan.arrays[VALUES]
    shard = sealed / spec.key(VALUES, 1)
    places = ranges_of(spec, 1, shard.read_bytes())
    shard.write_bytes(flipped(shard.read_bytes(), 8 * places[0][0].start + 100))
    assert store.read(VALUES, 1, [1]).tobytes() == whole(plan, VALUES)[8:16, [1]].tobytes()
    for layers in ([0], [1, 0]):
        with pytest.raises(StoreError, match=rf"/{VALUES}/c/1/0/0/0 cannot be decoded \(its layer 0 has another sha256 than the"):
            store.read(VALUES, 1, layers)
    with pytest.raises(StoreError, match="is damaged: its sha256 is not the sealed one"):
        store.read(VALUES, 1)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_layer_of_a_shard_with_any_bit_flipped_is_what_was_written_or_refused(plan, sealed_once, data):
    store = open_store(sealed_once)
    path = data.draw(st.sampled_from([VALUES, "train/hidden/mask"]))
    layer = data.draw(st.integers(0, 1))
    spec = plan.arrays[path]
    shard = sealed_once / spec.key(path, 0)
    before = shard.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1) | st.integers(8 * (len(before) - index_bytes(spec)), 8 * len(before) - 1))
    try:
        shard.write_bytes(flipped(before, bit))
        assert store.read(path, 0, [layer]).tobytes() == whole(plan, path)[:8, [layer]].tobytes()
    except StoreError as error:
        assert "cannot be decoded" in str(error)
    finally:
        shard.write_bytes(before)


@pytest.mark.parametrize("layers", [None, [], ["0" * 64], "0" * 64, ["0" * 64] * 3])
def test_a_layer_that_the_seal_has_no_hash_of_is_not_read_alone(sealed, layers):
    edit_signed(sealed / "manifest.json", lambda m: m["objects"][f"{VALUES}/c/0/0/0/0"].update(layers=layers))
    store = open_store(sealed)
    with pytest.raises(StoreError, match="the seal has no hashes of its layers"):
        store.read(VALUES, 0, [1])
    assert store.read(VALUES, 0).shape[1] == 2


@pytest.mark.parametrize("size", [0, 1, 30, 60])
def test_a_sealed_shard_that_is_no_shard_is_refused_whole_and_by_layer(plan, sealed, size):
    key = plan.arrays[VALUES].key(VALUES, 0)
    forge(sealed, {key: bytes(size)})
    edit_signed(sealed / "manifest.json", lambda m: m["objects"][key].update(layers=["0" * 64] * 2))
    store = open_store(sealed)
    for layers in (None, [0]):
        with pytest.raises(StoreError, match=r"cannot be decoded|could not be read"):
            store.read(VALUES, 0, layers)


# --- what a chunk's header says, beside what numcodecs writes

SPEC = ArraySpec((8, 10), "int32", 8, 8, "packed", -1)
"""One chunk of 320 bytes."""


def sized(spec: ArraySpec, size: int) -> ArraySpec:
    """The same, in chunks of `size` bytes."""
    return replace(spec, shape=(1, size), dtype="uint8", shard=1, chunk=1)


def content(size: int, kind: str) -> bytes:
    """Bytes that pack to nothing, to themselves, or now one, now the other."""
    rng = np.random.default_rng(size)
    most = {"zeros": 1, "random": 256, "mixed": rng.integers(1, 256, -(-size // 1000)).repeat(1000)[:size]}[kind]
    return rng.integers(0, most, size, np.uint8).tobytes()


sizes = st.integers(1, 2**17) | st.sampled_from([2**8, 2**16, 2**16 + 2**8, 2**20]).flatmap(lambda n: st.integers(n - 2, n + 2))


@settings(max_examples=150)
@given(sizes, st.sampled_from(["zeros", "random", "mixed"]), st.sampled_from([-5, 1, 9]), st.booleans())
@example(255, "zeros", 1, False)
@example(256, "zeros", 1, False)
@example(65_791, "zeros", 1, False)
@example(65_792, "zeros", 1, False)
@example(2**22, "zeros", 1, False)
@example(2**22, "random", 1, True)
@example(2**22, "mixed", 15, True)
def test_the_size_in_a_zstd_header_is_the_size_that_was_compressed(size, kind, level, checksum):
    chunk = Zstd(level=level, checksum=checksum).encode(content(size, kind)) + bytes(4)
    check_chunk(sized(SPEC, size), chunk)
    for other in (size - 1, size + 1, size + 256):
        with pytest.raises(ValueError, match=f"^a chunk would decode to {size} bytes instead of {other}$"):
            check_chunk(sized(SPEC, other), chunk)


@settings(max_examples=100)
@given(sizes, st.sampled_from(["zeros", "random"]), st.sampled_from([1, 2, 4, 48, 255]), st.integers(0, 2))
@example(2**22, "zeros", 1, 1)
def test_the_size_in_a_blosc_header_is_the_size_that_was_compressed(size, kind, typesize, shuffle):
    chunk = Blosc(cname="zstd", clevel=5, shuffle=shuffle, typesize=typesize).encode(content(size, kind)) + bytes(4)
    spec = replace(SPEC, codec="values")
    check_chunk(sized(spec, size), chunk)
    for other in (size - 1, size + 1):
        with pytest.raises(ValueError, match=f"^a chunk would decode to {size} bytes instead of {other}$"):
            check_chunk(sized(spec, other), chunk)


def zstd_frame(stated: int | None, actual: int, *, width: int = 8, window: bool = False) -> bytes:
    """A zstd frame (RFC 8878) of `actual` zeros in blocks of a byte that is repeated; its header states `stated`."""
    assert window or width
    descriptor = {0: 0, 1: 0, 2: 1, 4: 2, 8: 3}[width] << 6 | (0 if window else 1 << 5)
    told = b"" if stated is None else (stated - (256 if width == 2 else 0)).to_bytes(width, "little")
    full, rest = divmod(actual, 2**17)
    lengths = [2**17] * full + [rest]
    blocks = [(length << 3 | 1 << 1 | (place == full)).to_bytes(3, "little") + b"\0" for place, length in enumerate(lengths)]
    # Window descriptor 0x50: 2^20 bytes.
    return b"".join([ZSTD_MAGIC.to_bytes(4, "little"), bytes([descriptor]), b"\x50" if window else b"", told, *blocks])


@pytest.mark.parametrize(
    ("width", "window", "size"), [(1, False, 255), (2, False, 256), (2, True, 65_791), (4, True, 9), (8, True, 9)]
)
def test_every_form_of_a_zstd_header_is_read(width, window, size):
    frame = zstd_frame(size, size, width=width, window=window)
    assert bytes(Zstd().decode(frame)) == bytes(size), "numcodecs reads the same"
    check_chunk(sized(SPEC, size), frame + bytes(4))
    with pytest.raises(ValueError, match=f"would decode to {size} bytes"):
        check_chunk(sized(SPEC, size + 1), frame + bytes(4))


def test_a_zstd_frame_that_states_no_size_is_refused():
    frame = zstd_frame(None, 320, width=0, window=True)
    assert bytes(Zstd().decode(frame)) == bytes(320), "it is a good frame"
    with pytest.raises(ValueError, match=r"^a chunk does not say how many bytes it decodes to$"):
        decode_shard(SPEC, 0, forged_shard(SPEC, [frame]))


@pytest.mark.parametrize("more", [b"\0", b"\0" * 9, zstd_frame(320, 320), b"\x50\x2a\x4d\x18\x04\0\0\0skip"])
def test_a_zstd_frame_that_anything_follows_is_refused(more):
    with pytest.raises(ValueError, match=r"^a chunk is not one frame from its first byte to its last$"):
        decode_shard(SPEC, 0, forged_shard(SPEC, [zstd_frame(320, 320) + more]))


def test_a_zstd_frame_of_endless_empty_blocks_is_not_walked_through():
    frame = zstd_frame(320, 0)
    endless = frame[:-4] + bytes(3) * 2**22 + frame[-4:]
    began = time.process_time()
    with pytest.raises(ValueError, match="is not one frame"):
        check_chunk(SPEC, endless + bytes(4))
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize("size", range(17))
@pytest.mark.parametrize("codec", ["packed", "values"])
def test_a_header_that_ends_too_soon_is_refused(codec, size):
    good = zstd_frame(320, 320) if codec == "packed" else Blosc(typesize=4).encode(bytes(320))
    with pytest.raises(ValueError, match=r"has no header|does not say|does not agree|not one frame"):
        check_chunk(replace(SPEC, codec=codec), good[: min(size, 12 if codec == "packed" else 16)] + bytes(4))


@given(st.binary(max_size=40) | st.binary(max_size=20).map(lambda tail: ZSTD_MAGIC.to_bytes(4, "little") + tail))
def test_no_bytes_make_a_header_check_crash(data):
    for codec in ("packed", "values"):
        with pytest.raises(ValueError, match=r"^a chunk"):
            check_chunk(replace(SPEC, codec=codec, shape=(8, 7919)), data)


@pytest.mark.parametrize("codec", ["values", "mask", "packed"])
@settings(max_examples=150)
@given(st.data())
def test_a_chunk_that_was_changed_where_its_checksum_agrees_decodes_to_its_shape_or_is_refused(codec, data):
    spec = ArraySpec((16, 2, 3, 21), "uint8", 16, 16, codec, 0)
    rows = np.random.default_rng(0).integers(0, 9, spec.shape, np.uint8)
    blob = encode_shard(spec, 0, rows)
    payloads = [bytearray(chunk[:-4]) for (chunk,) in (take_chunks(blob, layer) for layer in ranges_of(spec, 0, blob))]
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(payloads[0]) - 1) | st.integers(0, 30))
        payloads[0][at] = data.draw(st.integers(0, 255))
    try:
        found = decode_shard(spec, 0, forged_shard(spec, [bytes(payload) for payload in payloads]))
    except ValueError:
        return
    assert found.shape == rows.shape
    assert (found[:, 1] == rows[:, 1]).all()


# --- bombs

GIB = 2**30


def blosc_bomb(decoded: int) -> bytes:
    """64 MiB of zeros in a few kilobytes, whose header claims `decoded` bytes."""
    payload = bytearray(Blosc(cname="zstd", clevel=5, shuffle=0, typesize=1).encode(bytes(2**26)))
    version, inner, flags, typesize, _, block, encoded = BLOSC_HEADER.unpack_from(payload)
    payload[: BLOSC_HEADER.size] = BLOSC_HEADER.pack(version, inner, flags, typesize, decoded, min(block, decoded), encoded)
    return bytes(payload)


PACKED, BLOSC = "train/input_ids", "train/hidden/mask"
CHUNK = {PACKED: 8 * 10 * 4, BLOSC: 8 * 3 * 3}
BOMBS = {
    "a frame of 4 GiB": (PACKED, zstd_frame(4 * GIB, 4 * GIB), rf"a chunk would decode to {4 * GIB} bytes instead of 320"),
    "a frame of 1 GiB that claims a chunk's size": (PACKED, zstd_frame(320, GIB), "a chunk is not one frame"),
    "a frame of 128 KiB that claims a chunk's size": (PACKED, zstd_frame(320, 2**17 - 1), r"(?i)decompression error"),
    "a frame of 1 GiB that claims nothing": (PACKED, zstd_frame(None, GIB, width=0, window=True), "does not say how many bytes"),
    "a frame of 1 GiB behind a good one": (PACKED, zstd_frame(320, 320) + zstd_frame(GIB, GIB), "a chunk is not one frame"),
    "2 GiB of blosc": (BLOSC, blosc_bomb(2**31 - 17), rf"a chunk would decode to {2**31 - 17} bytes instead of 72"),
    "64 MiB of blosc": (BLOSC, blosc_bomb(2**26), rf"a chunk would decode to {2**26} bytes instead of 72"),
    "64 MiB of blosc that claims a chunk's size": (BLOSC, blosc_bomb(72), r"cannot be decoded"),
}


def test_the_bombs_are_real():
    assert bytes(Zstd().decode(zstd_frame(2**20 + 7, 2**20 + 7))) == bytes(2**20 + 7)
    assert Blosc().decode(blosc_bomb(2**26)) == bytes(2**26)
    assert all(len(bomb) < GIB / 2**12 for _, bomb, _ in BOMBS.values())
    assert len(zstd_frame(320, GIB // 3)) < 12_000


PROGRAM = """
import json, resource, sys
from hskstore.errors import StoreError
from hskstore.store import open_store
store = open_store(sys.argv[1])
for path in store.plan.arrays:
    store.read(path, 1)
for path, layers in json.loads(sys.argv[2]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        message = f"read {store.read(path, 0, layers).shape}"
    except StoreError as error:
        message = str(error)
    print(json.dumps([message, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_before_memory_is_taken(plan, sealed, name):
    path, bomb, message = BOMBS[name]
    spec = plan.arrays[path]
    assert spec.chunk_bytes == CHUNK[path]
    shard = forged_shard(spec, [bomb] * spec.layers)
    key = spec.key(path, 0)
    forge(sealed, {key: shard})
    if spec.layered:
        edit_signed(sealed / "manifest.json", lambda m: m["objects"].update({key: shard_fingerprint(spec, 0, shard)}))
    reads = [(path, None), *([(path, [1])] if spec.layered else [])]
    ran = subprocess.run([sys.executable, "-c", PROGRAM, sealed, json.dumps(reads)], capture_output=True, text=True, check=True)
    for line in ran.stdout.splitlines():
        found, kilobytes = json.loads(line)
        with pytest.raises(StoreError, match=message):
            raise StoreError(found)
        assert kilobytes < 16 * 2**10
    assert len(ran.stdout.splitlines()) == len(reads)
