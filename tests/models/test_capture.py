"""Sampling as a graph: what can be told without a GPU about kernels that are launched blindly."""

import itertools

import pytest
import torch
from small_pi0 import KINDS, both_families, make_network
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from depi.models import capture
from depi.models.capture import Captured
from depi.models.inference import prepare_for_inference
from depi.models.pi05 import Pi05
from depi.models.sampling import sample_actions
from depi.models.scene import Observation

SIZES = {"image_size": 28, "depth": 2, "chunk_size": 4, "state_dim": 5, "action_dim": 3}


class Transfers(TorchDispatchMode):
    """Remembers which operations made a tensor of one device from tensors of another."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [value for value in (*args, result) if isinstance(value, torch.Tensor)]
        # Single numbers of the CPU go into a kernel's arguments.
        devices = {tensor.device.type for tensor in tensors if tensor.ndim or tensor.device.type != "cpu"}
        if len(devices) > 1:
            self.found.append(str(function))
        return result


def inputs(device="cpu", batch=2):
    return (
        torch.randint(0, 256, (batch, 2, 3, 28, 28), dtype=torch.uint8, device=device),
        torch.ones(batch, 2, dtype=torch.bool, device=device),
        torch.randint(0, 50, (batch, 16), device=device),
        torch.ones(batch, 16, dtype=torch.bool, device=device),
        torch.randn(batch, 5, device=device),
        torch.randn(batch, 4, 3, device=device),
    )


def sample(model, *tensors):
    *observation, noise, num_steps = tensors
    return sample_actions(model, Observation(*observation), noise, num_steps)


@both_families
def test_sampling_neither_reads_from_the_device_nor_writes_to_it(kind):
    """On a GPU that exists in name only, whose numbers nobody can look at."""
    with FakeTensorMode():
        with torch.device("cuda"):
            model = make_network(kind, **SIZES)
        prepare_for_inference(model, torch.float32)
        tensors = inputs("cuda")
        with Transfers() as transfers:
            actions = sample(model, *tensors, 10)
        assert actions.shape == (2, 4, 3)
        assert actions.device.type == "cuda"
        assert transfers.found == []
        with Transfers() as transfers:
            tensors[0].cpu()
        assert len(transfers.found) == 1


class Replay:
    """Stands in for a CUDA graph: computes again, from the buffers and into the output of the capture."""

    def __init__(self, function, buffers, variant):
        self.function, self.buffers, self.variant = function, buffers, variant
        self.output = function(*buffers, variant)

    def replay(self):
        self.output.copy_(self.function(*self.buffers, self.variant))


@pytest.fixture
def captures(monkeypatch):
    """The shapes of everything that is captured."""
    made = []

    def make(self, tensors, variant):
        made.append((tensors[0].shape[0], variant))
        graph = Replay(self._function, [tensor.clone() for tensor in tensors], variant)
        return capture._Graph(graph, graph.buffers, graph.output)

    monkeypatch.setattr(Captured, "_capture", make)
    return made


@pytest.fixture(params=KINDS)
def model(request):
    torch.manual_seed(0)
    model = make_network(request.param, **SIZES)
    prepare_for_inference(model, torch.float32)
    return model


def test_other_shapes_compile_nothing_for_long(model):
    """Whatever a robot or simulator comes with: code for one sample, and code for several."""
    torch._dynamo.reset()
    counters.clear()
    model.compile_layers(backend="eager")
    graphs = []
    for batch, cameras, words in itertools.product((1, 3, 2), (2, 1), (16, 48, 32)):
        images, image_mask, tokens, token_mask, state, noise = inputs(batch=batch)
        tokens, token_mask = (each.repeat(1, 3)[:, :words] for each in (tokens, token_mask))
        observed = (images[:, :cameras], image_mask[:, :cameras], tokens, token_mask, state)
        sample(model, *observed, noise, 2)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[5] < graphs[11] == graphs[-1]
    torch._dynamo.reset()


def test_every_input_reaches_the_graph(model, captures):
    captured = Captured(lambda *tensors: sample(model, *tensors))
    first = inputs()
    torch.testing.assert_close(captured(*first, variant=10), sample(model, *first, 10))
    state = 4
    for number, other in enumerate(inputs()):
        if number == state and type(model) is Pi05:
            continue  # it reads the state in its prompt
        changed = list(first)
        changed[number] = ~first[number] if other.dtype == torch.bool else other
        if number == 1:
            changed[number] = torch.tensor([[True, False], [True, True]])
        expected = sample(model, *changed, 10)
        assert not torch.allclose(expected, sample(model, *first, 10)), number
        torch.testing.assert_close(captured(*changed, variant=10), expected)
    assert captures == [(2, 10)]


def test_actions_are_not_overwritten_by_the_next_ones(model, captures):
    captured = Captured(lambda *tensors: sample(model, *tensors))
    actions = captured(*inputs(), variant=10)
    kept = actions.clone()
    assert not torch.allclose(captured(*inputs(), variant=10), actions)
    assert torch.equal(actions, kept)


def test_one_graph_per_shape_and_number_of_steps(captures):
    captured = Captured(lambda x, variant: x * variant)
    for size, variant in ((2, 10), (1, 10), (2, 10), (2, 4), (1, 10)):
        assert captured(torch.ones(size), variant=variant).tolist() == [variant] * size
    assert captures == [(2, 10), (1, 10), (2, 4)]
    captured.clear()
    captured(torch.ones(2), variant=10)
    assert captures[3:] == [(2, 10)]


def test_the_least_recently_used_graph_makes_room(captures):
    captured = Captured(lambda x, variant: x * variant)
    for variant in (*range(capture.MOST_GRAPHS), 0, 100, 0, 1):
        captured(torch.ones(1), variant=variant)
    variants = [variant for _, variant in captures]
    assert variants == [*range(capture.MOST_GRAPHS), 100, 1]
