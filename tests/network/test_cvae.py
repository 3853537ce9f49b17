"""The whole network: sizes, training clip and roll-out against slow loops over frames, loss, what may influence what.

    python -m pytest tests/test_cvae.py
"""
import inspect

import numpy as np
import pytest
import torch
from skimage.exposure import match_histograms

from modules.network.cvae import CVAE, POSES_AT_ONCE
from modules.network.layers import ConvFFN
from modules.objective import HALFWAY_MSE, SMALLEST_MSE, clip_loss

TINY = {"F_dim": 8, "L_dim": 4, "N_dim": 4, "D_out_dim": 8}
PARTS = {"frame_encoder": 193_568, "label_encoder": 16_832, "gaussian_predictor": 8_289,
         "decoder_fusion": 617_768, "generator": 749_163}
B, T, H, W = 3, 5, 8, 12

MASKS = {  # of teacher forcing
    "all on": torch.ones(B, dtype=torch.bool),
    "all off": torch.zeros(B, dtype=torch.bool),
    "some clips": torch.tensor([True, False, True]),
    "some frames": torch.tensor([[False, True, False, True], [True, False, False, True], [True, True, False, False]]),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_model(dtype=torch.float64, **arguments) -> CVAE:
    """Tiny, with weights a little larger, so that every input shows in the output of many frames later."""
    torch.manual_seed(1)
    model = CVAE(**TINY, **arguments).to(dtype)
    with torch.no_grad():
        for value in model.parameters():
            value *= 1.3
    return model


def make_clips(dtype=torch.float64, batch: int = B, length: int = T, size: tuple[int, int] = (H, W)):
    """Frames, labels and noise."""
    return (torch.rand(batch, length, 3, *size, dtype=dtype), torch.rand(batch, length, 3, *size, dtype=dtype),
            torch.randn(batch, length - 1, TINY["N_dim"], *size, dtype=dtype))


def trained_statistics(model: CVAE) -> CVAE:
    """One pass in training mode, so that BatchNorm's running statistics are no longer 0 and 1."""
    dtype = next(model.parameters()).dtype
    model.train()
    with torch.no_grad():
        model.label_encoder(torch.rand(8, 3, H, W, dtype=dtype) ** 2)
    return model


def state(model: CVAE) -> dict:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Construction

def test_parameter_counts_at_the_default_sizes():
    model = CVAE()
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in model.named_children()}
    assert counts == PARTS
    assert sum(value.numel() for value in model.parameters()) == 1_585_620


def test_state_has_the_five_prefixes_whatever_the_output_and_bptt():
    names = set(CVAE(**TINY).state_dict())
    assert {name.split(".")[0] for name in names} == set(PARTS)
    assert names == set(CVAE(**TINY, output="linear", bptt=True).state_dict())
    assert {"frame_encoder.0.conv1.weight", "frame_encoder.0.skip.bias", "frame_encoder.1.block.0.conv1.0.weight",
            "label_encoder.1.weight", "label_encoder.2.running_mean", "label_encoder.4.conv2.bias",
            "gaussian_predictor.6.weight", "decoder_fusion.2.block.0.adaptor.weight", "decoder_fusion.5.bias",
            "generator.6.block.1.conv_out.weight", "generator.7.bias"} <= names


def test_every_activation_bends():
    model = CVAE()
    activations = [part for part in model.modules() if isinstance(part, torch.nn.LeakyReLU)]
    gates = [part.gate for part in model.modules() if isinstance(part, ConvFFN)]
    assert {part.negative_slope for part in gates} == {0.1}
    assert {part.negative_slope for part in activations if part not in gates} == {0.01}


@pytest.mark.parametrize("name, size", [
    ("F_dim", 12), ("F_dim", 0), ("F_dim", -8), ("L_dim", 3), ("L_dim", 0), ("L_dim", -2),
    ("N_dim", 6), ("N_dim", 0), ("N_dim", -4), ("D_out_dim", 12), ("D_out_dim", 0), ("D_out_dim", -8),
])
def test_a_size_that_the_layers_cannot_have_is_refused_by_its_flag(name, size):
    with pytest.raises(ValueError, match=f"--{name} {size}:"):
        CVAE(**TINY | {name: size})


def test_the_smallest_sizes_work():
    model = CVAE(F_dim=8, L_dim=2, N_dim=4, D_out_dim=8)
    frames, labels, noise = make_clips(torch.float32)
    assert model(frames, labels, MASKS["all off"], noise)[0].shape == (B, T - 1, 3, H, W)


@pytest.mark.parametrize("size", [(4, 4), (5, 7), (9, 4)])
def test_frame_sizes_down_to_four_and_odd_ones_work(size):
    model = make_model(torch.float32)
    frames, labels, _ = make_clips(torch.float32, size=size)
    predictions, mu, logvar = model(frames, labels, MASKS["some clips"])
    assert predictions.shape == (B, T - 1, 3, *size)
    assert mu.shape == logvar.shape == (B, T - 1, 4, *size)
    assert model.generate(frames[:, 0], labels).shape == (B, T, 3, *size)


def test_the_output_reaches_the_generator():
    frames, labels, noise = make_clips()
    bounded, unbounded = (make_model(output=output) for output in ("sigmoid", "linear"))
    bounded, unbounded = (model(frames, labels, MASKS["all on"], noise)[0] for model in (bounded, unbounded))
    torch.testing.assert_close(bounded, torch.sigmoid(unbounded))
    with pytest.raises(ValueError, match="tanh"):
        make_model(output="tanh")


# The training clip

def slow_match(kind: str, predictions, previous, first):
    """Each prediction with the histogram of the frame that was given before it, or of the first one."""
    if kind == "off":
        return predictions
    references = previous if kind == "previous" else first
    matched = [match_histograms(frame.numpy(), reference.numpy(), channel_axis=0)
               for frame, reference in zip(predictions.detach(), references, strict=True)]
    return torch.tensor(np.stack(matched))


def slow_forward(model, frames, labels, forced, noise, bptt, match="off", reference=None, disturbance=None):
    """The design's formulas, frame after frame and clip after clip; only the poses are encoded all at once.

    Where ``reference`` is given, the decoder sees its features, too, or, with ``model.feed`` "first", its alone.
    """
    poses = model.label_encoder(torch.cat([labels[b, 1:] for b in range(B)]))
    predictions, mus, logvars, corrected = [], [], [], None
    for t in range(1, T):
        pose = torch.stack([poses[b * (T - 1) + t - 1] for b in range(B)])
        mu, logvar = model.gaussian_predictor(model.frame_encoder(frames[:, t]), pose)
        z = mu + torch.sqrt(torch.exp(logvar)) * noise[:, t - 1]
        inputs = []
        for b in range(B):
            share = 1.0 if t == 1 else float(forced[b] if forced.dim() == 1 else forced[b, t - 1])
            fed_back = 0 if share == 1 else corrected[b] if bptt else corrected[b].detach()
            if share < 1 and disturbance is not None:
                fed_back = fed_back + disturbance[b, t - 2]
            inputs.append(share * frames[b, t - 1] + (1 - share) * fed_back)
        given = torch.stack(inputs)
        if reference is None:
            features = model.frame_encoder(given)
        elif model.feed == "first":
            features = model.frame_encoder(reference)
        else:
            features = torch.cat([model.frame_encoder(given), model.frame_encoder(reference)], dim=1)
        fused = model.decoder_fusion(features, pose, z)
        predictions.append(model.generator(fused))
        corrected = slow_match(match, predictions[-1], given, frames[:, 0])
        mus.append(mu)
        logvars.append(logvar)
    return tuple(torch.stack(values, dim=1) for values in (predictions, mus, logvars))


@pytest.mark.parametrize("bptt", [False, True])
@pytest.mark.parametrize("mask", MASKS)
def test_training_clip_equals_the_slow_loop(mask, bptt):
    frames, labels, noise = make_clips()
    results = []
    for run in (CVAE.forward, lambda *arguments: slow_forward(*arguments, bptt)):
        model = make_model(bptt=bptt)
        outputs = run(model, frames, labels, MASKS[mask], noise)
        clip_loss(outputs[0], frames[:, 1:], *outputs[1:], beta=0.01)[0].backward()
        gradients = {name: value.grad for name, value in model.named_parameters()}
        results.append((outputs, gradients, dict(model.named_buffers())))
        assert model.label_encoder[2].num_batches_tracked.item() == 1
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("two_passes", [False, True])
@pytest.mark.parametrize("match", ["previous", "first"])
@pytest.mark.parametrize("mask", MASKS)
def test_a_clip_with_matched_histograms_equals_the_slow_loop(mask, match, two_passes):
    frames, labels, noise = make_clips()
    model = make_model(match_histogram=match)
    model.two_passes = two_passes
    outputs = model(frames, labels, MASKS[mask], noise)
    torch.testing.assert_close(outputs, slow_forward(make_model(), frames, labels, MASKS[mask], noise, False, match),
                               rtol=1e-8, atol=1e-10)
    if mask == "all off":
        assert not torch.allclose(outputs[0], make_model()(frames, labels, MASKS[mask], noise)[0])


VARIANTS = {  # of a clip: how the model is made, and what forward is given
    "blended frames": ({}, {"forced": torch.tensor([[0.3, 0.0, 1.0, 0.6], [0.5, 0.5, 0.0, 1.0],
                                                    [0.0, 0.2, 0.4, 1.0]])}),
    "a disturbance": ({}, {"disturbance": torch.randn(B, T - 1, 3, H, W, dtype=torch.float64)}),
    "a reference": ({"reference_frame": True}, {"reference": torch.rand(B, 3, H, W, dtype=torch.float64)}),
    "the first frame alone": ({"feed": "first"}, {"reference": torch.rand(B, 3, H, W, dtype=torch.float64)}),
    "all that go together": ({"reference_frame": True}, {
        "forced": torch.full((B,), 0.25), "disturbance": torch.randn(B, T - 1, 3, H, W, dtype=torch.float64),
        "reference": torch.rand(B, 3, H, W, dtype=torch.float64)}),
}


@pytest.mark.parametrize("how", ["in turn", "in two passes", "bptt"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_clip_with_strategies_equals_the_slow_loop(variant, how):
    made, given = VARIANTS[variant]
    given = {"forced": MASKS["some frames"]} | given
    frames, labels, noise = make_clips()
    results = []
    for run in (CVAE.forward, slow_forward):
        model = make_model(bptt=how == "bptt", **made)
        model.two_passes = how == "in two passes"
        forced, more = given["forced"], {name: value for name, value in given.items() if name != "forced"}
        more |= {"bptt": model.bptt} if run is slow_forward else {}
        outputs = run(model, frames, labels, forced, noise, **more)
        clip_loss(outputs[0], frames[:, 1:], *outputs[1:], beta=0.01)[0].backward()
        results.append((outputs, {name: value.grad for name, value in model.named_parameters()}))
    torch.testing.assert_close(results[0], results[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("how", ["in turn", "in two passes", "bptt"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_strategies_work_in_bfloat16_too(variant, how):
    made, given = VARIANTS[variant]
    given = {name: value.float() for name, value in given.items() if name != "forced"}
    forced = VARIANTS[variant][1].get("forced", MASKS["some frames"])
    clips = make_clips(torch.float32)
    results = []
    for enabled in (True, False):
        model = make_model(torch.float32, bptt=how == "bptt", **made)
        model.two_passes = how == "in two passes"
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            results.append(model(clips[0], clips[1], forced, clips[2], **given)[0].float())
    assert (results[0] - results[1]).abs().mean() < 0.02


@pytest.mark.parametrize("made", [{"reference_frame": True}, {"feed": "first"}], ids=str)
def test_without_a_reference_the_clips_first_frame_is_one(made):
    frames, labels, noise = make_clips()
    model = make_model(**made)
    torch.testing.assert_close(model(frames, labels, MASKS["some clips"], noise),
                               model(frames, labels, MASKS["some clips"], noise, reference=frames[:, 0]))


def test_what_the_network_cannot_be_fed_is_refused():
    with pytest.raises(ValueError, match="--feed next"):
        make_model(feed="next")
    with pytest.raises(ValueError, match="--feed first"):
        make_model(feed="first", reference_frame=True)


def test_matching_histograms_goes_with_no_back_propagation_through_time():
    with pytest.raises(ValueError, match="--bptt and --match_histogram"):
        make_model(bptt=True, match_histogram="first")
    with pytest.raises(ValueError, match="last"):
        make_model(match_histogram="last")


@pytest.mark.parametrize("mask", MASKS)
def test_evaluation_of_a_clip_equals_the_slow_loop_and_leaves_the_statistics(mask):
    model = trained_statistics(make_model()).eval()
    frames, labels, noise = make_clips()
    before = state(model)
    outputs = model(frames, labels, MASKS[mask], noise)
    torch.testing.assert_close(outputs, slow_forward(model, frames, labels, MASKS[mask], noise, False))
    assert equal(state(model), before)


def test_a_clip_of_two_frames_and_a_mask_for_each_form():
    model = make_model().eval()
    frames, labels, noise = make_clips(length=2)
    first = model(frames, labels, torch.zeros(B, dtype=torch.bool), noise)
    second = model(frames, labels, torch.ones(B, 1, dtype=torch.bool), noise)
    assert first[0].shape == (B, 1, 3, H, W)
    torch.testing.assert_close(first, second)  # the frame before is the first one, which is always real


def test_the_mask_of_the_first_prediction_changes_nothing_and_every_other_one_does():
    model = make_model().eval()
    frames, labels, noise = make_clips()
    with torch.no_grad():
        for mask in (torch.zeros(B, T - 1, dtype=torch.bool), torch.ones(B, T - 1, dtype=torch.bool)):
            base = model(frames, labels, mask, noise)[0]
            for t in range(T - 1):
                flipped = mask.clone()
                flipped[1, t] = ~flipped[1, t]
                change = difference(model(frames, labels, flipped, noise)[0], base)
                assert not change[[0, 2]].any()
                assert change[1, :t].any().item() is False
                assert change[1, t].item() is (t > 0)


def test_noise_comes_from_the_generator():
    model = make_model().eval()
    frames, labels, _ = make_clips()

    def predict(**source):
        return model(frames, labels, MASKS["some clips"], **source)[0]

    drawn = predict(generator=torch.Generator().manual_seed(3))
    noise = torch.randn(B, T - 1, 4, H, W, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(drawn, predict(noise=noise))
    assert torch.equal(drawn, predict(generator=torch.Generator().manual_seed(3)))
    assert not torch.allclose(drawn, predict(generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("bptt", [False, True])
@pytest.mark.parametrize("mask, linked", [
    ("all off", [True, True, True, True]), ("all on", [False, False, False, True]),
    ("some frames", [[False, False, False, True], [False, False, False, True], [False, True, True, True]]),
])
def test_gradient_flows_through_earlier_predictions_only_with_bptt(mask, linked, bptt):
    """The noise of frame t reaches the last frame's loss through the prediction of frame t alone."""
    model = make_model(bptt=bptt)
    frames, labels, noise = make_clips()
    noise.requires_grad_()
    predictions = model(frames, labels, MASKS[mask], noise)[0]
    (predictions[:, -1] - frames[:, -1]).square().mean().backward()
    size = noise.grad.abs().amax(dim=(2, 3, 4))
    expected = torch.tensor(linked).expand(B, -1) if bptt else torch.tensor([False] * (T - 2) + [True]).expand(B, -1)
    assert torch.equal(size > 0, expected)
    assert size[expected].min() > 1e-12


# What may influence what

def difference(first, second) -> torch.Tensor:
    """(B, T-1) bool: where two sequences of frames differ; within rounding they must be equal."""
    change = (first - second).abs().flatten(2).amax(2)
    assert not ((change > 1e-13) & (change < 1e-9)).any()  # no doubtful case
    return change > 1e-9


def influence(model, clips, mask, kind: int) -> list[list[bool]]:
    """[j][t]: does frame (kind 0), pose (1) or noise (2) number j of clip 1 change the prediction number t?"""
    rows = []
    with torch.no_grad():
        base = model(*clips[:2], mask, clips[2])[0]
        for j in range(clips[kind].shape[1]):
            changed = [value.clone() for value in clips]
            changed[kind][1, j] = torch.rand_like(changed[kind][1, j])
            change = difference(model(*changed[:2], mask, changed[2])[0], base)
            assert not change[[0, 2]].any()  # the other clips
            rows.append(change[1].tolist())
    return rows


def test_with_teacher_forcing_a_prediction_sees_its_own_frame_and_the_one_before():
    rows = influence(make_model().eval(), make_clips(), MASKS["all on"], 0)
    assert rows == [[t + 1 in (j, j + 1) for t in range(T - 1)] for j in range(T)]


def test_free_running_no_frame_changes_an_earlier_prediction():
    rows = influence(make_model().eval(), make_clips(), MASKS["all off"], 0)
    assert rows == [[t + 1 >= j for t in range(T - 1)] for j in range(T)]


@pytest.mark.parametrize("mask, expected", [
    ("all off", [[t + 1 >= j and j == 0 for t in range(T - 1)] for j in range(T)]),
    ("all on", [[t == j for t in range(T - 1)] for j in range(T)]),
])
def test_real_frames_enter_through_the_posterior_and_teacher_forcing_alone(mask, expected):
    model = make_model().eval()
    with torch.no_grad():
        model.gaussian_predictor[-1].weight.zero_()  # the posterior no longer looks at its frame
    assert influence(model, make_clips(), MASKS[mask], 0) == expected


@pytest.mark.parametrize("mask", ["all on", "all off"])
def test_free_running_the_posteriors_see_the_real_frames_and_never_the_predictions(mask):
    model = make_model().eval()
    frames, labels, noise = make_clips()
    _, mu, logvar = model(frames, labels, MASKS[mask], noise)
    for t in range(1, T):
        features = model.frame_encoder(frames[:, t]), model.label_encoder(labels[:, t])
        torch.testing.assert_close((mu[:, t - 1], logvar[:, t - 1]), model.gaussian_predictor(*features))


@pytest.mark.parametrize("kind", [1, 2])
def test_poses_and_noise_change_no_earlier_prediction_and_the_first_pose_none(kind):
    first = 1 if kind == 1 else 0  # pose number j belongs to prediction number j - 1
    for mask, reach in (("all on", 0), ("all off", T)):
        rows = influence(make_model().eval(), make_clips(), MASKS[mask], kind)
        assert rows == [[0 <= j - first <= t <= j - first + reach for t in range(T - 1)]
                        for j in range(T - 1 + first)]


# The loss

@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_clip_loss_is_the_sum_over_frames_averaged_over_the_batch(reduction, beta):
    predictions, targets = torch.rand(2, B, T - 1, 3, H, W, dtype=torch.float64)
    mu, logvar = torch.randn(2, B, T - 1, 4, H, W, dtype=torch.float64)
    mse = kl = 0.0
    for b in range(B):
        for t in range(T - 1):
            mse += ((predictions[b, t] - targets[b, t]) ** 2).mean().item() / B
            values = 0.5 * (mu[b, t] ** 2 + logvar[b, t].exp() - 1 - logvar[b, t])
            kl += (values.sum() if reduction == "sum" else values.mean()).item() / B
    found = clip_loss(predictions, targets, mu, logvar, beta, reduction)
    assert [value.item() for value in found] == pytest.approx([mse + beta * kl, mse, kl], rel=1e-12)
    if reduction == "sum":
        assert torch.equal(found[0], clip_loss(predictions, targets, mu, logvar, beta)[0])


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_absolute_error_and_free_bits(reduction):
    predictions, targets = torch.rand(2, B, T - 1, 3, H, W, dtype=torch.float64)
    spread = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64).view(B, 1, 1, 1, 1)
    mu = (spread * torch.randn(B, T - 1, 4, H, W, dtype=torch.float64)).requires_grad_()
    logvar = torch.zeros_like(mu)
    _, mse, kl = clip_loss(predictions, targets, mu, logvar, 0.3, reduction)
    each = [clip_loss(*(value[b:b + 1] for value in (predictions, targets, mu, logvar)), 0.3, reduction)[2].item()
            for b in range(B)]
    free = (each[0] + each[1]) / 2 / (T - 1)  # of a frame: more than the first clip has, less than the others
    loss, *parts = clip_loss(predictions, targets, mu, logvar, 0.3, reduction, l1=0.7, free_bits=free)
    absolute = (T - 1) * (predictions - targets).abs().mean().item()
    assert torch.equal(torch.stack(parts), torch.stack([mse, kl]))
    assert loss.item() == pytest.approx(mse.item() + 0.7 * absolute + 0.1 * (free * (T - 1) + each[1] + each[2]))
    gradient, = torch.autograd.grad(loss, mu)
    assert [bool(part.any()) for part in gradient] == [False, True, True]  # below the floor it costs nothing


def test_the_optimal_variance_is_what_the_likelihood_itself_would_choose():
    """Up to a constant, the loss is the Gaussian negative log-likelihood at the variance that a search finds best."""
    targets = torch.rand(1, 1, 3, H, W, dtype=torch.float64)
    zero = torch.zeros(1, 1, 4, H, W, dtype=torch.float64)
    found, expected = [], []
    for error in (0.05, 0.1, 0.3):
        predictions = targets + error * torch.randn_like(targets)
        found.append(clip_loss(predictions, targets, zero, zero, 1.0, decoder_variance="optimal")[0].item())
        deviations = torch.logspace(-3, 0.5, 20001, dtype=torch.float64)
        squares = (predictions - targets).square().mean()
        likelihood = (deviations.square().log() + squares / deviations.square()).min().item()
        expected.append(HALFWAY_MSE * likelihood)
    assert np.diff(found) == pytest.approx(np.diff(expected), rel=1e-2)  # but for SMALLEST_MSE


def test_the_optimal_variance_weighs_frames_by_their_own_error():
    """The gradient of each frame's MSE, times HALFWAY_MSE / (its MSE + SMALLEST_MSE): at HALFWAY_MSE the MSE's own."""
    targets = torch.zeros(2, 2, 3, H, W, dtype=torch.float64)
    mse = torch.tensor([[HALFWAY_MSE, 1e-4], [0.1, 1e-9]], dtype=torch.float64)
    predictions = mse.sqrt()[..., None, None, None].expand_as(targets).clone().requires_grad_()
    zero = torch.zeros(2, 2, 4, H, W, dtype=torch.float64)
    losses = {variance: clip_loss(predictions, targets, zero, zero, 1.0, decoder_variance=variance)
              for variance in ("fixed", "optimal")}
    assert torch.equal(losses["fixed"][1], losses["optimal"][1])  # the MSE that is logged is the MSE
    fixed, optimal = (torch.autograd.grad(loss[0], predictions)[0] for loss in losses.values())
    weight = HALFWAY_MSE / (mse + SMALLEST_MSE)
    torch.testing.assert_close(optimal, weight[..., None, None, None] * fixed)
    assert weight[0, 0].item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("variance", ["fixed", "optimal"])
def test_clip_loss_is_zero_at_a_perfect_prediction_and_the_prior(variance):
    frames, zero = torch.rand(B, T - 1, 3, H, W), torch.zeros(B, T - 1, 4, H, W)
    losses = clip_loss(frames, frames, zero, zero, 1.0, decoder_variance=variance)
    assert [value.item() for value in losses] == [0, 0, 0]
    with pytest.raises(ValueError, match="median"):
        clip_loss(frames, frames, zero, zero, 1.0, "median")


# The roll-out

def slow_generate(model, first_frame, labels, z, match="off"):
    """Frame after frame in evaluation mode, each pose encoded on its own; z(t) gives the latent map."""
    model.eval()
    frames, given = [first_frame], first_frame
    with torch.no_grad():
        for t in range(1, labels.shape[1]):
            features = model.frame_encoder(given), model.label_encoder(labels[:, t])
            frames.append(model.generator(model.decoder_fusion(*features, z(t))))
            given = slow_match(match, frames[-1], given, first_frame)
    return torch.stack(frames, dim=1)


def roll_out(length: int, batch: int = 2):
    """A model whose statistics are trained, a first frame and poses."""
    frames, labels, _ = make_clips(torch.float32, batch, length, (4, 5))
    return trained_statistics(make_model(torch.float32)), frames[:, 0], labels


@pytest.mark.parametrize("length", [1, 2, 2 * POSES_AT_ONCE + 3])
def test_mean_roll_out_equals_the_slow_loop(length):
    model, first_frame, labels = roll_out(length)
    video = model.generate(first_frame, labels, "mean")
    assert torch.equal(video[:, 0], first_frame)
    expected = slow_generate(model, first_frame, labels, lambda t: torch.zeros(2, 4, 4, 5))
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("match", ["previous", "first"])
def test_roll_out_with_matched_histograms_equals_the_slow_loop(match):
    model, first_frame, labels = roll_out(9)
    model.match_histogram = match
    expected = slow_generate(model, first_frame, labels, lambda t: torch.zeros(2, 4, 4, 5), match)
    torch.testing.assert_close(model.generate(first_frame, labels, "mean"), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("made", [{"reference_frame": True}, {"feed": "first"}], ids=str)
def test_roll_out_with_the_first_frame_at_every_step_equals_the_slow_loop(made):
    frames, labels, _ = make_clips(torch.float32, 2, 6, (4, 5))
    model = trained_statistics(make_model(torch.float32, **made))
    video = model.generate(frames[:, 0], labels, "mean")
    first, given = model.frame_encoder(frames[:, 0]), frames[:, 0]
    for t in range(1, 6):
        features = torch.cat([model.frame_encoder(given), first], dim=1) if model.reference_frame else first
        given = model.generator(model.decoder_fusion(features, model.eval().label_encoder(labels[:, t]),
                                                     torch.zeros(2, 4, 4, 5)))
        torch.testing.assert_close(video[:, t], given, rtol=1e-4, atol=1e-5)


def test_prior_roll_out_equals_the_slow_loop_with_noise_drawn_frame_by_frame():
    model, first_frame, labels = roll_out(POSES_AT_ONCE + 4)
    video = model.generate(first_frame, labels, "prior", torch.Generator().manual_seed(5))
    source = torch.Generator().manual_seed(5)
    expected = slow_generate(model, first_frame, labels, lambda t: torch.randn(2, 4, 4, 5, generator=source))
    torch.testing.assert_close(video, expected, rtol=1e-5, atol=1e-6)
    default = model.generate(first_frame, labels, generator=torch.Generator().manual_seed(5))
    assert torch.equal(default, video)


def test_seeds_decide_the_prior_roll_out_and_leave_the_mean_one():
    model, first_frame, labels = roll_out(6)
    for latent in ("prior", "mean"):
        first, again, other = (model.generate(first_frame, labels, latent, torch.Generator().manual_seed(value))
                               for value in (1, 1, 2))
        assert torch.equal(first, again)
        changed = (first - other).abs().flatten(2).amax(2)[:, 1:] > 1e-5
        assert changed.all() if latent == "prior" else not changed.any()


@pytest.mark.parametrize("latent", ["prior", "mean"])
@pytest.mark.parametrize("short", [2, POSES_AT_ONCE, POSES_AT_ONCE + 1])
def test_a_longer_roll_out_begins_with_the_shorter_one(short, latent):
    model, first_frame, labels = roll_out(POSES_AT_ONCE + 9)
    videos = [model.generate(first_frame, labels[:, :length], latent, torch.Generator().manual_seed(1))
              for length in (short, labels.shape[1])]
    torch.testing.assert_close(videos[0], videos[1][:, :short], rtol=1e-5, atol=1e-6)


def test_a_batch_equals_each_of_its_clips_alone():
    model, first_frame, labels = roll_out(7, batch=3)
    alone = [model.generate(first_frame[b:b + 1], labels[b:b + 1], "mean") for b in range(3)]
    torch.testing.assert_close(model.generate(first_frame, labels, "mean"), torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_roll_out_depends_on_the_first_frame_and_on_the_poses_so_far_without_the_first():
    model, first_frame, labels = roll_out(5)
    base = model.generate(first_frame, labels, "mean")

    def changes(frame, poses):
        return ((model.generate(frame, poses, "mean") - base).abs().flatten(2).amax(2) > 1e-6).any(0).tolist()

    assert changes(torch.rand_like(first_frame), labels)[:2] == [True, True]
    for t in range(5):
        poses = labels.clone()
        poses[:, t] = torch.rand_like(poses[:, t])
        changed = changes(first_frame, poses)
        assert changed[t] is (t > 0)
        assert not any(changed[:t]) and (t > 0 or not any(changed))


def test_roll_out_is_given_no_real_frame_but_the_first():
    assert list(inspect.signature(CVAE.generate).parameters) == [
        "self", "first_frame", "labels", "latent", "generator", "progress"]


def test_forward_with_the_priors_noise_as_z_is_the_roll_out():
    """Where the posterior is the prior, a free-running training clip and the roll-out are the same computation."""
    model = trained_statistics(make_model(torch.float32)).eval()
    frames, labels, noise = make_clips(torch.float32)
    with torch.no_grad():
        model.gaussian_predictor[-1].weight.zero_()
        model.gaussian_predictor[-1].bias.zero_()
        clip = model(frames, labels, MASKS["all off"], torch.zeros_like(noise))[0]
    torch.testing.assert_close(model.generate(frames[:, 0], labels, "mean")[:, 1:], clip, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_roll_out_evaluates_in_either_mode_and_leaves_the_model_as_it_was(training):
    model, first_frame, labels = roll_out(5)
    expected = model.eval().generate(first_frame, labels, "mean")
    model.train(training)
    before = state(model)
    video = model.generate(first_frame, labels, "mean")
    assert torch.equal(video, expected)
    assert all(part.training is training for part in model.modules())
    assert equal(state(model), before)
    assert not video.requires_grad and all(value.grad is None for value in model.parameters())


def test_training_mode_comes_back_after_an_error():
    model, first_frame, labels = roll_out(5)

    def broken(frames):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.generate(first_frame, labels, progress=broken)
    assert all(part.training for part in model.modules())


def test_progress_sees_every_predicted_frame_and_changes_nothing():
    model, first_frame, labels = roll_out(POSES_AT_ONCE + 4)
    seen = []

    def progress(frames):
        for t in frames:
            seen.append(t)
            yield t

    video = model.generate(first_frame, labels, "mean", progress=progress)
    assert len(seen) == labels.shape[1] - 1
    assert torch.equal(video, model.generate(first_frame, labels, "mean"))


def test_poses_of_a_long_roll_out_are_encoded_in_chunks_and_once_each():
    model, first_frame, labels = roll_out(2 * POSES_AT_ONCE + 3)
    counts = []
    model.label_encoder.register_forward_hook(lambda part, inputs, output: counts.append(len(inputs[0])))
    model.generate(first_frame, labels)
    assert sum(counts) == 2 * (labels.shape[1] - 1)
    assert max(counts) <= 2 * POSES_AT_ONCE


@pytest.mark.parametrize("latent", ["posterior", "Prior", ""])
def test_another_latent_is_refused(latent):
    model, first_frame, labels = roll_out(3)
    with pytest.raises(ValueError, match=f'not "{latent}"'):
        model.generate(first_frame, labels, latent)


# Other ways to the same numbers

def losses_and_gradients(model: CVAE, clips: tuple, mask: torch.Tensor) -> list[torch.Tensor]:
    frames, labels, noise = clips
    model.zero_grad()
    predictions, mu, logvar = model(frames, labels, mask, noise)
    loss, _, _ = clip_loss(predictions.to(frames.dtype), frames[:, 1:], mu, logvar, 0.01)
    loss.backward()
    return [loss.detach(), predictions.detach(), *(value.grad.clone() for value in model.parameters())]


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_two_passes_give_the_gradients_of_the_sequential_loop(mask):
    model, clips = make_model(), make_clips()
    in_turn = losses_and_gradients(model, clips, mask)
    model.two_passes = True
    torch.testing.assert_close(losses_and_gradients(model, clips, mask), in_turn)


def test_two_passes_under_autocast_reach_every_weight():
    """Autocast keeps its bfloat16 copies of the weights: those made in the pass without gradient have none."""
    model, clips = make_model(torch.float32), make_clips(torch.float32)
    results = []
    for model.two_passes in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            results.append(losses_and_gradients(model, clips, MASKS["all off"]))
    for one, other in zip(*results, strict=True):
        assert (one - other).norm() < 0.1 * one.norm() + 1e-6


def test_back_propagation_through_time_is_never_done_in_two_passes():
    model, clips = make_model(bptt=True), make_clips()
    in_turn = losses_and_gradients(model, clips, MASKS["all off"])
    model.two_passes = True
    torch.testing.assert_close(losses_and_gradients(model, clips, MASKS["all off"]), in_turn)


@pytest.mark.parametrize("two_passes, masks", [(False, ["all off"]), (True, ["all off", "all on"])])
def test_compiled_steps_compute_the_same_and_are_compiled_once(two_passes, masks):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    model, clips = make_model(), make_clips()
    model.two_passes = two_passes

    def results():
        model.train()
        numbers = [losses_and_gradients(model, clips, MASKS[mask]) for mask in masks]
        last_batch = tuple(value[:1] for value in clips)
        numbers.append(losses_and_gradients(model, last_batch, MASKS["some clips"][:1]))
        long = clips[1][:1, :1].expand(-1, POSES_AT_ONCE + 6, -1, -1, -1)  # its poses come in blocks of two lengths
        return [*numbers, model.generate(clips[0][:1, 0], long, "mean")]

    before = state(model)
    expected = results()
    model.load_state_dict(before)  # BatchNorm's running statistics
    torch._dynamo.reset()
    model.compile_steps(B, backend)
    torch.testing.assert_close(results(), expected)
    count = len(compiled)
    assert count > 0
    results()
    assert len(compiled) == count
