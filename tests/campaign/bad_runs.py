"""Bad weights, runs, ledgers, predictions and flags for everything that reads them: which, and what must happen?

Most cases damage a copy of one finished run. Numbers are those of the list that the campaign set out from: 36 to 38
checkpoints, 39 to 42 weights and arrays.
"""

import importlib.util
import json
import os
import pathlib
import pickle
import shutil
import subprocess
from collections.abc import Callable

import numpy as np

from tests.campaign import common
from tests.campaign.bad_cases import Case, Place
from tests.campaign.bad_data import PNG
from tests.input_pipeline import picture_files as pictures
from tests.running import ROOT, command

CASES: list[Case] = []
NAMES = ("learning_rate-0.01", "learning_rate-0.003")


def prepare(folder: pathlib.Path, cases: list[Case]) -> dict[str, pathlib.Path]:
    """The runs and data sets that the cases need, made once; without entry: a command that is not there."""
    study = common.study("single", folder, **common.SINGLE)
    shared = {"data": study.data, "run": common.undisturbed(study)[0]}
    for name in ("research.predict", "research.features", "research.export"):
        if importlib.util.find_spec(name):
            shared[name] = shared["run"]
    short = ("--config.epochs=0", "--config.steps=3", "--config.evaluation.baselines=False")
    for name in ("genes", "masks"):
        if any(case.needs == name for case in cases):
            config = {"genes": "cancer_genes", "masks": "lung_masks"}[name]
            arguments = command(f"configs/{config}.py:smoke", folder / name, *short)
            result = subprocess.run(arguments, cwd=ROOT, env=study.environment(), capture_output=True, text=True)
            if result.returncode:
                raise SystemExit(f"{config} could not be trained: {result.stderr[-600:]}")
            shared[name] = folder / name
    return shared


def case(module: str, name: str, **options):
    """Registers a function that writes the input and gives the arguments."""

    def decorate(build):
        CASES.append(Case(name, module, build, **options))
        return build

    return decorate


def copy_of(place: Place, name: str = "run", to: str = "run") -> pathlib.Path:
    """A copy of a finished run, to be damaged."""
    shutil.copytree(place.shared[name], place.given / to)
    return place.given / to


READERS: dict[str, Callable[[str, pathlib.Path], list[str]]] = {
    "research.search.pareto": lambda run, out: [
        f"--ledger={run}/trials.csv", "--minimize=parameters", "--maximize=validation/accuracy", f"--out={out}"],
    "research.ensemble": lambda run, out: [f"--runs={run}", f"--out={out}"],
    "research.explain": lambda run, out: [f"--workdir={run}", "--count=2", f"--out={out}", "--checks=none"],
    "research.compare": lambda run, out: [run, f"{run}-2", f"--out={out}"],
    "research.genes": lambda run, out: [f"--workdir={run}", f"--out={out}"],
    "research.segment": lambda run, out: [f"--workdir={run}", f"--source={run}", f"--out={out}"],
    "research.compress": lambda run, out: [
        f"--workdir={run}", "--methods=int8", "--latency_runs=0", f"--trials={NAMES[0]}"],
    "research.ensemble.merge": lambda run, out: [f"--workdir={run}", "--members=2", f"--out={out}"],
    "research.export": lambda run, out: [f"--workdir={run}", "--format=safetensors", f"--out={out}"],
    "research.predict": lambda run, out: [f"--workdir={run}", f"--images={run}/images", f"--out={out}.csv"],
    "research.features": lambda run, out: [f"--workdir={run}", f"--images={run}/images", f"--out={out}.csv"],
}  # fmt: skip
"""The commands that read runs, and their arguments for a run folder and an output."""

CHECKPOINTS = ("research.explain", "research.compress", "research.export", "research.predict", "research.features")
OPTIONAL = ("research.export", "research.predict", "research.features")
TEXTS = ("research.search.pareto", "research.ensemble", "research.compare", "research.ensemble.merge")


def _cut_half(path: pathlib.Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _noise(path: pathlib.Path) -> None:
    path.write_bytes(np.random.default_rng(0).bytes(3000))


def _replace(old: str, new: str) -> Callable[[pathlib.Path], None]:
    def change(path: pathlib.Path) -> None:
        path.write_text(path.read_text().replace(old, new))

    return change


def _checkpoint(change: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
    """Damages the largest file of every checkpoint."""

    def damage(run: pathlib.Path) -> None:
        for step in run.glob("checkpoints/*/[0-9]*"):
            change(max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size))

    return damage


def _flip(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _of(pattern: str, change: Callable[[pathlib.Path], None]) -> Callable[[pathlib.Path], None]:
    def damage(run: pathlib.Path) -> None:
        for path in sorted(run.glob(pattern)):
            change(path)

    return damage


def _unlink(path: pathlib.Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


DAMAGED: dict[str, tuple[Callable[[pathlib.Path], None], tuple[str, ...], bool | None]] = {
    "no such folder": (shutil.rmtree, tuple(READERS), True),
    "an empty folder": (_of("*", _unlink), tuple(READERS), True),
    "no ledger": (_of("trials.csv", _unlink), tuple(READERS), True),
    "a ledger that is noise": (_of("trials.csv", _noise), tuple(READERS), True),
    "an empty ledger": (_of("trials.csv", lambda p: p.write_bytes(b"")), tuple(READERS), True),
    "half a ledger": (_of("trials.csv", _cut_half), tuple(READERS), None),
    "a ledger without id": (_of("trials.csv", _replace("id,status", "di,status")), tuple(READERS)[1:], True),
    "nothing finished": (_of("trials.csv", _replace("finished", "running")), tuple(READERS)[1:], True),
    "no config": (_of("config.json", _unlink), tuple(READERS)[1:], True),
    "half a config": (_of("config.json", _cut_half), tuple(READERS)[1:], True),
    "a config that is a list": (_of("config.json", lambda p: p.write_text("[1, 2]")), tuple(READERS)[1:], True),
    "predictions cut in half": (_of("predictions/*.csv", _cut_half), ("research.ensemble", "research.compare"), True),
    "predictions that are NaN": (
        _of("predictions/*_test.csv", lambda p: p.write_text(p.read_text().replace(",0.", ",nan"))),
        ("research.ensemble", "research.compare"), None),
    "no predictions": (_of("predictions", _unlink), ("research.ensemble", "research.compare"), True),
    "36 truncated checkpoints": (_checkpoint(_cut_half), CHECKPOINTS, True),
    "37 flipped checkpoints": (_checkpoint(_flip), CHECKPOINTS, True),
    "37 no checkpoints": (_of("checkpoints", _unlink), CHECKPOINTS, True),
}  # fmt: skip


def _reader_case(name: str, module: str, damage: Callable[[pathlib.Path], None], refused: bool | None) -> None:
    def build(place: Place) -> list[str]:
        run = copy_of(place)
        shutil.copytree(run, f"{run}-2")
        pictures.write(run / "images", {"a.png": PNG})
        damage(run)
        if module == "research.compress":  # it writes into the run folder itself
            os.rename(run, place.out) if run.exists() else None
            run = place.out
        return READERS[module](str(run), place.out)

    needs = module if module in OPTIONAL else ""
    CASES.append(Case(name, module, build, refused=refused, needs=needs, begun=module == "research.compress"))


for _name, (_damage, _modules, _refused) in DAMAGED.items():
    for _module in _modules:
        _reader_case(_name, _module, _damage, _refused)

# Flags: for a sound run, what is added to (or put in the place of) the arguments of READERS.

FLAGS: dict[str, tuple[str, ...]] = {
    "research.search.pareto": ("--maximize=no_such_column", "--maximize=", "--log=status", "--reference=1",
                               "--reference=a,b", "--ledger=/dev/null", "--ledger=/etc", "--unknown=1"),
    "research.ensemble": ("--methods=magic", "--most=-1", "--metric=beauty", "--runs=", "--unknown=1"),
    "research.explain": ("--trial=nobody", "--method=magic", "--layer=nowhere", "--class=nothing", "--images=nowhere",
                         "--images=/dev/null", "--count=-1", "--steps=0", "--samples=x", "--regions=nowhere",
                         "--baseline=none", "--checks=magic", "--method=", "--unknown=1"),
    "research.compare": ("--metric=beauty", "--unknown=1"),
    "research.genes": ("--trial=nobody", "--role=nowhere", "--baseline=none", "--limit=-1", "--tolerance=nan",
                       "--sets=nowhere.gmt", "--planted=nowhere.csv"),
    "research.segment": ("--margin=2", "--batch_size=0", "--limit=-1", "--trial=nobody"),
    "research.compress": ("--trials=nobody", "--methods=magic", "--methods=magnitude --sparsity=1.5",
                          "--sparsity=x", "--methods=channels --keep=0",
                          "--finetune=soon", "--finetune_rate=-1", "--latency_runs=-1"),
    "research.ensemble.merge": ("--members=0", "--members=9", "--metric=beauty", "--trials=nobody"),
    "research.export": ("--format=exe", "--trial=nobody"),
    "research.predict": ("--images=nowhere", "--trial=nobody", "--unknown=1"),
    "research.features": ("--images=nowhere", "--trial=nobody", "--unknown=1"),
}  # fmt: skip


def _flag_case(module: str, flag: str) -> None:
    def build(place: Place) -> list[str]:
        run = copy_of(place)
        shutil.copytree(run, f"{run}-2")
        pictures.write(run / "images", {"a.png": PNG})
        return [*READERS[module](str(run), place.out), *flag.split()]

    CASES.append(Case(flag, module, build, needs=module if module in OPTIONAL else ""))


for _module, _flags in FLAGS.items():
    for _flag in _flags:
        _flag_case(_module, _flag)


# Images that a model is asked about


def _pictures(place: Place) -> pathlib.Path:
    """A folder with a sound picture and bad ones."""
    folder = place.given / "pictures"
    pictures.write(folder, {"good.png": PNG, "empty.png": b"", "cut.png": PNG[:200], "text.jpg": b"no picture"})
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("/etc/passwd")
    return folder


@case("research.explain", "a folder with bad pictures", refused=None)
def _(place):
    return [f"--workdir={copy_of(place)}", f"--images={_pictures(place)}", f"--out={place.out}", "--checks=none"]


@case("research.explain", "a folder without pictures")
def _(place):
    (place.given / "pictures").mkdir()
    return [f"--workdir={copy_of(place)}", f"--images={place.given / 'pictures'}", f"--out={place.out}"]


@case("research.explain", "a CSV without ids")
def _(place):
    (place.given / "x.csv").write_text("name\n1\n")
    return [f"--workdir={copy_of(place)}", f"--images={place.given / 'x.csv'}", f"--out={place.out}"]


def _asked(module: str, place: Place, images: pathlib.Path) -> list[str]:
    """The arguments for other images than those of READERS."""
    arguments = READERS[module](str(copy_of(place)), place.out)
    return [f"--images={images}" if part.startswith("--images=") else part for part in arguments]


def _image_cases(module: str) -> None:
    def empty(place: Place) -> list[str]:
        (place.given / "pictures").mkdir()
        return _asked(module, place, place.given / "pictures")

    def without_ids(place: Place) -> list[str]:
        (place.given / "x.csv").write_text("name\n1\n")
        return _asked(module, place, place.given / "x.csv")

    def bad(place: Place) -> list[str]:
        return _asked(module, place, _pictures(place))

    CASES.append(Case("a folder with bad pictures", module, bad, refused=None, needs=module))
    CASES.append(Case("a folder without pictures", module, empty, needs=module))
    CASES.append(Case("a CSV without ids", module, without_ids, needs=module))


for _module in ("research.predict", "research.features"):
    _image_cases(_module)


@case("research.segment", "a folder with bad pictures", refused=None, needs="masks")
def _(place):
    return [f"--workdir={copy_of(place, 'masks')}", f"--source={_pictures(place)}", f"--out={place.out}"]


@case("research.segment", "a source that does not exist", needs="masks")
def _(place):
    return [f"--workdir={copy_of(place, 'masks')}", f"--source={place.given}/nowhere", f"--out={place.out}"]


def _genes(name: str, flag: str, content: bytes) -> None:
    def build(place: Place) -> list[str]:
        file = place.given / f"file{'.gmt' if flag == 'sets' else '.csv'}"
        file.write_bytes(content)
        return [f"--workdir={copy_of(place, 'genes')}", f"--out={place.out}", f"--{flag}={file}", "--limit=1"]

    CASES.append(Case(name, "research.genes", build, needs="genes"))


_genes("gene sets that are noise", "sets", np.random.default_rng(0).bytes(3000))
_genes("gene sets without genes", "sets", b"set\tdescription\n")
_genes("empty gene sets", "sets", b"")
_genes("planted genes without columns", "planted", b"a,b\n1,2\n")
_genes("planted genes that are noise", "planted", np.random.default_rng(1).bytes(3000))


# Weights and arrays


class _Command:
    """Unpickled by Python, this runs a command."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _logits(place: Place, weights: pathlib.Path, array: pathlib.Path | None = None) -> list[str]:
    if array is None:
        array = place.given / "x.npy"
        np.save(array, np.zeros((1, 39, 43, 3), np.float32))
    return ["--model=resnet18", f"--weights={weights}", f"--input={array}", f"--output={place.out}"]


@case("research.models.pretrained", "42 an array of objects")
def _(place):
    from tests.research.models.pretrained.weights import resnet18_state, write_safetensors

    np.save(place.given / "x.npy", np.array([_Command(place.root / "EXECUTED")], object), allow_pickle=True)
    weights = write_safetensors(place.given / "w.safetensors", resnet18_state(classes=5))
    return _logits(place, weights, place.given / "x.npy")


@case("research.models.pretrained", "42 an array that is cut off")
def _(place):
    from tests.research.models.pretrained.weights import resnet18_state, write_safetensors

    np.save(place.given / "x.npy", np.zeros((1, 39, 43, 3), np.float32))
    os.truncate(place.given / "x.npy", 500)
    weights = write_safetensors(place.given / "w.safetensors", resnet18_state(classes=5))
    return _logits(place, weights, place.given / "x.npy")


def _hostile() -> None:
    """Every file of `hostile_files`, given to the command and to a training."""
    from tests.research.models.pretrained import hostile_files

    names = {"39": ".pth", "40": ("h5", ".keras"), "41": "safetensors"}
    for title, (model, write) in hostile_files.CASES.items():
        number = next((n for n, words in names.items() if any(w in title for w in np.atleast_1d(words))), "")

        def build(place: Place, write=write, model=model) -> list[str]:
            write(place.given / "weights")
            given = _logits(place, place.given / "weights")
            return [f"--model={model}", *given[1:]]

        CASES.append(Case(f"{number} {title}".strip(), "research.models.pretrained", build))


_hostile()


@case("research.main", "39 a pickle as weights to start from")
def _(place):
    (place.given / "w.pth").write_bytes(pickle.dumps(_Command(place.root / "EXECUTED")))
    return _training(place, f"--config.model.weights={place.given / 'w.pth'}")


@case("research.main", "38 checkpoints of another model", begun=True, words=("another model",))
def _(place):
    run = place.out
    shutil.copytree(place.shared["run"], run)
    (run / "trials.csv").unlink()
    for file in ("config.json",):
        content = json.loads((run / file).read_text())
        content["model"]["options"]["widths"] = [7]
        (run / file).write_text(json.dumps(content))
    return _again(place, "--config.model.options.widths=(7,)")


@case("research.main", "32 another configuration in the folder", begun=True, words=("another --workdir",))
def _(place):
    shutil.copytree(place.shared["run"], place.out)
    return _again(place, "--config.seed=5")


def _config_case(name: str, change: Callable[[pathlib.Path], None], refused: bool | None) -> None:
    def build(place: Place) -> list[str]:
        shutil.copytree(place.shared["run"], place.out)
        change(place.out)
        return _again(place)

    CASES.append(Case(name, "research.main", build, refused=refused, begun=True))


_config_case("half a config.json in the folder", _of("config.json", _cut_half), True)
_config_case("a config.json that is a list", _of("config.json", lambda p: p.write_text("[]")), True)
_config_case("a ledger that is noise in the folder", _of("trials.csv", _noise), True)
_config_case("an empty ledger in the folder", _of("trials.csv", lambda p: p.write_bytes(b"")), True)
_config_case("metrics.jsonl that is noise in a finished folder", _of("metrics.jsonl", _noise), None)


def _again(place: Place, *more: str) -> list[str]:
    """The command line that made the shared run, on a copy of it."""
    study = common.study("single", place.shared["data"].parent, **common.SINGLE)
    return [f"--config={study.config}", f"--workdir={place.out}", *study.given, *more]


def _training(place: Place, *more: str) -> list[str]:
    study = common.study("plain", place.shared["data"].parent)
    return [f"--config={study.config}", f"--workdir={place.out}", *study.given, *more]
