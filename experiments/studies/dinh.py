"""Dinh et al.'s objection to sharpness, as an experiment."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.drawing import NARROW, drawing
from experiments.flatness import (
    epsilon_sharpness,
    largest_eigenvalue,
    relative_sharpness,
)
from experiments.report.page import Block, Heading, Paragraph, Picture, Table
from experiments.studies.study import FIGURES
from experiments.studies.styles import legend_above, line_style
from experiments.studies.verdicts import NO, YES, Verdict

ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0)
_SAME, _OTHER = 1.01, 2.0  # ratios of the largest to the smallest value


def objection(alphas: Sequence[float] = ALPHAS) -> list[dict[str, float]]:
    """One ReLU network, rescaled, is the same function: is it as sharp?

    A network of two layers is trained on a problem of regression; then its first layer
    is multiplied by alpha and its second divided by it.
    """
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(256, 10)), jnp.float32)
    targets = jnp.asarray(np.sin(inputs @ rng.normal(size=(10, 2))), jnp.float32)
    params = {
        "first": jnp.asarray(rng.normal(size=(10, 32)) / np.sqrt(10), jnp.float32),
        "bias": jnp.zeros(32),
        "second": jnp.asarray(rng.normal(size=(32, 2)) / np.sqrt(32), jnp.float32),
    }

    def outputs(params: Mapping[str, jax.Array]) -> jax.Array:
        hidden = jax.nn.relu(inputs @ params["first"] + params["bias"])
        return hidden @ params["second"]

    def loss_fn(params: Mapping[str, jax.Array]) -> jax.Array:
        return jnp.mean((outputs(params) - targets) ** 2)

    params = _trained(loss_fn, params)
    labels = dict.fromkeys(params, "layer")
    reference, rows = outputs(params), []
    for alpha in alphas:
        factors = {"first": alpha, "bias": alpha, "second": 1 / alpha}
        other = {name: factors[name] * x for name, x in params.items()}
        difference = jnp.max(jnp.abs(outputs(other) - reference))
        rows.append(
            {
                "alpha": alpha,
                "output_difference": float(difference / jnp.max(jnp.abs(reference))),
                "box": epsilon_sharpness(loss_fn, other, 1e-3),
                "sphere": relative_sharpness(loss_fn, other, 0.02, labels=labels),
                "eigenvalue": largest_eigenvalue(loss_fn, other),
            }
        )
    return rows


def _trained(loss_fn: Any, params: Any) -> Any:
    optimizer = optax.adam(1e-2)

    def step(_: int, carry: Any) -> Any:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, 1000, step, (params, optimizer.init(params)))[0]


def judge_objection(rows: Sequence[Mapping[str, float]]) -> Verdict:
    """Same outputs and spheres, another box."""
    box, sphere = ([row[name] for row in rows] for name in ("box", "sphere"))
    apart = max(row["output_difference"] for row in rows)
    same = max(sphere) < _SAME * min(sphere) and apart < 1e-4
    other = max(box) > _OTHER * min(box)
    alphas = ", ".join(f"{row['alpha']:g}" for row in rows)
    evidence = (
        f"alpha {alphas}: box"
        f" {', '.join(f'{x:.3g}' for x in box)} %, spheres"
        f" {', '.join(f'{x:.3g}' for x in sphere)} %; outputs differ by at most"
        f" {apart:.1g} of the largest; one network, n = 1; same is less than 1 % apart,"
        " changed is by more than a factor of 2"
    )
    return Verdict(
        "Rescaling a ReLU network changes Keskar's sharpness and not that on spheres",
        YES if same and other else NO,
        evidence,
    )


def blocks(rows: Sequence[Mapping[str, float]], folder: Path | None) -> list[Block]:
    """The table, and the figure."""
    if folder is not None:
        _draw(rows, folder / "dinh")
    header = ["alpha", "outputs differ by", "box (%)", "spheres (%)", "eigenvalue"]
    names = ["alpha", "output_difference", "box", "sphere", "eigenvalue"]
    return [
        Heading(2, "Dinh's objection"),
        Paragraph(
            "One trained ReLU network of two layers, its first layer multiplied by"
            " alpha and its second divided by it: the same function of its inputs."
            " Outputs are compared relative to the largest; the box is Keskar's with"
            " epsilon 1e-3, the balls are 0.02 of the norm of each layer."
        ),
        Table(
            header, [[f"{row[n]:.4g}" for n in names] for row in rows], numeric=header
        ),
        Picture(
            f"{FIGURES}/dinh",
            "Three measures of sharpness over alpha; that on spheres is flat",
            "Each measure relative to its value at alpha = 1: the same function can"
            " look as sharp as one likes, but not on spheres.",
        ),
    ]


def _draw(rows: Sequence[Mapping[str, float]], stem: Path) -> None:
    (unit,) = (row for row in rows if row["alpha"] == 1)
    shown = (("box", "Keskar's box"), ("sphere", "spheres"), ("eigenvalue", "Hessian"))
    with drawing(stem, height=2.7, width=NARROW) as axes:
        for index, (name, words) in enumerate(shown):
            axes[0].plot(
                [row["alpha"] for row in rows],
                [row[name] / unit[name] for row in rows],
                marker="os^"[index],
                ms=4,
                label=words,
                **line_style(index),
            )
        axes[0].set(xscale="log", yscale="log", xlabel="alpha")
        axes[0].set_ylabel("relative to alpha = 1")
        axes[0].grid(lw=0.5)
        legend_above(axes)
