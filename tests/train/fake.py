"""A whole experiment in miniature: a frozen and a trained 1x1 convolution, three tasks, noise.

It has everything that the loop must cope with: frozen parameters, batch statistics, a constant
collection, dropout keyed by sample, frequencies with diagnostics, an augmentation, a last batch
that needs padding. Run as a script, it trains in a work directory, so that tests can stop it.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from sinewich_jax import tasks
from sinewich_jax.config import Config, from_dict
from sinewich_jax.core import weighting
from sinewich_jax.data.augment import Augment
from sinewich_jax.data.source import ArraySource, from_arrays
from sinewich_jax.train import merge_item

TASKS = ("semseg", "depth", "saliency")
SIZE = (6, 8)
WIDTH = 8
SUM = weighting.make("fixed", len(TASKS))


class FakeModel(nn.Module):
    """Maps images [B, H, W, 3] to ``{task: [B, H, W, C]}``."""

    heads: tuple[tuple[str, int], ...]
    switching: bool = True

    def setup(self):
        self.backbone = nn.Conv(WIDTH, (1, 1))
        self.norm = nn.BatchNorm(momentum=0.9)
        self.up = nn.Conv(WIDTH, (1, 1))
        self.out = {name: nn.Conv(channels, (1, 1)) for name, channels in self.heads}
        if self.switching:
            start = np.linspace(0.6, 1.4, len(self.heads)).astype(np.float32)
            self.omega = self.param("omega", lambda _: jnp.asarray(start))
            self.anchor = self.variable(
                "anchor", "kernel", lambda: jnp.linspace(-3.0, 3.0, WIDTH, dtype=jnp.float32)
            )

    def __call__(self, image, omega=None, *, train=False, keys=None):
        x = nn.relu(self.norm(self.backbone(image), use_running_average=not train))
        if train:
            keep = jax.vmap(lambda key: jax.random.bernoulli(key, 0.9, (WIDTH,)))(keys)
            x = x * keep[:, None, None, :] / 0.9
        x = nn.relu(self.up(x))
        result = {}
        for number, (name, _) in enumerate(self.heads):
            gain = jnp.sin(self.omega[number] * self.anchor.value) if self.switching else 1.0
            result[name] = self.out[name](x * gain)
        return result

    def diagnostics(self):
        if not self.switching:
            return {"omega": {}, "modulation_index": {}, "update_cosine": {}}
        kernels = jnp.sin(self.omega[:, None] * self.anchor.value)
        kernels = kernels / jnp.linalg.norm(kernels, axis=-1, keepdims=True)
        cosines = kernels @ kernels.T
        pairs = jnp.triu_indices(len(self.heads), 1)
        return {
            "omega": {"global": self.omega},
            "modulation_index": {"out": self.omega * jnp.std(self.anchor.value)},
            "update_cosine": {"out": jnp.mean(cosines[pairs])},
        }


@dataclasses.dataclass(frozen=True)
class FakeExperiment:
    inputs = "image"
    penalty = None

    model: nn.Module
    tasks: tuple[Any, ...]
    train_source: Any
    eval_source: Any
    augment: Any = None
    rules: tuple[tuple[str, str], ...] = (("backbone/.*", "frozen"), (".*", "trainable"))
    sharding_rules: tuple[tuple[str, PartitionSpec], ...] = (
        ("(backbone|up)/kernel", PartitionSpec(None, None, None, "model")),
        (".*", PartitionSpec()),
    )
    own_rules: tuple[str, ...] = ()
    weighting: Any = SUM
    seed: int = 0

    def calibrated(self, init: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        return init()

    def init(self) -> dict[str, Any]:
        image = jnp.zeros((1, *SIZE, 3))
        return dict(self.model.init(jax.random.key(self.seed), image))

    def optimizer(self, config: Config, abstract: Any) -> optax.GradientTransformation:
        schedule = optax.linear_schedule(config.learning_rate, 0.0, config.steps)
        tx = optax.adamw(schedule, weight_decay=config.weight_decay)
        return merge_item.track(tx, config, abstract, self.mergeable)

    def mergeable(self, path: str) -> bool:
        return merge_item.is_mergeable(path, ())

    def begin(self, workdir) -> None:
        pass

    def shown(self, source, index):
        return {"image": source[index]["image"]}

    def leave(self, workdir, evaluator, state, constants) -> None:
        pass

    def normalise(self, image: jax.Array) -> jax.Array:
        return image.astype(jnp.float32) / 127.5 - 1.0


def random_source(count: int, seed: int, size: tuple[int, int] = SIZE) -> ArraySource:
    """Images of which the labels are simple functions, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    semseg = (image[..., 0] // 90).astype(np.uint8)
    semseg[:, 0, 0] = 255
    return from_arrays(
        {
            "image": image,
            "semseg": semseg,
            "depth": 0.5 + image[..., 1].astype(np.float32) / 100,
            "saliency": (image[..., 2] > 127).astype(np.uint8),
        },
        channels={"semseg": 3},
    )


def make_experiment(switching: bool = True, train: int = 20, evaluation: int = 5, **changes: Any):
    task_list = tuple(
        tasks.make(name, **({"channels": 3} if name == "semseg" else {})) for name in TASKS
    )
    model = FakeModel(tuple((task.name, task.channels) for task in task_list), switching)
    defaults: dict[str, Any] = {
        "model": model,
        "tasks": task_list,
        "train_source": random_source(train, 1),
        "eval_source": random_source(evaluation, 2),
        "augment": Augment(flip=True),
    }
    return FakeExperiment(**{**defaults, **changes})


def make_config(**changes: Any) -> Config:
    defaults = {
        "tasks": TASKS,
        "steps": 12,
        "batch_size": 8,
        "log_every": 1,
        "checkpoint_every": 4,
        "warmup_steps": 2,
        "learning_rate": 0.01,
        "workers": 0,
        "image_size": SIZE,
    }
    return from_dict({**defaults, **changes})


def main(workdir: str, steps: str, delay: str) -> None:
    """Trains on one device, each batch delayed by ``delay`` seconds so that it can be stopped."""
    import time

    from sinewich_jax.train import train

    class Slow:
        def __init__(self, source):
            self._source = source
            self.tasks, self.size = source.tasks, source.size
            self.channels, self.class_names = source.channels, source.class_names

        def __len__(self):
            return len(self._source)

        def __getitem__(self, index):
            time.sleep(float(delay) / 8)
            return self._source[index]

    experiment = make_experiment()
    experiment = dataclasses.replace(experiment, train_source=Slow(experiment.train_source))
    config = make_config(steps=int(steps), checkpoint_every=0, workers=1)
    outcome = train(config, workdir, experiment, devices=jax.devices()[:1])
    print(outcome.status, outcome.step)


if __name__ == "__main__":
    main(*sys.argv[1:])
