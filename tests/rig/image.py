"""The guest: two Debian kernels and one initramfs that both of them boot.

Kernels come from Debian packages that are downloaded and unpacked, not installed: the cloud kernel for QEMU and
user-mode Linux, which is a front-end by itself. The initramfs holds busybox, the virtio modules of both kernels,
the usual network programs with their libraries, and the traffic program of ``src/``.

Built once into ``${XDG_CACHE_HOME:-~/.cache}/vhostuser/guest/<hash of the builder>``, under a lock, so that parallel
test runs share one build.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.rig.process import RigError, run

SOURCES = Path(__file__).parent / "src"

PROGRAMS = ("iperf3", "ethtool", "ip", "ping")

#: In load order; what a kernel has built in is simply not among its modules.
MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio-rng",
)


@dataclass(frozen=True)
class GuestImage:
    """What a guest boots from.

    Attributes:
        kernel: the cloud kernel, for QEMU.
        uml: user-mode Linux, a program.
        initramfs: for both.
        traffic: the traffic program for this side, the same that is in the initramfs.
    """

    kernel: Path
    uml: Path
    initramfs: Path
    traffic: Path


def guest_image() -> GuestImage:
    """The image of this version of the builder, built when it is not in the cache.

    Raises:
        RigError: a package or a program is missing.
    """
    folder = cache_folder() / _builder_hash()
    image = GuestImage(folder / "vmlinuz", folder / "linux.uml", folder / "initramfs.gz", folder / "traffic")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="build-") as build:
                _build(Path(build))
                # a complete image appears at once or not at all
                (Path(build) / "image").rename(folder)
    return image


def cache_folder() -> Path:
    """Where the images of all versions of the builder are."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vhostuser" / "guest"


def _builder_hash() -> str:
    digest = hashlib.sha256()
    for path in [Path(__file__), *sorted(SOURCES.iterdir())]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _build(build: Path) -> None:
    image, root = build / "image", build / "root"
    image.mkdir()
    cloud = _unpack(_cloud_kernel_package(), build)
    user_mode = _unpack("user-mode-linux", build)
    shutil.copy(_only(cloud.glob("boot/vmlinuz-*"), "the cloud kernel"), image / "vmlinuz")
    shutil.copy(user_mode / "usr/bin/linux.uml", image / "linux.uml")
    run(["gcc", "-O2", "-Wall", "-static", "-o", image / "traffic", SOURCES / "traffic.c"])

    for folder in ("bin", "dev", "proc", "sys", "tmp", "usr/bin", "modules"):
        (root / folder).mkdir(parents=True)
    for path in (SOURCES / "init", SOURCES / "agent"):
        shutil.copy(path, root)
    (root / "init").chmod(0o755)
    shutil.copy(_program("busybox"), root / "bin/busybox")
    shutil.copy(image / "traffic", root / "usr/bin")
    for name in PROGRAMS:
        _add_program(_program(name), root)
    for modules in (cloud / "lib/modules", user_mode / "usr/lib/uml/modules"):
        _add_modules(_only(modules.iterdir(), "a module folder"), root / "modules")
    _pack(root, image / "initramfs.gz")


def _cloud_kernel_package() -> str:
    """The package behind the metapackage, whose name has the kernel version."""
    query = ["apt-cache", "depends", "linux-image-cloud-amd64"]
    found = re.search(r"Depends: (\S+)", subprocess.run(query, capture_output=True, text=True, check=False).stdout)
    if found is None:
        # a fresh machine may have no package lists yet
        run(["apt-get", "-qq", "update"], timeout=300)
        found = re.search(r"Depends: (\S+)", run(query))
    if found is None:
        raise RigError("linux-image-cloud-amd64 depends on no kernel package")
    return found[1]


def _unpack(package: str, build: Path) -> Path:
    """Download a Debian package and unpack it into a folder of its own."""
    download, tree = build / f"{package}.download", build / f"{package}.tree"
    download.mkdir()
    done = subprocess.run(
        ["apt-get", "-q", "download", package], cwd=download, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RigError(f"apt-get download {package}: {done.stderr.strip()}")
    run(["dpkg", "-x", _only(download.glob("*.deb"), package), tree])
    return tree


def _program(name: str) -> Path:
    path = shutil.which(name)
    if path is None:
        raise RigError(f"{name} is not installed; the guest needs it")
    return Path(path)


def _add_program(program: Path, root: Path) -> None:
    """Copy a program and the shared libraries that it loads."""
    shutil.copy(program, root / "usr/bin")
    for library in re.findall(r"(/\S+)", run(["ldd", program])):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)


def _add_modules(release: Path, modules: Path) -> None:
    """Copy the drivers of one kernel release and write the order to load them in."""
    target = modules / release.name
    target.mkdir()
    loaded = []
    for name in MODULES:
        for module in release.rglob(f"{name}.ko"):
            shutil.copy(module, target)
            loaded.append(name)
    (target / "order").write_text("\n".join(loaded) + "\n")


def _pack(root: Path, archive: Path) -> None:
    names = "\0".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    packed = subprocess.run(
        ["cpio", "--null", "--create", "--format=newc", "--quiet", "--owner=0:0"],
        cwd=root,
        input=names.encode(),
        stdout=subprocess.PIPE,
        check=True,
    )
    # level 1: the guest unpacks it under emulation, where size costs more than compression gains
    archive.write_bytes(gzip.compress(packed.stdout, compresslevel=1))


def _only(paths: Iterable[Path], what: str) -> Path:
    found = list(paths)
    if len(found) != 1:
        raise RigError(f"expected exactly one file for {what}, found {found}")
    return found[0]
