"""Table 3 of Rubanova, Chen & Duvenaud (2019): published errors on hoppers."""

from __future__ import annotations

__all__ = ["PUBLISHED", "published"]

SHARES = (0.1, 0.2, 0.3, 0.5)
PUBLISHED = {
    "interpolation": {
        "RNN with time gaps": (0.02454, 0.01714, 0.01250, 0.00785),
        "GRU-D": (0.01968, 0.01421, 0.01134, 0.00748),
        "ODE-RNN": (0.01647, 0.01209, 0.00986, 0.00665),
        "RNN-VAE": (0.06514, 0.06408, 0.06305, 0.06100),
        "latent ODE, RNN encoder": (0.02477, 0.00578, 0.02768, 0.00447),
        "latent ODE, ODE-RNN encoder": (0.00360, 0.00295, 0.00300, 0.00285),
    },
    "extrapolation": {
        "RNN with time gaps": (0.07259, 0.06792, 0.06594, 0.30571),
        "GRU-D": (0.38130, 0.20041, 0.13049, 0.05833),
        "ODE-RNN": (0.13508, 0.31950, 0.15465, 0.26463),
        "RNN-VAE": (0.02378, 0.02135, 0.02021, 0.01782),
        "latent ODE, RNN encoder": (0.01663, 0.01653, 0.01485, 0.01377),
        "latent ODE, ODE-RNN encoder": (0.01441, 0.01400, 0.01175, 0.01258),
    },
}
"""Table 3 of the paper, mean squared errors by the share of points seen."""


def published(task: str, observed: float) -> dict[str, float]:
    """The paper's errors at this share; empty if the paper has no such column."""
    columns = [k for k, share in enumerate(SHARES) if abs(share - observed) < 1e-9]
    return {name: row[k] for name, row in PUBLISHED[task].items() for k in columns}
