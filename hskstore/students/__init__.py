"""Where a student comes from: layers copied out of a teacher, or a smaller architecture from scratch."""

from hskstore.students.presets import PRESETS, new_student
from hskstore.students.slice import parse_layers, slice_teacher

__all__ = ["PRESETS", "new_student", "parse_layers", "slice_teacher"]
