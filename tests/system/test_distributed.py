"""Several processes: what the helpers do in one process, and that two share their gradients but not their noise."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine
from torch import nn

import bundle_losses
from tiny_synthesis import label_maps, synthesizer
from unicorn_monai.data.items import datalist
from unicorn_monai.experiment.experiment import Experiment
from unicorn_monai.experiment.settings import Settings
from unicorn_monai.system.distributed import (
    RankSeeds,
    SharedOrder,
    average_gradients,
    bare,
    from_main,
    is_main,
    local_device,
    main_first,
    rank,
    same_weights,
    share,
    start,
    stop,
)
from unicorn_monai.system.weights import read_metadata

TWO = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from unicorn_monai.system import distributed
from ignite.engine import Engine

distributed.start()
rank = distributed.rank()
torch.manual_seed(rank)  # the processes would start with weights of their own
network = nn.Linear(1, 1)
together = distributed.parallel(network, torch.device("cpu"))
together(torch.full((1, 1), float(rank))).sum().backward()  # the weight's gradient is the input: 0 and 1
assert distributed.bare(together) is network
with distributed.main_first():
    first_was_here = Path(sys.argv[1], "first").exists()
    Path(sys.argv[1], "first").touch()
noise = []
engine = Engine(lambda engine, batch: noise.append(torch.rand(()).item()))
distributed.RankSeeds(5).attach(engine)
engine.run([0], max_epochs=2)
own = nn.Linear(1, 1)
distributed.same_weights(own)
own(torch.full((1, 1), float(rank))).sum().backward()
distributed.average_gradients(own)
averaged = [own.weight.item(), own.weight.grad.item(), own.bias.grad.item(), distributed.from_main(rank + 7.0)]
told = [network.weight.grad.item(), network.weight.item(), noise, first_was_here, averaged]
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(told))
distributed.stop()
if sys.platform == "linux":  # `together` is still there
    threads = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    assert not [name for name in threads if "gloo" in name], threads
"""


def test_a_single_process_is_the_main_one_and_waits_for_nobody():
    assert rank() == 0
    assert is_main()
    with main_first():
        pass
    stop()
    network = nn.Linear(1, 1)
    assert bare(network) is network
    assert local_device().type in ("cpu", "cuda")
    network(torch.ones(1, 1)).sum().backward()
    average_gradients(network)
    same_weights(network)
    assert network.weight.grad.item() == 1
    assert from_main(3.5) == 3.5


def test_a_configuration_for_several_processes_is_refused_in_one(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="start it with `torchrun"):
        start()


def test_every_epoch_has_random_numbers_of_its_own_which_an_interruption_does_not_change():
    def draws(first_epoch: int) -> list[float]:
        values: list[float] = []
        engine = Engine(lambda engine, batch: values.append(torch.rand(()).item()))
        RankSeeds(3).attach(engine)
        engine.state.epoch = first_epoch
        engine.state.iteration, engine.state.epoch_length = first_epoch, 1
        engine.state.max_epochs = 3
        engine.run([0], max_epochs=3)
        return values

    whole = draws(0)
    assert len(set(whole)) == 3
    assert draws(1) == whole[1:]


def torchrun(processes: int, script: str | Path, folder: Path) -> None:
    """Run a script, text or file, in several processes; it gets the folder as its argument."""
    if isinstance(script, str):
        (folder / "script.py").write_text(script)
        script = folder / "script.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(script), str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("iterations", [None, 2, 5])
def test_processes_share_an_epoch_of_the_length_asked_for(iterations):
    several = [SharedOrder(range(12), 3, iterations, processes=2, number=k) for k in (0, 1)]
    epochs = []
    for epoch in (0, 1):
        for order in several:
            order.set_epoch(epoch)
        epochs.append([list(order) for order in several])
    length = 6 if iterations is None else 3 * iterations
    for both in epochs:
        assert [len(one) for one in both] == [len(order) for order in several] == [length, length]
        counts = [both[0].count(position) + both[1].count(position) for position in range(12)]
        assert max(counts) - min(counts) <= 1, "none is drawn twice before all are drawn once"
    assert epochs[0] != epochs[1]


@pytest.mark.slow
def test_two_processes_share_gradients_and_weights_but_not_noise(tmp_path):
    torchrun(2, TWO, tmp_path)
    told = [json.loads((tmp_path / f"{process}.json").read_text()) for process in (0, 1)]
    gradients, weights, noise, first_was_here, averaged = zip(*told, strict=True)
    assert gradients == (0.5, 0.5)
    assert weights[0] == weights[1]
    assert len({*noise[0], *noise[1]}) == 4
    assert first_was_here == (False, True)
    assert averaged[0] == averaged[1], "networks that are not wrapped"
    assert averaged[0][1:] == [0.5, 1.0, 7.0]


TRAINING = """
import json, sys
from pathlib import Path
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, DistributedSampler
from monai.engines import SupervisedTrainer
from monai.networks.nets import UNet
from torch import distributed as processes
from unicorn_monai.system import distributed
from unicorn_monai.training.steps import ClipGradients

distributed.start()
torch.manual_seed(0)
images = torch.randn(16, 1, 8, 8)
data = Dataset([{"image": image, "label": image.roll(1, -1)} for image in images])
network = UNet(2, 1, 1, (4, 8), (2,), norm="instance")  # batch normalisation sees its own process's images only
sampler = DistributedSampler(data, shuffle=True, seed=3)
loader = DataLoader(data, batch_size=8 // processes.get_world_size(), sampler=sampler)
optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
losses = []
trainer = SupervisedTrainer(
    torch.device("cpu"), 5, loader, distributed.parallel(network, torch.device("cpu")), optimizer,
    torch.nn.MSELoss(), train_handlers=[ClipGradients(network)],
)

def note(engine):
    loss = torch.tensor(float(engine.state.output[0]["loss"]))
    processes.all_reduce(loss)
    losses.append(loss.item() / processes.get_world_size())

trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
trainer.run()
weights = [value.flatten().tolist() for value in network.state_dict().values()]  # not those of one process: a bias
# before a normalisation has no gradient but rounding errors, which AdamW makes steps of
name = f"{processes.get_world_size()}-{distributed.rank()}.json"
Path(sys.argv[1], name).write_text(json.dumps([losses, weights]))
distributed.stop()
"""


@pytest.mark.slow
def test_two_processes_train_as_one_does_at_the_same_global_batch(tmp_path):
    for processes in (1, 2):
        torchrun(processes, TRAINING, tmp_path)
    one, first, second = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert len(one[0]) == 10
    assert one[0][-1] < 0.9 * one[0][0], "it learns something"
    assert first[0] == pytest.approx(one[0], rel=1e-4)


def test_a_bundle_trains_in_two_processes_as_in_one(tmp_path):
    bundle_losses.prepare(tmp_path)
    for processes in (1, 2):  # each in processes of its own: Ignite keeps what it knows of a group that is gone
        torchrun(processes, Path(bundle_losses.__file__), tmp_path)
    one, first, second = (json.loads((tmp_path / f"losses-{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert first == second
    assert len(one) == 2 * bundle_losses.EPOCHS
    assert one[-1] < one[0] - 0.01, "it learns something"
    assert first == pytest.approx(one, rel=1e-4)
    scores = [read_metadata(tmp_path / processes / "model.pt")["mean_iou"] for processes in ("1", "2")]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_processes_without_communication_are_numbered_by_the_environment(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert share() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert share() == (2, 4)


def as_one_of(monkeypatch, own, processes, torchrun=False):
    monkeypatch.setenv("RANK", str(own))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    if torchrun:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")


def test_a_process_without_a_share_does_not_succeed_without_images(tmp_path, monkeypatch):
    labels = label_maps(tmp_path / "labels")
    as_one_of(monkeypatch, 3, 4)  # left in the environment: nothing was started by torchrun
    with pytest.raises(
        ValueError, match=r"process 4 of 4 \(RANK=3, WORLD_SIZE=4 .* nothing .* 9 images are 3 batch\(es\) of 4"
    ):
        synthesizer(labels, tmp_path / "set").run()
    assert not (tmp_path / "set").exists()


def test_beside_others_of_torchrun_it_ends_without_failing_them(tmp_path, monkeypatch, caplog):
    labels = label_maps(tmp_path / "labels")
    as_one_of(monkeypatch, 3, 4, torchrun=True)
    with caplog.at_level("INFO", "unicorn_monai"):
        synthesizer(labels, tmp_path / "set").run()
    assert "makes 0 of 9 images" in caplog.text


def test_an_array_of_jobs_shares_and_each_tells_its_part(tmp_path, monkeypatch, caplog):
    labels = label_maps(tmp_path / "labels")
    for own, images in ((1, 4), (0, 5)):
        as_one_of(monkeypatch, own, 2)
        assert not (tmp_path / "set" / "dataset.json").exists()
        with caplog.at_level("INFO", "unicorn_monai"):
            synthesizer(labels, tmp_path / "set").run()
        assert f"process {own + 1} of 2 (RANK={own}, WORLD_SIZE=2 in the environment): makes" in caplog.text
        assert f"makes {images} of 9 images" in caplog.text
    assert len(datalist(tmp_path / "set", ["training", "validation"])) == 9


def test_what_is_one_process_refuses_to_be_one_of_several(monkeypatch, tmp_path):
    as_one_of(monkeypatch, 1, 4)
    with pytest.raises(ValueError, match=r"an experiment is one process.*unset RANK WORLD_SIZE"):
        Experiment(Settings("a", "b", str(tmp_path / "run")))
    as_one_of(monkeypatch, 0, 1)
    with pytest.raises(ValueError, match=r"'.*a' does not exist"):
        Experiment(Settings("a", "b", str(tmp_path / "run")))


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_variables_that_torchrun_would_have_set_are_missed_by_name(monkeypatch, name):
    for other in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(other, "1")
    monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=f"{name} are not in the environment; start it with `torchrun"):
        start()
