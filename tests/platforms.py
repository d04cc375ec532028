"""What one platform computes or the others do, to run it on a CPU."""

import jax

CPU, ACCELERATOR = "as on a CPU", "as on accelerators"
PLATFORMS = (CPU, ACCELERATOR)


def trace_as_on(platform, monkeypatch):
    """Of what is chosen for a platform, what is traced from now on is this one's."""

    def chosen(*args, cpu, default):
        return (cpu if platform == CPU else default)(*args)

    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)
