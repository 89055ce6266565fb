"""p(z0): priors over the latent state.

A prior is an nnx module that takes nothing and returns a NumPyro distribution over vectors of
`latent_dim` numbers:

    class MyPrior(nnx.Module):
        def __init__(self, ...):
            self.raw_scale = nnx.Param(jnp.zeros(4))        # what SVI is to train

        def __call__(self) -> dist.Distribution:            # p(z0)
            return dist.StudentT(3.0, 0.0, nnx.softplus(self.raw_scale[...])).to_event(1)

The ELBO scores it at draws from the guide: its `log_prob` should be the fast direction. Or it is a
function that does the same with parameters of NumPyro's own:

    def my_prior() -> dist.Distribution:
        scale = numpyro.param("prior_scale", jnp.ones(4), constraint=constraints.positive)
        return dist.StudentT(3.0, 0.0, scale).to_event(1)
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
    """z0 ~ sum_k weight_k Normal(loc_k, scale_k), diagonal, all of it learned.

    At first the mixture is close to N(0, I).

    Args:
        latent_dim: the dimension of z0.
        num_components: how many normals.

    Raises:
        ValueError: if a number is not positive.
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

    g is one pass of a network, which the ELBO asks for at every step; drawing from the prior, which
    it never does, takes `latent_dim` passes. At first f is close to the identity. A flow cannot
    change a topology: where codes are known to lie on a circle, or to fall apart into clusters, let
    the base do so, and the flow will bend it into shape.

    Args:
        latent_dim: the dimension of z0; with 1, there is nothing to bend.
        base: a prior over as many numbers. Default: N(0, I).
        num_layers: how many autoregressive networks, each in the reverse order of the last.
        width: units of the one hidden layer of each.

    Raises:
        ValueError: if a number is not positive, or the base is not over all of the Euclidean space
            of latent_dim dimensions.
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
                f"base must be over R^{latent_dim}, as a flow bends Euclidean space only; got one "
                f"over {support}."
            )
        self.layers = inverse_autoregressive(latent_dim, num_layers, width, rngs=rngs)

    def __call__(self) -> dist.Distribution:
        return dist.TransformedDistribution(self.base(), [layer().inv for layer in self.layers])


class CirclePrior(nnx.Module):
    """u ~ ProjectedNormal(concentration) on the unit circle, two numbers of z0.

    Uniform at first, and for ever where no direction is preferred: the home of a phase.
    """

    def __init__(self):
        self.concentration = nnx.Param(jnp.zeros(2))

    def __call__(self) -> dist.Distribution:
        return ProjectedCircle(self.concentration[...])


class RingPrior(nnx.Module):
    """z = radius (cos a, sin a) + scale e, two numbers of z0; radius and scale are learned.

    The other home of a phase: a circle that is found on the way. It starts out like N(0, I), so
    that codes can cross the middle while they are still sorting themselves out, and then
    sharpens; on a `CirclePrior` they cannot, and may stay torn. A posterior in the plane that is
    sharp along the circle and wide across it has to be a `FullRankNormal`.
    """

    def __init__(self):
        self.log_radius = nnx.Param(jnp.zeros(()))
        self.log_scale = nnx.Param(jnp.log(jnp.asarray(0.7)))

    def __call__(self) -> dist.Distribution:
        return Ring(jnp.exp(self.log_radius[...]), jnp.exp(self.log_scale[...]))


class ProductPrior(nnx.Module):
    """z0 = [z_1, ..., z_K], independent, each with a prior of its own.

    `ProductPrior(CirclePrior(), StandardNormal(2))` is a phase and two Euclidean numbers, four
    in all.

    Args:
        *factors: priors, nnx modules.

    Raises:
        ValueError: if there is none, or a factor is no prior.
    """

    def __init__(self, *factors: nnx.Module):
        check_factors(factors)
        self.factors = nnx.List(factors)

    def __call__(self) -> dist.Distribution:
        return ProductDistribution(*(factor() for factor in self.factors))


class FlowjaxPrior(nnx.Module):
    """z0 ~ a flowjax distribution, with its own parameters trained.

    Give it a flow whose `log_prob` is the fast direction, as flowjax makes by default.

    Args:
        distribution: any unconditional flowjax distribution over vectors.

    Raises:
        ValueError: if it is something else.
    """

    def __init__(self, distribution: Any):
        self.flow = FlowjaxParameters(distribution, cond_dim=None)

    def __call__(self) -> dist.Distribution:
        return self.flow.distribution()
