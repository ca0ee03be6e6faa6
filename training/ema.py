"""Exponential moving average of the weights (App. D: 0.9999), sharded like the weights themselves."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.distributed import local


class Ema:
    """average <- decay * average + (1 - decay) * weights, after each step.

    Warm-up: the decay is min(decay, (1 + n) / (10 + n)) after n steps, so the initial weights are forgotten quickly.
    Only trainable parameters are averaged.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self._parameters = dict(parameters)
        self.average: dict[str, Tensor] = {name: value.detach().clone() for name, value in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after `step` steps, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averages = [local(value) for value in self.average.values()]
        torch._foreach_lerp_(averages, [local(value) for value in self._parameters.values()], 1 - decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Context in which the network holds the averaged weights, for sampling and export."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def swap(self) -> None:
        """Swap weights and averages."""
        for name, parameter in self._parameters.items():
            weights, average = local(parameter), local(self.average[name])
            previous = weights.clone()
            weights.copy_(average)
            average.copy_(previous)
