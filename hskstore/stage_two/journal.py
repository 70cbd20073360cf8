"""How a run goes, while it runs: losses read back from the device, to its log, and a line for whoever watches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
from jaxtyping import Float
from torch import Tensor

from hskstore.errors import ModelError
from hskstore.stage_two.checkpoint import RunState
from hskstore.stage_two.trackers import Log
from hskstore.watch import Watch

RECENT_STEPS = 50
"""Steps whose mean losses a result reports."""

SCHEDULE_STEPS = 64
"""Steps whose mean weights a result reports together."""


@dataclass(frozen=True)
class Noted:
    """A step's numbers, still on the device."""

    step: int
    rate: float
    terms: Mapping[str, Float[Tensor, ""]]
    loss: Float[Tensor, ""]
    chosen: Mapping[str, Float[Tensor, ""]]


class Journal:
    """Notes steps without asking the device, and reads several back in one copy."""

    def __init__(self, log: Log, watch: Watch) -> None:
        self._log = log
        self._watch = watch
        self._noted: list[Noted] = []

    def note(
        self,
        step: int,
        rate: float,
        terms: Mapping[str, Float[Tensor, ""]],
        loss: Float[Tensor, ""],
        chosen: Mapping[str, Float[Tensor, ""]],
    ) -> None:
        """A step's terms and loss, and the weights that were chosen for some terms."""
        detached = {name: term.detach() for name, term in terms.items()}
        self._noted.append(Noted(step, rate, detached, loss.detach(), chosen))

    def read_back(self, phase: str, state: RunState) -> None:
        """What was noted becomes the state's recent losses, and its schedule. Raises ModelError for a loss that is not finite."""
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        values = torch.stack(
            [value for each in noted for value in (each.loss, *each.terms.values(), *each.chosen.values())]
        ).tolist()
        width = len(noted[0].terms) + len(noted[0].chosen) + 1
        for index, each in enumerate(noted):
            loss, *numbers = values[width * index : width * (index + 1)]
            if not (float("-inf") < loss < float("inf")):
                raise ModelError(
                    f"the loss of phase {phase} is not finite at step {each.step}: lower --lr, or train with --precision fp32"
                )
            losses = dict(zip(each.terms, numbers, strict=False))
            chosen = dict(zip(each.chosen, numbers[len(losses) :], strict=True))
            state.recent = [*state.recent[1 - RECENT_STEPS :], losses]
            if chosen:
                state.schedule = scheduled(state.schedule, each.step, chosen)
            weights = {f"weight/{name}": weight for name, weight in chosen.items()}
            self.write(phase, {**losses, **weights, "rate": each.rate}, each.step, state)

    def write(self, phase: str, values: Mapping[str, float], step: int, state: RunState) -> None:
        """Numbers for the log, at their step of the phase; there, steps are counted through all phases."""
        before = sum(result.steps for result in state.done)
        self._log.write({f"{phase}/{name}": value for name, value in values.items()}, before + step)

    def tell(self, phase: str, done: int, total: int, state: RunState, seconds_left: float | None) -> None:
        """Say how far a phase is: losses, the last dev score and the best, and the time left for all phases that follow too."""
        words = [f"{name} {value:.4f}" for name, value in state.recent[-1].items()]
        if state.best is not None:
            metric = next(name for name in state.best if name != "step")
            words.append(f"dev {metric} {state.scores[-1][metric]:.4f}, best {state.best[metric]:.4f}")
        if seconds_left is not None:
            words.append(f"{timedelta(seconds=round(seconds_left))} to the end")
        self._watch(phase, done, total, "; ".join(words))

    def close(self) -> None:
        self._log.close()


def scheduled(schedule: Sequence[dict[str, float]], step: int, chosen: Mapping[str, float]) -> list[dict[str, float]]:
    """A schedule with the weights of one more step: means over `SCHEDULE_STEPS` steps each."""
    last = schedule[-1] if schedule and step < schedule[-1]["step"] + SCHEDULE_STEPS else None
    if last is None:
        return [*schedule, {"step": step, "steps": 1, **chosen}]
    count = last["steps"] + 1
    means = {name: last[name] + (weight - last[name]) / count for name, weight in chosen.items()}
    return [*schedule[:-1], {"step": last["step"], "steps": count, **means}]


def mean_losses(recent: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the last steps."""
    return {name: sum(each[name] for each in recent) / len(recent) for name in recent[0]}
