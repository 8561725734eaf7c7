"""Compiles the turn path, actor/turnwise_actor/compiled, when the package is built and there is a C compiler.

Without one the package works all the same, in Python alone. `TURNWISE_COMPILE=no` does not try it, `yes`
fails where it cannot be done.
"""

import os
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).parent
SOURCES = ROOT / "actor" / "turnwise_actor" / "compiled"
FLAGS = {
    "forward": ["-O3", "-g0"],
    # Chances are bit by bit what numpy makes of them: a*b + c is rounded twice.
    "turns": ["-O2", "-g0", "-ffp-contract=off"],
    "secret": ["-O2", "-g0", "-DOPENSSL_SUPPRESS_DEPRECATED"],  # EVP's hashes cannot be copied as structs
    "http2": ["-O2", "-g0"],
    "parts": ["-O2", "-g0"],
}
LIBRARIES = {"secret": ["crypto"], "http2": ["nghttp2"]}


class CompiledTurnPath(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the compiled modules beside their sources, from where wheels take them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the files of a wheel are gathered; an editable one finds them in the tree."""
        wanted = os.environ.get("TURNWISE_COMPILE", "auto")
        if wanted not in ("auto", "no", "yes"):
            raise ValueError(f"TURNWISE_COMPILE: got {wanted!r}; wanted auto, no or yes")
        if wanted == "no" or self.target_name != "wheel":
            return
        built = [name for name in FLAGS if self._compile(name, must=wanted == "yes")]
        if built:
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["artifacts"].append(f"*{sysconfig.get_config_var('EXT_SUFFIX')}")

    def _compile(self, name: str, must: bool) -> bool:
        try:
            compile_in_place(name)
        except Exception as error:  # whatever a compiler, or the lack of one, comes up with
            if must:
                raise
            self.app.display_warning(f"{name} is not compiled; a turn will cost more: {error}")
            return False
        return True


def compile_in_place(name: str) -> None:
    """Raises what Cython, setuptools or the compiler raise."""
    from Cython.Build import cythonize
    from setuptools import Extension
    from setuptools.command.build_ext import build_ext
    from setuptools.dist import Distribution

    sys.path.insert(0, str(SOURCES.parents[1]))  # where one module's declarations are found by the other
    with tempfile.TemporaryDirectory(prefix="turnwise-build-") as folder:
        extension = Extension(
            f"turnwise_actor.compiled.{name}",
            [str(SOURCES / f"{name}.pyx")],
            include_dirs=[str(SOURCES)],
            extra_compile_args=FLAGS[name],
            libraries=LIBRARIES.get(name, []),
        )
        extensions = cythonize(
            [extension], include_path=[str(SOURCES.parents[1])], build_dir=folder, quiet=True
        )
        command = build_ext(Distribution({"ext_modules": extensions}))
        command.build_temp, command.build_lib = folder, str(SOURCES.parents[1])
        command.ensure_finalized()
        command.run()
