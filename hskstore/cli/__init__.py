"""hsk: parse, call, print."""

import errno
import io
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from hskstore.cli import explore, methods, spans, stores, students, training
from hskstore.cli.forecast import plan
from hskstore.cli.options import JsonOpt, quiet_libraries
from hskstore.cli.report import report
from hskstore.errors import HskError
from hskstore.version import __version__


class Hsk(typer.core.TyperGroup):
    """The commands; that of `distill` as it is listed gives way to the one with its flags when it is asked for itself."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name == training.distill.__name__:
            alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
            alone.command(name)(training.distill_with_flags())
            command = typer.main.get_command(alone)
        return name, command, rest


app = typer.Typer(
    name="hsk",
    cls=Hsk,
    help="Offline hidden-state distillation: run the teacher once, train any student from what was kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
student_app = typer.Typer(
    help="Students: from scratch, out of a teacher's layers, pruned; what they cost, and their export.", no_args_is_help=True
)
student_app.command("new")(students.student_new)
student_app.command("slice")(students.student_slice)
student_app.command("prune")(students.student_prune)
student_app.command("show")(students.student_show)
student_app.command("export")(students.student_export)
spans_app = typer.Typer(
    help="Phrases of texts, whose relations a method may teach: the chunker that finds them.", no_args_is_help=True
)
spans_app.command("train")(spans.spans_train)
spans_app.command("eval")(spans.spans_eval)

UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENAMETOOLONG,
)
"""What a user's folder can answer to a write."""


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_ENDLESS = re.compile(r"(\S{200})\S{800,}")


@app.callback(invoke_without_command=True)
def _hsk(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def demo(
    out: Annotated[Path | None, typer.Option(help="Keep everything it makes here. Default: a temporary folder.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """The whole story offline, on a made-up language: teacher, stores, teacher deleted, students, table."""
    from hskstore.cli import console, print_models, progress

    quiet_libraries()
    from hskstore.explore.demo import run_demo

    with progress.bars() as watch:
        result = run_demo(out, say=console.err.print, watch=watch)
    if as_json:
        console.print_json(result)
    else:
        print_models.print_demo(result)


EXPLORE = "The explorer: what is worth its bytes"
BEFORE, ONE, STORES = "Before any money is spent", "Stage one: a teacher and its stores", "Stores: looked at, checked, cut, moved"
TWO, STUDENTS = "Stage two: students from a store alone", "Students: where they come from, what they cost"

app.command(rich_help_panel=BEFORE)(demo)
app.command(rich_help_panel=BEFORE)(methods.methods)
app.command(rich_help_panel=BEFORE)(plan)
app.command(rich_help_panel=ONE)(training.finetune)
app.command(rich_help_panel=ONE)(stores.extract)
app.add_typer(spans_app, name="spans", rich_help_panel=ONE)
app.command(rich_help_panel=TWO)(training.distill)
app.command("eval", rich_help_panel=TWO)(training.evaluate)
app.command(rich_help_panel=EXPLORE)(explore.sweep)
app.command(rich_help_panel=EXPLORE)(explore.search)
app.command(rich_help_panel=EXPLORE)(explore.recommend)
app.command(rich_help_panel=EXPLORE)(report)
app.command(rich_help_panel=STORES)(stores.show)
app.command(rich_help_panel=STORES)(stores.verify)
app.command(rich_help_panel=STORES)(stores.derive)
app.command(rich_help_panel=STORES)(stores.push)
app.command(rich_help_panel=STORES)(stores.pull)
app.add_typer(student_app, name="student", rich_help_panel=STUDENTS)


def main() -> None:
    """Run a command. What a user can mend is one message and exit code 2, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error has it: paths and texts hold any character
    try:
        app()
    except HskError as error:
        _fail(str(error))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _fail(f"{error.filename or 'a file'} could not be written: {error.strerror}. Make room, or choose another --out")


def _fail(message: str) -> None:
    """What was given, or found in a file, is no order to the terminal, and its first letters show which it is."""
    shown = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", message)
    print("hsk:", _ENDLESS.sub(r"\1...", shown), file=sys.stderr)
    sys.exit(2)
