"""The state of a training in one file, written whole or not at all."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stsl.files import atomic

Tensors = dict[str, Tensor]


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors by name, and plain facts about them."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic(path) as target:
        save_file(plain, target, {"stsl": json.dumps(facts)})


def load(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Read what `save` wrote.

    Raises:
        ValueError: the file is damaged or none of ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})["stsl"])
            return {name: file.get_tensor(name) for name in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no checkpoint of stsl, or is damaged: {error}; --restart begins anew") from error


def optimizer_state(optimizer: torch.optim.Optimizer, names: list[str]) -> Tensors:
    """Adam's moments and step counts, by parameter."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{key}": torch.as_tensor(value) for index, row in state.items() for key, value in row.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave."""
    state: dict[int, Tensors] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
