"""The conditional VAE: its five parts, the training pass over a clip (forward) and the rollout (generate)."""
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from modules.data.histogram import HISTOGRAM_TARGETS, match_histogram
from modules.network.batch_norm import CrossProcessBatchNorm2d
from modules.network.decoder import DecoderFusion, Generator
from modules.network.encoders import FrameEncoder, LabelEncoder
from modules.network.posterior import GaussianPredictor, reparameterize
from utils import is_out_of_memory, logger

FEEDS = ("previous", "first")
MAX_POSE_LEVELS = 8
POSES_AT_ONCE = 32  # poses encoded per call in generate: bounds the memory of rollouts of any length


class CVAE(nn.Module):
    """Predicts each frame of a video from the previous frame, the pose and a latent map z.

    Parameters
    ----------
    F_dim, L_dim, N_dim, D_out_dim : channels of the frame features (multiple of 8), pose features (multiple of 2),
        latent map (multiple of 4) and fused features (multiple of 8).
    output : "linear" or "sigmoid", the generator's last activation.
    template_activations : slope 1.0, that is no activation, in the two places where the course's template has
        ``LeakyReLU(True)``.
    bptt : backpropagate through time. Otherwise a prediction is detached before it is fed back.
    match_histogram : give each prediction, before it is fed back, the histogram of a target frame: the input of the
        step that predicted it ("previous") or the first frame of the clip ("first"). The returned predictions are
        not changed. "off": none.
    reference_frame : give the decoder the features of a reference frame, the first of the sequence, at every step in
        addition to those of the previous frame.
    pose_levels : coarser levels of the label encoder (see ``UNet`` in encoders.py); 0: none, the course's network.
    feed : input of the frame encoder at each step: the previous frame ("previous"), or the reference frame ("first").
        With "first" nothing is fed back: each prediction depends only on the reference frame, its pose and z.

    Raises
    ------
    ValueError : an argument has an invalid value, or two arguments exclude each other.
    """

    def __init__(self, F_dim: int = 128, L_dim: int = 32, N_dim: int = 12, D_out_dim: int = 192,
                 output: str = "linear", template_activations: bool = False, bptt: bool = False,
                 match_histogram: str = "off", reference_frame: bool = False, feed: str = "previous",
                 pose_levels: int = 0):
        super().__init__()
        sizes = {"F_dim": (F_dim, 8), "L_dim": (L_dim, 2), "N_dim": (N_dim, 4), "D_out_dim": (D_out_dim, 8)}
        for name, (size, multiple) in sizes.items():
            if size <= 0 or size % multiple:
                raise ValueError(f"{name} must be a positive multiple of {multiple}, got {size}")
        if not 0 <= pose_levels <= MAX_POSE_LEVELS:
            raise ValueError(f"pose_levels must be in 0..{MAX_POSE_LEVELS}, got {pose_levels}")
        for name, value, choices in (("match_histogram", match_histogram, HISTOGRAM_TARGETS), ("feed", feed, FEEDS)):
            if value not in choices:
                raise ValueError(f'{name} must be one of {", ".join(choices)}, got "{value}"')
        if bptt and match_histogram != "off":
            raise ValueError("bptt and match_histogram exclude each other: histogram matching has no gradient")
        if feed == "first" and (reference_frame or match_histogram != "off"):
            raise ValueError('feed "first" excludes reference_frame and match_histogram: the reference frame is the '
                             'only input, and nothing is fed back')
        self.frame_encoder = FrameEncoder(F_dim)
        self.label_encoder = LabelEncoder(L_dim, template_activations, pose_levels)
        self.gaussian_predictor = GaussianPredictor(F_dim, L_dim, N_dim, template_activations)
        self.decoder_fusion = DecoderFusion(F_dim * (2 if reference_frame else 1), L_dim, N_dim, D_out_dim)
        self.generator = Generator(D_out_dim, output)
        self.N_dim, self.smallest_side = N_dim, max(4, 2**pose_levels)
        self.bptt, self.match_histogram = bptt, match_histogram
        self.reference_frame, self.feed = reference_frame, feed
        # How forward computes fed-back predictions. Two passes cost about 25 % more arithmetic but use few, large
        # calls, which suits GPUs; on 2 CPU cores the sequential loop was faster. None: two passes on a GPU only.
        self.two_passes: bool | None = None
        self._compiled: dict[str, Callable] = {}
        self.compiled_batch: int | None = None  # the batch size that runs compiled

    def forward(self, frames: Tensor, labels: Tensor, teacher_forcing: Tensor, noise: Tensor | None = None,
                generator: torch.Generator | None = None,
                reference: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Predict frames 2..T of training clips. z_t comes from the posterior, which sees the frame to be predicted.

        Parameters
        ----------
        frames, labels : (B, T, 3, H, W) in [0, 1], T >= 2.
        teacher_forcing : (B,) bool: whether the inputs of the clip's steps are real frames or predictions; or float in
            [0, 1]: the weight of the real frame in a blend of both. The first input is always ``frames[:, 0]``.
            Best on the CPU, where reading its values does not synchronise with the GPU.
        noise : (B, T-1, N, H, W) from N(0, I). Default: drawn from ``generator``.
        reference : (B, 3, H, W), the reference frame (see ``reference_frame`` and ``feed``). Default: frames[:, 0].

        Returns
        -------
        predictions : (B, T-1, 3, H, W), of frames 2..T.
        mu, logvar : (B, T-1, N, H, W), of the posteriors.
        """
        batch, steps = len(frames), frames.shape[1] - 1
        encode, decode, predict, rollout_step = self._functions(batch)
        features, poses, mu, logvar = encode(frames, labels[:, 1:])
        z = reparameterize(mu, logvar, noise, generator)
        features, poses, z = (value.transpose(0, 1) for value in (features, poses, z))  # (T or T-1, B, ..., H, W)
        reference_features = None
        if self.feed == "first" or self.reference_frame:
            reference_features = features[0] if reference is None else self.frame_encoder(reference)

        if self.feed == "first":  # every input is the reference frame
            predictions = decode(repeat(reference_features, steps), poses.flatten(0, 1), z.flatten(0, 1))
        elif steps == 1 or all((teacher_forcing == 1).tolist()):  # every input is a real frame, already encoded
            predictions = decode(features[:-1].flatten(0, 1), poses.flatten(0, 1), z.flatten(0, 1),
                                 repeat(reference_features, steps))
        else:
            weight = real_weight(teacher_forcing, frames.device)
            if not self.bptt and (frames.is_cuda if self.two_passes is None else self.two_passes):
                # No gradient flows through what is fed back. So a first pass computes the inputs of all steps, one
                # after the other and without gradients, and a second predicts all frames from them in one call.
                inputs = self._rollout_inputs(frames, poses, z, weight, reference_features, rollout_step)
                torch.clear_autocast_cache()  # it holds casts of the weights that were made without gradients
                predictions = predict(inputs, poses.flatten(0, 1), z.flatten(0, 1), repeat(reference_features, steps))
            else:
                predictions = self._sequential(frames, features, poses, z, weight, reference_features, predict)
        return predictions.unflatten(0, (steps, batch)).transpose(0, 1), mu, logvar

    def encode(self, frames: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Everything that depends on no prediction, with one call of each part for all frames.

        Parameters
        ----------
        frames : (B, T, 3, H, W). labels : (B, T-1, 3, H, W), of frames 2..T.

        Returns
        -------
        Frame features (B, T, F, H, W), pose features (B, T-1, L, H, W), mu and logvar (B, T-1, N, H, W). Time is the
        outermost dimension in memory, so that the rollout's steps read contiguous blocks.
        """
        batch, steps = labels.shape[:2]
        features = self.frame_encoder(frames.transpose(0, 1).flatten(0, 1))
        poses = self.label_encoder(labels.transpose(0, 1).flatten(0, 1)).to(features.dtype)
        mu, logvar = self.gaussian_predictor(features[batch:], poses)
        return tuple(value.unflatten(0, (length, batch)).transpose(0, 1)
                     for value, length in ((features, steps + 1), (poses, steps), (mu, steps), (logvar, steps)))

    def decode(self, frame_features: Tensor, pose_features: Tensor, z: Tensor,
               reference_features: Tensor | None = None) -> Tensor:
        """(B, F, H, W), (B, L, H, W), (B, N, H, W) and, with ``reference_frame``, (B, F, H, W) -> predicted frames
        (B, 3, H, W)."""
        if reference_features is not None:
            frame_features = torch.cat([frame_features, reference_features], dim=1)
        return self.generator(self.decoder_fusion(frame_features, pose_features, z))

    def predict(self, frame: Tensor, pose_features: Tensor, z: Tensor,
                reference_features: Tensor | None = None) -> Tensor:
        """One step of a rollout: a frame (B, 3, H, W), then as ``decode`` -> the next frame (B, 3, H, W)."""
        return self.decode(self.frame_encoder(frame), pose_features, z, reference_features)

    @torch.no_grad()
    def _rollout_inputs(self, frames: Tensor, poses: Tensor, z: Tensor, weight: Tensor | None,
                        reference_features: Tensor | None, step: Callable) -> Tensor:
        """The input frames of all steps, ((T-1) * B, 3, H, W), time first; poses and z are (T-1, B, ...)."""
        # Views taken under no_grad would require a gradient without having a grad_fn, which breaks autograd's tools.
        poses, z = poses.detach(), z.detach()
        reference_features = None if reference_features is None else reference_features.detach()
        inputs = [in_one_layout(frames[:, 0])]
        for t in range(1, len(poses)):
            prediction = step(inputs[-1], poses[t - 1], z[t - 1], reference_features).to(frames.dtype)
            prediction = self._matched(prediction, inputs[-1], frames[:, 0])
            inputs.append(in_one_layout(blend(frames[:, t], prediction, weight)))
        return torch.cat(inputs)

    def _sequential(self, frames: Tensor, features: Tensor, poses: Tensor, z: Tensor, weight: Tensor | None,
                    reference_features: Tensor | None, predict: Callable) -> Tensor:
        """Predict one frame after the other: ((T-1) * B, 3, H, W), time first; features are (T, B, ...), poses and z
        (T-1, B, ...)."""
        # unbind instead of indexing: the backward of features[t] would allocate zeros for all T frames, for each t.
        features, poses, z = features.unbind(), poses.unbind(), z.unbind()
        given = in_one_layout(frames[:, 0])
        predictions = [self.decode(features[0], poses[0], z[0], reference_features)]
        for t in range(1, len(poses)):
            fed_back = predictions[-1] if self.bptt else predictions[-1].detach()
            fed_back = self._matched(fed_back, given, frames[:, 0])
            given = in_one_layout(blend(frames[:, t], fed_back, weight))
            if weight is not None and weight.dtype == torch.bool:
                # The real frames' features are known, and their gradient is computed in one call for all frames.
                encoded = torch.where(weight, features[t], self.frame_encoder(fed_back))
                predictions.append(self.decode(encoded, poses[t], z[t], reference_features))
            else:
                predictions.append(predict(given, poses[t], z[t], reference_features))
        return torch.cat(predictions)

    def _matched(self, prediction: Tensor, previous: Tensor, first: Tensor) -> Tensor:
        """The prediction (B, 3, H, W) with the histogram of its target frame. previous: the input it came from."""
        if self.match_histogram == "off":
            return prediction
        return match_histogram(prediction, previous if self.match_histogram == "previous" else first)

    @torch.no_grad()
    def generate(self, first_frame: Tensor, labels: Tensor, latent: str = "prior",
                 generator: torch.Generator | None = None,
                 progress: Callable[[Iterable[int]], Iterable[int]] = iter) -> Tensor:
        """Free-running rollout from one real frame, in evaluation mode and without gradients.

        Parameters
        ----------
        first_frame : (B, 3, H, W) in [0, 1], the only real frame that the rollout sees.
        labels : (B, T, 3, H, W) in [0, 1]. The pose of frame 1 is not used.
        latent : "prior", z ~ N(0, I) at each step, or "mean", z = 0.
        generator : source of z, on first_frame's device. Noise is drawn frame by frame, so that the start of a rollout
            does not depend on its length.
        progress : wraps the iterator over frames 1..T-1, for a progress bar.

        Returns
        -------
        (B, T, 3, H, W): the first frame, then the predictions of frames 2..T.

        Raises
        ------
        ValueError : unknown ``latent``, or ``first_frame`` or ``labels`` has another shape, dtype or device.
        """
        if latent not in ("prior", "mean"):
            raise ValueError(f'latent must be "prior" or "mean", got "{latent}"')
        self._check_rollout_inputs(first_frame, labels)
        was_training = self.training
        self.eval()
        try:
            video = first_frame.new_empty(*labels.shape[:2], *first_frame.shape[1:])
            video[:, 0] = first_frame
            given = in_one_layout(first_frame)
            z = first_frame.new_zeros(len(first_frame), self.N_dim, *first_frame.shape[2:])
            step = self._compiled.get("rollout_step", self.predict)
            reference_features = self.frame_encoder(first_frame) if self.reference_frame else None
            for t in progress(range(1, labels.shape[1])):
                if (t - 1) % POSES_AT_ONCE == 0:
                    # Time first, so that each step gets the same memory layout however many poses are left.
                    chunk = labels[:, t:t + POSES_AT_ONCE].transpose(0, 1).flatten(0, 1)
                    poses = self.label_encoder(chunk).split(len(first_frame))
                if latent == "prior":
                    z = torch.randn(z.shape, generator=generator, device=z.device, dtype=z.dtype)
                prediction = step(given, poses[(t - 1) % POSES_AT_ONCE], z, reference_features).to(video.dtype)
                video[:, t] = prediction
                if self.feed == "previous":
                    given = in_one_layout(self._matched(prediction, given, first_frame))
            return video
        finally:
            self.train(was_training)

    def _check_rollout_inputs(self, first_frame: Tensor, labels: Tensor) -> None:
        """ValueError if the arguments of ``generate`` do not fit the network or each other."""
        weight = next(self.parameters())
        for name, value, dimensions in (("first_frame", first_frame, "(B, 3, H, W)"),
                                        ("labels", labels, "(B, T, 3, H, W)")):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
            if value.dim() != dimensions.count(",") + 1 or value.shape[-3] != 3:
                raise ValueError(f"{name} must have shape {dimensions}, got {tuple(value.shape)}")
            if value.dtype != weight.dtype or value.device != weight.device:
                raise ValueError(f"{name} must be {weight.dtype} in [0, 1] on {weight.device}, as the network is, got "
                                 f"{value.dtype} on {value.device}")
        if labels.shape[:1] + labels.shape[2:] != first_frame.shape or not labels.shape[1]:
            raise ValueError(f"labels must have shape (B, T, 3, H, W) with T at least 1 and first_frame's B, H and W, "
                             f"got {tuple(labels.shape)} for {tuple(first_frame.shape)}")
        if not len(first_frame) or min(first_frame.shape[-2:]) < self.smallest_side:
            raise ValueError(f"B must be at least 1, H and W at least {self.smallest_side}, got "
                             f"{tuple(first_frame.shape)}")

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.parameters())
        return f"CVAE({count:,} parameters, feed={self.feed!r}, reference_frame={self.reference_frame})"

    def compile_steps(self, batch_size: int | None = None, backend: str = "inductor") -> None:
        """Compile the functions that forward calls once a clip or once a frame, and the step of generate.

        Each is compiled at its first call; where that fails, a warning is printed and everything runs eagerly from then
        on. forward uses them for batches of ``batch_size`` clips only: batches of another size, such as the last of an
        epoch, run eagerly instead of triggering a recompilation. On a GPU the rollout step is captured as a CUDA graph.
        ``backend``: of torch.compile.
        """
        for module in self.modules():
            if isinstance(module, CrossProcessBatchNorm2d):
                module.exclude_from_compilation()
        # Compile the backward pass with the forward pass, not within backward(), so that a failure is caught here.
        torch._functorch.config.force_non_lazy_backward_lowering = True
        is_cuda = next(self.parameters()).is_cuda

        def compiled(function: Callable, is_rollout: bool = False) -> Callable:
            options = compile_options(is_cuda, is_rollout) if backend == "inductor" else None
            return torch.compile(function, backend=backend, dynamic=False, options=options)

        step = compiled(self.predict, is_rollout=True)

        def rollout_step(*inputs: Tensor | None) -> Tensor:
            torch.compiler.cudagraph_mark_step_begin()
            return step(*inputs).clone()  # the next replay of the CUDA graph overwrites its output

        self._compiled = {name: partial(self._run_compiled, function, eager) for name, function, eager in (
            ("encode", compiled(self.encode), self.encode), ("decode", compiled(self.decode), self.decode),
            ("predict", compiled(self.predict), self.predict), ("rollout_step", rollout_step, self.predict))}
        self.compiled_batch = batch_size

    def _run_compiled(self, compiled: Callable, eager: Callable, *inputs: Tensor | None) -> object:
        if not self._compiled:  # an earlier one has failed
            return eager(*inputs)
        try:
            return compiled(*inputs)
        except Exception as error:  # a compiler may raise anything
            if is_out_of_memory(error):
                raise
            self._compiled = {}
            reason = " ".join(str(error).split()).partition(" Set TORCHDYNAMO")[0]
            logger.warning("torch.compile failed (%s: %.200s); continuing without it", type(error).__name__, reason)
            return eager(*inputs)

    def _functions(self, batch: int) -> tuple[Callable, ...]:
        """encode, decode, predict and rollout_step for a batch of that size: compiled or eager."""
        eager = {"encode": self.encode, "decode": self.decode, "predict": self.predict, "rollout_step": self.predict}
        return tuple((eager | (self._compiled if batch == self.compiled_batch else {})).values())


def compile_options(is_cuda: bool, is_rollout: bool) -> dict[str, bool]:
    """Options of the inductor backend."""
    if not is_cuda:
        return {}
    # combo_kernels: many small independent operations, such as autocast's cast of each weight, in one launch.
    return {"combo_kernels": True} | ({"triton.cudagraphs": True} if is_rollout else {})


def in_one_layout(frames: Tensor) -> Tensor:
    """The frames (B, 3, H, W) in the memory layout that every step of a rollout receives.

    A view of a clip, a view of a video and a prediction have different strides, and a compiled step would be compiled
    again for each, a view of a video even for each length.
    """
    return frames.contiguous(memory_format=torch.channels_last)


def repeat(features: Tensor | None, steps: int) -> Tensor | None:
    """The features (B, F, H, W) at every step: (steps * B, F, H, W), time first."""
    return None if features is None else features.repeat(steps, 1, 1, 1)


def real_weight(teacher_forcing: Tensor, device: torch.device) -> Tensor | None:
    """Teacher forcing (B,) as the weight of the real frames in a blend, (B, 1, 1, 1); None where all are 0."""
    if not any(teacher_forcing.tolist()):
        return None
    return teacher_forcing.to(device, non_blocking=True).view(-1, 1, 1, 1)


def blend(real: Tensor, prediction: Tensor, weight: Tensor | None) -> Tensor:
    """weight * real + (1 - weight) * prediction, for frames (B, 3, H, W) and ``real_weight``'s result."""
    if weight is None:
        return prediction
    if weight.dtype == torch.bool:
        return torch.where(weight, real, prediction)
    return torch.lerp(prediction.to(real.dtype), real, weight.to(real.dtype))
