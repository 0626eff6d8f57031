"""CUDA graphs change nothing but the time: the same images, whatever changes between two batches."""

import pytest
import torch

from tiny_networks import COARSE, build_ldm
from unicorn_monai.bundle.settings import check_settings
from unicorn_monai.inferers import DualControlNetInferer
from unicorn_monai.schedulers import DDIM, UniPC
from unicorn_monai.system.cuda_graphs import CudaGraphs

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


@pytest.fixture
def images(label_maps):
    """Draws images on the GPU: f(inferer, seeds, hints, weight) -> tensor."""

    def draw(inferer, seeds, hints, weight=None):
        maps = label_maps(len(seeds)).to("cuda")
        maps = maps.roll(seeds[0], dims=2)
        return inferer.sample(maps, torch.tensor(hints), seeds, 5, weight)

    return draw


@pytest.fixture
def both(autoencoder, unet, semantic, uncertainty):
    """An inferer with and one without graphs: f(scheduler, ...)."""
    decoder, predictor, *nets = (n.to("cuda") for n in (autoencoder, unet, semantic, uncertainty))

    def build(scheduler=DDIM, **options):
        return [
            DualControlNetInferer(
                build_ldm(predictor, decoder, scheduler(50, **COARSE), scale_factor=0.7),
                *nets,
                cuda_graphs=g,
                **options,
            )
            for g in (True, False)
        ]

    return build


CASES = {
    "paper": {"mode": "paper", "uncertainty_weight": 0.4},
    "compositional, guided": {"mode": "compositional", "uncertainty_weight": 1.0, "guidance": (3.0, 1.0)},
    "UniPC": {"mode": "compositional", "scheduler": UniPC},
}


@gpu
@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_a_replayed_step_is_the_step(images, both, options, precision):
    graphs, plain = both(**options)
    batches = [([0, 1], [-0.5, 1.2]), ([7, 8], [2.0, 0.1]), ([3, 4, 5], [0.0, 1.0, -1.0])]  # the last: another shape
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, precision == torch.bfloat16):
        for seeds, hints in batches:
            assert torch.equal(images(graphs, seeds, hints), images(plain, seeds, hints))
    assert len(graphs.predict.recordings) == 2


@gpu
def test_another_weight_is_another_recording(images, both):
    graphs, plain = both(mode="compositional")
    found = [images(graphs, [0, 1], [1.0, 1.0], weight) for weight in (0.0, 0.5, 2.0)]
    for weight, image in zip((0.0, 0.5, 2.0), found, strict=True):
        assert torch.equal(image, images(plain, [0, 1], [1.0, 1.0], weight))
    assert not torch.equal(found[0], found[2])


@gpu
def test_weights_of_single_images_may_change_without_another_recording(images, both):
    graphs, plain = both(mode="compositional")
    for weights in ([0.5, 1.0], [2.0, 0.0]):
        given = torch.tensor(weights)
        assert torch.equal(images(graphs, [0, 1], [1.0, 1.0], given), images(plain, [0, 1], [1.0, 1.0], given))
    assert len(graphs.predict.recordings) == 1


@gpu
def test_weights_changed_in_place_are_read_anew(images, both, unet):
    graphs, plain = both()
    before = images(graphs, [0, 1], [1.0, 1.0])
    with torch.no_grad():
        for weight in unet.parameters():
            weight.mul_(1.1)
    after = images(graphs, [0, 1], [1.0, 1.0])
    assert torch.equal(after, images(plain, [0, 1], [1.0, 1.0]))
    assert not torch.equal(before, after)


@gpu
def test_an_answer_is_not_overwritten_by_the_next():
    graphs = CudaGraphs(lambda x, factor: x * factor)
    first = graphs(torch.ones(3, device="cuda"), 2.0)
    second = graphs(torch.full((3,), 5.0, device="cuda"), 2.0)
    assert first.tolist() == [2, 2, 2]
    assert second.tolist() == [10, 10, 10]


def test_tensors_elsewhere_are_refused():
    with pytest.raises(ValueError, match=r"cuda_graphs is on, but there are tensors on \['cpu'\]"):
        CudaGraphs(torch.add)(torch.ones(1), torch.ones(1))


def test_the_switch_is_refused_without_a_gpu():
    with pytest.raises(ValueError, match="cuda_graphs is true, but device is 'cpu'"):
        check_settings("cpu", cuda_graphs=True)
    check_settings("cpu", cuda_graphs=False)
