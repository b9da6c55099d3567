"""Jobs that stand in for trainings in tests of the grid's worker processes; they are sent there, so they live here."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from msldata.errors import UserError
from msltrain.grids.jobs import Progress


@dataclass(frozen=True, kw_only=True)
class FakeJob:
    """Does what ``act`` says, then writes its process id and GPU into its folder."""

    name: str
    folder: Path
    act: str = "write"
    needs: tuple[str, ...] = ()

    @property
    def log(self) -> Path:
        return self.folder / self.name / "run.log"

    @property
    def result(self) -> Path:
        return self.folder / self.name / "result"

    @property
    def is_finished(self) -> bool:
        return self.result.exists()

    def perform(self, progress: Progress) -> None:
        print(f"this is {self.name}")
        os.write(2, b"a library speaks\n")
        progress("acting", 1, 2)
        if self.act == "mistake":
            raise UserError("the keep masks are of another size; build them again")
        if self.act == "bug":
            raise ZeroDivisionError("in some library\nand more")
        if self.act == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.act == "wait":
            while not (self.folder / "go").exists():
                time.sleep(0.02)
        if self.act == "meet":  # on two GPUs at the same time, however long the other process takes to start
            (self.folder / f"on-{os.environ['CUDA_VISIBLE_DEVICES']}").touch()
            while len(list(self.folder.glob("on-*"))) < 2:
                time.sleep(0.02)
        cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        self.result.write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {cpus}")
