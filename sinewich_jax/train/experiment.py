"""What a run consists of: a model, its tasks, its data, its optimizer; here with images."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from sinewich_jax import data, tasks
from sinewich_jax.config import Config
from sinewich_jax.core import trees
from sinewich_jax.core.weighting import Weighting
from sinewich_jax.errors import ConfigError
from sinewich_jax.nn.bottleneck import BottleneckSpec
from sinewich_jax.nn.mtlora import MTLoRASpec
from sinewich_jax.nn.sinewich import MultiTaskModel
from sinewich_jax.nn.task_kernel import TaskSpec
from sinewich_jax.train import merge_item, networks

# Matrices without weight decay.
_UNDECAYED = r"clock/.*|tokens/start|.*/task/.*|.*bias.*|.*/value_kernel"
FULL = ("full_ft", "single_task", "scratch")
"""Methods that train the whole backbone."""

# The two wide kernels of an MLP are cut so that a block needs one reduction: fc1 by columns, fc2 by
# rows (Megatron-LM, Shoeybi et al. 2019). The fused qkv stays whole: its columns are thirds of
# heads, which a mesh axis does not divide evenly in every stage. All that trains stays whole: it is
# small.
SHARDING_RULES = (
    (r"backbone/stage\d+_block\d+/fc1/kernel", PartitionSpec(None, "model")),
    (r"backbone/stage\d+_block\d+/fc1/bias", PartitionSpec("model")),
    (r"backbone/stage\d+_block\d+/fc2/kernel", PartitionSpec("model", None)),
    (r".*", PartitionSpec()),
)

# What belongs to one task alone learns from that task's loss; gradient surgery is for the rest.
OWN_RULES = (r"decoder/output_[a-z_]+",)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that the training loop needs to know about a run.

    Attributes:
      config: the run.
      model: the Linen model; ``model.apply(variables, image, train=..., keys=...)``.
      tasks: in the order of every task axis.
      rules: which parameters are trained.
      weighting: how the losses of the tasks, times their weights, become one step.
      sharding_rules: where parameters lie on the mesh.
      own_rules: regular expressions of the paths of parameters that belong to one task alone.
      sources: examples by part (``"train"``, ``"eval"``); a part that is not here is opened by the
        name in the config.
      start: variables by path (``params/backbone/...``) that take the place of initial ones.
      penalty: a term of the loss that reads the trained parameters alone; None for none.
    """

    inputs: ClassVar[str] = "image"
    """What the model reads of a batch."""
    calibration_examples: ClassVar[int] = 64
    """Examples whose labels heads start from."""

    config: Config
    model: MultiTaskModel
    tasks: tuple[tasks.Task, ...]
    rules: tuple[tuple[str, str], ...]
    weighting: Weighting
    sharding_rules: tuple[tuple[str, PartitionSpec], ...] = SHARDING_RULES
    own_rules: tuple[str, ...] = OWN_RULES
    sources: Mapping[str, data.DataSource] = dataclasses.field(default_factory=dict, compare=False)
    start: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    penalty: Callable[[Any], jax.Array] | None = dataclasses.field(default=None, compare=False)

    @property
    def augment(self) -> data.Augment | None:
        """Joint augmentation of training examples; None when nothing is asked for."""
        augment = data.Augment(**dataclasses.asdict(self.config.augment))
        return None if augment == data.Augment() else augment

    @functools.cached_property
    def train_source(self) -> data.DataSource:
        """The training examples; opened (and, for scenes, rendered once) on first use."""
        return self._source("train", self.config.image_size)

    @functools.cached_property
    def eval_source(self) -> data.DataSource:
        """The evaluation examples."""
        return self._source("eval", self.config.image_size)

    @functools.cached_property
    def original_source(self) -> data.DataSource:
        """The evaluation examples with labels of the size that they came in."""
        size = self.config.image_size
        own = size if "eval" not in self.sources and data.is_rendered(self.config.data) else None
        return data.OriginalLabels(self._source("eval", own), size)

    def _source(self, part: str, size: tuple[int, int] | None) -> data.DataSource:
        if part in self.sources:
            source, name = self.sources[part], f"the {part} source"
            source = data.fit(source, self.config.tasks, size)
        else:
            source, name = open_source(self.config, part, size), f"data set {self.config.data!r}"
        for task in self.tasks:
            if source.channels[task.name] != task.channels:
                raise ConfigError(
                    f"{name} needs a head of {source.channels[task.name]} channels for task "
                    f"{task.name!r}, but the config gives it {task.channels}; set the config key "
                    f"channels.{task.name}={source.channels[task.name]}"
                )
        return source

    def normalise(self, image: jax.Array) -> jax.Array:
        """uint8 [..., 3] to the float32 that the backbone expects."""
        backbone = type(self.model.backbone)
        mean, std = jnp.asarray(backbone.image_mean), jnp.asarray(backbone.image_std)
        return (image.astype(jnp.float32) / 255.0 - mean) / std

    def init(self) -> dict[str, Any]:
        """Fresh variables, with the pretrained backbone in place.

        Made to be traced, by ``jax.jit`` for the variables or ``jax.eval_shape`` for their shapes:
        the random numbers that pretrained weights replace are then never drawn.
        """
        key = jax.random.key(self.config.seed)
        streams = {"params": key, "anchor": jax.random.fold_in(key, 1)}
        variables = dict(self.model.init(streams, self._blank()))
        pretrained = self._pretrained()
        if pretrained is not None:
            flat = trees.flatten_paths(variables["params"])
            flat.update(networks.matched(pretrained, flat))
            variables = {**variables, "params": trees.unflatten_paths(flat)}
        if not self.start:
            return variables
        return trees.unflatten_paths({**trees.flatten_paths(variables), **self.start})

    def _blank(self) -> Any:
        """The smallest input of the model."""
        height, width = self.config.image_size or (64, 64)
        return jnp.zeros((1, height, width, 3))

    def _pretrained(self) -> dict[str, Any] | None:
        """Pretrained parameters by path; None for random ones."""
        return networks.backbone_weights(self.config)

    def _output_bias(self, task: str) -> str:
        """The path of the bias of a task's head."""
        return f"decoder/output_{task}_bias"

    def calibrated(self, init: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Starts the heads at the mean label, so that no step is spent on learning a constant.

        The bias of a head becomes its task's best constant output on the first training examples.
        Without it a depth head takes a hundred steps to learn that scenes are four metres away.

        Args:
          init: makes the variables; called after the data has been opened, so that data which is
            absent is told before anything is compiled.
        """
        if self.config.output_bias == "zero":
            return init()
        source = self.train_source
        count = min(len(source), self.calibration_examples)
        examples = [source[i] for i in range(count)]
        variables = init()
        flat = trees.flatten_paths(variables["params"])
        for task in self.tasks:
            mean = task.mean_label(
                [example["labels"][task.name] for example in examples],
                [example["valid"][task.name] for example in examples],
            )
            path = self._output_bias(task.name)
            flat[path] = jnp.asarray(task.best_constant(mean), flat[path].dtype)
        return {**variables, "params": trees.unflatten_paths(flat)}

    def begin(self, workdir: Path) -> None:
        """Writes what a run must remember of its start; nothing here.

        Called once the frozen base is stored and before the first step.
        """

    def shown(self, source: Any, index: int) -> dict[str, Any]:
        """What a person is shown of an example beside its labels and predictions."""
        return {"image": source[index]["image"]}

    def leave(self, workdir: Path, evaluator: Any, state: Any, constants: Any) -> None:
        """Writes what a run leaves beside its results; nothing here.

        Args:
          workdir: the work directory.
          evaluator: the :class:`~sinewich_jax.train.evaluate.Evaluator` of this experiment.
          state: the trained state.
          constants: the frozen tree.
        """

    def mergeable(self, path: str) -> bool:
        """Whether runs of other tasks have the parameter ``path`` too, so that it can be merged."""
        return merge_item.is_mergeable(path, own_rows(self.model))

    def optimizer(self, config: Config, abstract_params: Any) -> optax.GradientTransformation:
        """AdamW with a cosine, rates of their own for adapters and decoder, decay of plain kernels.

        Neither clock and tokens nor the task kernels decay: pulling an anchored kernel towards zero
        would pull it away from its anchor. Beside it the curvature is kept that merging reads
        (:mod:`sinewich_jax.train.merge_item`).
        """
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=config.learning_rate,
            warmup_steps=min(config.warmup_steps, config.steps - 1),
            decay_steps=config.steps,
            end_value=0.01 * config.learning_rate,
        )
        multipliers = (
            (r"backbone/.*/task/.*", config.task_lr_mult),
            (r"backbone/.*/lora_(up|down)", config.adapter_lr_mult),
            (r"(decoder|heads)/.*", config.decoder_lr_mult),
            (r".*", 1.0),
        )

        def first_match(path: str) -> float:
            return next(value for rule, value in multipliers if re.fullmatch(rule, path))

        rates = trees.map_paths(lambda path, _: first_match(path), abstract_params)
        decays = trees.map_paths(
            lambda path, leaf: leaf.ndim > 1 and not re.fullmatch(_UNDECAYED, path),
            abstract_params,
        )
        tx = optax.chain(
            optax.clip_by_global_norm(config.clip_norm),
            optax.scale_by_adam(),
            optax.add_decayed_weights(config.weight_decay, mask=decays),
            optax.stateless(
                lambda updates, _: jax.tree.map(lambda u, rate: u * rate, updates, rates)
            ),
            optax.scale_by_learning_rate(schedule),
        )
        return merge_item.track(tx, config, abstract_params, self.mergeable)


def own_rows(network: MultiTaskModel) -> tuple[str, ...]:
    """Patterns of the parameters with one row a task; what one task owns, its head apart."""
    rows = [r"decoder/(project\d+|base_bias)", r"decoder/norm/(scale|bias|mean|var)"]
    rows += [r"clock/(tokens|omega_\w+)", r"backbone/.*/task/gain"]
    if network.decoder.base == "independent":
        rows.append(r"decoder/base")
    task = network.backbone.task
    if isinstance(task, MTLoRASpec) or (isinstance(task, TaskSpec) and task.copies is not None):
        rows.append(r"backbone/.*/task/(up|down|conv|factors/up|factors/down)")
    if isinstance(task, BottleneckSpec):
        rows.append(r"backbone/.*/task/(attention|mlp)/(down|up)_(kernel|bias)")
    return tuple(rows)


def make_task(config: Config, name: str) -> tasks.Task:
    """A task with what the config says of it: its loss weight, its head, the kind of its loss.

    Raises:
      ConfigError: an unknown task, or a kind of loss for a task that has one only.
    """
    task = tasks.make(name)
    equal = config.weighting == "equal"
    overrides: dict[str, Any] = {"weight": 1.0 if equal else config.loss_weight(name, task.weight)}
    if name in dict(config.channels):
        overrides["channels"] = dict(config.channels)[name]
    if name in dict(config.loss_kinds):
        if not hasattr(task, "loss_kind"):
            raise ConfigError(
                f"config key 'loss_kinds.{name}' is {dict(config.loss_kinds)[name]!r}, but the "
                "loss of that task has one kind only"
            )
        overrides["loss_kind"] = dict(config.loss_kinds)[name]
    return tasks.make(name, **overrides)


def open_source(config: Config, part: str, size: tuple[int, int] | None) -> data.DataSource:
    """Opens the ``train`` or ``eval`` part of the config's data set.

    Args:
      config: the run.
      part: ``"train"`` or ``"eval"``.
      size: (height, width) to resize to; None keeps the data set's own.

    Raises:
      ConfigError: the data set has no option that is asked for (``depth_unit``, ``allow_missing``,
        ``depth_target``).
      DataError: the data is absent or not what it should be.
    """
    training = part == "train"
    # Given only where they are asked for, because most sets have no such option.
    options: dict[str, Any] = {"allow_missing": True} if config.allow_missing else {}
    options |= {"depth_unit": config.depth_unit} if config.depth_unit else {}
    options |= {"target": config.depth_target} if config.depth_target else {}
    return data.load(
        config.data,
        "train" if training else config.eval_split or data.default_eval_split(config.data),
        data_dir=config.data_dir,
        tasks=config.tasks,
        image_size=size,
        channels=dict(config.channels),
        size=config.train_size if training else config.eval_size,
        **options,
    )
