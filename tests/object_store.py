"""A local object store that speaks S3, for tests: moto's server in a process of its own, which outlives killed runs.

The command `moto_server` is looked for in $MOTO_SERVER and on the PATH (`pip install 'moto[s3]' flask flask-cors`, best
in an environment of its own: moto and s3fs want different versions of botocore).
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

SERVER = os.environ.get("MOTO_SERVER") or shutil.which("moto_server")


@contextlib.contextmanager
def serving(bucket: str) -> Iterator[dict[str, str]]:
    """Starts the store with an empty bucket; gives the environment variables by which it is reached."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "a-secret-that-is-never-shown",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        _wait(port, process)
        program = f"import s3fs; s3fs.S3FileSystem().mkdir({bucket!r})"
        subprocess.run([sys.executable, "-c", program], env=os.environ | environment, check=True)
        yield environment
    finally:
        process.kill()
        process.wait()


def _wait(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.1)
    raise RuntimeError("the object store does not answer")
