"""Where a student comes from: a smaller architecture from scratch, layers copied out of a teacher, a pruned teacher."""

from hskstore.students.presets import PRESETS, Shape, new_student
from hskstore.students.pruned import prune_teacher
from hskstore.students.slices import parse_layers, slice_teacher

__all__ = ["PRESETS", "Shape", "new_student", "parse_layers", "prune_teacher", "slice_teacher"]
