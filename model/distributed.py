"""One training by several processes, as torchrun starts them: each computes its share of every batch.

Shares are summed to the gradient of the whole batch, and crops are drawn by seed, epoch and number; so the
network that comes out is that of a single process, but for rounding.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from model.errors import ELNetError

T = TypeVar("T")

_WATCH_S = 1.0  # between two looks at whether the launcher still lives


class DistributedError(ELNetError):
    """Processes that cannot work together."""


@dataclass(frozen=True, slots=True)
class Team:
    """The processes of one training.

    Attributes:
        rank: of this one, from 0; 0 speaks and writes for all.
        size: how many there are, on all machines.
        device: this one's.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    def part(self, numbers: Sequence[int]) -> Sequence[int]:
        """This one's part of a batch, perhaps nothing."""
        return numbers[self.rank :: self.size]

    def share(self, numbers: Sequence[int]) -> list[int]:
        """What this one computes of a batch: its part, or, where that is nothing, the first, to idle on."""
        return list(self.part(numbers) or numbers[:1])

    def weight(self, numbers: Sequence[int]) -> float:
        """This one's part of the batch as a factor of its mean loss: the factors of all sum to 1."""
        return len(self.part(numbers)) / len(numbers)

    def add_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace every gradient by its sum over all processes."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def add(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.size == 1:
            return value
        total = torch.tensor([value], dtype=torch.float32, device=self.device)
        dist.all_reduce(total)
        return total.item()

    def told(self, value: T) -> T:
        """What rank 0 gives here, for all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """What each gives here, by rank; for rank 0 alone, the others get nothing."""
        if self.size == 1:
            return [value]
        found: list[Any] | None = [None] * self.size if self.leads else None
        dist.gather_object(value, found)
        return found or []


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """This process's team: that of torchrun's environment, or itself alone.

    On GPUs each process takes the one of its number on its machine.

    Args:
        device: "cpu" or "cuda".

    Raises:
        DistributedError: a GPU by number for several processes, or fewer GPUs than processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))  # of torchrun
    if size == 1:
        yield Team(0, 1, device)
        return
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if str(device) != "cuda":
            raise DistributedError(f"{device} is one GPU, and there are {size} processes; set device to cuda")
        if local >= (count := torch.cuda.device_count()):
            raise DistributedError(
                f"{os.environ['LOCAL_WORLD_SIZE']} processes on a machine with {count} GPUs; start one a GPU"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    threading.Thread(target=_end_with_launcher, args=(os.getppid(),), daemon=True).start()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def torchrun_command(processes: int, module: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs a module in so many processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    return [*launcher, str(processes), "-m", module, *arguments]


def shared_cores(processes: int) -> dict[str, str]:
    """What to add to the environment of so many processes on this machine, so that they use all of its cores.

    Left alone, torchrun gives each one thread. A number of threads that the user has set is kept.
    """
    if processes == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}


def rank_here() -> int | None:
    """The number of this process among those that torchrun started; None: it did not start this one."""
    rank = os.environ.get("RANK")
    return int(rank) if rank is not None else None


def processes_here() -> int:
    """How many processes of this training share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _end_with_launcher(launcher: int) -> None:
    """End this process with torchrun, which gave it a session of its own and, killed, would leave it."""
    while os.getppid() == launcher:
        time.sleep(_WATCH_S)
    os._exit(1)
