#!/usr/bin/env python3
"""Puts a CPU libtorch 2.11 at .libtorch, without a 2.5 GB install.

In this order: $LIBTORCH if set; a Python torch 2.11 that `python3` can import; else the parts of the PyPI wheels that libtorch_cpu.so needs,
kept in ~/.cache/repro so that other checkouts share them. `.libtorch` becomes a link to whichever it is; .cargo/config.toml points cargo at it.
"""

import glob
import importlib.util
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

VERSION = "2.11.0"
TAGS = ["manylinux_2_28_x86_64", "manylinux_2_25_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
WHEELS = [f"torch=={VERSION}", "nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"]
LIBRARIES = {"libtorch_cpu.so", "libc10.so", "libgomp.so.1", "libcudart.so.13", "libcupti.so.13"}
ROOT = pathlib.Path(__file__).resolve().parent.parent
LINK = ROOT / ".libtorch"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "repro" / f"libtorch-{VERSION}"


def usable(directory):
    """Whether `directory` looks like a libtorch: libraries and headers."""
    return (directory / "lib" / "libtorch_cpu.so").exists() and (directory / "include" / "torch").exists()


def from_environment():
    given = os.environ.get("LIBTORCH")
    if not given or pathlib.Path(given).resolve() == LINK.resolve():
        return None
    directory = pathlib.Path(given).resolve()
    if not usable(directory):
        sys.exit(f"LIBTORCH={given} has no lib/libtorch_cpu.so and include/torch; unset it or point it at libtorch {VERSION}")
    return directory


def from_python():
    """The torch package that `python3` would import, found without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return None
    directory = pathlib.Path(spec.submodule_search_locations[0])
    version = directory / "version.py"
    if not version.exists() or f"'{VERSION}" not in version.read_text():
        return None
    return directory if usable(directory) else None


def from_wheels():
    if usable(CACHE):
        return CACHE
    CACHE.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent) as scratch:
        print(f"downloading {', '.join(WHEELS)} (530 MB) ...", flush=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", scratch]
        pip += ["--python-version", "3.11", "--implementation", "cp"] + [f"--platform={tag}" for tag in TAGS]
        pip += WHEELS
        if subprocess.run(pip).returncode:
            sys.exit("pip could not download the wheels; set LIBTORCH to a libtorch " + VERSION + " of your own instead")
        unpacked = pathlib.Path(scratch) / "libtorch"
        for wheel in glob.glob(f"{scratch}/*.whl"):
            unpack(wheel, unpacked)
        for link, target in (("libtorch.so", "libtorch_cpu.so"), ("libgomp.so", "libgomp.so.1")):
            (unpacked / "lib" / link).symlink_to(target)
        if CACHE.exists():
            shutil.rmtree(CACHE)
        unpacked.rename(CACHE)
    return CACHE


def unpack(wheel, target):
    """Libraries and headers of one wheel, nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            base = os.path.basename(name)
            if base in LIBRARIES:
                out = target / "lib" / base
            elif name.startswith("torch/include/") and base:
                out = target / name[len("torch/"):]
            else:
                continue
            out.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(out, "wb") as sink:
                shutil.copyfileobj(source, sink)


def main():
    if usable(LINK) and not os.environ.get("LIBTORCH"):
        return
    directory = from_environment() or from_python() or from_wheels()
    if LINK.is_symlink() or LINK.exists():
        if LINK.resolve() == directory.resolve():
            return
        LINK.unlink()
    LINK.symlink_to(directory)
    print(f".libtorch -> {directory}")


if __name__ == "__main__":
    main()
