"""hsk plan: what an extraction will cost, and what a number of bytes can buy."""

from typing import Annotated, Any

import typer

from hskstore import config
from hskstore.cli.flags import flags_of, with_flags
from hskstore.cli.methods import methods_for
from hskstore.cli.options import (
    STRATEGY,
    DataArg,
    DeviceOpt,
    ForOpt,
    JsonOpt,
    KeepOpt,
    RichOpt,
    StudentLayersOpt,
    TeacherArg,
    bytes_of,
    quiet_libraries,
    strategies_for,
)
from hskstore.errors import OptionError


@with_flags({"strategy": STRATEGY}, strategy=flags_of(config.Strategy), options=flags_of(config.PassOptions))
def plan(
    teacher: TeacherArg,
    data: DataArg,
    *,
    keep: KeepOpt = None,
    learners: ForOpt = None,
    rich: RichOpt = False,
    budget: Annotated[
        str | None, typer.Option(help="In place of these: what fits into so many bytes (500MB, 2GiB) of a store.")
    ] = None,
    student_layers: StudentLayersOpt = None,
    strategy: dict[str, Any],
    options: config.PassOptions,
    rate: Annotated[
        float | None, typer.Option(help="Rows a second. Default: a trial of up to 20 seconds on this device.")
    ] = None,
    device: DeviceOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """What hsk extract with the same options will write, need and take; or, with --budget, what fits. Nothing is written."""
    from hskstore.cli import console, print_stores, progress

    if bool(keep or learners or rich) == (budget is not None):
        raise OptionError("give --keep, --for or --rich (what will it cost?), or --budget (what fits?), one of the two")
    keeps = [config.Keep.parse(each) for each in keep or ()]
    most = None if budget is None else bytes_of(budget)
    strategies = strategies_for(student_layers, strategy, needed=not rich or bool(keep or learners))
    if most is not None and len(strategies) > 1:
        raise OptionError("--budget goes with one --student-layers: each depth of the student has a grid of its own")
    methods = methods_for(learners or ())
    quiet_libraries()
    from hskstore.stage_one.budget import within_budget
    from hskstore.stage_one.calibration import CALIBRATION_SECONDS
    from hskstore.stage_one.forecast import forecast

    if rate is None:
        console.err.print(f"the teacher is tried for up to {CALIBRATION_SECONDS:g} seconds")
    if most is None:
        with progress.bars() as watch:
            cost = forecast(
                teacher,
                data,
                keeps=keeps,
                strategies=strategies,
                methods=methods,
                rich=rich,
                rate=rate,
                device=device,
                watch=watch,
                **options,
            )
        console.print_json(cost) if as_json else print_stores.print_forecast(cost)
    else:
        with progress.bars() as watch:
            fitting = within_budget(
                teacher, data, budget=most, strategy=strategies[0], rate=rate, device=device, watch=watch, **options
            )
        console.print_json(fitting) if as_json else print_stores.print_affordable(fitting)
