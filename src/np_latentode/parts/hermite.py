"""The cubic Hermite polynomial between two steps of a solve."""

from __future__ import annotations

from jaxtyping import Array, Float

__all__ = ["hermite"]


def hermite(
    share: Float[Array, "*batch 1"],
    length: Float[Array, "*batch 1"],
    start: tuple[Float[Array, "*batch latent"], Float[Array, "*batch latent"]],
    stop: tuple[Float[Array, "*batch latent"], Float[Array, "*batch latent"]],
) -> Float[Array, "*batch latent"]:
    """The state within a step, from states and slopes at both of its ends.

    z(s) = z0 + s (d + (1 - s) ((h z0' - d) (1 - s) + (d - h z1') s)),   d = z1 - z0
    (Hairer, Norsett & Wanner 1993, equation II.6.7)

    Args:
        share: the part s of the step that has passed, from 0 to 1.
        length: of the step, h.
        start, stop: state and slope at its ends.
    """
    (z, slope), (later, slope_later) = start, stop
    rise = later - z
    a, b = slope * length - rise, rise - slope_later * length
    return z + share * (rise + (1 - share) * (a * (1 - share) + b * share))
