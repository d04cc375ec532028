"""What one platform computes or the others do, to run it on a CPU."""

import contextlib

import jax
import pytest

CPU, ACCELERATOR = "as on a CPU", "as on accelerators"
PLATFORMS = (CPU, ACCELERATOR)


@contextlib.contextmanager
def traced_as_on(platform):
    """Within it, what is chosen for a platform is chosen for this one.

    What has been traced before is forgotten, and so is what was traced within it.
    """
    if platform == CPU:
        yield
        return

    def chosen(*args, cpu, default):
        del cpu
        return default(*args)

    jax.clear_caches()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax.lax, "platform_dependent", chosen)
            yield
    finally:
        jax.clear_caches()
