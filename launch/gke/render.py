"""Fills in a manifest of this folder: ${NAME} and ${NAME:-default} from the environment, the arguments as a list.

    IMAGE=… NAME=hpa python launch/gke/render.py launch/gke/gpu.yaml --config=… --workdir=gs://… | kubectl apply -f -

Everything after the file goes to launch/run.py in each pod. On GPU nodes with HOSTS above 1 the flags that name the
coordinator, the number of processes and the pod's own number are added. Nothing is printed, and the exit status is 2,
when a variable is missing or has a value that a manifest cannot hold.
"""

import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

PORT = 8476
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_SAFE = re.compile(r"[\w./:@-]+", re.ASCII)
_SPOT = '                cloud.google.com/gke-spot: "{}"\n'
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")


class Mistake(Exception):
    """A variable that is missing or cannot be used: one sentence."""


def host_flags(name: str, hosts: int) -> list[str]:
    """The flags by which the pods of a JobSet find each other; HOST_INDEX is filled in by Kubernetes."""
    if hosts == 1:
        return []
    first = f"{name}-host-0-0.{name}"
    return [f"--coordinator={first}:{PORT}", f"--num_processes={hosts}", "--process_id=$(HOST_INDEX)"]


def render(template: str, arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """The manifest without its comments.

    Args:
        template: text of a manifest with ${NAME} in it.
        arguments: of launch/run.py.
        variables: name -> value.

    Raises:
        Mistake: for a variable.
    """
    text = "\n".join(line for line in template.splitlines() if not line.lstrip().startswith("#")) + "\n"
    values = {}
    variables = {name: value for name, value in variables.items() if name != "ARGUMENTS"}
    for name, default in _VARIABLE.findall(text):
        values[name] = variables.get(name) or default
        if name in ("ARGUMENTS", "DATA") and not values[name]:
            continue
        if not values[name]:
            raise Mistake(f"{name} is not set; see the head of the manifest.")
        if not _SAFE.fullmatch(values[name]):
            raise Mistake(f"{name}={values[name]!r} may have letters, digits and . / : @ _ - only.")
    if not _NAME.fullmatch(values["NAME"]):
        raise Mistake(f"NAME={values['NAME']} must be at most 40 small letters, digits and dashes.")
    if values.get("SPOT", "true") not in ("true", "false"):
        raise Mistake(f"SPOT={values['SPOT']} must be true or false.")
    for name in ("HOSTS", "RESTARTS", "SECONDS_AT_MOST", "GPUS", "CHIPS"):
        if name in values and not (values[name].isdigit() and (int(values[name]) or name == "RESTARTS")):
            raise Mistake(f"{name}={values[name]} must be a whole number, 1 or more.")
    # Kubernetes would expand $(NAME) in what the user wrote; a doubled dollar sign stays one.
    own = [argument.replace("$", "$$") for argument in arguments]
    flags = host_flags(values["NAME"], int(values["HOSTS"])) if "HOST_INDEX" in text else []
    values["ARGUMENTS"] = json.dumps(own + flags, ensure_ascii=True)
    filled = _VARIABLE.sub(lambda found: values[found[1]], text)
    # Only spot nodes have the label, so for others nothing is asked.
    return filled.replace(_SPOT.format("false"), "")


def main(arguments: Sequence[str]) -> int:
    """Prints the manifest; returns the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    try:
        template = pathlib.Path(arguments[0]).read_text(encoding="utf-8")
        if len(arguments) < 2:
            raise Mistake("the arguments of the study are missing; for example --config=configs/hpa.py.")
        print(render(template, arguments[1:], os.environ), end="")
    except (Mistake, OSError, UnicodeDecodeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
