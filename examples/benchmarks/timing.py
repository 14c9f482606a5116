"""How benchmarks measure: competitors take turns in one process, figures are medians."""

import statistics
import time
from collections.abc import Callable

import torch


def alternate(steps: dict[str, Callable], rounds: int, device: str, warm_up: int = 2) -> dict[str, float]:
    """Seconds of each step, the median over rounds after those that warm up.

    Each round begins with another step, so that none always follows the same one.
    """
    seconds = {name: [] for name in steps}
    for number in range(warm_up + rounds):
        begin = number % len(steps)
        for name in [*steps][begin:] + [*steps][:begin]:
            taken = time_once(steps[name], device)
            if number >= warm_up:
                seconds[name].append(taken)
    return {name: statistics.median(times) for name, times in seconds.items()}


def time_once(step: Callable, device: str) -> float:
    """Seconds of one call, until the device has done all of it."""
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str):
    """Wait for the device."""
    if device != "cpu":
        torch.accelerator.synchronize()


def matrix_peak(device: str, dtype: torch.dtype, rounds: int = 7) -> float:
    """FLOPs a second of the fastest of some square products: what the device can do at most, as libraries reach it."""
    sides = (4096, 8192) if device.startswith("cuda") else (1024, 2048)
    best = 0.0
    for side in sides:
        one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        for _ in range(rounds):
            best = max(best, 2 * side**3 / time_once(lambda one=one, other=other: one @ other, device))
    return best
