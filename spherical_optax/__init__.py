"""Optimizers that know that weights before a normalization layer live on spheres."""

from spherical_optax import geometry
from spherical_optax._adabound import adabound, scale_by_adabound
from spherical_optax._adam_abs import adam_abs, scale_by_adam_abs
from spherical_optax._equilibrium import (
    add_corrected_weight_decay,
    equilibrium_rotation,
)
from spherical_optax._hyperball import adamh, hyperball, muonh, project_to_norm
from spherical_optax._invariance import detect_invariance
from spherical_optax._lamb import lamb, scale_by_lamb
from spherical_optax._monitor import monitor_sphere, sphere_statistics
from spherical_optax._projection import adamp, project_if_invariant, sgdp
from spherical_optax._rotational import rotational
from spherical_optax._spherical import (
    adamg,
    adams,
    adamsrt,
    scale_by_standardized_adam,
    sgdmrt,
)
from spherical_optax._swats import scale_by_swats, swats, swats_switch_points
from spherical_optax._transport import (
    project_to_tangent,
    rescale_and_transport,
    retract_to_sphere,
)
from spherical_optax.labels import CHANNEL_AXES, label_by_path, label_conv_filters

__version__ = "0.1.0"

__all__ = [
    # Labels: which weights live on spheres.
    "CHANNEL_AXES",
    "detect_invariance",
    "label_by_path",
    "label_conv_filters",
    # Spherical family.
    "adamg",
    "adams",
    "adamsrt",
    "sgdmrt",
    # Projection.
    "adamp",
    "sgdp",
    # From Adam to SGD.
    "adabound",
    "swats",
    "swats_switch_points",
    # Layer-wise and element-wise.
    "adam_abs",
    "lamb",
    # Any optimizer on spheres.
    "adamh",
    "hyperball",
    "monitor_sphere",
    "muonh",
    "rotational",
    "sphere_statistics",
    # What weight decay does to spheres.
    "add_corrected_weight_decay",
    "equilibrium_rotation",
    # Blocks for any optax.chain.
    "project_if_invariant",
    "project_to_norm",
    "project_to_tangent",
    "rescale_and_transport",
    "retract_to_sphere",
    "scale_by_adabound",
    "scale_by_adam_abs",
    "scale_by_lamb",
    "scale_by_standardized_adam",
    "scale_by_swats",
    # Inner products, norms and moves on spheres.
    "geometry",
]
