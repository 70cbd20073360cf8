"""hsk spans: the chunker that finds the phrases of texts, trained and scored"""

from pathlib import Path
from typing import Annotated

import typer

from hskstore.cli.options import JsonOpt
from hskstore.readable import size

ConllOpt = Annotated[Path, typer.Option(help="The folder of CoNLL-2000: train.txt, test.txt or dev.txt, each also .gz.")]


def spans_train(
    conll: ConllOpt,
    out: Annotated[Path, typer.Option(help="Folder for the chunker, which hsk extract --spans reads.")],
    as_json: JsonOpt = False,
) -> None:
    """Train a part-of-speech tagger and a chunker of noun, verb and prepositional phrases, cased and lower-cased."""
    from hskstore.cli import console
    from hskstore.text.chunker import train_chunker

    result = train_chunker(conll, out)
    on_disk = sum(len(data) for data in result.files().values())
    if as_json:
        console.print_json({"folder": str(out), "tags": len(result.tagger.labels), "bytes": on_disk, "sha256": result.sha256})
        return
    console.out.print(f"{out}: {len(result.tagger.labels)} parts of speech, {size(on_disk)}, sha256 {result.sha256}")


def spans_eval(
    spans: Annotated[Path, typer.Argument(metavar="SPANS", help="A folder of hsk spans train.")],
    conll: ConllOpt,
    as_json: JsonOpt = False,
) -> None:
    """Score a chunker, with its own tags, on the phrases of the set's test part, as it is and in lower case."""
    from hskstore.cli import console
    from hskstore.text.chunker import score_chunker

    result = score_chunker(spans, conll)
    if as_json:
        console.print_json(result)
        return
    console.out.print(f"{result.words:,} words in {result.sentences:,} sentences")
    for name, case in (("cased", result.cased), ("lower-cased", result.lower)):
        table = console.grid(name, "phrases", "precision", "recall", "F1")
        for kind, score in {"all": case.all_phrases, **case.kinds}.items():
            shown = (f"{number:.4f}" for number in (score.precision, score.recall, score.f1))
            table.add_row(kind, f"{score.phrases:,}", *shown)
        console.out.print(table)
        console.out.print(f"parts of speech: {100 * case.tags:.2f} % right")
