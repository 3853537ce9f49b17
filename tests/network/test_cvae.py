"""The whole network: sizes, the training pass against a slow loop, what may influence what, two passes, compilation.

    python -m pytest tests/network/test_cvae.py
"""
import pytest
import torch
from tiny_cvae import TINY, B, H, T, W, copy_state, make_clips, make_model, slow_match, with_statistics
from torch.utils.flop_counter import FlopCounterMode

from modules.network.cvae import CVAE, POSES_AT_ONCE, compile_options
from modules.network.layers import ConvFFN
from modules.objective import clip_loss

FORCING = {
    "free running": torch.zeros(B, dtype=torch.bool),
    "teacher forced": torch.ones(B, dtype=torch.bool),
    "some clips": torch.tensor([True, False, True]),
    "blend": torch.tensor([0.3, 0.0, 1.0]),
}
FREE_RUNNING, TEACHER_FORCED = FORCING["free running"], FORCING["teacher forced"]
STRATEGIES = {
    "plain": {},
    "linear output": {"output": "linear"},
    "histogram of the previous frame": {"match_histogram": "previous"},
    "histogram of the first frame": {"match_histogram": "first"},
    "reference frame": {"reference_frame": True},
    "feed first": {"feed": "first"},
    "pose levels": {"pose_levels": 2},
}
MODES = ("sequential", "two passes", "bptt")
CASES = [(strategy, mode) for strategy in STRATEGIES for mode in MODES
         if not (mode == "bptt" and "histogram" in strategy)]  # histogram matching has no gradient


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make(strategy: str, mode: str, dtype=torch.float64) -> CVAE:
    """A model of STRATEGIES in one of MODES."""
    model = make_model(dtype, **STRATEGIES[strategy], bptt=mode == "bptt")
    model.two_passes = mode != "sequential"  # bptt must override it
    return model


def results(model: CVAE, clips: tuple, forcing: torch.Tensor, reference=None, forward=CVAE.forward) -> dict:
    """What the model computes and learns from the clips."""
    model.zero_grad()
    outputs = forward(model, clips[0], clips[1], forcing, clips[2], reference=reference)
    clip_loss(outputs[0].to(clips[0].dtype), clips[0][:, 1:], *outputs[1:], beta=0.01)[0].backward()
    return {"outputs": [value.detach() for value in outputs],
            "gradients": {name: value.grad.clone() for name, value in model.named_parameters()},
            "buffers": {name: value.clone() for name, value in model.named_buffers()}}


# Construction

def test_parameter_counts_at_the_default_sizes():
    model = CVAE()
    counts = {name: sum(value.numel() for value in part.parameters()) for name, part in model.named_children()}
    assert counts == {"frame_encoder": 193_568, "label_encoder": 16_832, "gaussian_predictor": 8_289,
                      "decoder_fusion": 617_768, "generator": 749_163}
    assert sum(counts.values()) == sum(value.numel() for value in model.parameters()) == 1_585_620


def test_pose_levels_change_the_label_encoder_only():
    names = [set(CVAE(**TINY, pose_levels=levels).state_dict()) for levels in (0, 2)]
    assert names[0] < names[1] and all(name.startswith("label_encoder.5.") for name in names[1] - names[0])


def test_frames_too_small_for_the_levels_are_refused():
    frames, labels, _ = make_clips(torch.float32, size=(4, 7))
    with pytest.raises(ValueError, match="H and W at least 8"):
        CVAE(**TINY, pose_levels=3).generate(frames[:, 0], labels)


def test_options_without_weights_of_their_own_leave_the_names_of_the_state():
    assert set(CVAE(**TINY).state_dict()) == set(CVAE(**TINY, output="sigmoid", bptt=True, feed="first").state_dict())


@pytest.mark.parametrize("template, slopes", [(False, {0.01, 0.1}), (True, {0.01, 0.1, 1.0})])
def test_slopes_of_the_activations(template, slopes):
    model = CVAE(**TINY, template_activations=template)
    gates = [part.gate for part in model.modules() if isinstance(part, ConvFFN)]
    assert {part.negative_slope for part in gates} == {0.1}
    assert {part.negative_slope for part in model.modules() if isinstance(part, torch.nn.LeakyReLU)} == slopes


@pytest.mark.parametrize("arguments, name", [
    *(({name: size}, name) for name, sizes in (("F_dim", (12, 0, -8)), ("L_dim", (3, 0)), ("N_dim", (6, 0)),
                                               ("D_out_dim", (12, 0))) for size in sizes),
    ({"output": "tanh"}, "output"), ({"feed": "next"}, "feed"), ({"match_histogram": "last"}, "match_histogram"),
    ({"bptt": True, "match_histogram": "first"}, "bptt"), ({"feed": "first", "reference_frame": True}, "feed"),
    ({"feed": "first", "match_histogram": "previous"}, "feed"), ({"pose_levels": 9}, "pose_levels"),
], ids=str)
def test_invalid_arguments_are_rejected_by_name(arguments, name):
    with pytest.raises(ValueError, match=name):
        CVAE(**TINY | arguments)


@pytest.mark.parametrize("size", [(4, 4), (5, 7)])
def test_small_and_odd_frame_sizes(size):
    model = CVAE(F_dim=8, L_dim=2, N_dim=4, D_out_dim=8)
    frames, labels, _ = make_clips(torch.float32, size=size)
    predictions, mu, logvar = model(frames, labels, FORCING["some clips"])
    assert predictions.shape == (B, T - 1, 3, *size)
    assert mu.shape == logvar.shape == (B, T - 1, 4, *size)
    assert model.generate(frames[:, 0], labels).shape == (B, T, 3, *size)


# The training pass

def slow_forward(model: CVAE, frames, labels, forcing, noise, reference=None):
    """The design's formulas, one frame and clip at a time. Only the poses are encoded in one call: they share
    BatchNorm's statistics."""
    reference = frames[:, 0] if reference is None else reference
    poses = model.label_encoder(torch.cat([labels[b, 1:] for b in range(B)]))
    predictions, mus, logvars, fed_back = [], [], [], None
    for t in range(1, T):
        pose = torch.stack([poses[b * (T - 1) + t - 1] for b in range(B)])
        mu, logvar = model.gaussian_predictor(model.frame_encoder(frames[:, t]), pose)
        z = mu + torch.sqrt(torch.exp(logvar)) * noise[:, t - 1]
        given = frames[:, 0] if t == 1 else torch.stack([
            float(forcing[b]) * frames[b, t - 1] + (1 - float(forcing[b])) * fed_back[b] for b in range(B)])
        features = model.frame_encoder(reference if model.feed == "first" else given)
        if model.reference_frame:
            features = torch.cat([features, model.frame_encoder(reference)], dim=1)
        predictions.append(model.generator(model.decoder_fusion(features, pose, z)))
        fed_back = slow_match(model.match_histogram, predictions[-1], given, frames[:, 0])
        fed_back = fed_back if model.bptt else fed_back.detach()
        mus.append(mu)
        logvars.append(logvar)
    return tuple(torch.stack(values, dim=1) for values in (predictions, mus, logvars))


@pytest.mark.parametrize("forcing", FORCING)
@pytest.mark.parametrize("strategy, mode", CASES)
def test_forward_equals_the_slow_loop(strategy, forcing, mode):
    """Predictions, posteriors, gradients, and one update of BatchNorm's running statistics."""
    clips = make_clips()
    reference = torch.rand_like(clips[0][:, 0]) if forcing != "free running" else None  # None: the clip's first frame
    found, expected = (results(make(strategy, mode), clips, FORCING[forcing], reference, forward)
                       for forward in (CVAE.forward, slow_forward))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_forward_in_evaluation_mode_equals_the_slow_loop_and_keeps_the_state(strategy):
    model = with_statistics(make(strategy, "sequential")).eval()
    frames, labels, noise = make_clips()
    before = copy_state(model)
    outputs = model(frames, labels, FREE_RUNNING, noise)
    torch.testing.assert_close(outputs, slow_forward(model, frames, labels, FREE_RUNNING, noise))
    torch.testing.assert_close(copy_state(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("forcing", ["free running", "some clips", "blend"])
@pytest.mark.parametrize("strategy, mode", [case for case in CASES if case[0] != "linear output"])
def test_bfloat16_autocast_stays_close_to_float32(strategy, forcing, mode):
    """Also the gradients: autocast caches the casts of the weights, and those of the first of two passes have none."""
    clips, found = make_clips(torch.float32), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            found.append(results(make(strategy, mode, torch.float32), clips, FORCING[forcing]))
    assert (found[0]["outputs"][0] - found[1]["outputs"][0]).abs().mean() < 0.02
    exact, rounded = (torch.cat([value.flatten() for value in each["gradients"].values()]) for each in found)
    assert (exact - rounded).norm() < 0.1 * exact.norm()


def test_a_clip_of_two_frames_does_not_depend_on_teacher_forcing():
    model = make_model().eval()
    frames, labels, noise = make_clips(length=2)
    torch.testing.assert_close(*(model(frames, labels, forcing, noise) for forcing in (FREE_RUNNING, TEACHER_FORCED)))


def test_noise_comes_from_the_generator():
    model = make_model().eval()
    frames, labels, _ = make_clips()

    def predict(**source):
        return model(frames, labels, FORCING["some clips"], **source)[0]

    drawn = predict(generator=torch.Generator().manual_seed(3))
    noise = torch.randn(B, T - 1, 4, H, W, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    assert torch.equal(drawn, predict(noise=noise))
    assert not torch.allclose(drawn, predict(generator=torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("forcing", ["free running", "teacher forced", "some clips"])
def test_gradients_flow_through_earlier_predictions_with_bptt_only(forcing, mode):
    """The noise of an earlier frame reaches the last frame's loss through fed-back predictions alone."""
    frames, labels, noise = make_clips()
    noise.requires_grad_()
    predictions = make("plain", mode)(frames, labels, FORCING[forcing], noise)[0]
    (predictions[:, -1] - frames[:, -1]).square().mean().backward()
    is_linked = noise.grad.abs().amax(dim=(2, 3, 4)) > 1e-12
    assert is_linked[:, -1].all()
    expected = ~FORCING[forcing] if mode == "bptt" else torch.zeros(B, dtype=torch.bool)
    assert torch.equal(is_linked[:, :-1], expected[:, None].expand(-1, T - 2))


@pytest.mark.parametrize("strategy", ["plain", "reference frame"])
def test_two_passes_run_under_the_flop_counter_and_cost_a_fourth_more(strategy):
    counts = []
    for mode in ("sequential", "two passes"):
        with FlopCounterMode(display=False) as counter:
            results(make(strategy, mode), make_clips(), FREE_RUNNING)
        counts.append(counter.get_total_flops())
    assert 1.1 < counts[1] / counts[0] < 1.4


# What may influence what

def influence(clips, forcing, kind: int, blind: bool = False) -> list[list[bool]]:
    """[j][t]: does frame (kind 0), pose (1) or noise (2) number j of clip 1 change prediction number t of that clip?
    blind: the posterior does not depend on its frame."""
    model, rows = make_model().eval(), []
    with torch.no_grad():
        if blind:
            model.gaussian_predictor[-1].weight.zero_()
        base = model(*clips[:2], forcing, clips[2])[0]
        for j in range(clips[kind].shape[1]):
            changed = [value.clone() for value in clips]
            changed[kind][1, j] = torch.rand_like(changed[kind][1, j])
            change = (model(*changed[:2], forcing, changed[2])[0] - base).abs().flatten(2).amax(2)  # (B, T-1)
            assert not (change[[0, 2]] > 1e-13).any()  # the other clips
            assert not ((change > 1e-13) & (change < 1e-9)).any()  # rounding and influence are far apart
            rows.append((change[1] > 1e-9).tolist())
    return rows


def test_frames_influence_predictions_through_the_posterior_and_as_inputs():
    clips = make_clips()
    assert influence(clips, TEACHER_FORCED, 0) == [[t + 1 in (j, j + 1) for t in range(T - 1)] for j in range(T)]
    assert influence(clips, FREE_RUNNING, 0) == [[t + 1 >= j for t in range(T - 1)] for j in range(T)]
    assert influence(clips, TEACHER_FORCED, 0, blind=True) == [[t == j for t in range(T - 1)] for j in range(T)]
    assert influence(clips, FREE_RUNNING, 0, blind=True) == [[j == 0] * (T - 1) for j in range(T)]


@pytest.mark.parametrize("kind, first", [(1, 1), (2, 0)])  # pose number j belongs to prediction number j - 1
def test_poses_and_noise_influence_no_earlier_prediction_and_the_first_pose_none(kind, first):
    for forcing, reach in ((TEACHER_FORCED, 0), (FREE_RUNNING, T)):
        assert influence(make_clips(), forcing, kind) == [
            [0 <= j - first <= t <= j - first + reach for t in range(T - 1)] for j in range(T - 1 + first)]


# Compilation

@pytest.mark.parametrize("strategy, mode", [("plain", "sequential"), ("reference frame", "two passes")])
def test_compiled_steps_compute_the_same_and_are_compiled_once(strategy, mode):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, clips = make(strategy, mode), make_clips()

    def everything():
        model.train()
        whole = [results(model, clips, forcing) for forcing in (FREE_RUNNING, TEACHER_FORCED)]
        last_batch = results(model, tuple(value[:1] for value in clips), FREE_RUNNING[:1])
        labels = clips[1][:1, :1].expand(-1, POSES_AT_ONCE + 6, -1, -1, -1)  # two chunks of poses, of two lengths
        return [*whole, last_batch, model.generate(clips[0][:1, 0], labels, "mean")]

    before = copy_state(model)
    expected = everything()
    model.load_state_dict(before)
    torch._dynamo.reset()
    model.compile_steps(B, backend)
    torch.testing.assert_close(everything(), expected)
    count = len(graphs)
    assert count > 0
    everything()
    assert len(graphs) == count


def test_steps_are_compiled_once_whatever_the_length_of_clips_and_videos():
    """Views of a clip, views of a video and predictions have different strides."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    model = make_model(torch.float32, match_histogram="previous").to(memory_format=torch.channels_last)
    model.two_passes = True
    model.compile_steps(B, backend)
    rollout, counts = [], []
    for length in (3, 6):
        frames, labels, noise = make_clips(torch.float32, B, length)
        poses = torch.rand(length - 1, B, TINY["L_dim"], H, W)
        model._rollout_inputs(frames, poses, noise.transpose(0, 1).contiguous(), None, None,
                              model._compiled["rollout_step"])
        rollout.append(len(graphs))
    for length in (2, 5, POSES_AT_ONCE + 3):
        model.generate(frames[:1, 0], labels[:1, :1].expand(-1, length, -1, -1, -1), "mean")
        counts.append(len(graphs))
    assert rollout == [1, 1] and counts == [2, 2, 2]


def test_a_failing_compiler_leaves_an_eager_model_and_one_line(capsys):
    model, clips = make("plain", "two passes"), make_clips()
    before = copy_state(model)
    expected = results(model, clips, FREE_RUNNING)
    model.load_state_dict(before)

    def backend(graph, inputs):
        raise RuntimeError("Python.h: No such file\nin line 1")

    torch._dynamo.reset()
    model.compile_steps(B, backend)
    torch.testing.assert_close(results(model, clips, FREE_RUNNING), expected)
    model.generate(clips[0][:1, 0], clips[1][:1], "mean")
    message = capsys.readouterr().err
    assert "torch.compile failed" in message and "Python.h" in message and message.count("\n") == 1


def test_too_little_memory_is_no_failure_of_the_compiler():
    model, clips = make("plain", "two passes"), make_clips()

    def backend(graph, inputs):
        def run(*inputs):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return run

    torch._dynamo.reset()
    model.compile_steps(B, backend)
    with pytest.raises(RuntimeError, match="allocate"):
        results(model, clips, FREE_RUNNING)


def test_the_options_of_compilation_exist():
    known = torch._inductor.list_options()
    options = [compile_options(is_cuda, is_rollout) for is_cuda in (True, False) for is_rollout in (True, False)]
    assert all(name in known for chosen in options for name in chosen)
    assert [len(chosen) for chosen in options] == [2, 1, 0, 0]
