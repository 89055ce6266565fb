"""The dynamics: vector fields as flax nnx modules `(t, z) -> dz/dt`."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from np_latentode.parts.modules import check_residual, free, mlp
from np_latentode.parts.solve import Dynamics

__all__ = ["BoundedDynamics", "LinearDynamics", "MLPDynamics", "TimeMLPDynamics"]


class MLPDynamics(nnx.Module):
    """An autonomous field, dz/dt = MLP(z); or dz/dt = MLP([z, u]) with u = [inputs(t), s].

    Args:
        latent_dim: the dimension of z.
        width, depth: the units per hidden layer, and the number of hidden layers.
        from_zero: whether the field starts at 0 everywhere, as the residual of a `LinearDynamics`.
        num_covariates: the entries of s, static covariates. Default: none.
        num_inputs: the number of constant and linear inputs. Default: none.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        width: int = 64,
        depth: int = 1,
        from_zero: bool = False,
        num_covariates: int = 0,
        num_inputs: int = 0,
        rngs: nnx.Rngs,
    ):
        self.latent_dim, self.width, self.depth = latent_dim, width, depth
        self.from_zero, self.num_covariates = from_zero, num_covariates
        self.num_inputs = num_inputs
        sizes = (latent_dim + num_inputs + num_covariates, *(width,) * depth, latent_dim)
        self.field = mlp(sizes, from_zero=from_zero, rngs=rngs)

    def __call__(
        self,
        t: Float[Array, ""],
        z: Float[Array, "trajectory latent"],
        u: Float[Array, "trajectory entry"] | None = None,
    ) -> Float[Array, "trajectory latent"]:
        return self.field(z if u is None else jnp.concatenate([z, u], axis=-1))


class TimeMLPDynamics(nnx.Module):
    """A field that changes with time, dz/dt = MLP([z, t]): all trajectories share one drive.

    The MLP must extrapolate at times beyond those of the training data.

    Args:
        latent_dim: the dimension of z.
        width, depth: the units per hidden layer, and the number of hidden layers.
    """

    def __init__(self, latent_dim: int, *, width: int = 64, depth: int = 1, rngs: nnx.Rngs):
        self.latent_dim, self.width, self.depth = latent_dim, width, depth
        self.field = mlp((latent_dim + 1, *(width,) * depth, latent_dim), rngs=rngs)

    def __call__(
        self, t: Float[Array, ""], z: Float[Array, "trajectory latent"]
    ) -> Float[Array, "trajectory latent"]:
        time = jnp.broadcast_to(t, (len(z), 1)).astype(z.dtype)
        return self.field(jnp.concatenate([z, time], axis=-1))


class LinearDynamics(nnx.Module):
    """A linear field, and a residual network beside it: dz/dt = A z + c + residual(t, z).

    Without the residual, z(t) = exp(A t) z0 + (integral of exp(A s) ds) c. With the matrix A that
    shifts the derivatives of a polynomial, x = W z + b is a mixed model of polynomials. Under
    z0 ~ N(0, I), its random intercepts have the covariance W W^T. Learned, A may also hold growth,
    decay and oscillation. `MixedModel.parts` has the matrices that were estimated.

    Args:
        matrix: A at the start of training, shape (latent, latent).
        drift: c at the start, shape (latent,).
        residual: a field of its own, an nnx module `(t, z) -> dz/dt`, such as
            `MLPDynamics(latent_dim, from_zero=True)`. It may read inputs and static covariates,
            `(t, z, u)`. Default: none.

    Raises:
        ValueError: if the shapes do not fit, or the residual is no module.
    """

    def __init__(
        self,
        matrix: Float[ArrayLike, "latent latent"],
        drift: Float[ArrayLike, " latent"],
        residual: nnx.Module | None = None,
    ):
        self.matrix, self.drift = free("matrix", matrix, 2), free("drift", drift, 1)
        if self.matrix.shape != 2 * self.drift.shape:
            raise ValueError(
                "matrix must be square, with a row for each entry of the drift; got shapes "
                f"{self.matrix.shape} and {self.drift.shape}."
            )
        self.residual = check_residual("dynamics", residual)
        self.num_covariates = getattr(residual, "num_covariates", 0)
        self.num_inputs = getattr(residual, "num_inputs", 0)

    def __call__(
        self,
        t: Float[Array, ""],
        z: Float[Array, "trajectory latent"],
        *u: Float[Array, "trajectory entry"],
    ) -> Float[Array, "trajectory latent"]:
        slope = z @ self.matrix[...].T + self.drift[...]
        return slope if self.residual is None else slope + self.residual(t, z, *u)


class BoundedDynamics(nnx.Module):
    """A field f whose speed is bounded, so that no state can diverge.

    dz/dt = speed * tanh(f(t, z) / speed), elementwise

    Where f is slow, this is close to f. It never exceeds `speed`, so that |z(t) - z0| <= speed * t
    in each dimension.

    Args:
        dynamics: the field f, an nnx module `(t, z) -> dz/dt` or `(t, z, u) -> dz/dt`.
        speed: the bound, in units of z per unit of scaled time.

    Raises:
        ValueError: if the field is not callable, or the speed is not positive and finite.
    """

    def __init__(self, dynamics: Dynamics, speed: float):
        if not callable(dynamics):
            raise ValueError(f"dynamics must be callable as (t, z) -> dz/dt; got {dynamics!r}.")
        if not 0 < speed < float("inf"):
            raise ValueError(f"speed must be positive and finite; got {speed}.")
        self.dynamics, self.speed = dynamics, speed
        self.num_covariates = getattr(dynamics, "num_covariates", 0)
        self.num_inputs = getattr(dynamics, "num_inputs", 0)

    def __call__(
        self,
        t: Float[Array, ""],
        z: Float[Array, "trajectory latent"],
        *u: Float[Array, "trajectory entry"],
    ) -> Float[Array, "trajectory latent"]:
        return self.speed * jnp.tanh(self.dynamics(t, z, *u) / self.speed)
