"""Figures of the third study: paths on the circle and the sphere, norms, angles."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.drawing import NARROW, drawing
from experiments.studies.styles import legend_above, style_of

_LEAST = 1e-6  # rad; below, angles are rounding


def draw_all(toys: Mapping[str, Any], network: Mapping[str, Any], folder: Path) -> None:
    """Draws the four figures of the study."""
    _draw_circles(toys["2"], folder / "circle")
    with drawing(
        folder / "sphere",
        3,
        3,
        height=5.4,
        width=NARROW,
        subplot_kw={"projection": "3d"},
    ) as axes:
        for axis, (name, found) in zip(axes, toys["3"].items(), strict=False):
            title = f"{name}: norm {found['norm'][-1]:.2f}"
            draw_on_sphere(axis, np.array(found["path"]), title, name)
        for axis in axes[len(toys["3"]) :]:
            axis.remove()
    _draw_norms(toys["3"], folder / "toy-norms")
    _draw_network(network, folder / "network")


def draw_on_sphere(
    axis: Any, path: np.ndarray, title: str, name: str = "sgd, momentum"
) -> None:
    """Draws the directions of a path, seen on the sphere; a star is the minimum."""
    u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 19), np.linspace(0, np.pi, 10))
    axis.plot_wireframe(
        np.cos(u) * np.sin(v),
        np.sin(u) * np.sin(v),
        np.cos(v),
        color="0.85",
        lw=0.4,
    )
    unit = path / np.linalg.norm(path, axis=1, keepdims=True)
    axis.plot(*unit.T, color=style_of(name)["color"], lw=1.2)
    axis.scatter(*unit[0], color="k", s=10)
    axis.scatter(1, 0, 0, color="k", marker="*", s=30)
    axis.set_title(title, fontsize=8, y=1.0)
    axis.set_axis_off()
    axis.set_box_aspect((1, 1, 1), zoom=1.45)
    axis.view_init(elev=25, azim=60)


def _draw_circles(toy: Mapping[str, Any], stem: Path) -> None:
    turn = np.linspace(0, 2 * np.pi, 200)
    paths = {name: np.array(found["path"]) for name, found in toy.items()}
    corners = np.concatenate(list(paths.values()))
    low = np.minimum(corners.min(0), -1) - 0.3
    high = np.maximum(corners.max(0), 1) + 0.3
    height = 4 * (0.3 + NARROW / 2 * (high[1] - low[1]) / (high[0] - low[0]))
    with drawing(stem, 4, 2, height=height, width=NARROW) as axes:
        for axis, (name, path) in zip(axes, paths.items(), strict=False):
            axis.plot(np.cos(turn), np.sin(turn), color="0.75", lw=0.8)
            axis.plot(*path.T, marker=".", ms=2, lw=1, color=style_of(name)["color"])
            axis.plot(*path[0], "ks", ms=3)
            axis.set_title(f"{name}: norm {toy[name]['norm'][-1]:.2f}", loc="left")
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            axis.set_aspect("equal")
            axis.set_axis_off()
        for axis in axes[len(paths) :]:
            axis.remove()


def _draw_norms(toy: Mapping[str, Any], stem: Path) -> None:
    with drawing(stem, 1, 2, height=3.0, width=NARROW) as axes:
        for name, found in toy.items():
            angle = np.array(found["angle"])
            angle[angle < _LEAST] = np.nan
            axes[0].plot(found["norm"], label=name, **style_of(name))
            axes[1].plot(angle, **style_of(name))
        axes[0].set(xlabel="step", ylabel="norm of the weights")
        axes[1].set(xlabel="step", ylabel="angle of a step (rad)", yscale="log")
        legend_above(axes)


def _draw_network(network: Mapping[str, Any], stem: Path) -> None:
    """Means over the layers, epoch by epoch: mean and range over the seeds."""
    with drawing(stem, 1, 2, height=3.3, width=NARROW) as axes:
        for name, runs in network.items():
            grown = np.array([one["growth"] for one in runs.values()]) - 1
            angle = np.array([one["angle"] for one in runs.values()])
            style = style_of(name)
            for axis, values in zip(axes, (grown, angle), strict=True):
                epochs = np.arange(1, values.shape[1] + 1)
                axis.plot(epochs, values.mean(0), label=name, **style)
                axis.fill_between(
                    epochs,
                    values.min(0),
                    values.max(0),
                    color=style["color"],
                    alpha=0.2,
                    lw=0,
                )
        for axis in axes:
            axis.set(xlabel="epoch", yscale="log")
            axis.locator_params("x", integer=True)
        axes[0].set_ylabel("growth of the norm")
        axes[1].set_ylabel("angle of a step (rad)")
        legend_above(axes)
