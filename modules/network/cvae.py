"""The conditional VAE: the five parts, one training clip (forward), the free-running roll-out (generate)."""
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from modules.data.histogram import HISTOGRAM_REFERENCES, match_histogram
from modules.network.batch_norm import CrossProcessBatchNorm2d
from modules.network.decoder import DecoderFusion, Generator
from modules.network.encoders import FrameEncoder, LabelEncoder
from modules.network.posterior import GaussianPredictor, reparameterize

FEEDS = ("previous", "first")
POSES_AT_ONCE = 32  # pose images encoded in one call during generation: bounds memory at any length


class CVAE(nn.Module):
    """Predicts each frame of a video from the frame before, the pose and a latent map z.

    Parameters
    ----------
    F_dim, L_dim, N_dim, D_out_dim : channels of the frame features (multiple of 8), pose features (even),
        latent map (multiple of 4) and fused features (multiple of 8).
    output : "sigmoid" or "linear", the generator's last activation.
    template_activations : slope 1.0, that is no activation, at the two places where the course's template writes
        ``LeakyReLU(True)``.
    bptt : let the gradient through the fed-back prediction (back-propagation through time); without it the
        prediction is detached before it is fed back.
    match_histogram : which frame's histogram a prediction is given before it is fed back: that of the frame that was
        fed in "previous" to it, that of the "first" frame, or neither, "off". What is returned stays as predicted.
    reference_frame : give the decoder the features of the sequence's first frame at every step, beside those of the
        frame before.
    feed : what the frame encoder sees at each step: the frame before ("previous"), or always the sequence's first
        ("first"), so that nothing is fed back and each frame depends on the first frame and its pose alone.

    Raises
    ------
    ValueError : a size that the layers cannot have, or strategies that do not go together; the message names them.
    """

    def __init__(self, F_dim: int = 128, L_dim: int = 32, N_dim: int = 12, D_out_dim: int = 192,
                 output: str = "sigmoid", template_activations: bool = False, bptt: bool = False,
                 match_histogram: str = "off", reference_frame: bool = False, feed: str = "previous"):
        super().__init__()
        sizes = {"F_dim": (F_dim, 8), "L_dim": (L_dim, 2), "N_dim": (N_dim, 4), "D_out_dim": (D_out_dim, 8)}
        for name, (size, multiple) in sizes.items():
            if size <= 0 or size % multiple:
                raise ValueError(f"--{name} {size}: it must be a positive multiple of {multiple}")
        if match_histogram not in HISTOGRAM_REFERENCES:
            raise ValueError(f'--match_histogram {match_histogram}: choose one of {", ".join(HISTOGRAM_REFERENCES)}')
        if bptt and match_histogram != "off":
            raise ValueError("--bptt and --match_histogram: no gradient passes a matched histogram; give --no-bptt "
                             "or --no-match_histogram, also where the other comes from a checkpoint")
        if feed not in FEEDS:
            raise ValueError(f'--feed {feed}: choose one of {", ".join(FEEDS)}')
        if feed == "first" and (reference_frame or match_histogram != "off"):
            raise ValueError("--feed first: the first frame is all that the decoder is given, and nothing is fed back; "
                             "give --no-reference_frame and --no-match_histogram")
        self.frame_encoder = FrameEncoder(F_dim)
        self.label_encoder = LabelEncoder(L_dim, template_activations)
        self.gaussian_predictor = GaussianPredictor(F_dim, L_dim, N_dim, template_activations)
        self.decoder_fusion = DecoderFusion(F_dim * (2 if reference_frame else 1), L_dim, N_dim, D_out_dim)
        self.generator = Generator(D_out_dim, output)
        self.N_dim = N_dim
        self.bptt = bptt
        self.match_histogram = match_histogram
        self.reference_frame, self.feed = reference_frame, feed
        # Two passes cost a fourth more arithmetic (see forward), but few and large calls: what a GPU is fast at. On two
        # CPU cores one pass was measured to be the faster. None: as the device asks.
        self.two_passes: bool | None = None
        self._compiled: dict[str, Callable] = {}
        self.compiled_batch: int | None = None  # clips of the batches that run compiled

    def forward(self, frames: Tensor, labels: Tensor, teacher_forcing: Tensor, noise: Tensor | None = None,
                generator: torch.Generator | None = None, reference: Tensor | None = None,
                disturbance: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Predict frames 2..T of training clips, one after the other.

        z comes from the posterior of the frame that is being predicted; the frame before is the real one where
        ``teacher_forcing`` says so and the prediction otherwise (the clip's first frame is as it is given).

        Parameters
        ----------
        frames, labels : (B, T, 3, H, W) in [0, 1], T >= 2.
        teacher_forcing : bool, (B,) for whole clips, or (B, T-1): entry t is for the prediction of frame t + 2. Or
            float in [0, 1]: the share of the real frame in a blend of it and the prediction.
            Best on the CPU: looking at it there costs no synchronisation.
        noise : (B, T-1, N, H, W) from N(0, I); drawn from ``generator`` where it is None.
        reference : (B, 3, H, W), the frame that stands for the first of the sequence; the clip's first where it is
            None. Only used with ``reference_frame`` or ``feed`` "first".
        disturbance : (B, T-1, 3, H, W), added to each prediction before it is fed back; the last is not used.

        Returns
        -------
        predictions : (B, T-1, 3, H, W), of frames 2..T.
        mu, logvar : (B, T-1, N, H, W), of the posteriors.
        """
        batch, steps = len(frames), frames.shape[1] - 1
        compiled = self._compiled if batch == self.compiled_batch else {}
        encode, decode = compiled.get("encode", self.encode), compiled.get("decode", self.decode)
        features, poses, mu, logvar = encode(frames, labels[:, 1:])
        z = reparameterize(mu, logvar, noise, generator)
        features, poses, z = (value.transpose(0, 1) for value in (features, poses, z))  # (T or T-1, B, ..., H, W)

        if self.feed == "first" or self.reference_frame:
            reference = features[0] if reference is None else self.frame_encoder(reference)
        if teacher_forcing.dim() == 1:
            teacher_forcing = teacher_forcing.unsqueeze(1).expand(-1, steps)
        forced = teacher_forcing.t()  # (T-1, B)
        # Where frame 1 alone, which is given anyhow, is not forced, nothing is fed back.
        if self.feed == "first" or all((forced[1:] == 1).flatten().tolist()):
            given = reference.repeat(steps, 1, 1, 1) if self.feed == "first" else features[:-1].flatten(0, 1)
            predictions = decode(given, poses.flatten(0, 1), z.flatten(0, 1), *self._beside(reference, steps))
        elif (frames.is_cuda if self.two_passes is None else self.two_passes) and not self.bptt:
            # Where predictions are fed back without a gradient, each is an input like any other once it is known. So
            # the chain of small steps runs without a gradient, and what takes the time runs over all frames at once.
            inputs = self._chain(frames, poses, z, forced, self._beside(reference), disturbance, compiled)
            torch.clear_autocast_cache()  # its copies of the weights were made without a gradient
            predictions = compiled.get("predict", self.predict)(inputs, poses.flatten(0, 1), z.flatten(0, 1),
                                                                *self._beside(reference, steps))
        else:
            predictions = torch.cat(self._in_turn(frames, features, poses, z, forced, self._beside(reference),
                                                  disturbance, compiled.get("predict", self.predict)))
        return predictions.unflatten(0, (steps, batch)).transpose(0, 1), mu, logvar

    def encode(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that depends on no prediction, each part in one call over all frames.

        Parameters
        ----------
        frames : (B, T, 3, H, W). labels : (B, T-1, 3, H, W), of frames 2..T.

        Returns
        -------
        Features of frames (B, T, F, H, W) and of poses (B, T-1, L, H, W), mu and logvar (B, T-1, N, H, W). In memory
        time comes first, so that the frames of one time lie together, as the steps of the roll-out take them.
        """
        batch, steps = labels.shape[:2]
        features = self.frame_encoder(frames.transpose(0, 1).flatten(0, 1))
        poses = self.label_encoder(labels.transpose(0, 1).flatten(0, 1)).to(features.dtype)
        mu, logvar = self.gaussian_predictor(features[batch:], poses)
        return tuple(value.unflatten(0, (length, batch)).transpose(0, 1)
                     for value, length in ((features, steps + 1), (poses, steps), (mu, steps), (logvar, steps)))

    def _beside(self, reference: Tensor | None, steps: int = 1) -> list[Tensor]:
        """The reference's features (B, F, H, W) for ``steps`` steps, where the decoder takes them; else nothing."""
        return [reference.repeat(steps, 1, 1, 1)] if self.reference_frame else []

    @torch.no_grad()
    def _chain(self, frames: Tensor, poses: Tensor, z: Tensor, forced: Tensor, beside: list[Tensor],
               disturbance: Tensor | None, compiled: dict[str, Callable]) -> Tensor:
        """What each step is given, real frame or prediction: ((T-1) * B, 3, H, W), time first. Frames and disturbance
        are (B, T or T-1, ...), ``beside`` (B, ...), all else (T-1, B, ...)."""
        share = forced.to(frames.device, non_blocking=True)[..., None, None, None]
        every, some = (forced == 1).all(dim=1).tolist(), (forced > 0).any(dim=1).tolist()
        roll_out = compiled.get("roll_out", self.predict)
        inputs = [frames[:, 0]]
        for t in range(1, len(poses)):
            given = frames[:, t]
            if not every[t]:
                fed_back = roll_out(inputs[-1], poses[t - 1], z[t - 1], *beside).to(frames.dtype)
                fed_back = self._correct(fed_back, inputs[-1], frames[:, 0], disturbance, t)
                given = blend(given, fed_back, share[t]) if some[t] else fed_back
            inputs.append(given)
        return torch.cat(inputs)

    def _in_turn(self, frames: Tensor, features: Tensor, poses: Tensor, z: Tensor, forced: Tensor,
                 beside: list[Tensor], disturbance: Tensor | None, predict: Callable) -> list[Tensor]:
        """Predict one frame after the other; shapes as in _chain, features (T, B, ...). Returns (B, 3, H, W) each."""
        share = forced.to(features.device, non_blocking=True)[..., None, None, None]
        every, some = (forced == 1).all(dim=1).tolist(), (forced > 0).any(dim=1).tolist()
        # Not by index: the gradient of features[t] would be a whole stack of zeros for each t.
        features, poses, z = features.unbind(), poses.unbind(), z.unbind()
        predictions = []
        given = frames[:, 0]  # to the latest step
        for t in range(len(poses)):
            if t == 0 or every[t]:
                given = frames[:, t]
                predictions.append(self.decode(features[t], poses[t], z[t], *beside))
                continue
            fed_back = predictions[-1] if self.bptt else predictions[-1].detach()
            fed_back = self._correct(fed_back, given, frames[:, 0], disturbance, t)
            given = blend(frames[:, t], fed_back, share[t]) if some[t] else fed_back
            if some[t] and share.dtype == torch.bool:
                # The real frames' features are known already, and their gradient is that of all frames in one call.
                previous = torch.where(share[t], features[t], self.frame_encoder(fed_back))
                predictions.append(self.decode(previous, poses[t], z[t], *beside))
            else:
                predictions.append(predict(given, poses[t], z[t], *beside))
        return predictions

    def _correct(self, prediction: Tensor, previous: Tensor, first: Tensor, disturbance: Tensor | None = None,
                 t: int = 0) -> Tensor:
        """A prediction (B, 3, H, W) as it is to be fed back in step t. previous: what the step that made it was given.
        """
        if self.match_histogram != "off":
            prediction = match_histogram(prediction, previous if self.match_histogram == "previous" else first)
        return prediction if disturbance is None else prediction + disturbance[:, t - 1]

    @torch.no_grad()
    def generate(self, first_frame: Tensor, labels: Tensor, latent: str = "prior",
                 generator: torch.Generator | None = None,
                 progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
        """Free-running roll-out from one real frame, with evaluation statistics and without gradient.

        Parameters
        ----------
        first_frame : (B, 3, H, W) in [0, 1]; the only real frame that is ever seen.
        labels : (B, T, 3, H, W) in [0, 1]; the pose of frame 1 is not used.
        latent : "prior", z ~ N(0, I) for each frame, or "mean", z = 0.
        generator : source of z, on first_frame's device. Noise is drawn frame by frame, so that a longer
            roll-out begins with the shorter one.
        progress : wraps the loop over frames, for a progress bar.

        Returns
        -------
        (B, T, 3, H, W): the first frame, then the predictions of frames 2..T.

        Raises
        ------
        ValueError : another kind of latent.
        """
        if latent not in ("prior", "mean"):
            raise ValueError(f'the latent is "prior" or "mean", not "{latent}"')
        was_training = self.training
        self.eval()
        try:
            video = first_frame.new_empty(*labels.shape[:2], *first_frame.shape[1:])
            video[:, 0] = first_frame
            z = first_frame.new_zeros(len(first_frame), self.N_dim, *first_frame.shape[2:])
            predict = self._compiled.get("roll_out", self.predict)
            given = video[:, 0]
            beside = self._beside(self.frame_encoder(first_frame) if self.reference_frame else None)
            for t in progress(range(1, labels.shape[1])):
                ahead = (t - 1) % POSES_AT_ONCE
                if ahead == 0:
                    next_labels = labels[:, t:t + POSES_AT_ONCE]
                    # Time first, so that each step is given the same layout, however many poses there are.
                    poses = self.label_encoder(next_labels.transpose(0, 1).flatten(0, 1)).split(len(first_frame))
                if latent == "prior":
                    z = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
                video[:, t] = predict(given, poses[ahead], z, *beside)
                if self.feed == "previous":
                    given = self._correct(video[:, t], given, first_frame)
            return video
        finally:
            self.train(was_training)

    def decode(self, frame_features: Tensor, pose_features: Tensor, z: Tensor, *reference: Tensor) -> Tensor:
        """(B, F, H, W), (B, L, H, W), (B, N, H, W) and, with ``reference_frame``, the first frame's features
        (B, F, H, W) -> the predicted frame (B, 3, H, W)."""
        if reference:
            frame_features = torch.cat([frame_features, *reference], dim=1)
        return self.generator(self.decoder_fusion(frame_features, pose_features, z))

    def predict(self, frame: Tensor, pose_features: Tensor, z: Tensor, *reference: Tensor) -> Tensor:
        """(B, 3, H, W), then as ``decode`` -> the frame after ``frame``, (B, 3, H, W): a roll-out's step."""
        return self.decode(self.frame_encoder(frame), pose_features, z, *reference)

    def compile_steps(self, batch_size: int | None = None, backend: str = "inductor") -> None:
        """Compile what forward (for batches of ``batch_size`` clips) and generate call once or once a frame.

        Each piece is compiled when it is first called. Batches of another size, such as the last of an epoch, run
        uncompiled instead of being compiled anew. On a GPU the steps of a roll-out are captured as CUDA graphs.

        Parameters
        ----------
        backend : of torch.compile.
        """
        for module in self.modules():
            if isinstance(module, CrossProcessBatchNorm2d):
                module.keep_from_compilation()
        compiled = partial(torch.compile, backend=backend, dynamic=False)
        is_graph = backend == "inductor" and next(self.parameters()).is_cuda
        step = compiled(self.predict, mode="reduce-overhead" if is_graph else None)

        def roll_out(*inputs: Tensor) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return step(*inputs).clone()  # the next replay of a CUDA graph overwrites its output

        self._compiled = {"encode": compiled(self.encode), "decode": compiled(self.decode),
                          "predict": compiled(self.predict), "roll_out": roll_out}
        self.compiled_batch = batch_size


def blend(real: Tensor, prediction: Tensor, share: Tensor) -> Tensor:
    """Frames (B, 3, H, W): the real ones where ``share``, (B, 1, 1, 1), is True or 1, and else that share of them."""
    if share.dtype == torch.bool:
        return torch.where(share, real, prediction)
    return torch.lerp(prediction.to(real.dtype), real, share.to(real.dtype))
