"""What pyproject.toml cannot say: the cffi extension, and one abi3 wheel for CPython 3.11 and later."""

import sysconfig

from setuptools import setup

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # has no limited API

setup(
    cffi_modules=["native/build_ffi.py:builder"],
    options={} if FREE_THREADED else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
