"""SWATS: from Adam to SGD, for each leaf, for the first of them, or for all."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from spherical_optax import geometry
from spherical_optax._checks import (
    check_choice,
    check_flag,
    check_numbers,
    needs_params,
)
from spherical_optax._leaves import leaf_function, map_leaves
from spherical_optax._limits import (
    bounded,
    capped,
    either,
    in_range,
    quotient,
    root_floor,
    saturated,
)
from spherical_optax._moments import (
    Number,
    abs_sq,
    add_decayed_weights,
    bias_correction,
    cast_tree,
    ema,
    increment,
    value_at,
    zeros_like_params,
    zeros_like_squares,
)
from spherical_optax.geometry import real_dtype, widen
from spherical_optax.labels import leaves_with_paths

SWITCHES = ("local", "global", "vector")


class ScaleBySwatsState(NamedTuple):
    """State of :func:`scale_by_swats`.

    The last four hold one number a leaf: the estimate, whether the leaf switched, at
    which step (counted from 1; 0 before) and to which SGD learning rate.
    :func:`swats_switch_points` makes a table of them.
    """

    count: jax.Array  # shape=(), dtype=int32
    mu: optax.Updates  # shapes of the parameters; SGD's momentum after the switch
    nu: optax.Updates  # shapes of the parameters; still after the switch
    nu_max: optax.Updates  # shapes of the parameters; empty unless amsgrad
    average: optax.Updates  # one number a leaf: lam, the running mean of gamma
    switched: optax.Updates  # one bool a leaf
    switch_step: optax.Updates  # one int32 a leaf
    sgd_learning_rate: optax.Updates  # one number a leaf


class SwitchPoint(NamedTuple):
    """A leaf that went over to SGD."""

    path: str
    step: int
    sgd_learning_rate: float


def swats_switch_points(
    state: optax.OptState, params: optax.Params
) -> list[SwitchPoint]:
    """Lists the leaves that switched to SGD, the earliest first.

    Args:
      state: state of :func:`swats`, at any depth of another optimizer's state.
      params: the parameter tree, for the names of the leaves.

    Returns:
      ``(path, step, sgd_learning_rate)`` of each leaf that switched, by step; the
      step (counted from 1) is the last that Adam made.

    Raises:
      ValueError: there is no SWATS in the state, or more than one, or its leaves are
        not those of ``params``; the message names the first.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.swats(1e-2, threshold=1e-5)
      >>> params = {"dense": {"kernel": jnp.ones((2, 2))}}
      >>> state = optimizer.init(params)
      >>> for _ in range(3):
      ...     _, state = optimizer.update(params, state, params)
      >>> [(path, step) for path, step, _ in so.swats_switch_points(state, params)]
      [('dense/kernel', 2)]
    """

    def is_swats(node):
        return isinstance(node, ScaleBySwatsState)

    found = [s for s in jax.tree.leaves(state, is_leaf=is_swats) if is_swats(s)]
    if len(found) != 1:
        raise ValueError(f"state must hold one SWATS state, got {len(found)}")
    paths = [path for path, _ in leaves_with_paths(found[0].mu)]
    unknown = set(paths) - {path for path, _ in leaves_with_paths(params)}
    if unknown:
        raise ValueError(f"params: the state has a leaf {min(unknown)!r} that it lacks")
    steps = jax.tree.leaves(found[0].switch_step)
    rates = jax.tree.leaves(found[0].sgd_learning_rate)
    points = [
        SwitchPoint(path, int(step), float(rate))
        for path, step, rate in zip(paths, steps, rates, strict=True)
        if step > 0
    ]
    return sorted(points, key=lambda point: point.step)


def scale_by_swats(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    threshold: Number = 1e-9,
    *,
    switch: str = "local",
    sgd_scale: optax.ScalarOrSchedule = 1.0,
    nesterov: bool = False,
    amsgrad: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Scales updates by the step sizes of SWATS, learning rate included.

    See :func:`swats` for the mathematics and the arguments. As with every block of
    Optax, the sign is that of the gradient: :func:`optax.scale` by -1 follows.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = optax.chain(so.scale_by_swats(1e-3), optax.scale(-1.0))
      >>> state = optimizer.init(jnp.ones(3))
    """
    check_numbers(
        non_negative={
            "learning_rate": learning_rate,
            "eps": eps,
            "threshold": threshold,
            "sgd_scale": sgd_scale,
        },
        below_one={"b1": b1, "b2": b2},
    )
    check_choice("switch", switch, SWITCHES)
    check_flag("nesterov", nesterov)
    check_flag("amsgrad", amsgrad)

    def init_fn(params):
        dtype = real_dtype(jnp.result_type(jnp.float32, *jax.tree.leaves(params)))

        def per_leaf(dtype):
            return jax.tree.map(lambda x: jnp.zeros_like(x, dtype, shape=()), params)

        return ScaleBySwatsState(
            count=jnp.zeros([], jnp.int32),
            mu=zeros_like_params(params),
            nu=zeros_like_squares(params),
            nu_max=zeros_like_squares(params) if amsgrad else (),
            average=per_leaf(dtype),
            switched=per_leaf(bool),
            switch_step=per_leaf(jnp.int32),
            sgd_learning_rate=per_leaf(dtype),
        )

    def update_fn(updates, state, params=None):
        del params
        count = increment(state.count)
        bias1, bias2 = bias_correction(b1, count), bias_correction(b2, count)
        adam_rate = value_at(learning_rate, state.count) * jnp.sqrt(bias2) / bias1
        sgd_factor = (1 - b1) * value_at(sgd_scale, state.count)
        rates = (state.count, capped(adam_rate), root_floor(eps), sgd_factor)
        step = _step(b1=b1, b2=b2, nesterov=nesterov, amsgrad=amsgrad)
        estimate = _estimate(b2=b2, threshold=threshold)
        follow = _follow(b2=b2, threshold=threshold)
        numbers = (
            state.average,
            state.switched,
            state.switch_step,
            state.sgd_learning_rate,
        )
        steps, mu, nu, nu_max, pp, pg = map_leaves(
            6,
            lambda *leaf: step(*leaf, rates),
            updates,
            state.mu,
            state.nu,
            state.nu_max if amsgrad else state.nu,
            *numbers[1:],
        )
        if switch == "global" and jax.tree.leaves(pp):
            facts = (pp, pg, *numbers[:2])
            averages = jax.tree.map(
                lambda *leaf: estimate(*leaf, count, bias2)[0], *facts
            )
            _, found, meets = estimate(*map(_stack, facts), count, bias2)
            first = jnp.argmax(meets)
            chosen = found[first], meets[first]
            numbers = map_leaves(
                4,
                lambda average, *leaf: _settle(average, *chosen, *leaf, count),
                averages,
                *numbers,
            )
        else:
            products = _totals(pp, pg) if switch == "vector" else (pp, pg)
            numbers = map_leaves(
                4, lambda *leaf: follow(*leaf, count, bias2), *products, *numbers
            )
        return steps, ScaleBySwatsState(
            count, mu, nu, nu_max if amsgrad else (), *numbers
        )

    return optax.with_extra_args_support(
        optax.GradientTransformation(init_fn, update_fn)
    )


@leaf_function
def _phase(switched, switch_step, sgd_rate, rates, *, b1, b2):
    """What multiplies m, g, v and g^2, what the step, the root and 1 below it.

    Numbers are chosen, not arrays: a loop with a choice in it compiles twice as long.
    The buffer holds SGD's momentum from the step after the switch on.
    """
    count, adam_rate, floor, sgd_factor = rates
    kept = either(switch_step == count, 0.0, b1)
    sgd = (1.0, 1.0, 0.0, capped(sgd_factor * sgd_rate), 0.0, 1.0)
    adam = (1 - b1, b2, 1 - b2, adam_rate, 1.0, floor)
    chosen = (either(switched, a, b) for a, b in zip(sgd, adam, strict=True))
    return kept, *chosen


@leaf_function
def _step(
    g,
    m,
    v,
    v_max,
    switched,
    switch_step,
    sgd_rate,
    rates,
    *,
    b1,
    b2,
    nesterov,
    amsgrad,
):
    """The step, the moments, and what tells SGD's learning rate."""
    phase = _phase(b1=b1, b2=b2)
    m_share, g_share, v_share, square_share, rate, root_share, floor = phase(
        switched, switch_step, sgd_rate, rates
    )
    bound = bounded(g)
    mu = m_share * widen(m) + g_share * bound
    nu = v_share * widen(v) + square_share * abs_sq(bound)
    nu_max = jnp.maximum(v_max, nu) if amsgrad else nu
    ahead = mu
    if nesterov:
        look, carry = either(switched, 1.0, 0.0), either(switched, b1, 1.0)
        ahead = look * bound + carry * mu
    step = quotient(rate * ahead, root_share * jnp.sqrt(nu_max) + floor)
    # Of Adam's step, since nobody asks for them after the switch.
    pp, pg = geometry.squared_norm(step, ()), geometry.dot(step, g, ())
    arrays = cast_tree((step, mu, nu, nu_max), (g, m, v, v))
    return *arrays, pp.reshape(()), pg.reshape(())


@leaf_function
def _estimate(pp, pg, average, switched, count, bias2, *, b2, threshold):
    """The mean, what it estimates, and whether it is close enough to switch."""
    told = (jnp.abs(pg) > 0) & ~switched
    gamma = capped(pp / either(told, pg, 1.0))
    average = either(told, ema(gamma, average, b2), average)
    found = average / bias2
    close = jnp.abs(found - gamma) < threshold
    return average, found, told & close & (average > 0) & (count > 1)


@jax.jit
def _settle(average, found, meets, old_average, switched, switch_step, rate, count):
    """The four numbers of a leaf after a step at which it meets the threshold."""
    return (
        saturated(average, old_average.dtype),
        switched | meets,
        either(meets, count, switch_step),
        either(meets, found, rate).astype(rate.dtype),
    )


@leaf_function
def _follow(
    pp, pg, average, switched, switch_step, rate, count, bias2, *, b2, threshold
):
    """The four numbers of a leaf that switches on its own."""
    estimate = _estimate(b2=b2, threshold=threshold)
    found = estimate(pp, pg, average, switched, count, bias2)
    return _settle(*found, average, switched, switch_step, rate, count)


def swats(
    learning_rate: optax.ScalarOrSchedule,
    b1: Number = 0.9,
    b2: Number = 0.999,
    eps: Number = 1e-8,
    threshold: Number = 1e-9,
    weight_decay: optax.ScalarOrSchedule = 0.0,
    *,
    switch: str = "local",
    sgd_scale: optax.ScalarOrSchedule = 1.0,
    nesterov: bool = False,
    amsgrad: bool = False,
) -> optax.GradientTransformationExtraArgs:
    r"""SWATS: switches from Adam to SGD when Adam's step has told SGD's.

    With :math:`g \leftarrow g + \lambda x` (coupled L2, in both phases) Adam steps by

    .. math::
      p = -\eta \frac{\sqrt{1 - b_2^t}}{1 - b_1^t} \frac{m}{\sqrt{v} + \epsilon}

    and, where :math:`\langle p, g\rangle \ne 0`, estimates the learning rate with
    which SGD's step, projected on it, would be as long:

    .. math::
      \gamma = -\frac{\langle p, p\rangle}{\langle p, g\rangle}, \qquad
      l \leftarrow b_2 l + (1 - b_2) \gamma

    When :math:`t > 1`, :math:`l > 0` and
    :math:`|l / (1 - b_2^t) - \gamma| < \text{threshold}`, SGD takes over from the
    next step on, with learning rate :math:`L = l / (1 - b_2^t)` and momentum
    :math:`s` from 0:

    .. math:: s \leftarrow b_1 s + g, \qquad x \leftarrow x - (1 - b_1)\, L\, c\, s

    Args:
      learning_rate: :math:`\eta` of the Adam phase, a number or a schedule.
      b1: decay rate of the first moment, and SGD's momentum.
      b2: decay rate of the second moment and of the estimate.
      eps: :math:`\epsilon`, added to the denominator.
      threshold: how close the mean has to come to the estimate. The paper's 1e-9
        is rarely met in float32; 1e-5 is what experiments with it used.
      weight_decay: :math:`\lambda`, a number or a schedule.
      switch: ``"local"``: each leaf on its own. ``"global"``: an estimate a leaf,
        and the first leaf (in tree order) that meets the threshold switches all,
        with its :math:`L`. ``"vector"``: one estimate over the whole tree.
      sgd_scale: :math:`c`, a number or a schedule over all steps: the SGD phase has
        its own decay, apart from Adam's.
      nesterov: whether SGD steps along :math:`g + b_1 s`.
      amsgrad: whether Adam uses the running maximum of :math:`v` (one more array
        of the parameters' size in the state).

    Returns:
      An optimizer. ``update`` needs the parameters. Its state is no larger than
      Adam's but for four numbers a leaf, ``switched``, ``switch_step`` and
      ``sgd_learning_rate`` among them; :func:`swats_switch_points` lists them.

    Raises:
      ValueError: a hyperparameter is out of range, ``switch`` is none of the three
        words, or ``params`` is ``None``.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> import spherical_optax as so
      >>> optimizer = so.swats(1e-3, threshold=1e-5, weight_decay=5e-4,
      ...     sgd_scale=optax.piecewise_constant_schedule(1.0, {1000: 0.1}))
      >>> x = jnp.array([1.0, -2.0])
      >>> state = optimizer.init(x)
      >>> updates, state = optimizer.update(2 * x, state, x)
      >>> optax.apply_updates(x, updates)
      Array([ 0.999, -1.999], dtype=float32)

    Differences:
      The paper keeps one estimate for all weights (``"vector"``); local switching
      and the two names come from later code. There, global switching scales the
      momentum buffer in place; here the buffer is SGD's alone. With ``nesterov``,
      that code's SGD phase looks ahead; the paper has none.

    References:
      Keskar and Socher, `Improving generalization performance by switching from
      Adam to SGD <https://arxiv.org/abs/1712.07628>`_, 2017
    """
    check_numbers(non_negative={"weight_decay": weight_decay})
    return needs_params(
        "swats",
        in_range(
            optax.chain(
                add_decayed_weights(weight_decay),
                scale_by_swats(
                    learning_rate,
                    b1,
                    b2,
                    eps,
                    threshold,
                    switch=switch,
                    sgd_scale=sgd_scale,
                    nesterov=nesterov,
                    amsgrad=amsgrad,
                ),
                optax.scale(-1.0),
            )
        ),
    )


def _stack(numbers: optax.Updates) -> jax.Array:
    """The numbers of a tree, one a leaf, as an array."""
    return jnp.stack(jax.tree.leaves(numbers))


def _totals(pp: optax.Updates, pg: optax.Updates) -> tuple[optax.Updates, ...]:
    """<p, p> and -<p, g> of the whole tree, for each leaf."""
    if not jax.tree.leaves(pp):
        return pp, pg
    # One array with two uses: of two, XLA would gather the numbers of all leaves again
    # in each element of the sums, and compile for a minute where there are hundreds.
    numbers = _stack([pp, pg])
    second = jnp.arange(numbers.size) >= numbers.size // 2
    total_pp = jnp.sum(jnp.where(second, 0, numbers))
    total_pg = jnp.sum(jnp.where(second, numbers, 0))
    return jax.tree.map(lambda _: total_pp, pp), jax.tree.map(lambda _: total_pg, pg)
