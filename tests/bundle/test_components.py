"""Which components a bundle may call without being told of."""

import ast
import inspect
import pydoc
import re
import sys

import pytest

from unicorn_monai.bundle.components import COMPUTING, _is_let_through, is_usual

USUAL = """
UNet DiceLoss Compose RandFlipd SupervisedTrainer CacheDataset ValidationHandler SlidingWindowInferer DiceMetric
monai.networks.nets.unet.UNet monai.networks.nets.DiffusionModelUNet monai.data.DataLoader monai.data.set_track_meta
monai.handlers.from_engine monai.utils.set_determinism torch.nn.Conv2d torch.nn.modules.conv.Conv2d torch.nn.ModuleList
torch.optim.AdamW torch.optim.lr_scheduler.CosineAnnealingLR ignite.metrics.Accuracy copy.deepcopy
unicorn_monai.bundle.from_bundle unicorn_monai.schedulers.DDIM unicorn_monai.backbones.load_autoencoder
unicorn_monai.backbones.stable_diffusion.load_autoencoder unicorn_monai.segmentation.training.SegmentationLoss
"""
UNUSUAL = """
open eval list dict __import__ os.system subprocess.run builtins.eval pydoc.locate
run_cmd monai.utils.run_cmd monai.utils.misc.run_cmd monai.utils.misc.subprocess.run monai.utils.optional_import
monai.utils.module.load_submodules monai._extensions.loader.load_module monai.networks.trt_compiler.trt_compile
monai.bundle.run monai.bundle.scripts.run monai.bundle.load monai.bundle.ConfigParser monai.bundle.ConfigWorkflow
download_url monai.apps.download_url monai.apps.utils.extractall monai.apps.auto3dseg.BundleGen
monai.data.PersistentDataset monai.data.LMDBDataset monai.data.NumpyReader monai.data.utils.pickle_operations
monai.handlers.CheckpointLoader monai.handlers.MLFlowHandler monai.handlers.LogfileHandler
Lambda LambdaD monai.transforms.Lambda monai.transforms.LambdaDict monai.transforms.utility.dictionary.Lambdad
LoadImaged SaveImaged monai.transforms.TorchVisiond monai.transforms.io.array.Path monai.transforms.transform.os.system
monai.transforms.Compose.__call__ monai.inferers.PatchInferer monai.losses.PerceptualLoss
monai.networks.nets.HoVerNet monai.networks.nets.resnet10 monai.networks.nets.FlexibleUNet
torch.load torch.hub.load torch.nn.Embedding.from_pretrained torch.nn.modules.module.Module.load_state_dict
torch.nn.functional.relu torch.utils.data.DataLoader torch.nn torch.nn.modules monai monai.transforms
ignite.distributed.launcher.Parallel ignite.handlers.ModelCheckpoint
unicorn_monai.bundle.run.run_bundle unicorn_monai.bundle.installation.install unicorn_monai.system.files.write_text
unicorn_monai.bundle.run_bundle unicorn_monai.bundle.install unicorn_monai.experiment.Experiment
unicorn_monai.experiment.experiment.Experiment unicorn_monai.cli.main unicorn_monai.system.files.atomic
unicorn_monai.backbones.legacy.read_checkpoint unicorn_monai.prior.UncertaintyPrior.save unicorn_monai.there.is.none
"""
LOADING = re.compile(
    r"torch\.(load|save|hub)|np\.(load|save)|(?<![.\w])(?<!def )(open|eval|exec|locate|import_module|urlopen)\((?!\))"
    r"|pickle\.|subprocess|requests\.|shutil|os\.(system|remove|makedirs)|from_pretrained|download|\bmkdir"
)
# They keep a copy of a state in memory, or tell another process's error; read and found harmless.
READ = {"Optimizer", "CyclicLR", "Embedding", "EmbeddingBag", "RNNBase", "ToDevice", "ToDeviced", "TraceableTransform"}


@pytest.mark.parametrize("name", USUAL.split())
def test_what_bundles_are_made_of_is_let_through(name):
    assert is_usual(name)


@pytest.mark.parametrize("name", UNUSUAL.split())
def test_what_runs_loads_writes_or_downloads_is_not(name):
    assert not is_usual(name)


def sources(module):
    """The text of every class in the file of a module."""
    text = inspect.getsource(sys.modules[module])
    classes = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef))
    lines = text.splitlines()
    return {node.name: "\n".join(lines[node.lineno - 1 : node.end_lineno]) for node in classes}


def test_nothing_that_is_let_through_loads_or_runs_anything():
    offered = [value for module in COMPUTING for value in vars(pydoc.locate(module)).values()]
    found = {value for value in offered if isinstance(value, type) and _is_let_through(value)}
    assert len(found) > 600
    texts = {module: sources(module) for module in {c.__module__ for c in found}}
    harmful = {c.__name__: LOADING.findall(texts[c.__module__].get(c.__name__, "")) for c in found}
    assert {name: what for name, what in harmful.items() if what and name not in READ} == {}
