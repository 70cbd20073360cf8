"""One file per method of distillation."""

from hskstore.methods.contract import Method, Phase
from hskstore.methods.finetune import Finetune
from hskstore.methods.kd import Kd
from hskstore.methods.mud import Mud

METHODS: dict[str, type[Mud] | type[Kd] | type[Finetune]] = {"mud": Mud, "kd": Kd, "finetune": Finetune}

__all__ = ["METHODS", "Finetune", "Kd", "Method", "Mud", "Phase"]
