"""What may stand in files that people have: sound ones damaged, and values that nobody expects, as Hypothesis draws them."""

import copy
import gzip
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from io import BytesIO
from typing import Any

import hypothesis.strategies as st
import pyarrow as arrow
import pyarrow.parquet as parquet

Draw = Callable[[st.SearchStrategy[Any]], Any]

ODD_BYTES = (
    b'"', b'""', b"'", b"\0", b"\xef\xbb\xbf", b"\r", b"\r\n", b"\n", b"\n\n", b"\t", b",", b";", b"|", b"\\", b"\xff\xfe",
    b"\xed\xa0\x80", b"\xc3", "\u2028\u0085\u00a0".encode(), "\U0001f600".encode(), b"[SEP]", b"\\ud800", b"[", b"{", b"}",
    b"]", b"#", b"NaN", b"1e999", b"null", b"-1", b"0,3", b"9" * 5000, b"[" * 100_000, b"a" * 200_000, b"\x1f\x8b", b"PAR1",
)  # fmt: skip

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 2**31 - 1, 2**31, 2**63, 10**400, -(2**63) - 1, 0.0, -0.0, 0.5, 1.5, 1e308, float("nan"),
    float("inf"), "", " ", "0", "1", "true", "nan", "a", "\ud800", "\0", "[CLS]", "\u0661", "gelu", "x" * 5000, [], {}, [[]],
    [None], [1, "a"], {"a": 1}, {"0": "a"}, {"": None}, [{}], ["a", "a"], {"content": "[PAD]"}, {"type": "Whitespace"},
)  # fmt: skip
"""Of JSON. `json` writes NaN, infinity and half a character as many libraries do."""


def odd_values() -> st.SearchStrategy[Any]:
    plain = st.sampled_from(ODD_VALUES).map(copy.deepcopy)
    return plain | st.lists(plain, max_size=3) | st.dictionaries(st.sampled_from(["a", "label", "", "type"]), plain, max_size=3)


# --- bytes and lines


def damaged_bytes(draw: Draw, data: bytes) -> bytes:
    """One to three changes: bytes, lines, quotes, encodings."""
    for _ in range(draw(st.integers(1, 3))):
        data = draw(st.sampled_from(CHANGES))(draw, data)
    return data


def _place(draw: Draw, data: bytes) -> int:
    return int(draw(st.integers(0, len(data))))


def flip(draw: Draw, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4)) if data else 0):
        changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def cut(draw: Draw, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[place:] if draw(st.booleans()) else data[:place]


def insert(draw: Draw, data: bytes) -> bytes:
    place = _place(draw, data)
    return data[:place] + draw(st.sampled_from(ODD_BYTES) | st.binary(max_size=8)) + data[place:]


def lines(draw: Draw, data: bytes) -> bytes:
    """A line dropped, doubled, moved, or many times there."""
    held = data.splitlines(keepends=True)
    if not held:
        return data
    at, to = draw(st.integers(0, len(held) - 1)), draw(st.integers(0, len(held) - 1))
    line = held.pop(at)
    held[to:to] = [line] * draw(st.sampled_from([0, 1, 2, 300]))
    return b"".join(held)


def recode(draw: Draw, data: bytes) -> bytes:
    text = data.decode("utf-8", "replace")
    return text.encode(draw(st.sampled_from(["utf-16", "utf-32", "latin-1", "cp037", "utf-8-sig", "utf-7"])), "replace")


def replace(draw: Draw, data: bytes) -> bytes:
    """Everywhere, of a character that structures it."""
    old = draw(st.sampled_from([b"\n", b"\t", b",", b'"', b":", b"0", b"1", b"the", b"label", b" "]))
    return data.replace(old, draw(st.sampled_from(ODD_BYTES[:-6])))


def start_over(draw: Draw, data: bytes) -> bytes:
    return draw(st.sampled_from([b"", b"\n", b" ", b"\0", data[: data.find(b"\n") + 1], data * 2]))


CHANGES = (flip, cut, insert, lines, recode, replace, start_over)


# --- JSON


def damaged_document(draw: Draw, document: Any) -> Any:
    """One to three values of a document, however deep, dropped, retyped, doubled or swapped."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = _places(document)
        if not places:
            return draw(odd_values())
        holder, key = draw(st.sampled_from(places))
        change = draw(st.sampled_from(["drop", "retype", "retype", "retype", "swap", "add"]))
        if change == "drop":
            del holder[key]
        elif change == "retype":
            holder[key] = draw(odd_values())
        elif change == "swap":
            other, there = draw(st.sampled_from(places))
            holder[key], other[there] = copy.deepcopy(other[there]), copy.deepcopy(holder[key])
        elif isinstance(holder, dict):
            holder[draw(st.sampled_from(["", "extra", "auto_map", "quantization_config", "torch_dtype"]))] = draw(odd_values())
        else:
            holder.insert(key, draw(odd_values()))
    return document


def _places(document: Any) -> list[tuple[Any, Any]]:
    """Every value that stands in something, the outer ones first."""
    found: list[tuple[Any, Any]] = []
    new = [document]
    while new:
        holders, new = new, []
        for holder in holders:
            items = holder.items() if isinstance(holder, dict) else enumerate(holder) if isinstance(holder, list) else ()
            for key, value in items:
                found.append((holder, key))
                new.append(value)
    return found


def damaged_json(draw: Draw, data: bytes) -> bytes:
    """A file of one JSON document, damaged as a document or, now and then, as bytes."""
    if draw(st.integers(0, 4)) == 0:
        return damaged_bytes(draw, data)
    return json.dumps(damaged_document(draw, json.loads(data))).encode()


def damaged_json_lines(draw: Draw, data: bytes) -> bytes:
    if draw(st.booleans()):
        return damaged_bytes(draw, data)
    rows = damaged_document(draw, [json.loads(line) for line in data.splitlines()])
    return b"\n".join(json.dumps(row).encode() for row in (rows if isinstance(rows, list) else [rows])) + b"\n"


# --- Arrow

TYPES: tuple[tuple[Any, list[Any]], ...] = (
    (arrow.int8(), [0, 1, None]),
    (arrow.uint64(), [2**64 - 1, 0, 1]),
    (arrow.float16(), [0.0, 1.0]),
    (arrow.float64(), [float("nan"), float("inf"), 0.5]),
    (arrow.bool_(), [True, False, None]),
    (arrow.decimal128(5, 2), [Decimal("1.50"), Decimal("0.00"), None]),
    (arrow.timestamp("s"), [2**50, 0]),
    (arrow.timestamp("ns", tz="Nowhere/Land"), [1, 0]),
    (arrow.date32(), [date(2020, 1, 1), None]),
    (arrow.time64("us"), [1, 2]),
    (arrow.duration("s"), [2**60, 1]),
    (arrow.binary(), [b"\xff", b"the cat"]),
    (arrow.large_string(), ["the cat", "a dog"]),
    (arrow.string_view(), ["the cat", "a dog"]),
    (arrow.dictionary(arrow.int8(), arrow.string()), ["yes", "no", None]),
    (arrow.list_(arrow.string()), [["a"], [], None]),
    (arrow.struct([("a", arrow.int8())]), [{"a": 1}, None]),
    (arrow.map_(arrow.string(), arrow.int8()), [[("a", 1)], []]),
    (arrow.null(), [None]),
    (arrow.string(), ["yes", " yes", "No\0", "", None]),
    (arrow.string(), ["0,3", "1"]),
    (arrow.int64(), [0, 1]),
    (arrow.int64(), [-1, 0, 1, 2**63 - 1]),
    (arrow.binary(2), [b"ab", b"cd"]),
)

FEATURES = (
    {"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}, "sentence": {"dtype": "string"}}}},
    {"info": {"features": {"label": {"names": [], "_type": "ClassLabel"}}}},
)  # fmt: skip


def odd_table(draw: Draw, sound: Any) -> Any:
    """A table like a sound one, of other columns, types, rows or metadata."""
    names, columns = list(sound.column_names), list(sound.columns)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(names) - 1))
        kind, values = draw(st.sampled_from(TYPES))
        columns[at] = arrow.array([values[row % len(values)] for row in range(len(sound))], kind)
    change = draw(st.sampled_from(["nothing", "nothing", "double", "rename", "empty", "no column"]))
    if change == "double":
        names[0] = names[1]
    elif change == "rename":
        names[0] = draw(st.sampled_from(["", "Sentence", "\0", "x" * 5000, "a.b", "é"]))
    elif change == "no column":
        names, columns = [], []
    table = arrow.table(columns, names=names)
    said = draw(st.none() | st.sampled_from(FEATURES))
    if said is not None:
        table = table.replace_schema_metadata({b"huggingface": damaged_json(draw, json.dumps(said).encode())})
    return table.slice(0, 0) if change == "empty" else table


def damaged_parquet(draw: Draw, sound: Any) -> bytes:
    file = BytesIO()
    parquet.write_table(odd_table(draw, sound), file, row_group_size=draw(st.sampled_from([5, 1000])))
    data = file.getvalue()
    return draw(st.sampled_from([flip, cut, insert, start_over]))(draw, data) if draw(st.booleans()) else data


def packed(draw: Draw, data: bytes) -> bytes:
    squeezed = gzip.compress(data, mtime=0)
    return damaged_bytes(draw, squeezed) if draw(st.booleans()) else squeezed


# --- safetensors


def damaged_weights(draw: Draw, data: bytes) -> bytes:
    """Its header with values changed, its length untrue, or any bytes."""
    length = int.from_bytes(data[:8], "little")
    header, tensors = data[8 : 8 + length], data[8 + length :]
    change = draw(st.sampled_from(["header", "header", "length", "bytes", "cut", "numbers"]))
    if change == "header":
        header = json.dumps(damaged_document(draw, json.loads(header))).encode()
        return len(header).to_bytes(8, "little") + header + tensors
    if change == "length":
        return draw(st.sampled_from([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1])).to_bytes(8, "little") + data[8:]
    if change == "numbers":
        value = draw(st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\0\0\0"]))
        return data[: 8 + length] + value * (len(tensors) // 4)
    return cut(draw, data) if change == "cut" else damaged_bytes(draw, data)


# --- words of a command line

ODD_NUMBERS = (
    "0", "-1", "1", "2", "2147483648", "9223372036854775808", "-9223372036854775809", "9" * 5000, "nan", "inf", "-inf", "-0.0",
    "1e308", "1e-320", "0.5", "1.5", "1e400", "1_0", "0x1", "\u0661", "²",
)  # fmt: skip

ODD_WORDS = (
    *ODD_NUMBERS, "", " ", "all", "1,1,1", "1,9,0.1", "all,all,all", "0,0,0", "-1,2,3", "1,1,1e-320", ",", ",,", "1,,2",
    "é\u0301", "\U0001f600", "\u202e", "\udcff", "x" * 5000, "[bold]", "{}", "%s", "a/b", "../x", "~", "~nobody", "$HOME", "--",
    "-", "--out", "-h", "=", "a=1", "logits=nan", "gold=1e308", "true", "None", "cpu", "cuda", "cuda:99", "meta", "mps", "mud",
    "kd", "pkd", "f16", "q4", "bf16", "fp16", "raw", "random", "same", "eq5", "sst2", "stsb", "mnli", "train", "test",
    "validation", "sentence", "label", "missing", "500MB", "1B", "99999999999999T", "bottom:1", "every:0", "bottom:-1",
    "every:99999999999", "a\nb", "\t", "\x1b[31m", "file:///x", "hf://", "s3://", "http://x/y", "glue/", "glue/x",
)  # fmt: skip
