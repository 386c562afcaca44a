"""Memory of a device: what there is, what a computation would take, and what it means to run out."""

import gc
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

GIB = 2**30

T = TypeVar("T")


class OutOfMemory(RuntimeError):
    """Memory ran out, and every saving there is was made already; nothing was written."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that a device's memory was not enough."""
    # The last one is what cuBLAS and cuDNN say of their own work space.
    words = ("out of memory", "not enough memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def release(device: torch.device) -> None:
    """Give what nothing uses any more back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def until_it_fits(
    attempt: Callable[[], Iterator[T]], save: Callable[[str], None], device: torch.device
) -> Generator[T, None, None]:
    """What `attempt` yields; begun anew each time that memory runs out and `save` has found something to save.

    Args:
        attempt: begins from the beginning whenever it is called.
        save: is told the error, once what the attempt held is free; raises where nothing is left to save.
        device: whose memory it is.
    """
    while True:
        try:
            yield from attempt()
            return
        except RuntimeError as error:
            if not ran_out(error):
                raise
            said = str(error)
        # Only here, where the error and all it holds are gone, is memory free again.
        gc.collect()
        release(device)
        save(said)


def once_it_fits(compute: Callable[[], T], save: Callable[[str], None], device: torch.device) -> T:
    """What `compute` gives, tried again as in `until_it_fits`."""
    return next(until_it_fits(lambda: iter((compute(),)), save, device))


def available(device: torch.device) -> int | None:
    """Bytes this process could hold: what is free, and on a GPU what it holds already. None if nobody knows."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


@dataclass
class Footprint:
    """What a computation takes.

    Attributes:
        peak: most bytes that its tensors held at once.
        kept: most bytes when a backward pass began, which is what waits for it.
        flops: operations of matrix products, convolutions and attention, forward and backward.
    """

    peak: int = 0
    kept: int = 0
    flops: int = 0


def footprint(function: Callable[[], object], known: Iterable[Tensor], device: torch.device) -> Footprint:
    """What a call would take on a device, from shapes alone: nothing is computed.

    Args:
        function: the call; it may take gradients, but no decision may depend on a tensor's values.
        known: tensors that are there before and after, such as weights; they are not counted.
        device: tensors of other devices are not counted.

    Raises:
        RuntimeError: PyTorch cannot follow the call, as where a decision depends on values.
    """
    known = list(known)
    with detect_fake_mode(known) or FakeTensorMode(allow_non_fake_inputs=True) as fake:
        # Views of weights are no new memory: the mode must meet them now, to know them later.
        there: list[Tensor] = [fake.from_tensor(tensor) for tensor in known]
        with _Tally(there, device) as tally:
            function()
    return tally.footprint


class _Tally(TorchDispatchMode):
    """Follows the storages that operations make inside the block."""

    def __init__(self, known: list[Tensor], device: torch.device) -> None:
        super().__init__()
        self.footprint, self.device, self.live, self.task = Footprint(), device, 0, -1
        self._known = known  # held, so that no other storage gets their addresses
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        task = torch._C._current_graph_task_id()  # -1 outside backward passes
        if task not in (-1, self.task):
            self.footprint.kept = max(self.footprint.kept, self.live)
        self.task = task
        out = function(*args, **kwargs)
        if count := flop_registry.get(function._overloadpacket):
            self.footprint.flops += count(*args, **kwargs, out_val=out)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and tensor.device.type == self.device.type:
                self._note(tensor.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self.live += size
        self.footprint.peak = max(self.footprint.peak, self.live)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size
