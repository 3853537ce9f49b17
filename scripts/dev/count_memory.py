"""Count the memory of a training step on a GPU, from the sizes of its tensors, on any machine.

    python scripts/dev/count_memory.py --recipe best_gpu
    python scripts/dev/count_memory.py --batch_size 4 --precision fp32

The flags are those of Trainer.py. Two steps on random pixels are computed on this machine's CPU, as a GPU would compute
them without --compile; the result is the largest sum of the sizes of all tensors that exist at once. Not counted: CUDA
itself, the workspace of its kernels, what PyTorch's allocator keeps for later, and the frames of the dataset. All but
the weights and their copies grows in proportion to the batch, so two small batches tell what a large one needs.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
import utils  # noqa: F401  first: it says which packages are missing

# isort: split
import torch

import Trainer
from dataloader import ClipLoader, Data, Recording, to_float
from modules.config.trainer_flags import merge_flags, parse_command_line
from utils import prepare_cpu, run_main


def count(flags: list[str]) -> int:
    """Bytes of all tensors of a step at its largest moment: weights, moments, averages, activations, gradients.

    Parameters
    ----------
    flags : of Trainer.py, without --DR and --save_root.
    """
    from torch.distributed._tools.mem_tracker import MemTracker  # takes seconds
    args = merge_flags(parse_command_line(["--DR", "-", "--save_root", "unused", "--device", "cpu", *flags]))
    frames = args.batch_size * args.train_vi_len
    pixels = torch.randint(256, (frames, 3, args.frame_H, args.frame_W), dtype=torch.uint8)
    recording = Recording(pixels, pixels, torch.arange(frames))
    loader = ClipLoader(recording, args.train_vi_len, args.train_vi_len, args.batch_size)
    trainer = Trainer.Trainer(args, Data(loader=loader, fast_loader=None, val=recording.head(2),
                                         pose_sample=to_float(pixels[:2]), frames=pixels, checksum=0,
                                         replay_checksum=0),
                              torch.device("cpu"))
    trainer.model.two_passes = True
    batch, = loader.batches(torch.arange(args.batch_size), slice, trainer.generators["crop"],
                            trainer.generators["random_frame"])
    tracker = MemTracker()
    tracker.track_external(trainer.model, trainer.optimizer, *filter(None, [trainer.state.ema]))
    with tracker:
        for _ in range(2):  # the optimiser's moments exist from the second step on
            tracker.reset_mod_stats()
            trainer.train_step(batch, torch.zeros(args.batch_size, dtype=torch.bool), 0.001, 0.001)
    return tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


def main(argv: list[str] | None = None) -> None:
    prepare_cpu()
    print(f"{count(sys.argv[1:] if argv is None else argv) / 2**20:,.1f} MiB in a training step")


if __name__ == "__main__":
    sys.exit(run_main("count_memory.py", main))
