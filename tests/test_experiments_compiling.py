"""Programs compiled ahead: with options that suit them, where XLA knows these."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compiling
from experiments.compiling import compile_ahead, compiling_once

IMAGES, KERNEL = jnp.ones((8, 16, 16, 16)), jnp.ones((3, 3, 16, 32))


def convolve(images, kernel):
    y = jax.lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y, jnp.sum(y, (0, 1, 2))


def multiply(images, kernel):
    return images.reshape(-1, 16) @ kernel[0, 0], jnp.sum(images, 0)


def text_of(compiled):
    """The program without what tells where it is from."""
    lines = compiled.as_text().splitlines()
    return [line.partition(", metadata=")[0] for line in lines if " = " in line]


def test_convolutions_are_left_to_xla():
    plain = jax.jit(convolve).lower(IMAGES, KERNEL).compile()
    compiled = compile_ahead(convolve, IMAGES, KERNEL)
    assert any(" convolution(" in line for line in text_of(compiled))
    for ours, theirs in zip(
        compiled(IMAGES, KERNEL), plain(IMAGES, KERNEL), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_a_program_without_convolutions_is_what_it_always_is():
    plain = jax.jit(multiply).lower(IMAGES, KERNEL).compile()
    assert text_of(compile_ahead(multiply, IMAGES, KERNEL)) == text_of(plain)


@pytest.mark.parametrize(
    "unknown", [{"xla_cpu_no_such_option": "1"}, {"xla_cpu_enable_fast_math": "what"}]
)
def test_an_option_that_xla_does_not_know_is_left_out(unknown, monkeypatch):
    monkeypatch.setattr(compiling, "_FOR_CONVOLUTIONS", unknown)
    y, _ = compile_ahead(convolve, IMAGES, KERNEL)(IMAGES, KERNEL)
    assert y.shape == (8, 16, 16, 32)


def test_options_of_a_caller_come_first():
    wrong = {"xla_cpu_experimental_ynn_fusion_type": "no such type"}
    with pytest.raises(jax.errors.JaxRuntimeError, match="no such type"):
        compile_ahead(convolve, IMAGES, KERNEL, options=wrong)


def test_within_a_context_equal_programs_are_compiled_once():
    with compiling_once():
        first = compile_ahead(multiply, IMAGES, KERNEL)
        assert compile_ahead(lambda *x: multiply(*x), IMAGES, KERNEL) is not None
        assert compile_ahead(multiply, IMAGES, KERNEL) is first
        assert compile_ahead(multiply, IMAGES[:4], KERNEL) is not first
    assert compile_ahead(multiply, IMAGES, KERNEL) is not first
