"""Where work is done: in this process, or on a cluster. Both take the same workers and the same jobs."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

Job = TypeVar("Job")
Done = TypeVar("Done")

# Makes what does the jobs. It is called once where the work is done, so that what it loads stays loaded; it must be
# picklable, its jobs and their results too.
Maker = Callable[[], Callable[[Job], Done]]


class Engine(Protocol):
    """Does jobs somewhere, and gives each back with its result in the order they are finished."""

    def run(self, make: Maker[Any, Any], jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Jobs with their results, or with the exception that kept a job from having one. Jobs are taken as needed."""


class Local:
    """In this process, one job after another."""

    def run(self, make: Maker[Job, Done], jobs: Iterable[Job]) -> Iterator[tuple[Job, Done | Exception]]:
        worker = make()
        for job in jobs:
            try:
                done: Done | Exception = worker(job)
            except Exception as error:  # whatever a job does wrong, the next one has its turn
                done = error
            yield job, done


def engine_named(name: str, address: str | None = None) -> Engine:
    """The engine that `--engine` and `--address` name.

    Raises:
        ValueError: there is none of that name, or an address that the engine has no use for.
        ModuleNotFoundError: Ray is not installed.
    """
    if name == "local":
        if address is not None:
            raise ValueError(f"--address {address} is for --engine ray")
        return Local()
    if name == "ray":
        if importlib.util.find_spec("ray") is None:
            raise ModuleNotFoundError('--engine ray needs Ray: pip install "stsl[bench]"')
        from stsl.bench.ray import OnRay

        return OnRay(address)
    raise ValueError(f"--engine {name}: give local or ray")
