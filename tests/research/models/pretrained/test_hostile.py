"""Are damaged and hostile files refused with one sentence, in bounded memory, and without executing anything?"""

import json
import subprocess
import sys

import pytest

from input_pipeline.cli import UserError
from research.models.pretrained import plan
from tests.research.models.pretrained import hostile_files as hostile
from tests.research.models.pretrained import weights

_EVERY_FILE = """
import json, pathlib, re, resource, sys
from input_pipeline.cli import UserError
from research.models.pretrained import plan
from tests.research.models.pretrained import weights
list(map(weights.call_order, ("resnet18", "resnet34"))), weights.call_order("resnet50", "keras")
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024
before = peak()
for path, model in json.load(sys.stdin).items():
    try:
        pretrained = plan(model, "", path)
        variables = weights.shapes(model, pretrained.variant)
        pretrained.load(None, variables, weights.call_order(model, pretrained.variant))
        print(json.dumps("loaded"))
    except UserError as error:
        print(json.dumps(str(error)))
print(max(peak(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024) - before)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Message by case, and the growth of the peak memory over all of them in MB."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = {}
    for number, (title, (model, write)) in enumerate(hostile.CASES.items()):
        write(folder / str(number))
        paths[title] = (str(folder / str(number)), model)
    process = subprocess.run(
        [sys.executable, "-c", _EVERY_FILE],
        input=json.dumps(dict(paths.values())),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    *messages, memory = process.stdout.splitlines()
    assert not (folder / hostile.MARKER).exists(), "something was executed"
    return dict(zip(paths, map(json.loads, messages), strict=True)), int(memory)


@pytest.mark.parametrize("title", hostile.CASES)
def test_one_sentence(outcomes, title):
    message = outcomes[0][title]
    assert message != "loaded" and "\n" not in message and message.endswith(".") and len(message) < 1200
    assert message.startswith(("the weights", "the folder"))


def test_memory_is_bounded(outcomes):
    """Every case together, the largest file of which has 104 MB, takes less than one network more than was there."""
    assert outcomes[1] < 300


@pytest.mark.parametrize(
    ("title", "words"),
    [
        ("pickle in a .pth with a command", "it wants posix.system, which was not executed"),
        ("the same, protocol 4", "it wants posix.system, which was not executed"),
        ("old .pth with a command", "it wants posix.system, which was not executed"),
        ("whole module, torch.save(model)", "torch.nn.modules.linear.Linear"),
        ("tensor that reaches over its storage", "reaches over the end of its storage"),
        ("tensor of a trillion equal numbers", "does not fit resnet18"),
        ("storage shorter than declared", "does not fit resnet18"),
        ("safetensors header of 2^63 bytes", "its header claims 9,223,372,036,854,775,808 bytes"),
        ("safetensors arrays overlap", "overlap"),
        ("truncated safetensors", "truncated"),
        ("NaN in a safetensors weight", "layer3.0.conv1.weight (256, 128, 3, 3) holds NaN or infinity"),
        ("truncated .weights.h5", "truncated"),
        ("h5 with an external link", "0 is a ExternalLink to another place"),
        ("h5 with a virtual data set", "lies in another file"),
        ("h5 with external storage", "lies in another file"),
        ("h5 with an array of 4 TB, nothing stored", "needs 4,000,000,000,000 bytes and 0 are stored"),
        ("h5 in which the HDF5 library runs in circles", "runs in circles"),
        ("h5 with a name of 3 GB, claimed", "memory allocation failed"),
        ("h5 with 1 GB of zeros in 1 MB", "needs 1,073,741,824 bytes"),
        (
            "another model's .keras",
            "does not fit resnet50 (keras names): conv1_conv/0: expected (7, 7, 3, 64), missing",
        ),
        ("another model's safetensors", "does not fit resnet34"),
        ("empty file", "it is empty"),
    ],
)
def test_the_sentence_names_the_thing(outcomes, title, words):
    assert words in outcomes[0][title]


def test_python_would_have_executed_them(tmp_path):
    """The files of the test above do what they threaten."""
    import pickle

    hostile.CASES["plain pickle with a command"][1](tmp_path / "x")
    pickle.loads((tmp_path / "x").read_bytes())
    assert (tmp_path / hostile.MARKER).exists()


def test_a_storage_that_ends_early(tmp_path):
    """The shape fits, the bytes do not."""
    from tests.research.models.pretrained.hostile_files import tensor_pickle, torch_zip

    pickled = tensor_pickle((64, 3, 7, 7), (147, 49, 7, 1), 9408)
    torch_zip(tmp_path / "x", pickled, {"0": bytes(100)})
    with pytest.raises(UserError, match="the storage 0 has 100 bytes for 9408 numbers"):
        plan("resnet18", "", str(tmp_path / "x")).file.read("conv1.weight")
    torch_zip(tmp_path / "x", pickled, {})
    with pytest.raises(UserError, match="damaged"):
        plan("resnet18", "", str(tmp_path / "x")).file.read("conv1.weight")


def test_random_damage_is_a_sentence_or_the_same_numbers(tmp_path):
    """Flipped bytes and cut ends in real files: a UserError, or arrays of the declared shapes, nothing else."""
    import numpy as np

    rng = np.random.default_rng(0)
    for name in ("small.weights.h5", "small.keras", "small.h5", "small.pth", "small_old.pth"):
        original = (weights.DATA / name).read_bytes()
        for _ in range(60 if name.endswith(".pth") else 12):  # HDF5 files are read in a process of their own
            data = bytearray(original)
            for place in rng.integers(0, len(data), 3):
                data[place] ^= int(rng.integers(1, 256))
            if rng.random() < 0.2:
                del data[int(rng.integers(1, len(data))) :]
            path = tmp_path / "damaged"
            path.write_bytes(bytes(data))
            try:
                file = plan(
                    "EfficientNetB0" if "small_" not in name and ".pth" not in name else "resnet18", "", str(path)
                ).file
                for key, array in file.arrays.items():
                    if array.dtype.kind == "f":
                        assert file.read(key).shape == array.shape
            except UserError as error:
                assert "\n" not in str(error)
