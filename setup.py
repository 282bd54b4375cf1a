"""What pyproject.toml cannot say: the cffi extension, the CNI executable, one abi3 wheel for CPython 3.11 and later."""

import os
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no limited API
CNI_SOURCES = ("native/cni/message.c", "native/cni/canal-cni.c")
CNI_FLAGS = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra")


class BuildWithCni(build_ext):
    """Builds canal_udp/cni/canal-cni too: static, since it is copied into hosts and containers of any kind."""

    def run(self):
        super().run()
        if not os.environ.get("CANAL_SANITIZE"):  # there is no static AddressSanitizer; a test compiles its own
            self.build_cni()

    def build_cni(self):
        root = Path() if self.inplace else Path(self.build_lib)
        flags = [*CNI_FLAGS, f'-DCANAL_VERSION="{self.distribution.get_version()}"']
        objects = self.compiler.compile(list(CNI_SOURCES), output_dir=self.build_temp, extra_preargs=flags)
        self.compiler.link_executable(
            objects, "canal-cni", output_dir=str(root / "canal_udp" / "cni"), extra_preargs=["-static", "-s"]
        )


setup(
    cffi_modules=["native/build_ffi.py:builder"],
    cmdclass={"build_ext": BuildWithCni},
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
