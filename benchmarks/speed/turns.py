"""Steps of a running program -> what they took, told turn by turn.

Programs that are compared run beside each other, each in its own process, and take turns: a line on stdin says how many
steps the next turn has, a line on stdout says what they took. While one makes its steps the others wait.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

import psutil
import torch
from diffusers import UNet2DConditionModel


class Clock:
    """Seconds of work in a stretch of a program: of this process's CPU, or of the CUDA device."""

    def __init__(self, device: str) -> None:
        self.on_cuda = device.startswith("cuda")

    def now(self) -> Any:
        if not self.on_cuda:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, first: Any, last: Any) -> float:
        """Of two results of `now`; waits until the device has come to the second."""
        if not self.on_cuda:
            return last - first
        last.synchronize()
        return first.elapsed_time(last) / 1000


class NetworkClock:
    """Seconds within the UNet's forward pass and within backward passes, whoever asks for them."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._stretches: list[tuple[Any, Any]] = []
        self._inside = False
        UNet2DConditionModel.forward = self._timed(UNet2DConditionModel.forward)
        torch.Tensor.backward = self._timed(torch.Tensor.backward)

    def _timed(self, work: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:  # layers that a backward pass runs again
                return work(*args, **kwargs)
            self._inside, first = True, self.clock.now()
            try:
                return work(*args, **kwargs)
            finally:
                self._inside = False
                self._stretches.append((first, self.clock.now()))

        return timed

    def taken(self) -> float:
        """Since the last time somebody asked."""
        seconds = sum(self.clock.between(*stretch) for stretch in self._stretches)
        self._stretches.clear()
        return seconds


class Turns:
    """The one who is told and who answers; `done` is called after every step of the program."""

    def __init__(self, device: str) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what a program prints goes to the log
        self.clock = Clock(device)
        self.network = NetworkClock(self.clock)
        self.about: dict[str, Any] = {}  # told with the first answer
        self._left: int | None = None

    def done(self) -> None:
        """A step is made. Returns when the next one is wanted; never, when none is."""
        if self._left is None:
            self._say(self.about | {"cpu": time.process_time()} | _memory(self.clock.on_cuda))
            self._wait()
            return
        self._left -= 1
        if self._left == 0:
            device = self.clock.between(self._device, self.clock.now())
            taken = {
                "cpu": time.process_time() - self._cpu,
                "wall": time.perf_counter() - self._wall,
                "network": self.network.taken(),
            }
            if self.clock.on_cuda:
                taken["device"] = device
            self._say(taken | _memory(self.clock.on_cuda))
            self._wait()

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=self._answers, flush=True)

    def _wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)  # a training that nobody wants to see the end of
        self._left = int(line)
        self.network.taken()
        self._wall, self._cpu, self._device = time.perf_counter(), time.process_time(), self.clock.now()


def _memory(on_cuda: bool) -> dict[str, int]:
    """Bytes of the process, now and at most so far, and at most so far on the device."""
    here = {
        "resident_bytes": psutil.Process().memory_info().rss,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    return here | ({"peak_device_bytes": torch.cuda.max_memory_allocated()} if on_cuda else {})
