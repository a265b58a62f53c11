"""Making a router out of a few pictures of each task, and asking it whose a picture is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sinewich_jax.errors import ConfigError
from sinewich_jax.report.tables import markdown_table
from sinewich_jax.switches.queries import build_query_set
from sinewich_jax.switches.router import Router
from sinewich_jax.train.switch_features import Features, batches, pictures

BASE = "base"
"""What the table calls the model without any switch."""

Progress = Callable[[int, int, str], None]


class Route(NamedTuple):
    """Where one picture goes.

    Attributes:
      image: its file, or its place in the data of a run.
      votes: task -> share of the nearest examples.
      weights: task -> weight of its switch; all zero is the base.
      task: the task with the largest weight, None for the base.
      distance: to the last of the neighbours that vote.
      threshold: beyond which a picture is unknown, None for never.
      abstains: whether it is unknown, and goes to the base.
    """

    image: str
    votes: dict[str, float]
    weights: dict[str, float]
    task: str | None
    distance: float
    threshold: float | None
    abstains: bool


def make_router(
    features: Features,
    examples: Mapping[str, Path],
    *,
    count: int = 100,
    progress: Progress | None = None,
    **options: Any,
) -> Router:
    """A router of pictures.

    Args:
      features: the frozen base.
      examples: task -> an image, a folder of them, or a run, whose training images are taken.
      count: pictures a task, the first of each; all of a task that has fewer.
      progress: called with tasks done, tasks in all, and the one that is looked at.
      **options: of :meth:`~sinewich_jax.switches.router.Router.fit`.

    Raises:
      DataError: a folder without images, or an image that cannot be read.
    """
    streams = {}
    for place, (name, path) in enumerate(examples.items()):
        if progress is not None:
            progress(place, len(examples), name)
        images = itertools.islice(pictures(path, features, "train"), count)
        streams[name] = list(batches(image for _, image in images))
    queries = build_query_set(features, streams, count)
    return Router.fit(queries, extractor=features.extractor, **options)


def check_router(router: Router, features: Features) -> None:
    """Refuses a router that was made of other features.

    Raises:
      ConfigError: naming both.
    """
    if router.extractor != features.extractor:
        raise ConfigError(
            f"the router was made of features by '{router.extractor}', and these are by "
            f"'{features.extractor}'; route with the base and the --side that it was made with"
        )


def route(
    router: Router,
    features: Features,
    paths: Iterable[Path],
    mode: str = "per_sample",
    *,
    abstain: bool = True,
) -> list[Route]:
    """Asks for every picture.

    Args:
      router: whose examples vote.
      features: that it was made with.
      paths: images, folders of them, or runs, whose evaluation images are taken.
      mode: see :func:`sinewich_jax.switches.router.route`; the batch modes take all pictures as
        one batch.
      abstain: send unknown pictures to the base.

    Raises:
      ConfigError: an unknown mode, or features of another kind.
      DataError: nothing there, or a file that is no image.
    """
    check_router(router, features)
    names, rows = [], []
    named = itertools.chain.from_iterable(pictures(path, features, "eval") for path in paths)
    for group in _groups(named):
        names += [name for name, _ in group]
        rows.append(features(np.stack([image for _, image in group])))
    found = router(np.concatenate(rows), mode, abstain=abstain and router.threshold is not None)
    weights, votes = np.asarray(found.weights), np.asarray(found.votes)
    routes = []
    for row, name in enumerate(names):
        switched = bool(weights[row].any())
        routes.append(
            Route(
                image=name,
                votes=_by_name(router.names, votes[row]),
                weights=_by_name(router.names, weights[row]),
                task=router.names[int(weights[row].argmax())] if switched else None,
                distance=float(found.distance[row]),
                threshold=router.threshold,
                abstains=abstain and bool(found.unknown[row]),
            )
        )
    return routes


def table(routes: Sequence[Route]) -> str:
    """Routes for people to read, a line each."""
    tasks = list(routes[0].votes)
    headers = ("image", *tasks, "goes to", "distance", "threshold", "the router")
    rows = []
    for one in routes:
        limit = "none" if one.threshold is None else f"{one.threshold:.4g}"
        votes = [f"{one.votes[task]:.2f}" for task in tasks]
        said = "does not know" if one.abstains else ""
        rows.append((one.image, *votes, one.task or BASE, f"{one.distance:.4g}", limit, said))
    return markdown_table(headers, rows, f"l{'r' * len(tasks)}lrrl").rstrip("\n")


def _groups(named: Iterable[Any], count: int = 8) -> Iterable[list[Any]]:
    stream = iter(named)
    while group := list(itertools.islice(stream, count)):
        yield group


def _by_name(names: Sequence[str], row: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, row, strict=True)}
