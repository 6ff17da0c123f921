"""`index` past one machine: by a Ray cluster, to Parquet with vectors, and from it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError
from ..options import Place

if TYPE_CHECKING:
    from ..indexing import IndexReport

Engine = StrEnum("Engine", ["local", "ray"])
Target = StrEnum("Target", ["store", "parquet"])
EngineOption = Annotated[Engine, typer.Option(help="ray: by the workers of a cluster.")]
TargetOption = Annotated[
    Target, typer.Option("--to", help="parquet: into files with vectors in --location, by Ray.")
]
AddressOption = Annotated[
    str | None, typer.Option(help="Of the Ray cluster; without one it is started here.")
]
ActorsOption = Annotated[int | None, typer.Option(help="Ray's encoders; as many as fit.")]


def index_by_ray(
    paths: Sequence[Path],
    place: Place,
    options: dict[str, Any],
    reading: dict[str, Any],
    *,
    address: str | None,
    actors: int | None,
    to: Target,
) -> IndexReport:
    """Index on a cluster; see `ray_data`."""
    from .. import ray_data
    from ..core.config import EncoderConfig

    open_target = ray_data.server(*place, **options) if to == Target.store else None
    config = EncoderConfig.from_options(**options)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # it has handlers of its own
    ray_data.connect(address)
    chosen = ray_data.actor_options(config, num_actors=actors)
    dataset = ray_data.read_files(paths, config, **reading)
    if open_target is None:
        return ray_data.write_embedded(dataset, place[1], config, actors=chosen)
    return ray_data.index_dataset(dataset, open_target, actors=chosen)


def load_vectors(
    paths: Sequence[Path], place: Place, given: Sequence[str], keywords: Path | None
) -> IndexReport | None:
    """Load a folder of Parquet with vectors; None where the paths are anything else.

    `given` names the options that have no meaning then: any of them is a ConfigError.
    """
    if len(paths) != 1 or not any(paths[0].glob("*.parquet")):
        return None
    from ..parquet import Embedded
    from ..stores import keywords_path, open_store

    if (embedded := Embedded.find(paths[0])) is None:
        return None
    if given:
        raise ConfigError(f"{', '.join(given)}: the vectors of {paths[0]} are made; leave it out")
    made_by = embedded.config.portable()
    opened = open_store(*place, made_by, create=True, make_encoder=lambda _: embedded)
    if (words := keywords_path(*place[1:], keywords)) is not None:
        opened = opened.with_keywords(words)
    with closing(opened.store):
        return embedded.load(opened.store)
