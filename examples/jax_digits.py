"""Handwritten digits in JAX, free and under a max-norm constraint: one seed, the runs differ in the bound alone."""

import argparse
import math

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from normball.optax import clip_by_global_norm, max_norm

BATCH, RATE, BOUND = 64, 0.3, 3.0


class Network(nnx.Module):
    """A convolution and two dense layers, with dropout."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.convolution = nnx.Conv(1, 32, (4, 4), strides=2, padding="VALID", rngs=rngs)
        self.hidden, self.output = nnx.Linear(32 * 9, 64, rngs=rngs), nnx.Linear(64, 10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        features = nnx.relu(self.convolution(images)).reshape(len(images), -1)
        return self.output(self.dropout(nnx.relu(self.hidden(features))))


@nnx.jit
def step(model: Network, optimizer: nnx.Optimizer, images: jax.Array, digits: jax.Array, bound: jax.Array) -> None:
    def loss(model: Network) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), digits).mean()

    optimizer.update(model, nnx.grad(loss)(model))
    nnx.update(model, max_norm(bound).apply(nnx.state(model, nnx.Param)))  # no unit's incoming weights are longer now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=20)
    epochs = parser.parse_args().epochs
    images, digits = map(jnp.asarray, load_digits(return_X_y=True))
    images, half = images.astype(jnp.float32).reshape(-1, 8, 8, 1) / 16, len(images) // 2  # written by different people
    for bound in (math.inf, BOUND):
        model, key = Network(nnx.Rngs(0)), jax.random.key(1)
        rate = optax.linear_schedule(RATE, 0.0, epochs * -(-half // BATCH))
        clipped = optax.chain(clip_by_global_norm(1.0), optax.sgd(rate, momentum=0.95))
        optimizer = nnx.Optimizer(model, clipped, wrt=nnx.Param)
        for epoch in range(epochs):
            order = jax.random.permutation(jax.random.fold_in(key, epoch), half)
            for chosen in jnp.split(order, [*range(BATCH, half, BATCH)]):
                step(model, optimizer, images[chosen], digits[chosen], bound)
        right = nnx.view(model, deterministic=True)(images[half:]).argmax(1) == digits[half:]
        norms = [layer.max() for layer in max_norm(BOUND).norms(nnx.state(model, nnx.Param)).values()]
        print(f"at most {bound:g}: accuracy {100 * right.mean():.1f} %, largest norms", *norms)


if __name__ == "__main__":
    main()
