"""Fixtures that several rooms share: one local Ray session, drawn shards, a drawn dataset in IU X-Ray's layout."""

import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2kg.config.run import Run
from r2kg.modules.config import TinyLm
from r2kg.recipes import find_recipe
from shards.stream.index import read_targets


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What programs keep below the user's cache and configuration directories is not the user's in tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def s3_environment(free_port: Callable[[], int]) -> int:
    """Point every S3 client of this process and of the Ray session at a port of this machine; returns the port."""
    port = free_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "tests",
        "AWS_SECRET_ACCESS_KEY": "tests",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return port


@pytest.fixture(scope="session")
def s3_server(s3_environment: int) -> Iterator[None]:
    """A real S3 server (moto) on this machine."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", s3_environment, verbose=False)
    server.start()
    yield
    server.stop()


@pytest.fixture
def s3(s3_server: None) -> str:
    """URL of an empty bucket."""
    import s3fs

    name = f"films-{uuid.uuid4().hex[:12]}"
    s3fs.S3FileSystem(use_listings_cache=False).mkdir(name)
    return f"s3://{name}"


@pytest.fixture(scope="session")
def ray_session(s3_environment: int) -> Iterator[None]:
    """One local Ray session for all tests of a run: two CPUs, a small object store, a short path for its sockets."""
    import ray

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    own = str(Path(__file__).with_name("own"))  # workers import the tests' own system from there
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [own, os.environ.get("PYTHONPATH")]))
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    ray.init(
        num_cpus=2,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        logging_level="ERROR",  # type: ignore[arg-type]
        log_to_driver=False,
        _temp_dir=folder,
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def phantom_shards(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 drawn studies of two 64 px films in tars of 16. Tests must not change it."""
    from shards.sources.phantom.source import Phantom
    from shards.tars.shards import write_shards

    root = tmp_path_factory.mktemp("phantom")
    write_shards(Phantom(studies=60, size=64), root, size=64, studies_per_shard=16)
    return root


@pytest.fixture(scope="session")
def small_run(phantom_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict], Run]:
    """Function (changes) → the tiny recipe on drawn shards, a root of its own, with a small encoder and a small LM."""
    from r2kg.modules.tiny_lm import write_tiny_lm

    folder, config = tmp_path_factory.mktemp("lm"), TinyLm(width=32, layers=1, heads=2, vocabulary=320, epochs=1)
    lm = write_tiny_lm(read_targets(phantom_shards, "train"), folder / "lm", config, seed=0)
    same = {
        "data.shards": str(phantom_shards),
        "model.vision": {"name": "test_vit", "weights": "random", "image_px": 64},
        "model.llm.source": str(lm),
        "model.decoding.max_new_tokens": 8,
        "train.workers": 2,
        "train.cpus_per_worker": 0.4,
        "train.log_every": 1,
    }

    def changed(changes: dict) -> Run:
        root = {"root": str(tmp_path_factory.mktemp("runs"))}
        return find_recipe("r2gengpt.tiny").change(same).change(root | changes)

    return changed


def gradient(seed: int, side: int = 64) -> Image.Image:
    """A drawn film: a slope whose direction depends on the seed."""
    y, x = np.mgrid[0:side, 0:side] / side
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi)
    return Image.fromarray((127 + 90 * (np.cos(angle) * (x - 0.5) + np.sin(angle) * (y - 0.5))).astype(np.uint8))


@pytest.fixture
def drawn_iu(tmp_path: Path) -> Callable[..., Path]:
    """Function (train, val, test counts) → a directory with annotation.json and images/, all of it drawn."""

    def draw(train: int = 4, val: int = 1, test: int = 1, edit: Callable[[dict], None] | None = None) -> Path:
        root, listing, number = tmp_path / "raw", {}, 0
        for split, count in {"train": train, "val": val, "test": test}.items():
            listing[split] = []
            for _ in range(count):
                name = f"CXR{number}_IM-{number:04d}"
                folder = root / "images" / name
                folder.mkdir(parents=True)
                for view in range(2):
                    gradient(2 * number + view).save(folder / f"{view}.png")
                films = [f"{name}/{view}.png" for view in range(2)]
                report = f"The heart is normal in size. Film {number} is drawn."
                listing[split].append({"id": name, "report": report, "image_path": films, "split": split})
                number += 1
        if edit:
            edit(listing)
        (root / "annotation.json").write_text(json.dumps(listing))
        return root

    return draw


@pytest.fixture(scope="session")
def wait_for_port() -> Callable[[int], None]:
    """Function that returns once a server on this machine accepts connections, within a minute."""

    def wait(port: int) -> None:
        for _ in range(120):
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.5)
        raise TimeoutError(f"nothing answered on port {port} within 60 s")

    return wait


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Function that names a port nobody listens on."""

    def free() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return free
