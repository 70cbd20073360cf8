"""What checks the axes of tensors and arrays in every signature of the package while the tests run; pyproject.toml names it."""

from collections.abc import Callable
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose axes are checked when it is called. Its other types are mypy's, so that a test may pass a stand-in."""
    axes = {name: hint for name, hint in function.__annotations__.items() if _has_axes(hint)}
    function.__annotations__ = axes
    return beartype(function) if axes else function


def _has_axes(hint: Any) -> bool:
    return (isinstance(hint, type) and issubclass(hint, AbstractArray)) or any(map(_has_axes, get_args(hint)))
