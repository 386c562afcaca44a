"""An end for jobs that take too long, also in the middle of a step."""

import time

from stsl.priors.base import Condition, Prior, Wrapped
from stsl.shapes import Image, Latent


class Overtime(RuntimeError):
    """A job took longer than one may."""


class Deadline:
    """A point in time.

    Args:
        seconds: from now.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def check(self) -> None:
        """Go on, while there is time.

        Raises:
            Overtime: there is none left.
        """
        if time.monotonic() > self._end:
            raise Overtime(
                f"stopped after {self.seconds:.0f} seconds: one job may not take longer here. Choose a faster quality, "
                "fewer steps, fewer samples or a smaller part of the photo"
            )


class Timed(Wrapped):
    """A prior that looks at the clock whenever it is asked, and is otherwise the one it wraps.

    A step may take thousands of network calls, and nothing but the network knows when one begins.
    """

    def __init__(self, prior: Prior, deadline: Deadline) -> None:
        super().__init__(prior)
        self.deadline = deadline

    def for_step(self, left: int) -> "Timed":
        chosen = self.prior.for_step(left)
        return self if chosen is self.prior else Timed(chosen, self.deadline)

    def epsilon(self, z: Latent, t: int, condition: Condition | None = None) -> Latent:
        self.deadline.check()
        return self.prior.epsilon(z, t, condition)

    def encode(self, x: Image) -> Latent:
        self.deadline.check()
        return self.prior.encode(x)

    def decode(self, z: Latent) -> Image:
        self.deadline.check()
        return self.prior.decode(z)
