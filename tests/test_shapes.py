"""Every public signature names the axes of its tensors and arrays, and they are checked while the tests run."""

import ast
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor, ones, zeros

from hskstore.methods.mud import gathered
from hskstore.stage_two.rows import TrainingRows
from hskstore.store.masks import unpack_mask
from tests.shapes import checked

PACKAGE = Path(__file__).resolve().parents[1] / "hskstore"
UNNAMED = {"Tensor", "ndarray", "NDArray"}


def hints(body: list[ast.stmt], *, inside: bool = False) -> Iterator[ast.expr]:
    """The types of the public functions, fields and aliases of a module or class."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from hints(node.body, inside=True)
        elif isinstance(node, ast.FunctionDef) and (not node.name.startswith("_") or node.name.startswith("__")):
            every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            yield from (each.annotation for each in every if each is not None and each.annotation is not None)
            yield from [] if node.returns is None else [node.returns]
        elif isinstance(node, ast.AnnAssign) and inside:
            yield node.annotation
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript) and not inside:
            yield node.value


def without_axes(hint: ast.AST) -> bool:
    """Whether a tensor or array stands in a type with nothing said of its axes."""
    if isinstance(hint, ast.Subscript) and hasattr(jaxtyping, ast.unparse(hint.value)):
        return False
    return ast.unparse(hint).rpartition(".")[2] in UNNAMED or any(map(without_axes, ast.iter_child_nodes(hint)))


@pytest.mark.parametrize(
    "hint", ["Tensor", "dict[str, np.ndarray]", "NDArray[Any] | None", "tuple[Float[Tensor, ''], torch.Tensor]"]
)
def test_a_type_without_axes_is_seen(hint: str) -> None:
    assert without_axes(ast.parse(hint).body[0])


def test_every_public_signature_names_the_axes_of_its_tensors_and_arrays() -> None:
    bare = [
        f"{path.relative_to(PACKAGE)}:{hint.lineno}: {ast.unparse(hint)}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for hint in hints(ast.parse(path.read_text()).body)
        if without_axes(hint)
    ]
    assert bare == []


def test_axes_are_checked_in_the_whole_package() -> None:
    with pytest.raises(TypeCheckError):
        unpack_mask(np.zeros(2), hidden_size=16)
    with pytest.raises(TypeCheckError):
        TrainingRows(np.zeros((2, 3), int), np.zeros((2, 4), int), np.ones(2, int), None, None)
    with pytest.raises(TypeCheckError):
        gathered(ones(2, 3, 4), zeros(3, 5, dtype=torch.int64))


def test_a_stand_in_may_be_passed_where_no_tensor_is_asked_for() -> None:
    def scaled(x: Float[Tensor, " width"], by: int) -> Float[Tensor, " width"]:
        return x * by

    assert jaxtyping.jaxtyped(typechecker=checked)(scaled)(ones(3), 0.5).sum() == 1.5  # type: ignore[arg-type]
    with pytest.raises(TypeCheckError):
        jaxtyping.jaxtyped(typechecker=checked)(scaled)(ones(3, 1), 2)
