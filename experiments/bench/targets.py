"""Accelerators that updates are compiled for without having one."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax.experimental import topologies

from experiments.bench.machine import installed_version
from experiments.errors import UsageError

HERE = "here"
"""The first device of this process."""


@dataclass(frozen=True)
class Target:
    """An accelerator.

    Attributes:
      platform: as JAX calls it.
      topology: a name that its plugin knows.
      extra: of this project, which installs that plugin.
      packages: that compile for it, one of them.
      description: what else the plugin has to be told.
      environment: variables without which it looks for a machine around it.
    """

    platform: str
    topology: str
    extra: str
    packages: tuple[str, ...]
    description: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
"""

TARGETS = {
    "h100": Target(
        "cuda",
        "h100",
        "cuda12",
        ("jax_cuda12_plugin", "jax_cuda13_plugin"),
        {"topology": "1x1x1", "target_config": _H100},
    ),
    "v5e": Target(
        "tpu",
        "v5e:2x2",
        "tpu",
        ("libtpu",),
        environment={
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": "v5litepod-4",
            "TPU_WORKER_HOSTNAMES": "localhost",
            "TPU_WORKER_ID": "0",
        },
    ),
}
"""An H100 (SXM), and one chip of a TPU v5e."""


def device_of(target: str) -> Any:
    """The device to compile for.

    Raises:
      UsageError: JAX cannot compile for it: a plugin is missing.
    """
    if target == HERE:
        return jax.devices()[0]
    known = TARGETS[target]
    for name, value in known.environment.items():
        os.environ.setdefault(name, value)
    try:
        described = topologies.get_topology_desc(
            known.topology, known.platform, **known.description
        )
    except (NotImplementedError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(
            f"--target {target}: JAX cannot compile for it here ({said});"
            f' pip install ".[{known.extra}]" brings what it needs'
        ) from None
    return described.devices[0]


def compiler_of(target: str) -> str | None:
    """Package and version of what compiles, where it is not jaxlib."""
    packages = () if target == HERE else TARGETS[target].packages
    found: list[Any] = [(name, installed_version(name)) for name in packages]
    return next((f"{name} {version}" for name, version in found if version), None)
