"""What is installed and what is in the sdist: dependencies, licenses, shared objects, and which MPI is asked."""

import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType

import pytest
from driver.phases import ROOT
from setup_module import load_setup

import ringdp
from ringdp import _build

PACKAGE = Path(str(ringdp.__file__)).parent
# What a C++ shared object needs on Linux, and nothing else: no MPI, no framework, no CUDA.
PLAIN = re.compile(r"lib(stdc\+\+|gcc_s|c|m|dl|pthread)\.so\.\d+|ld-linux[\w-]*\.so\.\d+")


def needed_by(shared_object: Path) -> list[str]:
    shown = subprocess.run(
        ["readelf", "-d", shared_object], capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", shown)


def test_the_core_links_no_mpi() -> None:
    (core,) = PACKAGE.glob("_core*.so")
    needed = needed_by(core)
    assert needed
    assert [name for name in needed if not PLAIN.fullmatch(name)] == []


def test_the_unit_links_mpi() -> None:
    assert [n for n in needed_by(PACKAGE / "_mpi_unit.so") if n.startswith("libmpi.so")]


def test_numpy_and_mpi4py_alone_are_required() -> None:
    required = [r for r in distribution("ringdp").requires or [] if "extra ==" not in r]
    assert sorted(re.split(r"[^\w-]", r)[0] for r in required) == ["mpi4py", "numpy"]


def test_metadata_never_names_torch() -> None:
    assert [r for r in distribution("ringdp").requires or [] if re.match(r"torch\b", r)] == []


def test_licenses_are_installed() -> None:
    meta = distribution("ringdp")
    assert meta.metadata["License-Expression"] == "Apache-2.0"
    files = {Path(f).name: meta.locate_file(f) for f in meta.files or [] if "licenses" in Path(f).parts}
    if not files:  # an editable installation lists no files
        files = {name: ROOT / name for name in ("LICENSE", "NOTICE")}
    assert (
        "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION"
        in Path(str(files["LICENSE"])).read_text()
    )
    notice = Path(str(files["NOTICE"])).read_text()
    assert "Wenzel Jakob" in notice
    assert "Thibaut Goetghebuer-Planchon" in notice


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()
    assert "def " in (PACKAGE / "_core" / "__init__.pyi").read_text()


def test_the_record_of_the_build() -> None:
    assert distribution("ringdp").version == _build.VERSION
    assert _build.MPI_FAMILY in ("openmpi", "mpich")
    assert re.fullmatch(r"(Open MPI|MPICH) \d+\.\d+.*", _build.MPI_VERSION)
    assert re.fullmatch(r"(nvcc \d+\.\d+,( sm_\d+)+)?", _build.CUDA)
    assert "pip-build-env" not in (PACKAGE / "_build.py").read_text()  # the same build gives the same file


# ---- setup.py --------------------------------------------------------------------------------------------------------


@pytest.fixture
def setup() -> ModuleType:
    return load_setup()


@pytest.fixture
def no_mpicc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine without an mpicc; returns an empty folder that is on its PATH."""
    monkeypatch.delenv("RINGDP_MPICC", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    folder = tmp_path / "on-path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def executable(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_wheel_is_a_requirement_without_an_mpicc(setup: ModuleType, no_mpicc: Path) -> None:
    for hook in (setup.get_requires_for_build_wheel, setup.get_requires_for_build_editable):
        assert hook() == ["openmpi>=5,<6"]


def test_an_mpicc_on_path_is_taken(setup: ModuleType, no_mpicc: Path) -> None:
    found = executable(no_mpicc / "mpicc")
    assert setup.find_mpicc() == found
    assert setup.get_requires_for_build_wheel() == []


def test_an_mpicc_of_the_environment_is_taken_after_one_on_path(setup: ModuleType, no_mpicc: Path) -> None:
    own = executable(Path(sys.prefix, "bin", "mpicc"))
    assert setup.find_mpicc() == own
    found = executable(no_mpicc / "mpicc")
    assert setup.find_mpicc() == found


def test_a_named_mpicc_is_taken_first(
    setup: ModuleType, no_mpicc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(no_mpicc / "mpicc")
    named = executable(tmp_path / "elsewhere" / "mpicc")
    monkeypatch.setenv("RINGDP_MPICC", named)
    assert setup.find_mpicc() == named


def test_a_named_mpicc_that_is_missing_is_an_error(
    setup: ModuleType, no_mpicc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executable(no_mpicc / "mpicc")
    monkeypatch.setenv("RINGDP_MPICC", "/nowhere/mpicc")
    with pytest.raises(SystemExit, match="RINGDP_MPICC=/nowhere/mpicc is not an executable file"):
        setup.get_requires_for_build_wheel()


@pytest.mark.parametrize(
    ("shown", "compile_flags", "link_flags", "folders"),
    [
        (  # Open MPI's wheel, in a folder with a space
            "cc -I/a b/include -pthread -L/a b/lib -Wl,-rpath -Wl,/a b/lib -Wl,--enable-new-dtags -lmpi",
            ["-I/a b/include", "-pthread"],
            ["-pthread", "-lmpi"],
            ["/a b/lib"],
        ),
        (  # Debian's MPICH
            "gcc -Wl,-z,relro -I/usr/include/x86_64-linux-gnu/mpich -L/usr/lib/x86_64-linux-gnu -lmpich",
            ["-I/usr/include/x86_64-linux-gnu/mpich"],
            ["-lmpich"],
            ["/usr/lib/x86_64-linux-gnu"],
        ),
        (  # libraries in two places, one by -rpath= and one by its file
            "gcc -DX=1 -I/m/include -L/m/lib -Wl,-rpath=/fabric/lib,--enable-new-dtags -lmpi /fabric/lib/libf.so",
            ["-DX=1", "-I/m/include"],
            ["-lmpi", "/fabric/lib/libf.so"],
            ["/m/lib", "/fabric/lib"],
        ),
    ],
)
def test_flags_of_mpicc(
    setup: ModuleType, shown: str, compile_flags: list[str], link_flags: list[str], folders: list[str]
) -> None:
    assert setup.split_flags(setup.words_of(shown)) == (compile_flags, link_flags, folders)


def test_headers_of_a_depfile(setup: ModuleType, tmp_path: Path) -> None:
    depfile = tmp_path / "x.d"
    assert setup.headers_of(depfile) == []
    depfile.write_text("build/x.o: csrc/x.cc \\\n csrc/base/y.h csrc/with\\ space.h\n")
    assert setup.headers_of(depfile) == [Path("csrc/x.cc"), Path("csrc/base/y.h"), Path("csrc/with space.h")]


# ---- The sdist -------------------------------------------------------------------------------------------------------


def test_the_sdist_is_complete(tmp_path: Path) -> None:
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("not a git checkout: there is no list of files to compare with")
    pytest.importorskip("setuptools")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    command = [sys.executable, "-c", f"import setup; setup.build_sdist({str(tmp_path)!r})"]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    (archive,) = tmp_path.glob("ringdp-*.tar.gz")
    with tarfile.open(archive) as tar:
        packed = {m.name.split("/", 1)[1] for m in tar.getmembers() if m.isfile()}
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    if not listed:
        pytest.skip("nothing is committed yet")
    assert sorted(set(listed) - packed) == []
    made = re.compile(r".*\.(so|o|pyc)|ringdp/_build\.py|ringdp/_core/.*|build/.*|\.venv/.*")
    assert [name for name in packed if made.fullmatch(name)] == []
