"""Work on a Ray cluster: one actor per GPU or core, each with its prior loaded."""

import logging
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from stsl.bench.engine import Maker

# An actor that dies (out of memory, a machine lost) comes back as often, and its job is tried again as often.
RESTARTS = RETRIES = 3
# Jobs that wait at an actor while it works, so that it never idles.
AHEAD = 2
# Ray puts the machine's outward address in place of 127.0.0.1, whatever it is told, unless clusters are switched off.
# The variable is named after the systems where that is the default, and is read when Ray is imported.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}


class OnRay:
    """On Ray: its own, on this machine, without dashboard and on loopback only; or a cluster by explicit address.

    Whoever can reach a Ray cluster can run code on it: attach only to one that you trust, on a network that you trust.

    Args:
        address: of a running cluster, such as "auto" or "ray://head:10001"; None starts a local one and stops it.
        workers: actors; None is one per GPU, and one per core where there is no GPU.
        threads: cores of each actor where there is no GPU.
    """

    def __init__(self, address: str | None = None, workers: int | None = None, threads: int = 1) -> None:
        self.address, self.workers, self.threads = address, workers, threads

    def run(self, make: Maker[Any, Any], jobs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Jobs with their results as they are finished, or with the exception that kept a job from having one.

        Raises:
            ConnectionError: there is no cluster at the address, or one of our own would listen beyond this machine.
        """
        if self.address is None:
            os.environ.update(LOOPBACK)
        import ray

        if self.address is None:
            gpus = torch.cuda.device_count()
            cores = max(self.threads * (self.workers or 1), os.cpu_count() or 1)
            ray.init(
                "local",
                num_cpus=cores,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        else:
            try:
                ray.init(self.address, log_to_driver=False, logging_level=logging.WARNING)
            except Exception as error:
                raise ConnectionError(f"no Ray cluster at {self.address}: {error}") from error
        try:
            if self.address is None and (at := ray.util.get_node_ip_address()) != "127.0.0.1":
                raise ConnectionError(
                    f"Ray would listen on {at}: it was imported before stsl could say otherwise. Set "
                    + " ".join(f"{key}={value}" for key, value in LOOPBACK.items())
                )
            yield from self._run(ray, make, iter(jobs))
        finally:
            ray.shutdown()

    def _run(self, ray: Any, make: Maker[Any, Any], jobs: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        count = self.workers or gpus or max(1, int(resources.get("CPU", 1)) // self.threads)
        kind = ray.remote(
            num_cpus=self.threads, num_gpus=1 if gpus else 0, max_restarts=RESTARTS, max_task_retries=RETRIES
        )(_Actor)
        actors = [kind.remote(make) for _ in range(count)]
        flying: dict[Any, tuple[Any, Any]] = {}
        for actor in actors * AHEAD:
            _send(actor, jobs, flying)
        while flying:
            (ready,), _ = ray.wait(list(flying), num_returns=1)
            actor, job = flying.pop(ready)
            try:
                done = ray.get(ready)
            except Exception as error:  # an actor that is lost for good among them
                done = error
            _send(actor, jobs, flying)
            yield job, done


class _Actor:
    """A worker where Ray put it."""

    def __init__(self, make: Maker[Any, Any]) -> None:
        self._worker = make()

    def do(self, job: Any) -> Any:
        return self._worker(job)


def _send(actor: Any, jobs: Iterator[Any], flying: dict[Any, tuple[Any, Any]]) -> None:
    """Give an actor the next job, if there is one."""
    for job in jobs:
        flying[actor.do.remote(job)] = (actor, job)
        return
