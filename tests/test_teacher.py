"""What is captured through the attention seam is what eager attention says, for every family, padding or not."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from hskstore.errors import ModelError
from hskstore.models.observe import SEAM, Sight, heads_of, observe, showing
from hskstore.models.pruned_bert import PrunedBertConfig, PrunedBertForSequenceClassification
from hskstore.stage_one.teacher import Teacher, load_teacher
from tests.conftest import make_bert, make_tokenizer, save_folder

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
FAMILIES: dict[str, Any] = {
    "bert": lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES)),
    "roberta": lambda: tf.RobertaForSequenceClassification(tf.RobertaConfig(**SIZES, pad_token_id=1)),
    "electra": lambda: tf.ElectraForSequenceClassification(tf.ElectraConfig(**SIZES, embedding_size=16)),
    "distilbert": lambda: tf.DistilBertForSequenceClassification(
        tf.DistilBertConfig(vocab_size=60, dim=32, n_heads=4, hidden_dim=64, n_layers=3, max_position_embeddings=40, num_labels=3)
    ),
    "mpnet": lambda: tf.MPNetForSequenceClassification(tf.MPNetConfig(**SIZES)),
    "deberta": lambda: tf.DebertaForSequenceClassification(
        tf.DebertaConfig(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
    "deberta-v2": lambda: tf.DebertaV2ForSequenceClassification(
        tf.DebertaV2Config(**SIZES, relative_attention=True, pos_att_type=["p2c", "c2p"])
    ),
}
EAGER_FAMILIES = {"mpnet", "deberta", "deberta-v2"}
OF_SHARED_KEYS: dict[str, Any] = {
    "eurobert": lambda: tf.EuroBertForSequenceClassification(tf.EuroBertConfig(**SIZES, num_key_value_heads=2, pad_token_id=1))
}
Make = Callable[[], Any]


def padded_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 60, (4, 12), generator=generator)
    mask = torch.arange(12) < torch.tensor([12, 7, 3, 12])[:, None]
    return ids.masked_fill(~mask, 1), torch.zeros_like(ids), mask


@pytest.mark.parametrize("family", [*FAMILIES, *OF_SHARED_KEYS])
def test_hidden_states_and_cls_rows_equal_eager_attention_on_padded_batches(family: str) -> None:
    torch.manual_seed(0)
    model = (FAMILIES | OF_SHARED_KEYS)[family]().eval()
    ids, types, mask = padded_batch()
    inputs = {"input_ids": ids, "attention_mask": mask.long()}
    if family not in EAGER_FAMILIES:
        model.set_attn_implementation("eager")
    with torch.no_grad():
        eager = model(**inputs, output_hidden_states=True, output_attentions=True)
    teacher = Teacher(model, None, name=family, device=torch.device("cpu"))
    teacher.probe(ids, types, mask)
    assert teacher.eager == (family in EAGER_FAMILIES)
    features = teacher.forward(ids, types, mask, Sight(frozenset(range(4)), frozenset({1, 3})))
    assert len(features.hidden) == 4
    for ours, theirs in zip(features.hidden.values(), eager.hidden_states, strict=True):
        torch.testing.assert_close(ours[mask], theirs[mask], atol=1e-5, rtol=1e-5)
    for layer in (1, 3):
        torch.testing.assert_close(
            features.cls_row[layer], eager.attentions[layer - 1][:, :, 0].mean(dim=1), atol=1e-6, rtol=1e-5
        )
    torch.testing.assert_close(features.logits, eager.logits, atol=1e-5, rtol=1e-5)


def test_padding_gets_no_attention() -> None:
    teacher = Teacher(FAMILIES["bert"](), None, name="bert", device=torch.device("cpu"))
    ids, types, mask = padded_batch()
    score = teacher.forward(ids, types, mask, Sight(cls_row=frozenset({2}))).cls_row[2]
    assert (score[~mask] == 0).all()
    torch.testing.assert_close(score.sum(dim=1), torch.ones(4))


def test_raw_scores_are_finite_on_real_tokens_and_minus_infinity_on_padding() -> None:
    model = FAMILIES["bert"]()
    teacher = Teacher(model, None, name="bert", device=torch.device("cpu"))
    ids, types, mask = padded_batch()
    raw = teacher.forward(ids, types, mask, Sight(raw_cls_row=frozenset({1}))).raw_cls_row[1]
    assert torch.isinf(raw[~mask]).all() and torch.isfinite(raw[mask]).all()


def test_a_family_that_runs_eager_refuses_raw_scores_by_name() -> None:
    teacher = Teacher(FAMILIES["mpnet"](), None, name="some-mpnet", device=torch.device("cpu"))
    ids, types, mask = padded_batch()
    teacher.probe(ids, types, mask)
    with pytest.raises(ModelError, match="some-mpnet: --score raw"):
        teacher.forward(ids, types, mask, Sight(raw_cls_row=frozenset({1})))


def test_the_probe_refuses_a_model_whose_sdpa_differs_from_eager() -> None:
    model = FAMILIES["bert"]()

    class Lying(Teacher):
        def forward(self, *batch: Any, **options: Any) -> Any:
            features = super().forward(*batch, **options)
            if not self.eager:
                features.hidden[1].add_(1)
            return features

    with pytest.raises(ModelError, match="differ"):
        Lying(model, None, name="liar", device=torch.device("cpu")).probe(*padded_batch())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["layer 0", "layer 2", "the last layer", "logits"])
@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_the_probe_refuses_numbers_that_are_not_finite_wherever_they_stand(family: str, place: str, number: float) -> None:
    class Damaged(Teacher):
        def forward(self, *batch: Any, **options: Any) -> Any:
            features = super().forward(*batch, **options)
            if not features.hidden:  # of the pass in the teacher's own precision
                return features
            numbers = {"layer 0": features.hidden[0], "layer 2": features.hidden[2], "the last layer": features.hidden[3]}
            numbers.get(place, features.logits)[0, -1] = number
            return features

    teacher = Damaged(FAMILIES[family](), None, name="it", device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"^it: its hidden states, attention or logits are not finite on a batch of the data"):
        teacher.probe(*padded_batch())


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_the_probe_refuses_damaged_weights(family: str) -> None:
    model = FAMILIES[family]()
    with torch.no_grad():
        model.base_model.encoder.layer[1].output.dense.weight[3, 5] = float("nan")
    with pytest.raises(ModelError, match="not finite"):
        Teacher(model, None, name="it", device=torch.device("cpu")).probe(*padded_batch())


def test_the_probe_refuses_a_family_that_does_not_run_in_the_precision_asked_for() -> None:
    torch.manual_seed(0)
    teacher = Teacher(FAMILIES["deberta"](), None, name="it", device=torch.device("cpu"), precision="bf16")
    with pytest.raises(ModelError, match=r"^it cannot run in bf16 .*: choose --precision fp32$"):
        teacher.probe(*padded_batch(), ranks=False)


def test_the_probe_leaves_precision_and_attention_as_they_were() -> None:
    teacher = Teacher(FAMILIES["bert"](), None, name="bert", device=torch.device("cpu"), precision="bf16")
    teacher.probe(*padded_batch())
    assert teacher.precision == "bf16" and not teacher.eager


def test_the_hash_is_of_the_weights_alone(tmp_path: Path) -> None:
    model = make_bert()
    one = load_teacher(save_folder(model, tmp_path / "one"), device=torch.device("cpu"))
    two = load_teacher(save_folder(model, tmp_path / "elsewhere"), device=torch.device("cpu"))
    other = load_teacher(save_folder(make_bert(seed=5), tmp_path / "other"), device=torch.device("cpu"))
    assert one.sha256 == two.sha256 != other.sha256


def test_a_model_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    make_bert().bert.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no trained classification head"):
        load_teacher(str(tmp_path), device=torch.device("cpu"))


def test_a_folder_that_is_no_model_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as raised:
        load_teacher(str(tmp_path), device=torch.device("cpu"))
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)


# --- families that are no BERT


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in SIZES.items() if name not in names}


def gpt2(pad: int | None = 1) -> Any:
    sizes = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40}
    ends = {"pad_token_id": pad, "bos_token_id": None, "eos_token_id": None}
    return tf.GPT2ForSequenceClassification(tf.GPT2Config(vocab_size=60, num_labels=3, **sizes, **ends))


DECODERS: dict[str, Make] = {
    "gpt2": gpt2,
    "llama, whose heads share keys": lambda: tf.LlamaForSequenceClassification(
        tf.LlamaConfig(**SIZES, num_key_value_heads=2, pad_token_id=1)
    ),
    "gemma3_text, with local layers": lambda: tf.Gemma3TextForSequenceClassification(
        tf.Gemma3TextConfig(**SIZES, num_key_value_heads=2, head_dim=8, sliding_window=4, pad_token_id=1)
    ),
    "bloom, which runs eager": lambda: tf.BloomForSequenceClassification(
        tf.BloomConfig(vocab_size=60, hidden_size=32, n_layer=3, n_head=4, num_labels=3, pad_token_id=1)
    ),
    "gpt_oss, whose heads attend to sinks too": lambda: tf.GptOssForSequenceClassification(
        tf.GptOssConfig(
            **SIZES,
            num_key_value_heads=2,
            head_dim=8,
            num_local_experts=2,
            num_experts_per_tok=1,
            sliding_window=4,
            pad_token_id=1,
        )
    ),
    "bert, as a decoder": lambda: tf.BertForSequenceClassification(tf.BertConfig(**SIZES, is_decoder=True)),
}
NO_SQUARE: dict[str, Make] = {
    "longformer": lambda: tf.LongformerForSequenceClassification(tf.LongformerConfig(**SIZES, attention_window=4)),
    # Its window, [CLS] and the token itself are as many as the batch has tokens.
    "longformer, square by chance": lambda: tf.LongformerForSequenceClassification(
        tf.LongformerConfig(**SIZES, attention_window=10)
    ),
    "big_bird": lambda: tf.BigBirdForSequenceClassification(tf.BigBirdConfig(**SIZES, block_size=2, num_random_blocks=1)),
    "yoso": lambda: tf.YosoForSequenceClassification(tf.YosoConfig(**SIZES)),
    "fnet": lambda: tf.FNetForSequenceClassification(tf.FNetConfig(**without("num_attention_heads"))),
}
NO_STATE_PER_TOKEN: dict[str, Make] = {
    "funnel": lambda: tf.FunnelForSequenceClassification(
        tf.FunnelConfig(vocab_size=60, block_sizes=[1, 1], num_decoder_layers=1, d_model=32, n_head=4, d_head=8, d_inner=64)
    ),
    "canine": lambda: tf.CanineForSequenceClassification(
        tf.CanineConfig(**without("vocab_size"), num_hash_buckets=32, local_transformer_stride=4, downsampling_rate=2)
    ),
}


def probed(make: Make, **options: Any) -> Teacher:
    """Raises ModelError as the probe does."""
    torch.manual_seed(0)
    teacher = Teacher(make(), None, name="it", device=torch.device("cpu"))
    teacher.probe(*padded_batch(), **options)
    return teacher


@pytest.mark.parametrize("asked", [{"ranks": True}, {"ranks": False, "first": True}], ids=["ranks", "cls"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_first_token_that_sees_itself_alone_is_not_asked_about_the_row(family: str, asked: dict[str, bool]) -> None:
    with pytest.raises(ModelError, match=r"^it: the first token of a row sees itself alone .* --rank left or random, or --for"):
        probed(DECODERS[family], **asked)


@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_teaches_by_its_states_and_logits(family: str) -> None:
    teacher = probed(DECODERS[family], ranks=False)
    ids, types, mask = padded_batch()
    seen = teacher.forward(ids, types, mask, Sight(frozenset({0, 3})))
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        with torch.no_grad():
            alone = teacher.model(input_ids=ids[row : row + 1, :length], output_hidden_states=True)
        torch.testing.assert_close(seen.logits[row], alone.logits[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(seen.hidden[3][row, :length], alone.hidden_states[3][0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", [*FAMILIES, *OF_SHARED_KEYS])
def test_an_encoder_is_not_taken_for_a_decoder(family: str, caplog: pytest.LogCaptureFixture) -> None:
    probed((FAMILIES | OF_SHARED_KEYS)[family], first=True)
    assert not [record for record in caplog.records if record.name.startswith("hskstore")]


@pytest.mark.parametrize("family", NO_SQUARE)
def test_attention_that_is_not_of_every_token_to_every_token_ranks_none(family: str) -> None:
    with pytest.raises(
        ModelError, match="gives no attention of every token to every token to rank tokens by: choose --rank left"
    ):
        probed(NO_SQUARE[family])
    assert probed(NO_SQUARE[family], ranks=False, first=True).eager


@pytest.mark.parametrize("family", NO_STATE_PER_TOKEN)
def test_a_family_without_a_state_for_each_token_is_refused_whatever_is_asked(family: str) -> None:
    with pytest.raises(ModelError, match=rf"^it: the family {family} does not give a hidden state for each token and layer"):
        probed(NO_STATE_PER_TOKEN[family], ranks=False)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: gpt2(None), r"this gpt2 does not run on a batch of the data .*: write its tokenizer's pad_token_id into"),
        (
            lambda: tf.NystromformerForSequenceClassification(
                tf.NystromformerConfig(**SIZES, num_landmarks=4, segment_means_seq_len=16)
            ),
            r"this nystromformer does not run on a batch of the data \(",
        ),
        (lambda: gpt2(2), "takes padding for it: pad_token_id in its config.json is 2, and its tokenizer pads with 1"),
    ],
    ids=["no padding token", "rows of one length", "another padding token"],
)
def test_a_model_that_cannot_run_on_padded_rows_is_refused(make: Make, said: str) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    tokenizer.pad_token_id = 1
    with pytest.raises(ModelError, match=f"^it: .*{said}"):
        Teacher(make(), tokenizer, name="it", device=torch.device("cpu")).probe(*padded_batch(), ranks=False)


def test_a_family_that_mixes_padding_into_its_rows_is_told(caplog: pytest.LogCaptureFixture) -> None:
    probed(NO_SQUARE["fnet"], ranks=False)
    (record,) = [record for record in caplog.records if record.name.startswith("hskstore")]
    assert "it: padding behind a row changes its logits, by up to" in record.getMessage()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (tf.T5Config(d_model=32, num_layers=2, num_heads=4), "a t5 is an encoder and a decoder"),
        (tf.BartConfig(d_model=32, encoder_layers=2, decoder_layers=2), "a bart is an encoder and a decoder"),
        (tf.XLNetConfig(d_model=32, n_layer=2, n_head=4), "a xlnet classifies by a row's last position"),
        (tf.XLMConfig(emb_dim=32, n_layers=2, n_heads=4, summary_type="last"), "a xlm classifies by a row's last position"),
        (tf.PerceiverConfig(), "a perceiver does not say its layers and their width"),
    ],
    ids=lambda each: getattr(each, "model_type", ""),
)
def test_a_family_that_cannot_teach_is_refused_by_its_config_alone(config: Any, said: str, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"^{tmp_path}: {said}"):
        load_teacher(str(tmp_path), device=torch.device("cpu"))


def test_attention_is_compared_by_the_size_of_the_states(caplog: pytest.LogCaptureFixture) -> None:
    """MobileBERT's are in the thousands, having no layer norms, of which float32 leaves fewer decimals."""
    torch.manual_seed(0)
    sizes = {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32, "initializer_range": 0.2}
    teacher = Teacher(
        tf.MobileBertForSequenceClassification(tf.MobileBertConfig(**SIZES, **sizes)), None, name="it", device=torch.device("cpu")
    )
    batch = padded_batch()
    teacher.probe(*batch)
    assert not teacher.eager and teacher.forward(*batch, Sight(frozenset({3}))).hidden[3].abs().max() > 1000


def test_a_row_of_one_token_is_told_nothing_of_and_runs() -> None:
    torch.manual_seed(0)
    teacher = Teacher(FAMILIES["bert"](), None, name="it", device=torch.device("cpu"))
    ids = torch.tensor([[5], [6]])
    teacher.probe(ids, torch.zeros_like(ids), torch.ones_like(ids, dtype=torch.bool), first=True)
    assert not math.isnan(float(teacher.forward(ids, torch.zeros_like(ids), torch.ones_like(ids).bool()).logits.sum()))


# --- the inside of attention


def scaled_otherwise() -> Any:
    model = FAMILIES["bert"]()
    model.bert.encoder.layer[1].attention.self.scaling = 0.5
    return model


UNSEEN: dict[str, tuple[Make, str]] = {
    "mpnet": (FAMILIES["mpnet"], "shows no queries, keys and values of each layer"),
    "deberta-v2": (FAMILIES["deberta-v2"], "shows no queries, keys and values of each layer"),
    "eurobert": (OF_SHARED_KEYS["eurobert"], "has heads that share their keys and values"),
    "scaled": (scaled_otherwise, r"scales its scores by 0\.5, not by the root of a head's size, 0\.3536"),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_attention_whose_queries_keys_and_values_are_not_to_be_had_is_refused_by_name(kind: str) -> None:
    torch.manual_seed(0)
    make, why = UNSEEN[kind]
    model = make()
    before = model.config._attn_implementation
    with pytest.raises(ModelError, match=rf"^it: its attention {why}, from which the method learns: choose"):
        heads_of(model, *padded_batch(), layers=3, name="it")
    assert model.config._attn_implementation == before
    teacher = Teacher(model, None, name="it", device=torch.device("cpu"))
    teacher.probe(*padded_batch(), ranks=False)
    with pytest.raises(ModelError, match=r"^it: .*(eager|share|scales).*choose"):
        teacher.probe(*padded_batch(), ranks=False, heads=True)


def test_heads_that_do_not_make_up_a_teachers_width_are_refused() -> None:
    wide = PrunedBertForSequenceClassification(PrunedBertConfig(**SIZES, head_size=5))
    teacher = Teacher(wide, None, name="it", device=torch.device("cpu"))
    with pytest.raises(ModelError, match=r"^it: its heads \(4 x 5\) are not 4 that make up its width of 32"):
        teacher.probe(*padded_batch(), ranks=False, heads=True)


def test_what_attention_is_made_of_carries_gradients_and_a_model_runs_afterwards_as_before() -> None:
    """Also of a BERT whose layers have different numbers of heads."""
    torch.manual_seed(0)
    model = PrunedBertForSequenceClassification(PrunedBertConfig(**SIZES, heads_per_layer=[4, 1, 2]))
    assert heads_of(model, *padded_batch(), layers=3, name="it") == ((4, 8), (1, 8), (2, 8))
    before, sight = model.config._attn_implementation, Sight(qkv=frozenset({2}))
    with showing(model, sight):
        assert model.config._attn_implementation == SEAM
        seen = observe(model, *padded_batch(), sight)
    assert model.config._attn_implementation == before != SEAM and SEAM not in model.config.to_json_string()
    assert seen.qkv.keys() == {2} and seen.qkv[2].query.shape == (4, 1, 12, 8)
    (seen.qkv[2].query.sum() + seen.qkv[2].value.sum() + 0 * seen.emptied().qkv[2].key.sum()).backward()
    attention = model.bert.encoder.layer[1].attention.self
    assert all(part.weight.grad.abs().sum() > 0 for part in (attention.query, attention.value))
    with pytest.raises(RuntimeError, match="stop"), showing(model, sight):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before
