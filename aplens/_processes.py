"""Several processes that share one run, as `accelerate launch` or `torchrun` start them.

Without a launcher there is one process, and nothing here costs anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from aplens._io import own_folder

if TYPE_CHECKING:
    from torch import Tensor

Item = TypeVar("Item")
Items = TypeVar("Items", "Tensor", "list")  # a tensor's first dimension is shared

#: How long a process waits for the others: stages that only the first one runs may take days.
_PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Processes:
    """This process's place among all that share the run.

    Attributes:
        index: Of this process, from 0.
        count: Of all processes, on all machines.
    """

    index: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that does what is done once."""
        return self.index == 0

    def share(self, items: Items) -> Items:
        """This process's part of a list or tensor; all parts together are all items, each once."""
        return items[self.index :: self.count]

    @contextmanager
    def own(self, folder: str | os.PathLike[str]) -> Iterator[Path]:
        """`own_folder` for all of them together: the first one holds the lock.

        Raises:
            FolderInUseError: In the first process, when another run has the folder; it is for the
                launcher to end the others, which wait.
        """
        with own_folder(folder) if self.is_main else nullcontext():
            self.wait()  # nobody writes before the folder is ours,
            yield Path(folder)
            self.wait()  # and nobody else may before all of us are done

    def wait(self) -> None:
        """Go on only when all processes are here."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, the same in each of them; `values` stays as it is."""
        if self.count == 1:
            return values
        from torch import distributed

        on_gpu = distributed.get_backend() == "nccl"  # which knows no tensors elsewhere
        total = values.detach().to("cuda" if on_gpu else "cpu", copy=True)
        distributed.all_reduce(total)
        return total.to(values.device)

    def from_main(self, value: Item) -> Item:
        """What the first process has, in every process."""
        if self.count == 1:
            return value
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]


#: One process that shares its run with no other.
ALONE = Processes()


@cache
def join_processes() -> Processes:
    """Meet the processes that the launcher started; the only one where there was no launcher.

    On a machine with GPUs each takes one of its own: that of its local number becomes torch's
    current device.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes)
