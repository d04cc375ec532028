"""The options of a run: what ``--help`` of the training command shows."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro


def _own(kind: Any, metavar: str) -> Any:
    """An option whose default, None, has to be explained and not shown."""
    return Annotated[kind | None, tyro.conf.arg(metavar=metavar, help_behavior_hint="")]


if TYPE_CHECKING:
    Number = float | None
    Flag = bool | None
    Switch = Literal["local", "global", "vector"] | None
    File = Path | None
    Folder = Path | None
    Name = str | None
    Fractions = tuple[float, ...] | None
    Pixels = int | None
    Span = str | None
    Seeds = str | None
    Mesh = str | None
    Address = str | None
    Count = int | None
else:
    Number = _own(float, "FLOAT")
    Flag = _own(bool, "{True,False}")
    Switch = _own(Literal["local", "global", "vector"], "{local,global,vector}")
    File, Folder = _own(Path, "FILE"), _own(Path, "FOLDER")
    Name = _own(str, "{spherical,swats}")
    Fractions = _own(tuple[float, ...], "[FLOAT [FLOAT ...]]")
    Pixels, Span = _own(int, "INT"), _own(str, "SPAN")
    Seeds = _own(str, "SEEDS")
    Mesh, Address = _own(str, "data=INT,fsdp=INT"), _own(str, "HOST:PORT")
    Count = _own(int, "INT")


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the optimizer.

    One that is not given has the protocol's value, or the optimizer's own default; one
    that the optimizer does not take is an error. The table above says which takes what.
    """

    learning_rate: Number = None
    """At the first step; --schedule says what becomes of it."""
    weight_decay: Number = None
    """Coupled L2; decoupled in adamw, adamp, sgdp, muon, rotational; in lamb's norm."""
    b1: Number = None
    """Decay rate of the first moment."""
    b2: Number = None
    """Decay rate of the second moment."""
    eps: Number = None
    """Added to the denominator."""
    momentum: Number = None
    """Decay rate of the momentum."""
    dampening: Number = None
    """The momentum takes in 1 - dampening of each gradient."""
    decay: Number = None
    """rmsprop: decay rate of the mean square."""
    nesterov: Flag = None
    """Nesterov's look-ahead."""
    amsgrad: Flag = None
    """swats: take the running maximum of the second moment."""
    delta: Number = None
    """adamp, sgdp: project where cosines are under delta / sqrt(size of group)."""
    wd_ratio: Number = None
    """adamp, sgdp: factor of the weight decay of scale-invariant weights."""
    threshold: Number = None
    """swats: how close SGD's learning rate must be to its running mean."""
    switch: Switch = None
    """swats: which leaves go over to SGD together."""
    sgd_scale: Number = None
    """swats: factor of the learning rate in the SGD phase."""
    final_learning_rate: Number = None
    """adabound: learning rate that the bounds close in on."""
    gamma: Number = None
    """adabound: how fast the bounds close."""
    amsbound: Flag = None
    """adabound: take the running maximum of the second moment."""
    bias_correction: Flag = None
    """lamb: correct the bias of both moments."""
    max_weight_norm: Number = None
    """lamb: bound of the weight norm in the trust ratio."""

    def given(self) -> dict[str, Any]:
        """Those that are not None."""
        pairs = dataclasses.asdict(self).items()
        return {name: value for name, value in pairs if value is not None}


@dataclass(frozen=True)
class Config:
    """Options of ``python -m experiments.train``."""

    dataset: str = "digits"
    """Data set."""
    model: str = "small_resnet"
    """Model."""
    optimizer: str = "adamsrt"
    """Optimizer; the table above lists all."""
    protocol: Name = None
    """A published protocol, which sets what is not given beside it. spherical: 405
    epochs, a tenth of the learning rate at 135, 225 and 315, batches of 128, 5 % of the
    images for validation, hyperparameters from hyperparameters.toml. swats: 200 epochs,
    for swats and adabound."""
    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images a step; the last, incomplete batch of an epoch is left out."""
    eval_batch_size: int = 1000
    """Images a batch in the test, at most."""
    validation_fraction: float = 0.0
    """Share of the training images, chosen by the seed, to validate by. Where there are
    any, the epoch with the best validation accuracy decides the test accuracy."""
    seed: int = 0
    """Decides initial weights, order, augmentation and validation split; not the test
    split."""
    seeds: Seeds = None
    """In place of --seed: several, as 0..4 or 0,2,5, one after another, compiled once.
    With --out, each in a folder of its own in it."""
    schedule: Literal["constant", "cosine", "step"] = "cosine"
    """The learning rate: constant, falling to 0 along a cosine, or in steps."""
    milestones: tuple[float, ...] = (1 / 3, 5 / 9, 7 / 9)
    """Where it falls with --schedule step, as fractions of the run."""
    milestone_factor: float = 0.1
    """What it is multiplied by at each of --milestones."""
    sgd_milestones: Fractions = None
    """swats: --milestones of the SGD phase, by default the same."""
    augment: bool = True
    """Augment the training images, in the way of the data set."""
    image_size: Pixels = None
    """folder:PATH: height and width to bring all images to."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in; weights and statistics are float32 always."""
    out: Folder = None
    """Run folder, by default runs/DATASET-MODEL-OPTIMIZER-seedSEED."""
    overwrite: bool = False
    """Replace the run that is in the run folder."""
    resume: bool = False
    """Go on with the run that is in the run folder, from its last checkpoint, to the
    same end as if it had never stopped; with no run in it, begin one."""
    checkpoint_every: str = "10m"
    """How often to save what --resume needs: a number of epochs as 5, a span of time as
    10m, or never. SIGTERM, Ctrl-C and --time-limit save in any case."""
    time_limit: Span = None
    """Save and stop so that the command ends within this time, as 9m or 1.5h."""
    accumulate: int = 1
    """Split each batch into so many parts, average their gradients, and take one step:
    less memory. Batch norm normalizes a part at a time."""
    batch_norm: Literal["global", "local"] = "global"
    """On several devices: normalize by the whole batch, the same as on one device, or
    each by its own images, and say nothing to the others. A run that resumes on another
    number of devices keeps the number it began with."""
    skip_nonfinite: int = 0
    """Leave out steps whose gradient is not finite, at most so many in a row. A step
    that is left out does not advance the schedule of the learning rate."""
    mesh: Mesh = None
    """How to use several devices, as data=4,fsdp=2: images are split over all, weights
    over the second number too. By default data=N, with all that can share a batch."""
    coordinator: Address = None
    """Train with other processes, each with this option: address of the first of them,
    or auto to find it in the environment (SLURM, Kubernetes, Cloud TPU, Open MPI)."""
    processes: Count = None
    """With --coordinator HOST:PORT: how many processes there are."""
    process: Count = None
    """With --coordinator HOST:PORT: the number of this one, from 0."""
    monitor: bool = False
    """Write norm, angle of a step and effective learning rate of each layer on a sphere
    into metrics.jsonl, as they are at the end of every epoch, and draw them."""
    check_labels: bool = False
    """Measure at the start which weights live on spheres, and warn where the model's
    labels say otherwise."""
    tensorboard: bool = False
    """Write event files for TensorBoard as well."""
    wandb: bool = False
    """Log to Weights & Biases as well."""
    config: File = None
    """Start from the config.json of a run; options beside it win, a --protocol too, and
    with another --optimizer its hyperparameters are left aside."""
    hyperparameters: tyro.conf.OmitArgPrefixes[Hyperparameters] = dataclasses.field(
        default_factory=Hyperparameters
    )

    sources: tyro.conf.Suppress[Mapping[str, str]] = dataclasses.field(
        default_factory=dict
    )
    """Where each option is from, by name."""


NAMES = ("dataset", "model", "optimizer", "protocol")
"""What is looked up before the rest is read."""

PLACE = (
    *("seeds", "out", "overwrite", "resume", "checkpoint_every", "time_limit", "mesh"),
    *("coordinator", "processes", "process"),
    *("check_labels", "tensorboard", "wandb", "config", "sources"),
)
"""Options that do not change a run's numbers: left out of config.json."""
