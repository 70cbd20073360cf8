"""Heads of a student and of its teacher that a method compares one by one."""

from collections.abc import Iterable

from hskstore.errors import ModelError
from hskstore.features import TeacherShape
from hskstore.models.run import ModelShape


def check_same_heads(method: str, teacher: TeacherShape, student: ModelShape, layers: Iterable[int]) -> None:
    """Raise ModelError where one of these student layers is known to have other heads than the teacher, in number."""
    if student.heads is None or teacher.heads is None:
        return
    for layer in layers:
        own = student.heads[layer - 1][0]
        if own != teacher.heads:
            raise ModelError(
                f"{student.name} has {own} heads in layer {layer}, and the teacher {teacher.heads}: the method {method} compares"
                " them one by one; choose a student of as many, or minilmv2"
            )
