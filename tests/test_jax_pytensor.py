"""PyTensor's JAX mode is this backend: the same bits as of normball on JAX arrays."""

import math

import numpy as np
import pytest

jax = pytest.importorskip("jax")
pytensor = pytest.importorskip("pytensor")

import jax.numpy as jnp  # noqa: E402
import pytensor.tensor as pt  # noqa: E402
from oracle import same_bits  # noqa: E402

import normball  # noqa: E402


def graph(namespace, x, u, bound, epsilon, ord):
    """All three functions, on variables of PyTensor or on JAX arrays."""
    inside = normball.norm_constraint(x, bound, 0, epsilon, ord=ord)
    (first, second), norm = normball.total_norm_constraint([x, u], bound, epsilon, True, ord=ord)
    per_unit = normball.norm_constraint(x, namespace.broadcast_to(bound, (1, 4)), (0,), epsilon, ord=ord)
    return [inside, first, second, norm, per_unit, normball.compute_norms(x, 1, ord=ord)]


@pytest.mark.parametrize(
    ("dtypes", "ord"), [(("float64", "float32"), 2), (("float32", "float16"), 2), (("float32", "float32"), math.inf)]
)
def test_jax_mode_has_the_bits_of_jax_arrays(dtypes, ord):
    rng = np.random.default_rng(0)
    x, u = (rng.standard_normal(shape).astype(dtype) for shape, dtype in zip([(6, 4), (5,)], dtypes, strict=True))
    x[:, 1] *= np.array(1e-5, x.dtype)
    inputs = [pt.matrix(dtype=dtypes[0]), pt.vector(dtype=dtypes[1]), pt.dscalar(), pt.dscalar()]
    outputs = graph(pt, *inputs, ord)
    gradient = pt.grad(pt.sin(outputs[0]).sum(), inputs[0])
    compiled = pytensor.function(inputs, [*outputs, gradient], mode="JAX")
    with jax.enable_x64(True):

        def loss(x, c, e):
            return jnp.sin(normball.norm_constraint(x, c, 0, e, ord=ord)).sum()

        ours, our_gradient = jax.jit(lambda x, u, c, e: graph(jnp, x, u, c, e, ord)), jax.jit(jax.grad(loss))
        for bound, epsilon in ((1.5, 0.1), (1e-7, 0.0), (100.0, 0.0), (0.0, 1.0), (math.inf, 0.0), (-1.0, 0.0)):
            *found, found_gradient = compiled(x, u, bound, epsilon)
            for a, b in zip(found, ours(x, u, bound, epsilon), strict=True):
                assert same_bits(np.asarray(a), np.asarray(b)), (bound, epsilon)
            # PyTensor differentiates by its own rules, and hands JAX the result.
            wanted = our_gradient(x, bound, epsilon)
            tolerance = 1e-12 if dtypes[0] == "float64" else 1e-5
            np.testing.assert_allclose(found_gradient, wanted, rtol=tolerance, atol=tolerance)
        assert not same_bits(np.asarray(compiled(x, u, 1.5, 0.1)[0]), np.asarray(ours(x, u, 1.25, 0.1)[0]))
