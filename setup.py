"""Installation: `pip install -e . -c constraints.txt` (CPU), with extras [cuda12] [cuda13] [tpu] [hub] [test]."""

import pathlib

from setuptools import find_packages, setup

setup(
    name="research-jax",
    version="0.1.0",
    description="Image classification studies for the life sciences in JAX and Flax: raw data to honest report",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["research", "research.*", "input_pipeline", "input_pipeline.*", "configs"]),
    install_requires=[
        "absl-py",
        "clu",
        "flax>=0.12",
        "google-crc32c",
        "grain>=0.2.16",
        "h5py",
        "importlib_resources",  # tensorflow-datasets imports it without declaring it
        "jax>=0.10",
        "matplotlib",
        "ml-collections>=1.0",
        "ml_dtypes",
        "numpy",
        "opencv-python-headless",
        "optax",
        "orbax-checkpoint>=0.12",
        "pandas",
        "pillow",
        "protobuf",
        "scikit-learn",
        "scipy",
        "simplejpeg",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.9",
        "tqdm",
    ],
    extras_require={
        "cuda12": ["jax[cuda12]"],
        "cuda13": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "tensorboard": ["tensorboard"],
        "hub": ["huggingface_hub>=1.0"],
        "compress": ["qwix"],
        "latency": ["onnxruntime", "onnx"],
        "sweep": ["optuna>=5", "psycopg[binary]>=3.2"],
        "test": [
            "pytest",
            "pytest-xdist",
            "ruff",
            "iterative-stratification",
            "huggingface_hub>=1.0",
            "onnx",
            "onnxruntime",
            "optuna>=5",
            "qwix",
            "safetensors",
        ],
    },
)
