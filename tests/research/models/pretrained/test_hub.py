"""Do weights come from the Hugging Face hub? Against a server here that answers as the hub does."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading

import pytest

from input_pipeline.cli import UserError
from research.models.pretrained import hub, plan
from tests.research.models.pretrained.weights import resnet18_state, write_safetensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OLDER = "fedcba9876543210fedcba9876543210fedcba98"
_PLANS = """
import json, sys
from input_pipeline.cli import UserError
from research.models.pretrained import plan
for name, address in json.load(sys.stdin):
    try:
        found = plan(name, "", address)
        answer = [found.source, found.variant, found.preprocessing, len(found.file.arrays), found.sha256]
    except UserError as error:
        answer = str(error)
    print(json.dumps(answer))
"""


class Hub:
    """Serves `files[repository][commit][name]` (bytes) at /REPOSITORY/resolve/REVISION/NAME; notes the requests."""

    def __init__(self, files):
        self.requests = []
        stub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, with_body):
                stub.requests.append(f"{self.command} {self.path}")
                repository, _, rest = self.path.lstrip("/").partition("/resolve/")
                revision, _, name = rest.partition("/")
                revisions = files.get(repository)
                commit = COMMIT if revision == "main" else OLDER if revision == "v1" else revision
                error = "RepoNotFound" if revisions is None else "RevisionNotFound" if commit not in revisions else None
                body = None if error else revisions[commit].get(name)
                if body is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", error or "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("X-Repo-Commit", commit)
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if with_body:
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def plans(endpoint, home, *queries, offline=False):
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "no_proxy": "127.0.0.1", "JAX_PLATFORMS": "cpu"}
    environment["HF_HUB_OFFLINE"] = str(int(offline))
    result = subprocess.run(
        [sys.executable, "-c", _PLANS],
        input=json.dumps(queries),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=180,
    )
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    weights = write_safetensors(tmp_path_factory.mktemp("hub") / "x", resnet18_state(classes=3)).read_bytes()
    config = {
        "architecture": "resnet18",
        "num_classes": 3,
        "pretrained_cfg": {"tag": "a1_in1k", "mean": [0.5, 0.25, 0.125], "std": [0.2, 0.3, 0.4], "num_classes": 3},
    }
    other = {"architecture": "resnet50", "pretrained_cfg": {}}
    encoded = json.dumps(config).encode()
    return {
        "timm/resnet18.a1_in1k": {
            COMMIT: {"model.safetensors": weights, "config.json": encoded},
            OLDER: {"model.safetensors": weights[:-4], "config.json": encoded},
        },
        "timm/resnet50.x": {COMMIT: {"model.safetensors": weights, "config.json": json.dumps(other).encode()}},
        "timm/no_weights": {COMMIT: {"config.json": encoded}},
        "timm/broken": {COMMIT: {"model.safetensors": weights, "config.json": b"{"}},
    }


def test_the_hub(repositories, tmp_path):
    pytest.importorskip("huggingface_hub")
    server = Hub(repositories)
    address = "hf://timm/resnet18.a1_in1k"
    try:
        found, older, *refusals = plans(
            server.address,
            tmp_path,
            ("resnet18", address),
            ("resnet18", f"{address}@v1"),
            ("resnet18", f"{address}@v9"),
            ("resnet18", "hf://timm/nothing"),
            ("resnet18", "hf://timm/no_weights"),
            ("resnet18", "hf://timm/broken"),
            ("resnet18", "hf://timm/resnet50.x"),
        )
    finally:
        server.close()
    source, variant, preprocessing, arrays, sha256 = found
    assert source == f"{address}@{COMMIT}" and variant == "timm" and arrays == 122
    assert preprocessing == {"kind": "fixed", "mean": [0.5, 0.25, 0.125], "std": [0.2, 0.3, 0.4]}
    weights = repositories["timm/resnet18.a1_in1k"][COMMIT]["model.safetensors"]
    assert sha256 == hashlib.sha256(weights).hexdigest()
    assert "truncated" in older and OLDER in older
    words = (
        "no revision v9",
        "the hub has no timm/nothing",
        "has no model.safetensors",
        "config.json",
        "is a resnet50",
    )
    for refusal, word in zip(refusals, words, strict=True):
        assert word in refusal and refusal.endswith(".") and "\n" not in refusal
    assert any(request.startswith("GET") and request.endswith("/model.safetensors") for request in server.requests)

    # Nobody listens any more: what was fetched stays usable, the rest is a sentence. (Left to itself the client tries
    # for half a minute to reach what it does not have.)
    assert plans(server.address, tmp_path, ("resnet18", address)) == [found]
    (missing,) = plans(server.address, tmp_path, ("resnet34", "hf://timm/resnet34.a1_in1k"), offline=True)
    assert "cannot be reached" in missing and missing.endswith(".")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub, which is not installed; `pip install"):
        plan("resnet18", "", "hf://timm/resnet18.a1_in1k")


@pytest.mark.parametrize("address", ["hf://timm", "hf://google/vit", "hf://timm/../x", "hf://timm/a b", "hf://timm/x@"])
def test_addresses(address):
    with pytest.raises(UserError, match="write hf://timm/NAME"):
        hub.fetch(address)
