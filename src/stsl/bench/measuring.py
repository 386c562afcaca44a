"""Measurements made once: one per (picture, task, side), stored without loss and hashed, the same for every method."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from stsl import images, measurements, tasks
from stsl.bench.data import RESIZE, Picture
from stsl.bench.store import Store
from stsl.bench.suite import Corruption
from stsl.shapes import Image


@dataclass(frozen=True)
class Measured:
    """The measurement of a picture on disk.

    Args:
        image, task: of what.
        y, operator: its files.
        sha256: of the two files, one after the other.
    """

    image: str
    task: str
    y: Path
    operator: Path
    sha256: str

    def read(self) -> tuple[bytes, bytes]:
        """The files as they were hashed.

        Raises:
            ValueError: they have changed since.
            OSError: they are gone.
        """
        y, operator = self.y.read_bytes(), self.operator.read_bytes()
        if _hash(y, operator) != self.sha256:
            raise ValueError(f"{self.y} is not the measurement that was made: delete it, and its rows are made again")
        return y, operator


class Measurer:
    """Makes the truths and measurements of one side, each once.

    The truth is what its PNG holds: 8 bits. y comes from it, and scores are taken against it.

    Args:
        store: where they are noted; the files lie beside it.
        side: of the pictures, in pixels.
        seed: of noise, masks and kernels.
    """

    def __init__(self, store: Store, side: int, seed: int) -> None:
        self.store, self.side, self.seed = store, side, seed

    def measure(self, picture: Picture, task: str, corruption: Corruption) -> Measured:
        """The measurement of a picture, made if it is not there yet.

        Raises:
            ValueError, OSError: the picture cannot be read, or the folder holds another one of that name.
        """
        folder = self.store.folder / "measurements" / str(self.side) / f"{task}-seed{self.seed}"
        stem = images.safe_stem(picture.id)
        y_path, operator_path = folder / f"{stem}.safetensors", folder / f"{stem}_operator.safetensors"
        known = self.store.one(
            "select spec, noise, sha256 from measurements where image = ? and side = ? and task = ? and seed = ?",
            picture.id,
            self.side,
            task,
            self.seed,
        )
        if known is not None and (known["spec"], known["noise"]) != (corruption.spec, corruption.noise):
            raise self._other(task, corruption, known["spec"], known["noise"])
        if known is not None and y_path.is_file() and operator_path.is_file():
            self._check_source(picture)
            return Measured(picture.id, task, y_path, operator_path, known["sha256"])
        x = self.truth(picture)
        y, physics = tasks.measure(corruption.spec, x, noise=corruption.noise, ids=(picture.id,), seed=self.seed)
        measurements.save_measurement(
            y_path, y, spec=corruption.spec, noise=corruption.noise, id=picture.id, seed=self.seed
        )
        shape = (x.shape[1], x.shape[2], x.shape[3])
        measurements.save_operator(operator_path, corruption.spec, physics, shape, corruption.noise)
        sha256 = _hash(y_path.read_bytes(), operator_path.read_bytes())
        if known is not None and known["sha256"] != sha256:
            raise ValueError(f"the measurement of {picture.id} came out otherwise than before: give another --out")
        row = {"image": picture.id, "side": self.side, "task": task, "spec": corruption.spec, "noise": corruption.noise}
        self.store.put("measurements", row | {"seed": self.seed, "sha256": sha256})
        return Measured(picture.id, task, y_path, operator_path, sha256)

    def check(self, task: str, corruption: Corruption) -> None:
        """Refuse a task that was another corruption when this folder's measurements were made.

        Raises:
            ValueError: it was.
        """
        other = self.store.one(
            "select spec, noise from measurements where side = ? and task = ? and seed = ? "
            "and (spec is not ? or noise is not ?) limit 1",
            self.side,
            task,
            self.seed,
            corruption.spec,
            corruption.noise,
        )
        if other is not None:
            raise self._other(task, corruption, other["spec"], other["noise"])

    def _other(self, task: str, corruption: Corruption, spec: str, noise: float) -> ValueError:
        return ValueError(
            f"task {task} is {spec} with noise {noise:g} in {self.store.folder}, and {corruption.spec} with noise "
            f"{corruption.noise:g} here: give another --out"
        )

    def truth(self, picture: Picture) -> Image:
        """The picture at this side in 8 bits, (1, 3, side, side)."""
        path = truth_path(self.store.folder, self.side, picture.id)
        if not (self._check_source(picture) and path.is_file()):
            photo = picture.load()
            images.write(path, images.square(photo, self.side))
            tag = picture.tag or ("grey" if photo.is_grey else "colour")
            row = {"id": picture.id, "side": self.side, "source": picture.source, "tag": tag, "resize": RESIZE}
            self.store.put("pictures", row)
        return images.read(path).x

    def _check_source(self, picture: Picture) -> bool:
        """Whether the picture is known already; a name that stands for another picture is refused."""
        known = self.store.one("select source from pictures where id = ? and side = ?", picture.id, self.side)
        if known is not None and known["source"] != picture.source:
            raise ValueError(
                f"{picture.id} is {known['source']} in {self.store.folder}, and {picture.source} here: give another "
                "--out"
            )
        return known is not None


def truth_path(folder: Path, side: int, image: str) -> Path:
    """Where the 8-bit truth of a picture is."""
    return folder / "truth" / str(side) / f"{images.safe_stem(image)}.png"


def _hash(y: bytes, operator: bytes) -> str:
    return hashlib.sha256(y + operator).hexdigest()
