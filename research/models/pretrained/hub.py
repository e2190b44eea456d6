"""How do weights come from the Hugging Face hub?

`hf://timm/NAME` or `hf://timm/NAME@REVISION`, through huggingface_hub, which caches the files (HF_HOME) and uses the
cached ones when there is no network. The repository's `config.json` says which model it is for and how images are
prepared.
"""

import dataclasses
import json
import pathlib
import re
from typing import Any

from input_pipeline.cli import UserError
from research.models.pretrained import sources
from research.models.pretrained.weight_file import one_line

PREFIX = "hf://"
MAX_CONFIG = 2**20  # bytes
_ADDRESS = re.compile(r"hf://(timm/[\w][\w.-]*)(?:@([\w][\w./-]*))?")


@dataclasses.dataclass(frozen=True)
class Fetched:
    """A model of the hub.

    Attributes:
      path: the weights in the cache.
      architecture: timm's name of the model ("resnet50"), or "" if the repository does not say.
      preprocessing: see `Pretrained`, or None if the repository does not say.
      source: the address with the commit.
    """

    path: pathlib.Path
    architecture: str
    preprocessing: dict[str, Any] | None
    source: str


def fetch(address: str) -> Fetched:
    """Downloads `model.safetensors` and `config.json` of an address, or takes them from the cache.

    Raises:
      UserError: the address is none, huggingface_hub is missing, or the hub has no such model or cannot be reached.
    """
    match = _ADDRESS.fullmatch(address)
    if not match:
        raise UserError(
            f"{address!r} is no address of timm's weights; write hf://timm/NAME, such as hf://timm/resnet50.a1_in1k."
        )
    repository, revision = match.groups()
    config_path, weights = (
        _download(address, repository, file, revision) for file in ("config.json", "model.safetensors")
    )
    try:
        if config_path.stat().st_size > MAX_CONFIG:
            raise ValueError("it is too long")
        config = json.loads(config_path.read_text(encoding="utf-8"))
        details = config.get("pretrained_cfg", config)
        architecture = str(config.get("architecture", ""))
        mean, std = details.get("mean"), details.get("std")
        preprocessing = None
        if mean is not None and std is not None:
            preprocessing = sources.checked({"kind": "fixed", "mean": mean, "std": std})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"config.json of {address} is damaged ({one_line(error)}); download the weights by hand."
        ) from error
    commit = config_path.parent.name
    return Fetched(weights, architecture, preprocessing, f"{PREFIX}{repository}@{commit}")


def _download(address: str, repository: str, file: str, revision: str | None) -> pathlib.Path:
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise UserError(
            f"{address} needs huggingface_hub, which is not installed; `pip install huggingface_hub`, or download the "
            "file and give its path."
        ) from None
    try:
        return pathlib.Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except errors.RevisionNotFoundError:
        raise UserError(f"{repository} has no revision {revision} on the hub; leave @{revision} out.") from None
    except errors.GatedRepoError:
        raise UserError(f"{repository} is closed to you; accept its conditions on the hub and log in there.") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"the hub has no {repository}; look for the name at https://huggingface.co/timm.") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"the hub cannot be reached and {file} of {repository} is not in the cache; download it elsewhere and give "
            "its path."
        ) from None
    except errors.EntryNotFoundError:
        raise UserError(
            f"{repository} has no {file} on the hub; choose weights that timm publishes as safetensors."
        ) from None
    except Exception as error:  # the client raises whatever its transport raises
        raise UserError(
            f"{address} could not be fetched ({one_line(error)}); try again, or download the file by hand."
        ) from error
