"""States, [CLS] vectors, queries, keys and values, and most attended tokens, from the teacher's layer to a batch: captured,
encoded, cut, checked, replayed and read."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hskstore.config import Keep, Strategy, Values
from hskstore.errors import ModelError, OptionError, StoreError
from hskstore.features import KINDS, Want, mean_of_tokens
from hskstore.layers import LayerPair
from hskstore.methods.contract import Phase
from hskstore.models.observe import SEAM, QueryKeyValue, Seen, Sight, observe
from hskstore.models.run import Inputs
from hskstore.stage_one.extract import extract
from hskstore.stage_one.forecast import Forecast, forecast
from hskstore.stage_one.replay import replay
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.stage_one.teacher_pass import block_batches, padded
from hskstore.stage_one.worker import UnitWorker
from hskstore.stage_two.feed import InMemory, InWindows
from hskstore.stage_two.rows import TrainingRows, rows_from_store
from hskstore.store import Store, open_store
from hskstore.store.derive import derive
from hskstore.store.features import MOST_ATTENDED, Attended, Cls, LayerVectors, Pooled, Qkv, States
from hskstore.store.objects import Objects
from hskstore.store.plan import Plan, planned_anew
from hskstore.store.schema import canonical_json
from hskstore.store.shard import index_bytes, ranges_of
from hskstore.store.vectors import ENCODINGS, Codes
from hskstore.store.verify import verify
from hskstore.text.align import align
from hskstore.text.dataset import read_dataset
from hskstore.text.rows import Rows
from hskstore.text.tokenise import tokenise
from tests.conftest import make_bert, make_tokenizer, save_folder, sealed_tree, sentences, write_tsv
from tests.test_derive import flip
from tests.test_forecast import real_sizes
from tests.test_offsets import SCRAPS, byte_level
from tests.test_replay import reseal
from tests.test_teacher import DECODERS, SIZES, padded_batch
from tests.test_teacher import FAMILIES as SEEN_FAMILIES

ROWS = 150
LAYERS = 4
WIDTH = 32
EVERYTHING = 10**6
UNIT = 64
STORED: dict[str, tuple[int, ...]] = {
    "states": (0, 2, 4),
    "cls": (1, 2, 4),
    "qkv": (1, 3, 4),
    "attended": (1, 3, 4),
    "pooled": (0, 3, 4),
}
HEADS = 4
EVERY_ENCODING: tuple[Values, ...] = ("f16", "f32", "q8", "q4")


@dataclass(frozen=True)
class Asks:
    """A method, as much of it as an extraction asks, that reads these teacher layers whatever the student."""

    layers: Mapping[str, Sequence[int]]
    name: str = "it"

    def phases(self, teacher: Any, student: Any) -> tuple[Phase, ...]:
        reads = tuple(want(name, *layers) for name, layers in self.layers.items())
        return (Phase("it", {"it": 1.0}, schedule="linear", predicts=True, reads=reads),)


def small_units(bytes_per_row: int, rows: int) -> int:
    """Three units of a store of much, one of a store of little."""
    return UNIT if bytes_per_row > 300 else 4 * UNIT


def width_of(values: Values) -> str:
    """As much of a vector of `hidden` as is kept here: of codes all."""
    return "all" if isinstance(ENCODINGS[values], Codes) else "0.5"


def want(name: str, *layers: int) -> Want[Any]:
    return Want(KINDS[name], tuple(LayerPair(student, layer) for student, layer in enumerate(layers, 1)))


def make(
    teacher: str,
    data: str,
    out: Path,
    layers: Mapping[str, Sequence[int]] = STORED,
    *,
    keep: str | None = None,
    values: Values = "f16",
    **options: Any,
) -> Path:
    """One store of these layers, and of a configuration of `hidden` if one is named."""
    (made,) = extract(
        teacher,
        data,
        out=out,
        keeps=[] if keep is None else [Keep.parse(keep)],
        strategies=[Strategy(2, values=values)],
        methods=[Asks(layers)],
        **({"task": "sst2", "batch_tokens": 256} | options),
    )
    return Path(made.root)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("data")
    write_tsv(folder / "train.tsv", ROWS, seed=1)
    write_tsv(folder / "dev.tsv", 20, seed=2)
    return str(folder)


@pytest.fixture(scope="module")
def extracted(teacher_folder: str, data: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A store of `hidden`, `states` and `cls` in an encoding, in one unit or in many, made when it is first asked for."""

    @cache
    def made(values: Values, *, many_units: bool = False) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            if many_units:
                patch.setattr("hskstore.store.layout.unit_rows", small_units)
            keep = f"2,9,{width_of(values)}"
            return make(teacher_folder, data, tmp_path_factory.mktemp(values), keep=keep, values=values)

    return made


@pytest.fixture
def many_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hskstore.store.layout.unit_rows", small_units)


# --- what is captured

FAMILIES: dict[str, Callable[[], Any]] = {
    **{family: SEEN_FAMILIES[family] for family in ("bert", "roberta", "distilbert", "electra")},
    # Its second layer sees the neighbouring tokens alone.
    "modernbert": lambda: tf.ModernBertForSequenceClassification(
        tf.ModernBertConfig(
            **SIZES,
            pad_token_id=1,
            local_attention=4,
            global_attn_every_n_layers=2,
            cls_token_id=2,
            sep_token_id=3,
            bos_token_id=2,
            eos_token_id=3,
        )
    ),
}
SEEN_LAYERS = (0, 2, 3)


def captured(feature: LayerVectors, seen: Seen, batch: Inputs) -> dict[str, np.ndarray]:
    """What is kept of a batch; neither plan nor rows have a say in it."""
    unasked: Any = None
    return {
        name: found.numpy() for name, found in KINDS[feature.name].capture(feature, unasked, seen, batch, unasked, None).items()
    }


@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-9), (torch.float32, 2e-5)], ids=["float64", "float32"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_captured_is_what_eager_attention_says_of_a_padded_batch_and_of_each_row_alone(
    family: str, dtype: torch.dtype, within: float
) -> None:
    """Relative to the largest number of each row: ModernBERT's eager softmax is in float32 whatever the model is in. There it has
    no number for a padded token of a float64 model that sees padding alone, and then for none, so that rows alone must do."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().to(dtype)
    batch = ids, _, mask = padded_batch()
    lengths = mask.sum(dim=1).tolist()
    sight = KINDS["states"].sight(States(SEEN_LAYERS, WIDTH, "f32")) | KINDS["cls"].sight(Cls(SEEN_LAYERS[1:], WIDTH, "f32"))
    assert sight == Sight(hidden=frozenset(SEEN_LAYERS), first=True)
    assert KINDS["pooled"].sight(Pooled(SEEN_LAYERS, WIDTH, "f32")) == Sight(hidden=frozenset(SEEN_LAYERS))
    model.set_attn_implementation(SEAM)
    with torch.no_grad():
        seen = observe(model, *batch, sight)
        model.set_attn_implementation("eager")
        together = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
        alone = [
            model(input_ids=ids[row : row + 1, :length], output_hidden_states=True).hidden_states
            for row, length in enumerate(lengths)
        ]
    assert seen.hidden.keys() == set(SEEN_LAYERS)
    for layer, found in seen.hidden.items():
        assert found.dtype == dtype
        for row, length in enumerate(lengths):
            own, expected = found[row, :length], alone[row][layer][0]
            assert (own - expected).abs().max() <= within * expected.abs().max()
            if family != "modernbert" or dtype == torch.float32:
                assert (own - together[layer][row, :length]).abs().max() <= within * expected.abs().max()
    states = captured(States(SEEN_LAYERS, WIDTH, "f32"), seen, batch)
    cls = captured(Cls(SEEN_LAYERS[1:], WIDTH, "f32"), seen, batch)
    pooled = captured(Pooled(SEEN_LAYERS, WIDTH, "f32"), seen, batch)
    assert states["finite"].all() and states["values"].dtype == cls["values"].dtype == np.float32
    for place, layer in enumerate(SEEN_LAYERS):
        exactly = seen.hidden[layer].float().numpy()
        for row, length in enumerate(lengths):
            np.testing.assert_array_equal(states["values"][row, place, :length], exactly[row, :length])
            assert not states["values"][row, place, length:].any(), "behind a row's last token: zeros"
            mean = alone[row][layer][0].mean(dim=0)
            np.testing.assert_allclose(
                pooled["values"][row, place], mean, rtol=0, atol=max(within, 1e-6) * float(alone[row][layer].abs().max())
            )
        if place:
            np.testing.assert_array_equal(cls["values"][:, place - 1], exactly[:, 0])


@pytest.mark.parametrize("family", FAMILIES)
def test_queries_keys_and_values_are_those_of_eager_attention(family: str) -> None:
    """Its own maps are softmax(q k' / sqrt(size)) of what is seen in its layers, local ones within their window, its contexts the
    values that they weigh, and what a token attends to most the largest of a map: float64, each row alone and beside others."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval().double()
    batch = ids, _, mask = padded_batch()
    every = frozenset({1, 2, 3})
    sight = KINDS["qkv"].sight(Qkv((1, 2, 3), WIDTH, "f32", heads=HEADS)) | KINDS["attended"].sight(Attended((1, 2, 3), HEADS))
    assert sight == Sight(qkv=every, attended=every, choices=MOST_ATTENDED)
    exact = 1e-9 if family != "modernbert" else 1e-6  # whose eager softmax is in float32 whatever the model is in
    with torch.no_grad():
        model.set_attn_implementation(SEAM)
        seen = observe(model, *batch, sight)
        for row, length in enumerate(mask.sum(dim=1).tolist()):
            model.set_attn_implementation(SEAM)
            alone = observe(model, ids[row : row + 1, :length], ids[:1, :length] * 0, mask[row : row + 1, :length], sight)
            model.set_attn_implementation("eager")
            contexts: list[torch.Tensor] = []
            with noting_contexts(model, contexts):
                maps = model(input_ids=ids[row : row + 1, :length], output_attentions=True).attentions
            for layer, expected in enumerate(maps, 1):
                beside, own = seen.qkv[layer], alone.qkv[layer]
                assert own.query.shape == own.key.shape == own.value.shape == (1, HEADS, length, WIDTH // HEADS)
                for part in ("query", "key", "value"):
                    torch.testing.assert_close(
                        getattr(beside, part)[row : row + 1, :, :length], getattr(own, part), atol=exact, rtol=exact
                    )
                scores = own.query @ own.key.mT / (WIDTH // HEADS) ** 0.5
                if family == "modernbert" and layer == 2:
                    place = torch.arange(length)
                    scores.masked_fill_((place[:, None] - place).abs() > 2, -torch.inf)
                most = expected.topk(min(MOST_ATTENDED, length))
                chosen = torch.nn.functional.pad(
                    most.indices.masked_fill(most.values == 0, -1), (0, MOST_ATTENDED - most.indices.shape[-1]), value=-1
                )
                assert alone.attended[layer].equal(chosen)
                assert seen.attended[layer][row : row + 1, :, :length].equal(chosen)
                torch.testing.assert_close(scores.softmax(dim=-1), expected, atol=exact, rtol=0, check_dtype=False)
                context = (expected.double() @ own.value).transpose(1, 2).flatten(2)
                torch.testing.assert_close(contexts[layer - 1], context, atol=exact, rtol=exact, check_dtype=False)


def test_what_reads_from_left_to_right_attends_to_no_token_that_is_still_to_come() -> None:
    """Of rows without padding SDPA is given no mask."""
    torch.manual_seed(0)
    model = DECODERS["gpt2"]().eval()
    ids, mask = torch.randint(4, 60, (3, 7)), torch.ones(3, 7, dtype=torch.bool)
    model.set_attn_implementation(SEAM)
    with torch.no_grad():
        found = observe(model, ids, ids * 0, mask, Sight(attended=frozenset({1, 2}), choices=MOST_ATTENDED)).attended
        model.set_attn_implementation("eager")
        maps = model(input_ids=ids, output_attentions=True).attentions
    for layer, own in found.items():
        most = maps[layer - 1].topk(MOST_ATTENDED)
        assert own.equal(most.indices.masked_fill(most.values == 0, -1)) and (own[:, :, 0, 1:] == -1).all()
    assert found.keys() == {1, 2}


@contextmanager
def noting_contexts(model: Any, found: list[torch.Tensor]) -> Iterator[None]:
    """What each layer's attention hands to the dense part behind it, which goes by several names."""
    names = (".attention.output.dense", ".attention.out_lin", ".attn.Wo")
    behind = [module for name, module in model.named_modules() if name.endswith(names)]
    hooks = [module.register_forward_pre_hook(lambda _, given: found.append(given[0])) for module in behind]
    assert len(hooks) == 3
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("values", EVERY_ENCODING)
def test_queries_keys_and_values_are_packed_with_their_heads_side_by_side_and_padding_is_zero(values: Values) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.arange(5) < torch.tensor([5, 2, 1])[:, None]
    own = {layer: QueryKeyValue(*torch.randn(3, 3, 2, 5, 4, generator=generator)) for layer in (1, 3)}
    for layer in own.values():
        layer.key[~mask[:, None, :].expand(-1, 2, -1)] = torch.nan
    ids, feature = torch.zeros(3, 5, dtype=torch.int64), Qkv((1, 3), 8, values, heads=2)
    found = captured(feature, Seen(torch.zeros(3, 2), qkv=own), (ids, ids, mask))
    assert found.pop("finite").all(), "padding is nobody's concern"
    planned = feature.arrays(5)
    assert {name: (array.dtype, array.shape[1:]) for name, array in found.items()} == {
        name: (np.dtype(array.dtype), array.shape) for name, array in planned.items()
    }
    assert planned["values"].axes == ("layer", "part", "token", "width")
    decoded = feature.encoding.decode(found, 8)
    for place, layer in enumerate((1, 3)):
        for part, name in enumerate(("query", "key", "value")):
            exact = torch.cat([getattr(own[layer], name)[:, head] for head in range(2)], dim=-1).numpy()
            assert_encoded(decoded[:, place, part][mask], exact[mask], values)
            assert all(not array[:, place, part][~mask].any() for array in found.values())


@pytest.mark.parametrize("heads", [0, 3, 8.0, None, True])
def test_a_plan_whose_heads_do_not_make_up_a_vector_is_none(heads: Any) -> None:
    document = Qkv((1, 2), 32, "q8", heads=4).as_json()
    assert Qkv.of_json(document) == Qkv((1, 2), 32, "q8", heads=4)
    for damage in ({"heads": heads}, {"layers": [0, 1]}):
        with pytest.raises(ValueError, match=r"heads|from 1 on"):
            Qkv.of_json(document | damage)


@pytest.mark.parametrize(
    "damage", [{"heads": 0}, {"heads": 4.0}, {"heads": True}, {"heads": None}, {"heads": 3}, {"layers": [0]}]
)
def test_a_plan_whose_attended_tokens_are_of_no_heads_or_of_the_embeddings_is_none(
    damage: dict[str, Any], extracted: Callable[..., Path]
) -> None:
    plan = open_store(extracted("f16")).plan
    document = plan.as_json()
    assert document["features"]["attended"] == {"layers": [1, 3, 4], "heads": HEADS}
    assert Plan.from_bytes(canonical_json(document), "it").features["attended"] == Attended((1, 3, 4), HEADS)
    document["features"]["attended"] |= damage
    with pytest.raises(StoreError, match="cannot be read as a plan"):
        Plan.from_bytes(canonical_json(document), "it")


def test_a_plan_of_attention_in_heads_that_no_teacher_has_is_none(extracted: Callable[..., Path]) -> None:
    plan = open_store(extracted("f16")).plan
    for heads in ([3], [HEADS, 2]):
        own = {number: Qkv((1,), WIDTH, heads=number) for number in heads[1:]}
        strange = planned_anew(plan, [Attended((1, 4), heads[0]), *own.values()])
        with pytest.raises(StoreError, match="attention is of heads that the teacher cannot have"):
            Plan.from_bytes(strange.to_bytes(), "it")


ORDINARY = st.floats(-60000, 60000, width=32)
STRANGE = st.sampled_from([np.nan, np.inf, -np.inf, 7e4])


@given(st.sampled_from(EVERY_ENCODING), st.integers(1, 9), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_any_vector_comes_back_within_half_a_step_and_padding_is_zero_whatever_stood_there(
    values: Values, width: int, lengths: list[int], data: st.DataObject
) -> None:
    longest = max(lengths)
    mask = np.arange(longest) < np.array(lengths)[:, None]
    state = data.draw(hnp.arrays(np.float32, (len(lengths), longest, width), elements=ORDINARY))
    state[~mask] = data.draw(STRANGE)
    ids = torch.zeros(mask.shape, dtype=torch.int64)
    batch = ids, ids, torch.from_numpy(mask)
    seen = Seen(torch.zeros(len(lengths), 2), {1: torch.from_numpy(state), 3: torch.from_numpy(state[..., ::-1].copy())})
    for feature in (States((1, 3), width, values), Cls((1, 3), width, values), Pooled((1, 3), width, values)):
        found = captured(feature, seen, batch)
        assert found.pop("finite").all(), "padding is nobody's concern"
        planned = feature.arrays(longest)
        assert {name: (array.dtype, array.shape[1:]) for name, array in found.items()} == {
            name: (np.dtype(array.dtype), array.shape) for name, array in planned.items()
        }
        decoded = feature.encoding.decode(found, width)
        for place, expected in enumerate((state, state[..., ::-1])):
            if feature.name == "cls":
                assert_encoded(decoded[:, place], expected[:, 0], values)
            elif feature.name == "pooled":
                exact = mean_of_tokens(torch.from_numpy(expected.copy()), batch[2]).numpy()
                assert_encoded(decoded[:, place], exact, values)
                real = np.array([own[:n].astype(np.float64).mean(axis=0) for own, n in zip(expected, lengths, strict=True)])
                np.testing.assert_allclose(exact, real, rtol=0, atol=1e-6 * max(1, np.abs(expected[mask]).max()))
            else:
                assert_encoded(decoded[:, place][mask], expected[mask], values)
                assert all(not array[:, place][~mask].any() for array in found.values())


def assert_encoded(decoded: np.ndarray, exact: np.ndarray, values: Values) -> None:
    """Vectors as an encoding has them: of floats rounded to the nearest, of integers half a step away at most."""
    largest = ENCODINGS[values].largest
    if largest is None:
        np.testing.assert_array_equal(decoded, exact.astype(ENCODINGS[values].dtype))
        return
    rounded = exact.astype(np.float16).astype(np.float64)
    # A step is the largest magnitude over 127 or 7, rounded to f16 (11 bits), and at least the smallest normal f16.
    step = np.maximum(np.abs(rounded).max(axis=-1, keepdims=True) / largest, 2.0**-14) * (1 + 2.0**-11)
    assert (np.abs(decoded - rounded) <= step * (0.5 + 1e-5)).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, 7e4])
@pytest.mark.parametrize(
    "feature", [States((1, 3), 4, "q8"), Cls((1, 3), 4, "f16"), Pooled((1, 3), 4, "f16")], ids=lambda feature: feature.name
)
def test_a_vector_that_is_no_number_is_told_by_its_row_and_layer(feature: LayerVectors, number: float) -> None:
    """And so is one that f16 has no number for, in an encoding that begins with f16."""
    whole, damaged = torch.ones(3, 2, 4), torch.ones(3, 2, 4)
    damaged[1, 0, 2] = number * 2  # of two tokens the mean is half of it
    ids = torch.zeros(3, 2, dtype=torch.int64)
    found = captured(feature, Seen(torch.zeros(3, 2), {1: whole, 3: damaged}), (ids, ids, torch.ones(3, 2, dtype=torch.bool)))
    assert found["finite"].tolist() == [[True, True], [True, False], [True, True]]


def test_a_teacher_beyond_f16_is_refused_with_the_layer_and_what_helps(data: str, tmp_path: Path) -> None:
    teacher = make_bert()
    with torch.no_grad():
        norm = teacher.bert.encoder.layer[3].output.LayerNorm
        norm.weight[5], norm.bias[5] = 0, 7e4
    folder, layers = save_folder(teacher, tmp_path / "teacher"), {"states": (1, 4)}
    with pytest.raises(ModelError, match=r"train row \d+, layer 4, are not finite: .* --values f32 if its states really exceed"):
        make(folder, data, tmp_path / "stores", layers, values="q8")
    exact = open_store(make(folder, data, tmp_path / "exact", layers, values="f32"))
    assert (decoded(exact, "states")[:, 1, 0, 5] == 7e4).all()


# --- what is stored


INSIDE = 100
"""What is said inside the attention of a layer is numbered from here: its query, key and value."""


@pytest.fixture(scope="module")
def said(extracted: Callable[..., Path], teacher_folder: str, data: str) -> dict[int, np.ndarray]:
    """What the teacher says of every stored row, by layer [row, token, width], and inside: batch after batch, in one thread as in
    a pass."""
    store = open_store(extracted("f32"))
    plan, threads = store.plan, torch.get_num_threads()
    rows = tokenised(data, make_tokenizer(), 64).take(store.read_all("train/row_id"))
    teacher = load_teacher(teacher_folder, device=torch.device("cpu"))
    numbers = [*range(LAYERS + 1), *range(INSIDE + 3, INSIDE + 3 * (LAYERS + 1))]
    found = {number: np.zeros((len(rows), rows.longest, WIDTH), np.float32) for number in numbers}
    sight = Sight(hidden=frozenset(range(LAYERS + 1)), qkv=frozenset(range(1, LAYERS + 1)))
    torch.set_num_threads(1)
    for _, batches in block_batches(rows.n_tokens, plan.pass_.block_rows, plan.pass_.batch_tokens):
        for batch in batches:
            inputs = padded(rows.take(batch), plan.tokenizer["pad_token_id"])
            seen = teacher.forward(*inputs, sight)
            states = dict(seen.hidden)
            for layer, own in seen.qkv.items():
                for part, heads in enumerate((own.query, own.key, own.value)):
                    states[INSIDE + 3 * layer + part] = heads.transpose(1, 2).flatten(2)
            for number, state in states.items():
                found[number][batch, : state.shape[1]] = np.where(inputs[2][..., None], state, 0)
    torch.set_num_threads(threads)
    return found


def tokenised(data: str, tokenizer: Any, max_length: int, *, offsets: bool = False) -> Rows:
    return tokenise(read_dataset(data, task="sst2").splits["train"], tokenizer, max_length, offsets=offsets)


def decoded(store: Store, name: str) -> np.ndarray:
    """All that a store has of a feature [row, layer, ..., width]."""
    arrays = {
        array: store.read_all(f"train/{name}/{array}") for array in ("values", "scale") if store.has(f"train/{name}/{array}")
    }
    found: np.ndarray = store.plan.features[name].encoding.decode(arrays, WIDTH)
    return found


@pytest.mark.parametrize("values", EVERY_ENCODING)
def test_a_store_has_the_teachers_vectors_as_its_encoding_rounds_them(
    values: Values, extracted: Callable[..., Path], said: dict[int, np.ndarray]
) -> None:
    store = open_store(extracted(values))
    assert {name: store.plan.features[name].layers for name in STORED} == STORED and store.plan.hidden is not None
    assert store.plan.features["qkv"].as_json()["heads"] == HEADS
    real = np.arange(store.plan.splits["train"].longest) < store.read_all("train/n_tokens")[:, None]
    states, cls = decoded(store, "states"), decoded(store, "cls")
    assert states.shape == (ROWS, 3, real.shape[1], WIDTH) and cls.shape == (ROWS, 3, WIDTH)
    for place, layer in enumerate(STORED["states"]):
        assert_encoded(states[:, place][real], said[layer][real], values)
        assert not states[:, place][~real].any()
    for place, layer in enumerate(STORED["cls"]):
        assert_encoded(cls[:, place], said[layer][:, 0], values)
    pooled, n_tokens = decoded(store, "pooled"), store.read_all("train/n_tokens")
    assert pooled.shape == (ROWS, 3, WIDTH)
    for place, layer in enumerate(STORED["pooled"]):
        # Padding is zero. A mean may be rounded to another neighbour where it lies between two.
        mean = said[layer].sum(axis=1, dtype=np.float64) / n_tokens[:, None]
        step = {"f32": 1e-6, "f16": 2.0**-10, "q8": 0.6 / 127, "q4": 0.6 / 7}[values]
        assert (np.abs(pooled[:, place] - mean) <= step * np.abs(mean).max(axis=1, keepdims=True)).all()
    inside = decoded(store, "qkv")
    assert inside.shape == (ROWS, 3, 3, real.shape[1], WIDTH)
    for place, layer in enumerate(STORED["qkv"]):
        for part in range(3):
            assert_encoded(inside[:, place, part][real], said[INSIDE + 3 * layer + part][real], values)
            assert not inside[:, place, part][~real].any()
    attended = store.read_all("train/attended/token")
    assert attended.shape == (ROWS, 3, HEADS, real.shape[1], MOST_ATTENDED)
    for place, layer in enumerate(STORED["attended"]):
        query, key = (
            torch.from_numpy(said[INSIDE + 3 * layer + part]).view(ROWS, -1, HEADS, WIDTH // HEADS).transpose(1, 2)
            for part in (0, 1)
        )
        most = (query @ key.mT).masked_fill(~torch.from_numpy(real)[:, None, None], -torch.inf).topk(MOST_ATTENDED)
        chosen = most.indices.masked_fill(most.values == -torch.inf, -1).transpose(1, 2).numpy()
        own = attended[:, place].swapaxes(1, 2)
        np.testing.assert_array_equal(own[real], chosen[real])
        assert not own[~real].any()
    for row in (0, 13, ROWS - 1):
        own = store.row("train", row)
        assert own["states/values"].dtype == own["cls/values"].dtype == np.float32
        np.testing.assert_array_equal(own["states/values"], states[row].astype(np.float32))
        np.testing.assert_array_equal(own["cls/values"], cls[row].astype(np.float32))


@pytest.mark.parametrize("values", EVERY_ENCODING)
def test_no_fill_value_stands_for_data_and_a_scale_of_padding_is_zero(values: Values, extracted: Callable[..., Path]) -> None:
    store = open_store(extracted(values))
    assert store.has("train/states/scale") == store.has("train/cls/scale") == (values in ("q8", "q4"))
    for path in (path for path in store.plan.arrays if path.split("/")[1] in STORED):
        array, fill = store.read_all(path), store.plan.arrays[path].fill
        assert not (np.isnan(array) if fill == "NaN" else array == fill).any(), path
    if store.has("train/states/scale"):
        scale = store.read_all("train/states/scale")
        real = np.arange(scale.shape[2]) < store.read_all("train/n_tokens")[:, None]
        assert (scale.swapaxes(1, 2)[real] > 0).all() and not scale.swapaxes(1, 2)[~real].any()
        assert (store.read_all("train/cls/scale") > 0).all()
        scale = store.read_all("train/qkv/scale").transpose(0, 3, 1, 2)
        assert (scale[real] > 0).all() and not scale[~real].any()


# --- cut, damaged, made again

CUTS: list[tuple[str | None, dict[str, tuple[int, ...]]]] = [
    ("1,4", {"states": (0, 4), "cls": (2,), "qkv": (4,), "attended": (1, 4), "pooled": (3,)}),
    (None, {"states": (2,)}),
    (None, {"cls": (1, 4)}),
    (None, {"qkv": (1, 4)}),
    (None, {"pooled": (0, 4)}),
]


@pytest.mark.parametrize(("keep", "layers"), CUTS, ids=["of all", "states", "cls", "qkv", "pooled"])
@pytest.mark.parametrize("values", ["f16", "q8", "q4", "rq4"])
def test_a_cut_is_what_the_teacher_would_have_written(
    values: Values,
    keep: str | None,
    layers: dict[str, tuple[int, ...]],
    extracted: Callable[..., Path],
    teacher_folder: str,
    data: str,
    tmp_path: Path,
    many_units: None,
) -> None:
    keep = keep and f"{keep},{width_of(values)}"
    wide = extracted(values, many_units=True)
    direct = make(teacher_folder, data, tmp_path / "direct", layers, keep=keep, values=values)
    made = derive(wide, tmp_path / "cut", keep=None if keep is None else Keep.parse(keep), layers=layers)
    assert made.digest == open_store(direct).digest and sealed_tree(tmp_path / "cut") == sealed_tree(direct)
    assert open_store(wide).plan.splits["train"].unit_rows == UNIT
    assert not verify(str(tmp_path / "cut"), deep=True).problems


@pytest.mark.parametrize(
    ("layers", "what"),
    [
        ({"states": (1, 2, 3)}, "states of teacher layers 1, 3"),
        ({"states": (2,), "cls": (0, 1)}, "cls of teacher layers 0"),
        ({"cls": (9,)}, "cls of teacher layers 9"),
        ({"qkv": (1, 2)}, "qkv of teacher layers 2"),
        ({"attended": (1, 2)}, "attended of teacher layers 2"),
        ({"pooled": (0, 1)}, "pooled of teacher layers 1"),
    ],
)
def test_layers_that_a_store_lacks_are_refused_in_one_line(
    layers: dict[str, tuple[int, ...]], what: str, extracted: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(OptionError) as refused:
        derive(extracted("f16"), tmp_path / "cut", layers=layers)
    assert str(refused.value) == f"{extracted('f16')} holds no {what}: they cannot be cut from it"
    assert not (tmp_path / "cut").exists()


def test_a_feature_that_is_not_there_or_that_nobody_knows_is_refused(extracted: Callable[..., Path], tmp_path: Path) -> None:
    derive(extracted("f16"), tmp_path / "cls", layers={"cls": (1,)})
    with pytest.raises(OptionError, match="holds no states of teacher layers 2: they cannot be cut from it"):
        derive(tmp_path / "cls", tmp_path / "cut", layers={"states": (2,)})
    with pytest.raises(OptionError, match="state is no feature whose layers can be chosen: choose from states, cls"):
        derive(extracted("f16"), tmp_path / "cut", layers={"state": (2,)})
    assert not (tmp_path / "cut").exists()


@dataclass
class Fetched:
    """What is read from stores: whole objects, and the bytes of parts of others."""

    whole: set[str]
    parts: dict[str, int]


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> Fetched:
    get, ranges, noted = Objects.get, Objects.ranges, Fetched(set(), {})

    def noting_get(self: Objects, key: str) -> bytes | None:
        noted.whole.add(f"{self.root}/{key}")
        return get(self, key)

    def noting_ranges(self: Objects, key: str, wanted: Sequence[range]) -> list[bytes]:
        found = ranges(self, key, wanted)
        noted.parts[key] = noted.parts.get(key, 0) + sum(map(len, found))
        return found

    monkeypatch.setattr(Objects, "get", noting_get)
    monkeypatch.setattr(Objects, "ranges", noting_ranges)
    return noted


def bytes_of_layers(root: Path, layers: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Of the chunks of some stored layers and the indexes that say where they lie, by shard."""
    store, found = open_store(root), dict[str, int]()
    for path, spec in store.plan.arrays.items():
        feature = path.split("/")[1]
        for unit in range(store.plan.splits["train"].units) if feature in layers else ():
            chunks = ranges_of(spec, unit, (root / spec.key(path, unit)).read_bytes())
            places = [store.plan.features[feature].layers.index(layer) for layer in layers[feature]]
            found[spec.key(path, unit)] = index_bytes(spec) + sum(len(chunk) for place in places for chunk in chunks[place])
    return found


@pytest.mark.parametrize("values", ["f16", "q8"])
@pytest.mark.parametrize(
    "layers",
    [{"states": (2,), "cls": (1, 4)}, {"cls": (2,)}, {"qkv": (3,)}, {"attended": (3,)}, {"pooled": (3,)}],
    ids=["both", "cls", "qkv", "attended", "pooled"],
)
def test_of_layers_and_features_that_are_not_wanted_no_byte_is_fetched(
    layers: dict[str, tuple[int, ...]], values: Values, extracted: Callable[..., Path], tmp_path: Path, fetched: Fetched
) -> None:
    wide = extracted(values, many_units=True)
    fetched.whole.clear()  # an extraction ends with some rows read back
    fetched.parts.clear()
    derive(wide, tmp_path / "cut", layers=layers)
    assert fetched.parts == bytes_of_layers(wide, layers)
    arrays = [array for name in layers for array in open_store(wide).plan.features[name].arrays(1)]
    assert len(fetched.parts) == 3 * len(arrays), "three units of values, and of scales"
    assert not {f"{wide}/{path}/c/" for path in open_store(wide).plan.arrays if path.split("/")[1] in (*STORED, "hidden")} & {
        key[: key.index("/c/") + 3] for key in fetched.whole if "/c/" in key
    }


@pytest.mark.parametrize(
    "path", ["states/values", "cls/values", "states/scale", "qkv/values", "qkv/scale", "attended/token", "pooled/values"]
)
def test_a_flipped_byte_is_found_with_its_unit_and_just_that_unit_is_made_again(
    path: str,
    extracted: Callable[..., Path],
    teacher_folder: str,
    data: str,
    tmp_path: Path,
    many_units: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = Path(shutil.copytree(extracted("q8", many_units=True), tmp_path / "it"))
    before, digest = sealed_tree(own), open_store(own).digest
    flip(open_store(own), f"train/{path}", unit=1, layer=2)
    (problem,) = verify(str(own), deep=True, condemn=True).problems
    assert problem.key.startswith(f"train/{path}/c/1/") and (problem.split, problem.unit) == ("train", 1)
    made: list[str] = []
    commit = UnitWorker._commit

    def noting(self: UnitWorker, index: int, split: str, unit: int, *rest: Any) -> None:
        made.append(f"{split}-{unit}")
        commit(self, index, split, unit, *rest)

    monkeypatch.setattr(UnitWorker, "_commit", noting)
    make(teacher_folder, data, tmp_path, keep="2,9,0.5", values="q8")
    assert made == ["train-1"] and open_store(own).digest == digest and sealed_tree(own) == before


# --- replayed


@pytest.mark.parametrize("values", EVERY_ENCODING)
def test_on_the_machine_that_made_a_store_every_row_is_equal_to_the_last_bit(
    values: Values, extracted: Callable[..., Path], teacher_folder: str
) -> None:
    found = replay(str(extracted(values)), teacher_folder, rows=EVERYTHING)
    assert (found.rows, found.equal, found.differing) == (ROWS, ROWS, ())
    assert found.differences == {"logits": 0.0, "hidden": 0.0, "states": 0.0, "cls": 0.0, "qkv": 0.0, "pooled": 0.0}
    assert found.tolerances.keys() == found.differences.keys() and found.same_tokens == 1


ALTERED = [3, 77, 149]


def alter_states(columns: dict[str, np.ndarray]) -> None:
    columns["train/states/values"][ALTERED, 1, 2] *= np.float16(1.1)


def alter_cls(columns: dict[str, np.ndarray]) -> None:
    columns["train/cls/values"][ALTERED, 2] *= np.float16(1.1)


def alter_pooled(columns: dict[str, np.ndarray]) -> None:
    columns["train/pooled/values"][ALTERED, 1] *= np.float16(1.1)


def alter_keys(columns: dict[str, np.ndarray]) -> None:
    columns["train/qkv/values"][ALTERED, 2, 1, 1] *= np.float16(1.2)


def no_number_among_states(columns: dict[str, np.ndarray]) -> None:
    columns["train/states/values"][ALTERED, 0, 1, 5] = np.nan


def other_layers(columns: dict[str, np.ndarray]) -> None:
    columns["train/states/values"][ALTERED] = columns["train/states/values"][ALTERED, ::-1]


@pytest.mark.parametrize(
    ("change", "of"),
    [
        (alter_states, "states"),
        (alter_cls, "cls"),
        (alter_keys, "qkv"),
        (alter_pooled, "pooled"),
        (no_number_among_states, "states"),
        (other_layers, "states"),
    ],
)
def test_rows_that_were_altered_are_named_however_well_the_store_is_sealed(
    change: Callable[[dict[str, np.ndarray]], None], of: str, extracted: Callable[..., Path], teacher_folder: str, tmp_path: Path
) -> None:
    own = Path(shutil.copytree(extracted("f16"), tmp_path / "own"))
    reseal(own, change)
    found = replay(str(own), teacher_folder, rows=EVERYTHING)
    assert sorted(found.differing) == ALTERED and found.equal == ROWS - len(ALTERED)
    assert not found.differences.pop(of) <= found.tolerances[of] and set(found.differences.values()) == {0.0}


@pytest.mark.parametrize(("layers", "differing", "same"), [((0,), [], 2 / 3), ((0, 2), ALTERED, 1 / 3)])
def test_attended_tokens_that_were_altered_are_counted_and_rows_of_which_most_were_are_named(
    layers: tuple[int, ...],
    differing: list[int],
    same: float,
    extracted: Callable[..., Path],
    teacher_folder: str,
    tmp_path: Path,
) -> None:
    """Of three layers; in whatever order they are stored; padding counts nowhere."""
    own = Path(shutil.copytree(extracted("f16"), tmp_path / "own"))

    def forget(columns: dict[str, np.ndarray]) -> None:
        columns["train/attended/token"] = columns["train/attended/token"][..., ::-1].copy()
        for layer in layers:
            columns["train/attended/token"][ALTERED, layer] = -1

    reseal(own, forget)
    found = replay(str(own), teacher_folder, rows=EVERYTHING)
    assert sorted(found.differing) == differing and set(found.differences.values()) == {0.0}
    assert found.same_tokens == pytest.approx(1 - len(ALTERED) / ROWS * (1 - same), abs=1e-6)


def test_a_scale_that_was_altered_is_found(extracted: Callable[..., Path], teacher_folder: str, tmp_path: Path) -> None:
    own = Path(shutil.copytree(extracted("q8"), tmp_path / "own"))

    def double(columns: dict[str, np.ndarray]) -> None:
        columns["train/states/scale"][ALTERED, 1, 1] *= 2

    reseal(own, double)
    found = replay(str(own), teacher_folder, rows=EVERYTHING)
    assert sorted(found.differing) == ALTERED and found.differences["states"] > found.tolerances["states"]


# --- engines


@pytest.mark.long
def test_processes_make_the_store_that_one_would(teacher_folder: str, data_folder: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"keep": "1,4,0.25", "device": "cpu"}
    alone = make(teacher_folder, data_folder, tmp_path / "alone", **options)
    together = make(teacher_folder, data_folder, tmp_path / "together", engine="procs", workers=2, **options)
    assert open_store(together).plan.features.keys() == {"hidden", *STORED}
    assert open_store(together).digest == open_store(alone).digest and sealed_tree(together) == sealed_tree(alone)


# --- read


@pytest.mark.parametrize("values", EVERY_ENCODING)
def test_of_a_store_the_wanted_layers_alone_are_read_and_stay_encoded(
    values: Values, extracted: Callable[..., Path], fetched: Fetched
) -> None:
    wide = extracted(values, many_units=True)
    rows = rows_from_store(open_store(wide), "train", places={"states": (2,), "cls": (0, 2)})
    assert rows.features.keys() == {"states", "cls"}
    for name, layers in (("states", 1), ("cls", 2)):
        for array in rows.features[name].arrays.values():
            assert array.shape[:2] == (ROWS, layers)
        assert rows.features[name].arrays["values"].dtype == ENCODINGS[values].dtype
    assert fetched.parts == bytes_of_layers(wide, {"states": (4,), "cls": (1, 4)})


@pytest.fixture(scope="module")
def in_memory(extracted: Callable[..., Path]) -> Callable[[Values], tuple[Store, TrainingRows]]:
    """All that a store has of its features, as a training run holds it."""

    @cache
    def read(values: Values) -> tuple[Store, TrainingRows]:
        store = open_store(extracted(values))
        return store, rows_from_store(store, "train", places=dict.fromkeys(STORED, (0, 1, 2)))

    return read


some_layers = st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True)


@pytest.mark.parametrize("values", EVERY_ENCODING)
@given(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=9), some_layers, some_layers, some_layers)
def test_a_batch_has_of_each_want_its_own_layers_in_the_order_of_its_pairs(
    values: Values,
    in_memory: Callable[[Values], tuple[Store, TrainingRows]],
    chosen: list[int],
    one: list[int],
    other: list[int],
    cls: list[int],
) -> None:
    store, rows = in_memory(values)
    indexes = np.array(chosen)
    wants = [want("states", *(STORED["states"][place] for place in places)) for places in (one, other)]
    of_cls = want("cls", *(STORED["cls"][place] for place in cls))
    inside = want("qkv", *(STORED["qkv"][place] for place in cls))
    means = want("pooled", *(STORED["pooled"][place] for place in cls))
    looked_at = want("attended", *(STORED["attended"][place] for place in cls))
    batch = rows.batch(indexes, [*wants, of_cls, inside, means, looked_at])
    lengths = rows.n_tokens[indexes]
    for each, places in zip(wants, (one, other), strict=True):
        targets = batch[each]
        assert targets.values.dtype == (torch.float16 if values == "f16" else torch.float32)
        np.testing.assert_array_equal(
            targets.values.numpy(), decoded_once(store, "states")[indexes][:, places, : lengths.max()].swapaxes(0, 1)
        )
        assert targets.is_real.equal(batch.attention_mask) and targets.position is None
        emptied = targets.emptied()
        assert emptied.values.shape == (len(places), 0, *targets.values.shape[2:]) and len(emptied.is_real) == 0
    for each in (of_cls, means):
        expected = decoded_once(store, each.kind.name)[indexes][:, cls].swapaxes(0, 1)
        np.testing.assert_array_equal(batch[each].values.numpy(), expected)
        assert batch[each].values.dtype == (torch.float16 if values == "f16" else torch.float32)
        assert batch[each].emptied().values.shape == (len(cls), 0, WIDTH)
    attended = store.read_all("train/attended/token")[indexes][:, cls, :, : lengths.max()].swapaxes(0, 1)
    np.testing.assert_array_equal(batch[looked_at].token.numpy(), attended)
    assert batch[looked_at].emptied().token.shape == (len(cls), 0, *attended.shape[2:])
    heads = batch[inside]
    for part, found in enumerate((heads.query, heads.key, heads.value)):
        assert found.dtype == batch[of_cls].values.dtype and found.is_contiguous()
        np.testing.assert_array_equal(
            found.transpose(2, 3).flatten(3).numpy(),
            decoded_once(store, "qkv")[indexes][:, cls, part, : lengths.max()].swapaxes(0, 1),
        )
    assert heads.is_real.equal(batch.attention_mask) and heads.query.shape[2] == HEADS
    assert [len(each) for each in vars(heads.emptied()).values()] == [len(cls)] * 3 + [0] and heads.emptied().key.shape[1] == 0


@cache
def decoded_once(store: Store, name: str) -> np.ndarray:
    return decoded(store, name)


@pytest.mark.parametrize("values", ["f16", "q4", "rq4"])
def test_windows_of_a_store_know_what_all_of_it_in_memory_knows(values: Values, extracted: Callable[..., Path]) -> None:
    store = open_store(extracted(values, many_units=True))
    reading: dict[str, Any] = {"places": {"states": (0, 2), "cls": (1,), "qkv": (0, 2), "attended": (0, 2), "pooled": (1,)}}
    wants = [want("states", 4), want("cls", 2), want("states", 4, 0), want("qkv", 4), want("qkv", 4, 1)]
    wants += [want("attended", 4, 1), want("pooled", 3)]
    ram = InMemory(rows_from_store(store, "train", **reading))
    (whole,) = ram.windows(np.random.default_rng(0), 4)
    every, source = ram.read(whole), InWindows(store, "train", reading)
    windows = source.windows(np.random.default_rng(0), 4)
    assert sorted(unit for window in windows for unit in window.units) == [0, 1, 2]
    for window in windows:
        numbers = np.concatenate([np.arange(ROWS)[UNIT * unit : UNIT * (unit + 1)] for unit in window.units])
        found = source.read(window)
        order = np.random.default_rng(1).permutation(len(numbers))
        for batch in np.array_split(order, 4):
            ours, theirs = found.batch(batch, wants), every.batch(numbers[batch], wants)
            for each in wants:
                assert vars(ours[each]).keys() == vars(theirs[each]).keys()
                for name, tensor in vars(theirs[each]).items():
                    assert tensor is None or tensor.equal(vars(ours[each])[name])


# --- another tokenizer


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sentences of which some words are nobody's, or are cut otherwise by another tokenizer."""
    folder = tmp_path_factory.mktemp("texts")
    scraps = cycle(SCRAPS)
    lines = [f"{next(scraps)} {text} {next(scraps)}\t{row % 2}" for row, text in enumerate(sentences(61, seed=3))]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return str(folder)


@pytest.fixture(scope="module")
def with_text(teacher_folder: str, texts: str, tmp_path_factory: pytest.TempPathFactory) -> Store:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hskstore.store.layout.unit_rows", lambda *_: 32)
        return open_store(make(teacher_folder, texts, tmp_path_factory.mktemp("with-text"), keep_offsets=True))


@pytest.mark.parametrize("max_length", [64, 6])
def test_where_each_token_of_the_teachers_stands_in_the_students_row_is_what_align_says(
    max_length: int, with_text: Store, texts: str
) -> None:
    words, order = byte_level(trim=True), with_text.read_all("train/row_id")
    teacher, student = (
        tokenised(texts, tokenizer, length, offsets=True).take(order)
        for tokenizer, length in ((make_tokenizer(), 64), (words, max_length))
    )
    places = {"states": (0, 2), "cls": (0, 1, 2)}
    rows = rows_from_store(with_text, "train", places=places, tokenizer=words, max_length=max_length)
    stored = rows_from_store(with_text, "train", places=places)
    aligned = np.full((len(teacher), teacher.longest), -1)
    aligned[np.arange(teacher.longest) < teacher.n_tokens[:, None]] = align(teacher, student)
    states, cls = want("states", 4, 0), want("cls", *STORED["cls"])
    chosen = np.random.default_rng(0).permutation(len(rows))[:20]
    batch, before = rows.batch(chosen, [states, cls]), stored.batch(chosen, [states, cls])
    targets = batch[states]
    tokens = targets.is_real.shape[1]
    assert (aligned[chosen, tokens:] == -1).all(), "what is cut off is nobody's"
    np.testing.assert_array_equal(targets.is_real.numpy(), aligned[chosen, :tokens] >= 0)
    np.testing.assert_array_equal(targets.position.numpy(), np.maximum(aligned[chosen, :tokens], 0))
    assert (targets.position != torch.arange(tokens))[targets.is_real].any(), "some of them elsewhere than the teacher's"
    assert 0.3 * rows.n_tokens[chosen].sum() < targets.is_real.sum() < rows.n_tokens[chosen].sum()
    common = min(tokens, before[states].values.shape[2])
    assert targets.values[:, :, :common].equal(before[states].values[:, :, :common]), "the teacher's, where they always stand"
    places_of_student = torch.arange(batch.input_ids.shape[1]).expand_as(batch.input_ids)[..., None].float()
    assert targets.at_tokens(places_of_student)[..., 0].equal(targets.position.float())
    assert batch[cls].values.equal(before[cls].values), "[CLS] is there whatever the words"


def test_a_student_with_the_teachers_own_tokenizer_has_each_token_where_it_stands(with_text: Store) -> None:
    """Read as it is there is nothing to look up; read from the text each token is found at its own place."""
    places, every = {"states": (2,)}, np.arange(61)
    last = want("states", 4)
    stored = rows_from_store(with_text, "train", places=places).batch(every, [last])[last]
    anew = rows_from_store(with_text, "train", places=places, tokenizer=make_tokenizer()).batch(every, [last])[last]
    assert stored.position is None
    state = torch.randn(61, stored.is_real.shape[1], 5)
    assert stored.at_tokens(state) is state
    # Separators have no characters, and align with nothing but themselves at the beginning of a row.
    separators = stored.is_real.sum() - anew.is_real.sum()
    assert separators == 61 and anew.is_real[:, 0].all()
    tokens = anew.is_real.shape[1]
    assert anew.position[anew.is_real].equal(torch.arange(tokens).expand_as(anew.position)[anew.is_real])


# --- forecast


def cost(teacher: str, data: str, values: Values, **options: Any) -> Forecast:
    strategies = [Strategy(2, values=values)]
    return forecast(teacher, data, strategies=strategies, methods=[Asks(STORED)], task="sst2", device="cpu", **options)


@pytest.mark.parametrize("values", ["f16", "q8", "q4"])
def test_bytes_of_each_array_are_within_a_tenth_of_what_is_then_written(
    values: Values, teacher_folder: str, data_folder: str, tmp_path: Path
) -> None:
    (told,) = cost(teacher_folder, data_folder, values, seconds=60).stores
    root = make(teacher_folder, data_folder, tmp_path, values=values, batch_tokens=4096)
    sizes, store = real_sizes(str(root)), open_store(root)
    assert told.name == "it" and told.teacher_layers == {name: list(layers) for name, layers in STORED.items()}
    assert (told.keep, told.student_layers, told.units_of_hsk, told.kept_units) == (None, None, None, None)
    assert told.arrays.keys() == store.plan.arrays.keys()
    for path, array in told.arrays.items():
        assert array.decoded == store.read_all(path).nbytes, path
        if path.split("/")[1] in STORED:
            assert array.measured and array.on_disk == pytest.approx(sizes[path], rel=0.1), path
    assert told.bytes == pytest.approx(sizes[""], rel=0.1)


def test_with_a_rate_the_teacher_never_runs_and_decoded_bytes_are_exact(
    teacher_folder: str, data_folder: str, extracted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = cost(teacher_folder, data_folder, "q8", seconds=1).stores[0].arrays
    store = open_store(extracted("q8"))  # before the teacher must not run
    monkeypatch.setattr(Teacher, "forward", lambda *_, **__: pytest.fail("the teacher ran"))
    told = cost(teacher_folder, data_folder, "q8", rate=19)
    assert told.time.seconds == 760 / 19 and told.trial is None
    ruled = told.stores[0].arrays
    assert {path: array.decoded for path, array in ruled.items()} == {path: array.decoded for path, array in measured.items()}
    for name in STORED:
        for array in store.plan.features[name].arrays(1):
            assert not ruled[f"train/{name}/{array}"].measured and ruled[f"train/{name}/{array}"].on_disk > 0
