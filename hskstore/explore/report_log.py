"""What a run's log says: the numbers that TensorBoard's files hold, by name and step."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from hskstore.explore.report_parts import Line

MOST_BYTES = 64 * 10**6
"""Of one file: more than any run writes."""

MOST_POINTS = 120
"""Of a curve on a page; of more, means of as many stretches."""

Curves = Mapping[str, Mapping[int, float]]


def read_log(folder: Path) -> Curves | None:
    """Each number of `hidden/mud.hidden` by its step; None where there is no log, or no TensorBoard to read it.

    A file that ends too early, as a killed run leaves it, is read as far as it goes.
    """
    files = sorted(folder.glob("events.out.tfevents.*"))
    try:
        from tensorboard.compat.proto.event_pb2 import Event
    except ImportError:
        return None
    found: dict[str, dict[int, float]] = {}
    for file in files:
        for record in _records(file):
            event = Event()
            try:
                event.ParseFromString(record)
            except Exception:  # protobuf's own, of either implementation
                break
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found or None


def curve(label: str, by_step: Mapping[int, float]) -> Line:
    """A line of at most MOST_POINTS, each the mean of a stretch of steps."""
    steps = sorted(by_step)
    stretch = -(-len(steps) // MOST_POINTS)
    parts = [steps[start : start + stretch] for start in range(0, len(steps), stretch)]
    x = tuple(sum(part) / len(part) for part in parts)
    y = tuple(sum(by_step[step] for step in part) / len(part) for part in parts)
    return Line(label, x, y, style="line" if len(steps) <= 30 else "dense")


def _records(file: Path) -> Iterator[bytes]:
    """TFRecord: a length, its checksum, the data, its checksum."""
    with file.open("rb") as source:
        data = source.read(MOST_BYTES)
    place = 0
    while place + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        begin = place + 12
        if length > len(data) - begin:
            return
        yield data[begin : begin + length]
        place = begin + length + 4
