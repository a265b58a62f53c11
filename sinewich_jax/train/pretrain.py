"""Pretraining on pictures alone: the short loop that made the backbone in the wheel.

Two objectives. ``masked_patches``: predict hidden blocks and lost colour. ``masked_and_aside``:
half of each batch does that, and the other half is seen a second time after a known step of the
camera, which a predicted depth must explain (:mod:`sinewich_jax.nn.parallax`).

It uses pictures only, never a label map, from seeds that no training or evaluation split touches.
It saves its state now and then, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sinewich_jax.core import trees
from sinewich_jax.errors import ConfigError, did_you_mean
from sinewich_jax.nn import masked, parallax, swin
from sinewich_jax.storage import arrays, atomic
from sinewich_jax.train import pretrain_pictures, progress, signals
from sinewich_jax.train import workdir as workdirs

Array = jax.Array


VARIANTS = {"masked_and_aside": "", "masked_patches": ":masked"}
"""The objectives, and the variant of the config file that asks for each."""

COMMAND = "python train.py --config=configs/pretrain_scenes.py"
"""What made the backbone; it stands in the header of its file beside config and score."""


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """One pretraining run.

    Attributes:
      objective: ``masked_and_aside``, or ``masked_patches``, which leaves out the camera's steps.
      backbone: a preset of :mod:`sinewich_jax.nn.swin`.
      image_size: height and width.
      images: number of pictures; seeds ``3_000_000 ..``.
      held_out: number of pictures for the score, after the others.
      steps: optimizer steps.
      batch_size: pictures a step.
      learning_rate: peak of AdamW's cosine schedule.
      warmup_steps: linear warm-up.
      weight_decay: decoupled, on kernels only.
      mask_ratio: share of hidden blocks.
      reach: largest step of the camera along each axis, metres.
      aside_weight: weight of the loss of the pictures after a step.
      save_every: steps between saves.
      stop_after: end this start after so many steps, saved but not exported; 0 goes to the end.
      seed: of parameters, batches and masks.
    """

    objective: Literal["masked_and_aside", "masked_patches"] = "masked_and_aside"
    backbone: str = "tiny"
    image_size: tuple[int, int] = (64, 64)
    images: int = 12288
    held_out: int = 512
    steps: int = 8000
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup_steps: int = 150
    weight_decay: float = 0.05
    mask_ratio: float = 0.5
    reach: float = 0.8
    aside_weight: float = 3.0
    save_every: int = 250
    stop_after: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises ConfigError for numbers with which there is nothing to train on or to score."""
        both_halves = 2 if self.objective == "masked_and_aside" else 1
        least = {"steps": 1, "batch_size": both_halves, "save_every": 1, "stop_after": 0}
        least |= {"images": self.batch_size, "held_out": self.batch_size}
        for key, low in least.items():
            if getattr(self, key) < low:
                batch = " (one batch)" if key in ("images", "held_out") else ""
                raise ConfigError(
                    f"config key {key!r} is {getattr(self, key)}; expected at least {low}{batch}"
                )
        if not 0 <= self.warmup_steps < self.steps:
            raise ConfigError(
                f"config key 'warmup_steps' is {self.warmup_steps}; expected at least 0 and fewer "
                f"than the {self.steps} steps"
            )
        if self.backbone not in swin.PRESETS:
            raise ConfigError(
                f"config key 'backbone' is {self.backbone!r}"
                f"{did_you_mean(self.backbone, swin.PRESETS)}"
            )
        if not 0 < self.mask_ratio < 1:
            raise ConfigError(
                f"config key 'mask_ratio' is {self.mask_ratio}; expected between 0 and 1"
            )

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> PretrainConfig:
        """Builds the config, rejecting unknown keys with the nearest name."""
        known = {field.name for field in dataclasses.fields(cls)}
        for key in mapping:
            if key not in known:
                raise ConfigError(f"unknown config key {key!r}{did_you_mean(key, known)}")
        values = dict(mapping)
        if values.get("objective", cls.objective) not in VARIANTS:
            raise ConfigError(
                f"config key 'objective' is {values['objective']!r}; expected one of "
                f"{', '.join(map(repr, VARIANTS))}"
            )
        if "image_size" in values:
            values["image_size"] = tuple(values["image_size"])
        return cls(**values)


def _normalise(pictures: Array) -> Array:
    mean, std = jnp.asarray(swin.Swin.image_mean), jnp.asarray(swin.Swin.image_std)
    return (pictures.astype(jnp.float32) / 255.0 - mean) / std


def _init(config: PretrainConfig) -> tuple[masked.MaskedAutoencoder, dict[str, Any]]:
    """The network and its fresh parameters; may be traced for shapes."""
    height, width = config.image_size
    model = masked.MaskedAutoencoder(swin.swin(config.backbone))
    corruption = masked.draw_corruption(jax.random.key(0), 1, height, width)
    example = jnp.zeros((1, height, width, 3))
    whole = example if config.objective == "masked_and_aside" else None
    fresh = jax.jit(lambda key: model.init(key, example, corruption, whole))
    return model, fresh(jax.random.key(config.seed))["params"]


def parameter_counts(config: PretrainConfig) -> dict[str, int]:
    """``{"trainable": N, "total": N}`` from shapes alone; everything is trained."""
    count = trees.count(jax.eval_shape(lambda: _init(config)[1]))
    return {"trainable": count, "total": count}


def _recorded(config: PretrainConfig) -> str:
    """What a saved state says about its run: the config but for where to stop."""
    kept = {k: v for k, v in dataclasses.asdict(config).items() if k != "stop_after"}
    return json.dumps(kept, sort_keys=True)


def _check_same_run(config: PretrainConfig, metadata: Mapping[str, str], saved: Path) -> None:
    there, now = json.loads(metadata.get("config", "{}")), json.loads(_recorded(config))
    changed = [
        f"{key} (there {there.get(key)!r}, now {value!r})"
        for key, value in now.items()
        if there.get(key) != value
    ]
    if changed:
        raise ConfigError(
            f"{saved} belongs to a run of another config: {', '.join(changed)}; choose another "
            "--workdir, or give it the same values to go on"
        )


def run(config: PretrainConfig, workdir: str | Path) -> dict[str, Any]:
    """Pretrains, or goes on where an earlier start was stopped.

    Args:
      config: the run.
      workdir: keeps the rendered pictures and the state, and gets ``backbone.safetensors`` and
        ``results.json``.

    Returns:
      The content of ``results.json``: the L1 of hidden pixels on held-out pictures, and that of
      their mean colour.

    Raises:
      ConfigError: the work directory holds the state of another config or a training run, or
        cannot be written to.
    """
    workdir = Path(workdir)
    if (workdir / workdirs.CONFIG_FILE).exists():
        raise ConfigError(
            f"the work directory {workdir} holds a training run; choose another --workdir"
        )
    workdirs.make(workdir)
    height, width = config.image_size
    pictures = pretrain_pictures.pictures(workdir, config.images + config.held_out, height, width)
    train, held_out = pictures[: config.images], pictures[config.images :]
    asides = None
    if config.objective == "masked_and_aside":
        asides = pretrain_pictures.asides(
            workdir, config.images, height, width, config.reach, config.seed
        )

    model, params = _init(config)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.warmup_steps, config.steps, config.learning_rate * 0.01
    )
    kernels_only = lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)  # noqa: E731
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, weight_decay=config.weight_decay, mask=kernels_only),
    )
    state = {"params": params, "opt": tx.init(params)}

    def corrupt(step: Array | int, batch: int) -> masked.Corruption:
        key = jax.random.fold_in(jax.random.key(config.seed + 1), step)
        return masked.draw_corruption(key, batch, height, width, ratio=config.mask_ratio)

    @jax.jit
    def update(
        state: dict[str, Any], batch: Array, asides: pretrain_pictures.Asides | None, step: Array
    ) -> tuple[dict[str, Any], Array]:
        images = _normalise(batch)
        count = batch.shape[0] if asides is None else batch.shape[0] - asides.moved.shape[0]
        image, whole = images[:count], None if asides is None else images[count:]
        taken = corrupt(step, count)

        def loss(params: Any) -> tuple[Array, Array]:
            output = model.apply({"params": params}, image, taken, whole)
            total, score = masked.masked_loss(output.picture, image, taken)
            if asides is not None:
                total += config.aside_weight * parallax.parallax_loss(
                    output.log_depth,
                    model.typical_depth,
                    whole,
                    _normalise(asides.moved),
                    asides.step,
                    asides.focal,
                )
            return total, score

        grads, score = jax.grad(loss, has_aux=True)(state["params"])
        updates, opt = tx.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, score

    @jax.jit
    def score_batch(params: Any, batch: Array, step: Array) -> Array:
        image, taken = _normalise(batch), corrupt(step, batch.shape[0])
        output = model.apply({"params": params}, image, taken)
        return masked.masked_loss(output.picture, image, taken)[1]

    def batch_at(step: int) -> tuple[np.ndarray, pretrain_pictures.Asides | None]:
        rng = np.random.Generator(np.random.Philox(key=[config.seed, step]))
        chosen = np.sort(rng.choice(config.images, config.batch_size, replace=False))
        flip = rng.random(config.batch_size) < 0.5
        if asides is not None:  # Which half is stepped aside from must not depend on the order.
            chosen = rng.permutation(chosen)
        pictures = train[chosen]
        pictures = np.where(flip[:, None, None, None], pictures[:, :, ::-1], pictures)
        half = config.batch_size // 2
        return pictures, None if asides is None else asides.take(chosen[half:], flip[half:])

    saved = workdir / "state.safetensors"
    first = 0
    if saved.exists():
        flat, metadata = arrays.load_safetensors(saved)
        _check_same_run(config, metadata, saved)
        leaves = [jnp.asarray(flat[f"{i:05d}"]) for i in range(len(flat))]
        state = jax.tree.unflatten(jax.tree.structure(state), leaves)
        first = int(metadata["step"])

    def save(step: int) -> None:
        flat = {f"{i:05d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
        metadata = {"step": str(step), "config": _recorded(config)}
        arrays.save_safetensors(saved, flat, metadata)

    started, score = time.perf_counter(), None
    last = min(config.stop_after or config.steps, config.steps)
    with (
        progress.progress_bar("pretraining", config.steps) as advance,
        signals.StopRequest() as stop,
    ):
        for step in range(first, last):
            state, latest = update(state, *batch_at(step), step)
            if step % 50 == 49 or step + 1 == last:
                score = float(latest)
                advance(step + 1, config.steps, f"L1 of hidden pixels {score:.4f}")
            stopping = stop.agreed(step + 1, config.save_every)
            if (step + 1) % config.save_every == 0 or stopping or step + 1 == last:
                save(step + 1)
            if stopping:
                last = step + 1
                break
    if last < config.steps:
        return {"steps": last, "l1_of_hidden_pixels": score}
    scores = [
        float(score_batch(state["params"], held_out[i : i + config.batch_size], -1 - i))
        for i in range(0, len(held_out) - config.batch_size + 1, config.batch_size)
    ]
    mean_colour = np.mean(np.asarray(_normalise(train[:1024])), axis=(0, 1, 2))
    baseline = float(np.mean(np.abs(np.asarray(_normalise(held_out)) - mean_colour)))
    results = {
        "config": json.loads(_recorded(config)),
        "held_out_l1_of_hidden_pixels": float(np.mean(scores)),
        "held_out_l1_of_mean_colour": baseline,
        "seconds_of_last_start": round(time.perf_counter() - started, 1),
    }
    flat = {
        path: np.asarray(leaf)
        for path, leaf in trees.flatten_paths(state["params"]["backbone"]).items()
    }
    header = {
        "command": COMMAND + VARIANTS[config.objective],
        "results": json.dumps(results, sort_keys=True),
    }
    arrays.save_safetensors(workdir / "backbone.safetensors", flat, header)
    atomic.write_json(workdir / "results.json", results)
    return results
