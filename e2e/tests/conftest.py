"""The shared mesh of the end-to-end tests: one per file, in namespaces of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from e2e.mesh import Mesh
from e2e.netns import lab, need_privilege

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    """Where the binaries are."""
    parser.addoption("--bin", default="target/fast", help="folder with edgelink and edgelink-relay")


def pytest_configure() -> None:
    """Namespaces need root, or a user namespace."""
    need_privilege()


@pytest.fixture(scope="session")
def bin_dir(request: pytest.FixtureRequest) -> Path:
    """The folder with the binaries."""
    path = Path(request.config.getoption("--bin")).resolve()
    for name in ("edgelink", "edgelink-relay"):
        if not (path / name).exists():
            pytest.exit(f"{path / name} is not there: run `make build` first", returncode=3)
    return path


@pytest.fixture(scope="module")
def empty_mesh(bin_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A lab with a running controller and nothing else."""
    with lab(tmp_path_factory.mktemp("lab")) as made:
        mesh = Mesh(made, bin_dir)
        mesh.start_controller()
        yield mesh


@pytest.fixture(scope="module")
def mesh(empty_mesh: Mesh) -> Mesh:
    """Two relays, three authorised nodes, everybody connected."""
    for name in ("relay-1", "relay-2"):
        empty_mesh.add_relay(name)
    for name in ("node-a", "node-b", "node-c"):
        empty_mesh.add_node(name)
    empty_mesh.authorise_all()
    empty_mesh.wait_connected()
    return empty_mesh
