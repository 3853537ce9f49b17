"""How a call of Trainer.py begins its run: the one place that decides it."""
import argparse
import contextlib
import enum
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from modules.config.build import choose_arithmetic
from modules.config.summary import announce
from modules.config.trainer_flags import GivenFlags, read_settings
from modules.training.output_folder import lock_folder
from modules.training.run_folder import MARKER, RUN_FILES, find_later, find_run, find_undrawn, is_marked, mark
from utils import BadInput, check_writable, logger, pick_device


class Start(enum.Enum):
    """Where a run starts from."""
    NEW = "random weights"
    RESUME = "last.ckpt of its own folder"
    BRANCH = "the whole state of a checkpoint of another folder"
    FINETUNE = "the weights of a checkpoint"


@dataclass(frozen=True)
class RunPlan:
    """``checkpoint``: the file to start from, if any. ``replaced``: files of the old run, for --overwrite."""
    start: Start
    folder: Path
    checkpoint: Path | None = None
    replaced: tuple[Path, ...] = ()

    @property
    def touches_run(self) -> bool:
        """Whether the folder holds a run that is continued or replaced, which another process may be writing to."""
        return self.start is Start.RESUME or bool(self.replaced)

    def delete_replaced(self, epoch: int) -> None:
        """Delete the files of the old run, once last.ckpt is the new run's: a full disk before that costs nothing.

        A run that was killed between the two deletes them when it is resumed: files of epochs from ``epoch`` on.
        """
        for path in find_later(self.folder, epoch) if self.start is Start.RESUME else self.replaced:
            if path != self.folder / "last.ckpt":
                path.unlink(missing_ok=True)


def plan_run(flags: dict) -> RunPlan:
    """Decide from the given flags (save_root, ckpt_path, resume, finetune, overwrite) and from what the run folder
    holds. Nothing is changed.

    Raises
    ------
    BadInput : flags that contradict each other, a run in the folder that is to be neither continued nor replaced, or
        files that have the names of a run's but may be somebody else's.
    """
    ckpt_path = flags.get("ckpt_path")
    resume, finetune, overwrite = (flags.get(name, False) for name in ("resume", "finetune", "overwrite"))
    if resume and overwrite:
        raise BadInput("--resume and --overwrite: one continues the run in --save_root, the other replaces it; use one")
    if resume and ckpt_path and not finetune:
        raise BadInput("--resume and --ckpt_path: --resume continues from --save_root/last.ckpt; use one of the two")
    if finetune and not ckpt_path:
        raise BadInput("--finetune starts from the weights of a checkpoint; name it with --ckpt_path")
    folder = Path(flags["save_root"])
    last, run = folder / "last.ckpt", find_run(folder)
    given = Path(ckpt_path) if ckpt_path else None
    is_own_last = last.is_file() and given is not None and not finetune and given.resolve() == last.resolve()
    if (resume and last.is_file()) or is_own_last:
        if overwrite:
            raise BadInput(f"--overwrite replaces the run in {folder}, --ckpt_path continues it; use one of the two")
        return RunPlan(Start.RESUME, folder, last)
    if run and not is_marked(folder):
        resumable = "; --resume continues a run that was copied without it" if last.is_file() else ""
        raise BadInput(f"--save_root {folder} contains {run[0].relative_to(folder)} but no {MARKER}, so it may not be "
                       f"a run of Trainer.py; move that file or use another folder{resumable}")
    if run and resume:
        raise BadInput(f"--save_root {folder} holds files of a run, but no last.ckpt to resume; replace them with "
                       "--overwrite, or use another folder and a checkpoint given with --ckpt_path")
    if run and not overwrite:
        raise BadInput(f"--save_root {folder} already holds a run; continue it with --resume, replace it with "
                       "--overwrite, or use another folder")
    if given is not None and given.resolve() in [path.resolve() for path in run]:
        raise BadInput(f"--overwrite replaces the run in {folder}, including {given}; use another --save_root")
    start = Start.NEW if given is None else Start.FINETUNE if finetune else Start.BRANCH
    return RunPlan(start, folder, given, tuple(run))


class OpenedRun:
    """A run from its plan to its locked folder; a context manager that releases the lock.

    A run that is continued or replaced is locked at once. Another folder is left as it is until ``claim``: what comes
    before may still be refused.
    """

    def __init__(self, given: GivenFlags):
        self.given, self.plan = given, plan_run(given.all)
        self._locks = contextlib.ExitStack()

    def __enter__(self) -> "OpenedRun":
        try:
            str(self.plan.folder).encode()
        except UnicodeEncodeError as error:
            raise BadInput(f"--save_root {self.plan.folder}: TensorBoard cannot write to a folder whose name is not "
                           f"valid {sys.getfilesystemencoding()} text; choose another folder") from error
        check_writable(self.plan.folder)
        if self.plan.touches_run:
            self._lock()
        return self

    def __exit__(self, *error) -> None:
        self._locks.__exit__(*error)

    def _lock(self) -> None:
        self._locks.enter_context(lock_folder(self.plan.folder, RUN_FILES))
        self.plan = plan_run(self.given.all)  # another process may have changed the folder meanwhile

    def claim(self) -> RunPlan:
        """Make the folder that of this run alone: lock and mark it."""
        if not self.plan.touches_run:
            self.plan.folder.mkdir(parents=True, exist_ok=True)
            planned = self.plan
            self._lock()
            if self.plan != planned:
                raise BadInput(f"another run has started in {self.plan.folder} meanwhile; start again")
        mark(self.plan.folder)
        return self.plan

    def prepare(self, world_size: int) -> tuple[argparse.Namespace, dict | None, bool] | None:
        """Say what is trained, and return the run's flags, the checkpoint that it starts from, and whether only its
        weights are taken; None where the run is complete and all of its figures are drawn.

        Raises
        ------
        BadInput : a checkpoint or flags that cannot be used.
        """
        args, state = read_settings(self.given, self.plan.checkpoint, self.plan.start is Start.RESUME)
        # A resumed run continues in the same arithmetic, also on another machine, which may have fewer cores.
        if args.threads and "threads" not in self.given.all:
            args.threads = min(args.threads, torch.get_num_threads())
        choose_arithmetic(args, pick_device(args.device, args.threads))
        announce(args, self.given.all)
        if args.gpu > 1 and world_size == 1:
            logger.warning("--gpu %d: continuing with one process; start several with torchrun --nproc_per_node=%d "
                           "Trainer.py ...", args.gpu, args.gpu)
        if world_size > args.batch_size:
            raise BadInput(f"--batch_size {args.batch_size}: fewer clips than the {world_size} processes; use at least "
                           "one per process")
        if state is None:
            return args, None, False
        if self.plan.start is Start.FINETUNE or "template_note" in state:
            print(f"{self.plan.checkpoint}: {state.get('template_note', 'weights only')}; epochs, schedules and "
                  "optimiser start at zero")
            return args, state, True
        if state["epoch"] is None or state["epoch"] < args.num_epoch:
            return args, state, False
        if self.plan.start is not Start.RESUME:
            raise BadInput(f"--num_epoch {args.num_epoch}: the checkpoint has already trained {state['epoch']} epochs; "
                           "give more")
        self.claim()
        print(f"the run has completed its {state['epoch']} epochs; a larger --num_epoch continues it", flush=True)
        return (args, state, False) if find_undrawn(self.plan.folder, args.store_visualization) else None
