"""Draws the path of each optimizer on three surfaces, for its page.

    python docs/pictures.py FOLDER

Rosenbrock's valley and Rastrigin's egg box have no sphere: their two weights are
labelled euclidean. The third is a loss of directions alone, on a sphere.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import spherical_optax as so
from experiments.drawing import drawing
from experiments.studies.growth_figures import draw_on_sphere
from experiments.studies.styles import COLOURS
from experiments.studies.toy import descend

Make = Callable[[float, str], optax.GradientTransformation]

# From learning rate and label to the optimizer.
OPTIMIZERS: dict[str, Make] = {
    "adams": lambda lr, label: so.adams(lr, labels={"w": label}),
    "adamsrt": lambda lr, label: so.adamsrt(lr, labels={"w": label}),
    "adamg": lambda lr, label: so.adamg(lr, labels={"w": label}),
    "sgdmrt": lambda lr, label: so.sgdmrt(lr, 0.9, labels={"w": label}),
    "adamp": lambda lr, _: so.adamp(lr),
    "sgdp": lambda lr, _: so.sgdp(lr, 0.9),
    "swats": lambda lr, _: so.swats(lr, threshold=1e-4),
    "adabound": lambda lr, _: so.adabound(lr, final_learning_rate=lr / 10),
    "lamb": lambda lr, _: so.lamb(lr),
    "adam_abs": lambda lr, _: so.adam_abs(lr),
    "hyperball": lambda lr, label: so.hyperball(
        optax.trace(0.9), lr, labels={"w": label}
    ),
    "adamh": lambda lr, label: so.adamh(lr, labels={"w": label}),
    "muonh": lambda lr, label: so.muonh(lr, labels={"w": label}),
    "rotational": lambda lr, label: so.rotational(
        optax.scale_by_adam(), lr, 0.1, labels={"w": label}
    ),
    "rescale_and_transport": lambda lr, label: (
        so.rescale_and_transport(optax.adabelief(lr), ())
        if label == "layer"
        else optax.adabelief(lr)
    ),
}
# Learning rates on the two surfaces of the plane and on the sphere.
RATES = dict.fromkeys(OPTIMIZERS, (0.05, 0.3, 0.1)) | {
    "sgdmrt": (5e-4, 2e-3, 0.1),
    "sgdp": (5e-4, 2e-3, 0.1),
    "hyperball": (5e-4, 2e-3, 0.1),
    "lamb": (0.02, 0.1, 0.1),
    "rotational": (0.05, 0.3, 0.3),
}
STEPS = 400


def rosenbrock(w: jax.Array) -> jax.Array:
    """A curved valley; its lowest point is (1, 1)."""
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def rastrigin(w: jax.Array) -> jax.Array:
    """A bowl full of hollows; the lowest is at (0, 0)."""
    return 20 + jnp.sum(w**2 - 10 * jnp.cos(2 * jnp.pi * w))


def path_in_plane(
    optimizer: optax.GradientTransformation,
    loss: Callable[[jax.Array], jax.Array],
    start: tuple[float, float],
) -> np.ndarray:
    """The points an optimizer passes, shape ``(STEPS + 1, 2)``."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(lambda p: loss(p["w"]))(params)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["w"]

    params = {"w": jnp.asarray(start)}
    carry = (params, optimizer.init(params))
    _, path = jax.jit(lambda carry: jax.lax.scan(step, carry, None, STEPS))(carry)
    return np.concatenate([np.asarray(start)[None], np.asarray(path)])


def draw(name: str, stem: Path) -> None:
    """Draws the paths of one optimizer, as ``stem.png`` and ``stem.svg``."""
    make, rates = OPTIMIZERS[name], RATES[name]
    planes = (
        ("Rosenbrock", rosenbrock, (-1.2, 1.0), (-1.8, 1.8, -0.8, 1.8), (1, 1)),
        ("Rastrigin", rastrigin, (-1.4, 1.3), (-2.2, 2.2, -2.2, 2.2), (0, 0)),
    )
    with drawing(stem, 1, 3, height=2.6) as axes:
        for axis, rate, (title, loss, start, box, best) in zip(
            axes[:2], rates[:2], planes, strict=True
        ):
            x, y = np.meshgrid(np.linspace(*box[:2], 150), np.linspace(*box[2:], 150))
            values = jax.vmap(loss)(jnp.stack([x.ravel(), y.ravel()], 1))
            axis.imshow(
                np.log1p(values).reshape(x.shape),
                extent=box,
                origin="lower",
                aspect="auto",
                interpolation="bilinear",
                cmap="Greys",
                alpha=0.6,
            )
            path = path_in_plane(make(rate, "euclidean"), loss, start)
            axis.plot(*path.T, ".-", color=COLOURS[1], ms=2, lw=0.8)
            axis.plot(*start, "ks", ms=4)
            axis.plot(*best, "k*", ms=8)
            axis.axis(box)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(f"{title}, lr {rate:g}", loc="left", fontsize=8)
        place = axes[2].get_subplotspec()
        figure = axes[2].figure
        axes[2].remove()
        axis = figure.add_subplot(place, projection="3d")
        start = np.array([-0.6, 0.48, 0.64])
        path = descend(make(rates[2], "layer"), start)["path"]
        draw_on_sphere(axis, path, f"a sphere, lr {rates[2]:g}")


def draw_all(folder: Path) -> None:
    """Draws what is missing."""
    for name in OPTIMIZERS:
        if not (folder / f"{name}.svg").exists():
            draw(name, folder / name)


if __name__ == "__main__":
    draw_all(Path(sys.argv[1]))
