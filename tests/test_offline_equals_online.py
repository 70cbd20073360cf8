"""A student learns the same from the store as from the living teacher."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hskstore.config import Keep, Strategy
from hskstore.features import HiddenTargets, Want
from hskstore.methods import Mud
from hskstore.methods.batch import Batch
from hskstore.methods.serving import teacher_shape
from hskstore.models.observe import Sight
from hskstore.models.run import ModelShape
from hskstore.stage_one.extract import extract
from hskstore.stage_one.teacher import Teacher, load_teacher
from hskstore.stage_two.feed import Feed, open_supply
from hskstore.stage_two.learner import Learner
from hskstore.stage_two.recipe import Recipe
from hskstore.stage_two.settings import phase_settings
from hskstore.stage_two.student import load_student, places_of
from hskstore.stage_two.trainer import sum_terms
from hskstore.store import Store, open_store
from hskstore.students import slice_teacher
from hskstore.text.tasks import get_task
from tests.conftest import SHARED

STEPS = 20


def live_targets(teacher: Teacher, batch: Batch, want: Want[HiddenTargets], store: Store) -> Batch:
    """What the living teacher says of a batch, computed without any of hskstore's selection or encoding."""
    layers = [pair.teacher for pair in want.pairs]
    seen = teacher.forward(batch.input_ids, batch.token_type_ids, batch.attention_mask, Sight(hidden=frozenset(layers)))
    separators = torch.tensor(store.plan.tokenizer["separators"])
    kept = batch.attention_mask & ~torch.isin(batch.input_ids, separators)
    hidden = torch.stack([seen.hidden[layer] for layer in layers])
    token_kept = kept.expand(hidden.shape[:3])
    position = torch.arange(kept.shape[1]).expand(token_kept.shape)
    targets = HiddenTargets(position, token_kept, hidden * kept[..., None], None, hidden.shape[-1])
    return replace(batch, knowledge={want: targets}, teacher_logits=seen.logits)


def losses(store: Store, student: str, teacher: Teacher | None) -> list[float]:
    """Losses of 20 steps, half on hidden states, half on predictions; without dropout, so that only targets differ."""
    model, _ = load_student(student, store, seed=0)
    shapes = teacher_shape(store.plan), ModelShape(student, 2, (model.config.num_hidden_layers, model.config.hidden_size))
    method = Mud()
    phases = method.phases(*shapes)
    (want,) = phases[0].reads
    source = open_supply(store, "train", places=places_of(store, phases))
    torch.manual_seed(0)
    learner = Learner(model, aids=method.aids(*shapes)).eval()
    recipe = Recipe(method=method, epochs=(50,), batch_size=(16,), max_steps=STEPS)
    settings = phase_settings(recipe, phases, get_task("sst2").defaults, source)
    found: list[float] = []
    for run in settings:
        run = replace(run, steps=STEPS // 2)
        optimizer = torch.optim.AdamW(learner.parameters(), lr=run.lr)
        feed = Feed(source, 16, store.digest, seed=0)
        for step in feed.steps(reads=run.phase.reads, start=0, stop=run.steps):
            batch = step.batch
            if teacher is not None:
                batch = live_targets(teacher, batch, want, store)
            terms = method(run.phase, learner(batch, run.phase), batch, learner.aids)
            loss = sum_terms({name: term.value for name, term in terms.items()}, run.phase.weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
    return found


def check(teacher_folder: str, data: str, student: str, tmp_path: Path, layers: int, **options: Any) -> None:
    strategy = Strategy(layers, values="f32")
    extract(teacher_folder, data, out=tmp_path, keeps=[Keep.parse("all")], strategies=[strategy], **options)
    store = open_store(tmp_path / "dall-lall-wall")
    offline = losses(store, student, None)
    online = losses(store, student, load_teacher(teacher_folder, device=torch.device("cpu")))
    assert len(offline) == STEPS
    assert offline == pytest.approx(online, abs=1e-4)


def test_offline_losses_equal_online_losses_for_a_narrower_student(
    teacher_folder: str, data_folder: str, student_folder: str, tmp_path: Path
) -> None:
    check(teacher_folder, data_folder, student_folder, tmp_path, layers=2, task="sst2")


@pytest.mark.long
@pytest.mark.real
def test_offline_losses_equal_online_losses_with_a_real_teacher(tmp_path: Path) -> None:
    teacher = str(SHARED / "models/minilm-l6-sst2")
    few = tmp_path / "data"
    few.mkdir()
    for split, rows in (("train", 321), ("dev", 41)):
        lines = (SHARED / f"data/sst2_small/{split}.tsv").read_text().splitlines(keepends=True)
        (few / f"{split}.tsv").write_text("".join(lines[:rows]))
    slice_teacher(teacher, (2, 4, 6), tmp_path / "student")
    check(teacher, str(few), str(tmp_path / "student"), tmp_path / "stores", layers=3, task="sst2")
