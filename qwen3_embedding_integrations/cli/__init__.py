"""`qwen3-embedding`: the command; a verb's modules are imported only when it runs."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer
from rich.logging import RichHandler

from ..bench.command import bench
from ..doctor.command import doctor
from ..errors import Qwen3EmbeddingError
from ..export.command import export
from ..merge import merge
from ..options import err, say
from ..quantize import quantize
from ..server.command import serve
from .compare import compare
from .contract import contract_app
from .evaluate import evaluate
from .finetune import finetune
from .index import index
from .mteb import mteb
from .plan import plan
from .reindex import reindex
from .rerank import rerank
from .search import demo, encode, search

app = typer.Typer(
    help="Qwen3-Embedding in your vector stack: index, search, encode.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
VERBS = (
    demo, index, reindex, search, rerank, encode, serve, quantize, merge, export, bench, doctor,
    evaluate, compare, mteb, finetune, plan,
)  # fmt: skip
for verb in VERBS:
    app.command()(verb)
app.add_typer(contract_app, name="contract")


@app.callback()
def _prepare(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is chosen.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    # The handler's too: what is shown stays the same if a logger is told to say more.
    handler = RichHandler(level, console=err, show_path=False)
    logging.basicConfig(level=level, format="%(message)s", handlers=[handler])


def main() -> None:
    """Run the command; an error of ours is one line, not a traceback."""
    try:
        app()
    except Qwen3EmbeddingError as error:
        err.print(f"[red]error[/] {type(error).__name__}: ", end="")
        say(str(error), to=err)
        sys.exit(2)
