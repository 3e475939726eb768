"""The distribution: its version, its data, its pins."""

import importlib.metadata
import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import posttrain

ROOT = Path(__file__).parent.parent


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, Requirement]:
    lines = (ROOT / ".ci/constraints-cpu.txt").read_text().splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    names = [canonicalize_name(requirement.name) for requirement in requirements]
    assert len(names) == len(set(names))
    return dict(zip(names, requirements, strict=True))


def test_installed_version_is_the_packages_version():
    assert importlib.metadata.version("posttrain") == posttrain.__version__


@pytest.mark.parametrize("package", ["posttrain", "judges", "curricula", "rollouts"])
def test_package_is_typed(package):
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert (Path(spec.origin).parent / "py.typed").exists()


def test_every_dependency_is_pinned_within_its_range():
    extras = project()["optional-dependencies"]
    pinned = pins()
    for line in [*project()["dependencies"], *extras["cpu"], *extras["dev"]]:
        wanted = Requirement(line)
        pin = pinned[canonicalize_name(wanted.name)]
        (exact,) = pin.specifier
        assert exact.operator == "=="
        assert wanted.specifier.contains(exact.version), f"{pin} is outside {wanted}"


def test_pins_leave_out_what_the_cpu_installation_is_better_without():
    assert pins().keys().isdisjoint({"torchvision", "torchaudio", "torchcodec", "triton"})


def test_pins_name_no_index_and_no_path():
    text = (ROOT / ".ci/constraints-cpu.txt").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert not [line for line in lines if re.search(r"://|@|^-|^/|\+", line)]
