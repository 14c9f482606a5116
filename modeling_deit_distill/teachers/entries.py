"""A teacher's logits as the entries of a store, and back; their layout is in `entry_files.py`."""

import math

import numpy as np
import torch


def encode_labels(logits: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """The teacher's decisions about logits (views, classes), as entries (views,)."""
    return (logits.argmax(dim=-1) + 1).cpu().numpy().astype(dtype)


def decode_labels(entries: np.ndarray, device) -> torch.Tensor:
    """Class indices (views,) on the device."""
    return torch.from_numpy(entries.astype(np.int64) - 1).to(device, non_blocking=True)


def encode_top_k(logits: torch.Tensor, dtype: np.dtype, temperature: float) -> np.ndarray:
    """The k highest of logits (views, classes) and what is needed to place the rest, as entries (views,).

    The log-sum-exp is that of all logits / τ. Logits are kept in half precision; it is computed from the kept values,
    so that the k highest never have more than the whole mass.
    """
    k = dtype["classes"].shape[0]
    highest, classes = logits.float().topk(k, dim=-1)
    kept = highest.half()
    logits = logits.float().scatter(-1, classes, kept.float())
    entries = np.zeros(len(logits), dtype)
    entries["log_sum_exp"] = torch.logsumexp(logits / temperature, dim=-1).cpu().numpy()
    entries["logits"] = kept.cpu().numpy()
    entries["classes"] = (classes + 1).cpu().numpy()
    return entries


def decode_top_k(entries: np.ndarray, num_classes: int, temperature: float, device) -> torch.Tensor:
    """Logits (views, classes) from entries (views,) that were encoded at the same temperature.

    Their distribution at it has the teacher's k highest probabilities. The mass that these leave is spread evenly over
    the other classes.
    """
    log_sum_exp, highest, classes = (
        torch.from_numpy(np.ascontiguousarray(entries[name])).to(device, non_blocking=True)
        for name in ("log_sum_exp", "logits", "classes")
    )
    highest, classes = highest.float(), classes.long() - 1
    rest = num_classes - classes.shape[-1]
    if rest == 0:
        return torch.empty(len(classes), num_classes, device=device).scatter_(-1, classes, highest)
    share = torch.exp(highest / temperature - log_sum_exp[:, None]).sum(dim=-1)
    left = torch.log((1 - share).clamp(min=torch.finfo(torch.float32).tiny)) - math.log(rest)
    elsewhere = temperature * (log_sum_exp + left)
    return elsewhere[:, None].repeat(1, num_classes).scatter_(-1, classes, highest)
