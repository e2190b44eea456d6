"""The manifests for GKE are filled in completely, are sound, and say which exit status restarts what."""

import copy
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
ALL = {"IMAGE": "registry.example/study:1", "NAME": "hpa", "ACCELERATOR": "kind", "TOPOLOGY": "2x4", "CHIPS": "4"}

# What https://github.com/kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go, allows around the Jobs.
JOBSET = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
        "kind": {"const": "JobSet"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "ttlSecondsAfterFinished": {"type": "integer", "minimum": 0},
                "suspend": {"type": "boolean"},
                "network": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "enableDNSHostnames": {"type": "boolean"},
                        "subdomain": {"type": "string"},
                        "publishNotReadyAddresses": {"type": "boolean"},
                    },
                },
                "failurePolicy": {
                    "type": "object",
                    "additionalProperties": False,
                    "properties": {
                        "maxRestarts": {"type": "integer", "minimum": 0},
                        "restartStrategy": {"enum": ["Recreate", "BlockingRecreate"]},
                        "rules": {
                            "type": "array",
                            "items": {
                                "type": "object",
                                "additionalProperties": False,
                                "required": ["name", "action"],
                                "properties": {
                                    "name": {"pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"},
                                    "action": {
                                        "enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
                                    },
                                    "onJobFailureReasons": {"type": "array", "uniqueItems": True},
                                    "targetReplicatedJobs": {"type": "array"},
                                },
                            },
                        },
                    },
                },
                "replicatedJobs": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "additionalProperties": False,
                        "required": ["name", "template"],
                        "properties": {
                            "name": {"type": "string"},
                            "replicas": {"type": "integer"},
                            "template": {"type": "object", "required": ["spec"]},
                        },
                    },
                },
            },
        },
    },
}


def render(kind: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "launch" / "gke" / "render.py", ROOT / "launch" / "gke" / f"{kind}.yaml"]
    environment = {"PATH": os.environ["PATH"]} | {k: v for k, v in variables.items() if v}
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)


def manifest(kind: str, *arguments: str, **variables: str) -> dict:
    yaml = pytest.importorskip("yaml")
    found = render(kind, *(arguments or ("--config=c.py",)), **ALL | {"HOSTS": "2"} | variables)
    assert found.returncode == 0, found.stderr
    return yaml.safe_load(found.stdout)


def pods(found: dict) -> dict:
    return found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_schemas(kind):
    jsonschema = pytest.importorskip("jsonschema")
    kubernetes = pytest.importorskip("kubernetes_validate")
    found = manifest(kind)
    jsonschema.validate(found, JOBSET)
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "host"}}
    job |= found["spec"]["replicatedJobs"][0]["template"]
    kubernetes.validate(job, kubernetes.latest_version(), strict=True)
    wrong = copy.deepcopy(job)
    wrong["spec"]["backoffLimits"] = 0
    with pytest.raises(kubernetes.ValidationError):
        kubernetes.validate(wrong, kubernetes.latest_version(), strict=True)


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_a_mistake_ends_all_and_everything_else_restarts(kind):
    found = manifest(kind, RESTARTS="7")
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": {"containerName": "study", "operator": "In", "values": [2]}}
    ]
    assert pods(found)["restartPolicy"] == "Never" and job["backoffLimit"] == 0
    policy = found["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 7 and policy["rules"][0]["action"] == "FailJobSet"
    assert policy["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]


def test_hosts_find_each_other():
    arguments = ["--config=c.py:a,b", '--config.x="é $(HOME) ${Y}"']
    container = pods(manifest("gpu", *arguments))["containers"][0]
    assert container["args"] == [
        "--config=c.py:a,b",
        '--config.x="é $$(HOME) $${Y}"',  # Kubernetes makes one dollar of two
        "--coordinator=hpa-host-0-0.hpa:8476",
        "--num_processes=2",
        "--process_id=$(HOST_INDEX)",
    ]
    assert "HOST_INDEX" in [variable["name"] for variable in container["env"]]
    assert pods(manifest("gpu", HOSTS="1"))["containers"][0]["args"] == ["--config=c.py"]
    assert pods(manifest("tpu"))["containers"][0]["args"] == ["--config=c.py"]  # GKE tells them


@pytest.mark.parametrize("kind", ["gpu", "tpu"])
def test_spot_is_a_choice(kind):
    assert pods(manifest(kind))["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert "cloud.google.com/gke-spot" not in pods(manifest(kind, SPOT="false"))["nodeSelector"]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NAME": ""}, "NAME is not set"),
        ({"IMAGE": ""}, "IMAGE is not set"),
        ({"NAME": "Not a name"}, "NAME='Not a name'"),
        ({"NAME": "UPPER"}, "small letters"),
        ({"IMAGE": "a\n  hostPID: true"}, "IMAGE="),
        ({"MEMORY": '1"'}, "MEMORY="),
        ({"HOSTS": "0"}, "HOSTS=0"),
        ({"SPOT": "maybe"}, "SPOT=maybe"),
    ],
)
def test_mistakes(variables, words):
    found = render("gpu", "--config=c.py", **ALL | variables)
    assert found.returncode == 2 and words in found.stderr and not found.stdout and "Traceback" not in found.stderr


def test_missing_arguments_and_files():
    assert "arguments of the study" in render("gpu", **ALL).stderr
    assert render("nothing", "--config=c.py", **ALL).returncode == 2
