"""Priors p(z0): distributions over the initial latent state.

A prior is an nnx module without inputs. It returns a NumPyro distribution over vectors of
`latent_dim` numbers:

    class MyPrior(nnx.Module):
        def __init__(self, ...):
            self.raw_scale = nnx.Param(jnp.zeros(4))        # trained by SVI

        def __call__(self) -> dist.Distribution:            # p(z0)
            return dist.StudentT(3.0, 0.0, nnx.softplus(self.raw_scale[...])).to_event(1)

Instead of a module, a prior can be a function that declares NumPyro parameters:

    def my_prior() -> dist.Distribution:
        scale = numpyro.param("prior_scale", jnp.ones(4), constraint=constraints.positive)
        return dist.StudentT(3.0, 0.0, scale).to_event(1)

The ELBO evaluates the prior at draws from the guide, so `log_prob` should be its fast direction.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from flax import nnx

from np_latentode.data.checks import check_counts
from np_latentode.parts.distributions import ProductDistribution, ProjectedCircle, Ring
from np_latentode.parts.flows import FlowjaxParameters, inverse_autoregressive
from np_latentode.parts.modules import check_factors, check_module, vector_distribution

__all__ = [
    "CirclePrior",
    "FlowPrior",
    "FlowjaxPrior",
    "MixturePrior",
    "ProductPrior",
    "RingPrior",
    "StandardNormal",
]


class StandardNormal(nnx.Module):
    """z0 ~ N(0, I).

    Args:
        latent_dim: the dimension of z0.
    """

    def __init__(self, latent_dim: int):
        self.latent_dim = latent_dim

    def __call__(self) -> dist.Distribution:
        return dist.Normal(0.0, 1.0).expand([self.latent_dim]).to_event(1)


class MixturePrior(nnx.Module):
    """z0 ~ sum_k weight_k Normal(loc_k, scale_k) with diagonal covariances.

    Weights, locs and scales are learned. The mixture starts close to N(0, I).

    Args:
        latent_dim: the dimension of z0.
        num_components: the number of normals.

    Raises:
        ValueError: if a number is not a positive integer.
    """

    def __init__(self, latent_dim: int, *, num_components: int = 8, rngs: nnx.Rngs):
        check_counts(latent_dim=latent_dim, num_components=num_components)
        self.latent_dim, self.num_components = latent_dim, num_components
        shape = (num_components, latent_dim)
        self.logits = nnx.Param(jnp.zeros(num_components))
        self.loc = nnx.Param(0.5 * jax.random.normal(rngs.params(), shape))
        self.log_scale = nnx.Param(jnp.zeros(shape))

    def __call__(self) -> dist.Distribution:
        components = dist.Normal(self.loc[...], jnp.exp(self.log_scale[...])).to_event(1)
        return dist.MixtureSameFamily(dist.CategoricalLogits(self.logits[...]), components)


class FlowPrior(nnx.Module):
    """z0 = f(e), e ~ base, with f the inverse of NumPyro's inverse autoregressive flow.

    log p(z0) = log base(g(z0)) + log |det dg/dz0|,  g = f^-1     (Kingma et al. 2016, equation 10)

    The density takes one pass of the networks, and the ELBO needs it at every step. A draw takes
    `latent_dim` passes, but the ELBO needs none. f starts close to the identity.

    A flow cannot change the topology of its base. If z0 is known to lie on a circle or in clusters,
    choose a base that does; the flow then learns its shape.

    Args:
        latent_dim: the dimension of z0. With 1, f is only a shift and a scale.
        base: a prior over vectors of latent_dim. Default: N(0, I).
        num_layers: the number of autoregressive networks; each reverses the order of dimensions.
        width: the units of the hidden layer of each network.

    Raises:
        ValueError: if a number is not a positive integer, or the support of the base is not all of
            R^latent_dim.
    """

    def __init__(
        self,
        latent_dim: int,
        *,
        base: nnx.Module | None = None,
        num_layers: int = 6,
        width: int = 48,
        rngs: nnx.Rngs,
    ):
        self.latent_dim, self.num_layers, self.width = latent_dim, num_layers, width
        self.base = StandardNormal(latent_dim) if base is None else base
        check_module("base", self.base)
        _, support = vector_distribution("base", self.base, batch_shape=())
        if support != f"R^{latent_dim}":
            raise ValueError(
                f"base must be over R^{latent_dim}, as a flow maps Euclidean space only; got one "
                f"over {support}."
            )
        self.layers = inverse_autoregressive(latent_dim, num_layers, width, rngs=rngs)

    def __call__(self) -> dist.Distribution:
        return dist.TransformedDistribution(self.base(), [layer().inv for layer in self.layers])


class CirclePrior(nnx.Module):
    """u ~ ProjectedNormal(concentration) on the unit circle, two numbers of z0.

    It is for a phase. It starts uniform, and stays so if the data prefer no direction.
    """

    def __init__(self):
        self.concentration = nnx.Param(jnp.zeros(2))

    def __call__(self) -> dist.Distribution:
        return ProjectedCircle(self.concentration[...])


class RingPrior(nnx.Module):
    """z = radius (cos a, sin a) + scale e, two numbers of z0; radius and scale are learned.

    It is also for a phase. It starts like N(0, I), and its circle becomes sharper in training. So
    z0 of similar trajectories can move across the middle and get close to each other. On a
    `CirclePrior`, z0 cannot leave the circle, and similar trajectories may stay apart.

    The posterior should be a `FullRankNormal`, which can be narrow along the circle and wide across
    it.
    """

    def __init__(self):
        self.log_radius = nnx.Param(jnp.zeros(()))
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(0.7)))

    def __call__(self) -> dist.Distribution:
        return Ring(jnp.exp(self.log_radius[...]), jnp.exp(self.log_scale[...]))


class ProductPrior(nnx.Module):
    """z0 = [z_1, ..., z_K], independent, each with its own prior.

    `ProductPrior(CirclePrior(), StandardNormal(2))` is a phase and two Euclidean numbers; its
    latent_dim is 4, as a circle takes two numbers.

    Args:
        *factors: priors (nnx modules).

    Raises:
        ValueError: if there is no factor, or a factor is not a callable nnx module.
    """

    def __init__(self, *factors: nnx.Module):
        check_factors(factors)
        self.factors = nnx.List(factors)

    def __call__(self) -> dist.Distribution:
        return ProductDistribution(*(factor() for factor in self.factors))


class FlowjaxPrior(nnx.Module):
    """z0 ~ a flowjax distribution, whose parameters are trained.

    `log_prob` should be the flow's fast direction, which is the default of flowjax.

    Args:
        distribution: any unconditional flowjax distribution over vectors.

    Raises:
        ValueError: if the distribution is of another kind.
        ImportError: if flowjax is missing.
    """

    def __init__(self, distribution: Any):
        self.flow = FlowjaxParameters(distribution, cond_dim=None)

    def __call__(self) -> dist.Distribution:
        return self.flow.distribution()
