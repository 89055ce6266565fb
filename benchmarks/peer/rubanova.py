"""The latent ODE of Rubanova, Chen & Duvenaud (2019) in PyTorch and torchdiffeq, written afresh.

- Encoder: an ODE-RNN that runs backwards to time 0, one Euler step for each gap, then a GRU cell on
  [x, seen]. It reads each trajectory's own times; the paper's code runs over the union of all
  times in the batch, which is longer.
- Field, decoder and head: tanh networks of the sizes of ours. z0 is the state at time 0.
- The batch is solved together at the union of its times, as torchdiffeq solves. The method has
  third order and constant steps of 0.625 with cubic interpolation, as ours has by default; the
  paper's code takes the adaptive dopri5 here.
- The noise is fixed at 0.05, that of the data; the paper's code fixes it likewise. In training half
  of a batch is encoded whole, and the other half up to the middle of the time: the two tasks of the
  paper in one model.
- Adamax from 1e-2, falling by 0.1% a step to a tenth; the KL is weighted 0 for ten epochs, and
  then 1 - 0.99^epoch. One thread, eager mode.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

HIDDEN, NOISE, STEP = 16, 0.05, 0.625


def network(*sizes: int) -> nn.Sequential:
    """Linear layers with tanh between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class Model(nn.Module):
    def __init__(self, latent_dim: int):
        super().__init__()
        self.drift, self.cell = network(HIDDEN, 16, HIDDEN), nn.GRUCell(3, HIDDEN)
        self.head = network(HIDDEN, 40, 2 * latent_dim)
        self.field, self.decoder = network(latent_dim, 64, latent_dim), network(latent_dim, 80, 2)

    def encode(self, times: Tensor, values: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z0 of each trajectory."""
        inputs = torch.cat([values, seen[..., None].float()], dim=-1)
        h = torch.zeros(len(times), HIDDEN)
        later = torch.where(seen, times, 0.0).max(dim=1).values
        for k in reversed(range(times.shape[1])):
            gap = torch.where(seen[:, k], later - times[:, k], 0.0)[:, None]
            updated = self.cell(inputs[:, k], h + gap * self.drift(h))
            h = torch.where(seen[:, k, None], updated, h)
            later = torch.where(seen[:, k], times[:, k], later)
        mean, raw = self.head(h + later[:, None] * self.drift(h)).chunk(2, dim=-1)
        return mean, nn.functional.softplus(raw) + 1e-4

    def decode(self, z0: Tensor, times: Tensor) -> Tensor:
        """The curves at each trajectory's own times."""
        # `inverse` says where each time is in the union.
        union, inverse = torch.unique(times, return_inverse=True)
        grid = torch.cat([torch.zeros(1), union]) if union[0] > 0 else union
        options = dict(step_size=STEP, interp="cubic")
        z = odeint(lambda t, z: self.field(z), z0, grid, method="heun3", options=options)
        rows = torch.arange(len(z0))[:, None]
        return self.decoder(z[inverse + (len(grid) - len(union)), rows])


class Peer:
    def __init__(
        self,
        times: np.ndarray,
        values: np.ndarray,
        *,
        batch_size: int,
        latent_dim: int,
        num_steps: int,
        seed: int,
    ):
        del num_steps  # the rate falls by the number of steps taken
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.times, self.values = torch.from_numpy(times), torch.from_numpy(values)
        self.batch_size, self.taken, self.model = batch_size, 0, Model(latent_dim)
        self.optim = torch.optim.Adamax(self.model.parameters(), lr=1e-2)
        falling = torch.optim.lr_scheduler.LambdaLR
        self.rate = falling(self.optim, lambda step: max(0.999**step, 0.1))

    def loss(self, times: Tensor, values: Tensor) -> Tensor:
        seen = torch.ones(times.shape, dtype=torch.bool)
        half = len(times) // 2
        seen[half:] = times[half:] <= self.times.max() / 2
        mean, scale = self.model.encode(times, values, seen)
        z0 = mean + scale * torch.randn_like(mean)
        error = (values - self.model.decode(z0, times)) / NOISE
        likelihood = -0.5 * (error**2 + math.log(2 * math.pi * NOISE**2)).sum((1, 2))
        kl = 0.5 * (mean**2 + scale**2 - 2 * scale.log() - 1).sum(1)
        epoch = self.taken * self.batch_size // len(self.times)
        return (-likelihood + (1 - 0.99 ** max(0, epoch - 10)) * kl).mean()

    def train(self, count: int) -> None:
        for _ in range(count):
            rows = torch.randperm(len(self.times))[: self.batch_size]
            self.optim.zero_grad()
            self.loss(self.times[rows], self.values[rows]).backward()
            self.optim.step()
            self.rate.step()
            self.taken += 1

    @torch.no_grad()
    def curves(
        self, times: np.ndarray, values: np.ndarray, seen: np.ndarray, at: np.ndarray
    ) -> np.ndarray:
        mean, _ = self.model.encode(*map(torch.from_numpy, (times, values, seen)))
        return self.model.decode(mean, torch.from_numpy(at)).numpy()
