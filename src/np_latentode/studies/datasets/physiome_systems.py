"""Systems of equations from biology, as in the benchmark Physiome-ODE (Klötergens et al. 2025)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

__all__ = ["SYSTEMS", "Rates", "System", "system"]

Rates = Callable[[float, Sequence[float], SimpleNamespace], Sequence[float]]
"""`(t, states, constants) -> the derivatives of the states`; constants are attributes."""


class System(NamedTuple):
    """x' = rates(t, x, constants), where each instance has its own start and constants.

    Both are uniform between (1 - jitter) and (1 + jitter) times the published value.
    """

    rates: Rates
    states: Mapping[str, float]
    """The published initial values, in the order of `rates`."""
    constants: Mapping[str, float]
    """The published constants, in the order in which they are drawn; zeros are drawn as well."""
    end: float
    """The time at which a solution ends; it starts at 0."""
    jitter_states: float
    jitter_constants: float


SYSTEMS: dict[str, System] = {}
"""By name. `@system(...)` adds one."""


def system(
    name: str,
    *,
    states: Mapping[str, float],
    constants: Mapping[str, float],
    end: float,
    jitter_states: float,
    jitter_constants: float,
) -> Callable[[Rates], Rates]:
    """Adds the system with the decorated rates to `SYSTEMS`; see `System` for the arguments.

        @system("DECAY", states={"x": 1.0}, constants={"k": 0.1}, end=30.0,
                  jitter_states=0.3, jitter_constants=0.1)
        def decay(t, states, c):
            (x,) = states
            return [-c.k * x]

    Raises:
        ValueError: if the name is taken, there is no state, or a number is out of range.
    """
    if name in SYSTEMS:
        raise ValueError(f"name must be new; got {name!r}, which is registered.")
    if not states:
        raise ValueError("states must name at least one state; got none.")
    if not 0 < end < np.inf:
        raise ValueError(f"end must be positive and finite; got {end}.")
    for argument, jitter in dict(
        jitter_states=jitter_states, jitter_constants=jitter_constants
    ).items():
        if not 0 <= jitter <= 1:
            raise ValueError(f"{argument} must be from 0 to 1; got {jitter}.")

    def add(rates: Rates) -> Rates:
        SYSTEMS[name] = System(
            rates, dict(states), dict(constants), end, jitter_states, jitter_constants
        )
        return rates

    return add


@system(
    "WOD01",
    states=dict(x=0.1, v=1.0, y=0.0),
    constants=dict(r=1.0, k=10.0, d=0.1, b=0.2, a=0.2, u=0.5, e=1.0),
    end=30.0,
    jitter_states=0.1,
    jitter_constants=0.1,
)
def _wodarz_hamer(t: float, states: Sequence[float], c: SimpleNamespace) -> list[float]:
    """Cells x that a virus v infects, and infected ones y (Wodarz & Hamer 2007)."""
    x, v, y = states
    room = 1 - (x + y) / c.k
    return [
        c.r * x * v * room - c.d * x - c.b * x * v,
        c.e * y - c.u * v,
        c.b * v * x + c.r * y * v * room - c.a * y,
    ]


@system(
    "LEN01",
    states=dict(x=1.5, z=1.0, y=0.95),
    constants=dict(al=0.5, w=2.0, D=0.8228, a=8.1252, b=1.091, be=0.38, g=0.6),
    end=30.0,
    jitter_states=0.1,
    jitter_constants=0.1,
)
def _lenbury_pacheenburawana(t: float, states: Sequence[float], c: SimpleNamespace) -> list[float]:
    """Hormones of a gland under a periodic drive (Lenbury & Pacheenburawana 1991)."""
    x, z, y = states
    made = c.al * np.exp(c.a * (1 - z**2) + c.b * (1 - y**2))
    return [
        made + c.D * np.cos(c.w * t) - c.al * x,
        c.g * (y - z),
        c.be * x * np.exp(c.b * (1 - z**2)) - c.be * y,
    ]


@system(
    "GUP01",
    states=dict(c=0.6, o=0.055, a=0.055, r=0.08),
    constants=dict(kcd=1.0, ki1=0.1, kad=10.0, ki2=0.1, kcr=0.05, krd=0.9, k=0.001),
    end=30.0,
    jitter_states=0.5,
    jitter_constants=0.05,
)
def _gupta(t: float, states: Sequence[float], c: SimpleNamespace) -> list[float]:
    """Hormones of stress: CRH c, cortisol o, ACTH a and receptors r (Gupta et al. 2007)."""
    crh, cortisol, acth, receptor = states
    stress = 1.0 if t < 1 else 0.0
    bound = cortisol * receptor
    return [
        (1 + stress) / (1 + cortisol / c.ki1) - c.kcd * crh,
        acth - cortisol,
        crh / (1 + bound / c.ki2) - c.kad * acth,
        bound**2 / (c.k + bound**2) + c.kcr - c.krd * receptor,
    ]


@system(
    "LI01",
    states=dict(V=-64.0, D=-77.0, n=0.002, h=1.0, S=5.09),
    constants=dict(Cm=1.0, EN=55.0, EK=-85.0, gK=3.2, gN=3.2, gc=0.1, gh=0.1, p=0.5, EL=-50.0)
    | dict(al=0.173, Se=8.0, K1=15.0, K2=15.0, Mg=12.5)
    # From those above, with p / (1 - p) = 1. The benchmark draws `unused` as well.
    | dict(RP=18.0, gI=1.25, gM=1.0, gL=0.18, unused=190.0, P0=18 * 8**3 / (15**3 + 8**3)),
    end=30.0,
    jitter_states=0.3,
    jitter_constants=0.05,
)
def _li(t: float, states: Sequence[float], c: SimpleNamespace) -> list[float]:
    """A neuron of two compartments, V and D, and its sodium S (Li et al. 1996)."""
    v, d, n, h, s = states
    # As in the benchmark: the pump depends on D as well, and the current between the compartments
    # has the same sign in V and in D.
    cube = (d + s) ** 3
    pump = c.RP * c.p / (1 - c.p) * cube / (c.K1**3 + cube)
    opened = 1 / (1 + 0.141 * np.exp(-d / c.Mg))
    m = 1 / (1 + np.exp(-(v + 35) / 6.2))
    h_inf, n_inf = 1 / (1 + np.exp((v + 30) / 8.3)), 1 / (1 + np.exp(-(v + 31) / 5.3))
    spiking = c.gN * h * (v - c.EN) * m**3 + c.gK * (v - c.EK) * n**2 + c.gh * h * (v + 30)
    leaking = c.gI * opened * d + pump - c.P0 + c.gL * (d - c.EL)
    return [
        (-spiking - c.gc / c.p * (d - v)) / c.Cm,
        (-leaking + c.gc / (1 - c.p) * (v - d)) / c.Cm,
        (n_inf - n) * (1 + np.exp(-0.1 * (v + 70))) / (0.8 + 1.6 / (1 + np.exp(0.1 * (v + 25)))),
        (h_inf - h) / (0.43 + 0.86 / (1 + np.exp((v + 25) / 5))),
        c.al * (-c.gM * opened * (d - c.EN) - 3 * (pump - c.P0)),
    ]


@system(
    "HOD01",
    states=dict(V=0.0, m=0.05, h=0.6, n=0.325),
    constants=dict(Er=0.0, Cm=1.0, gNa=120.0, gK=36.0, gL=0.3, ENa=-115.0, EK=12.0, EL=-10.613),
    end=30.0,
    jitter_states=0.5,
    jitter_constants=0.3,
)
def _hodgkin_huxley(t: float, states: Sequence[float], c: SimpleNamespace) -> list[float]:
    """The axon of the squid, in the original convention of signs (Hodgkin & Huxley 1952)."""
    v, m, h, n = states
    current = -20.0 if 10 <= t <= 10.5 else 0.0
    am, bm = 0.1 * (v + 25) / (np.exp((v + 25) / 10) - 1), 4 * np.exp(v / 18)
    ah, bh = 0.07 * np.exp(v / 20), 1 / (np.exp((v + 30) / 10) + 1)
    an, bn = 0.01 * (v + 10) / (np.exp((v + 10) / 10) - 1), 0.125 * np.exp(v / 80)
    ions = c.gNa * m**3 * h * (v - c.ENa) + c.gK * n**4 * (v - c.EK) + c.gL * (v - c.EL)
    return [
        -(-current + ions) / c.Cm,
        am * (1 - m) - bm * m,
        ah * (1 - h) - bh * h,
        an * (1 - n) - bn * n,
    ]
