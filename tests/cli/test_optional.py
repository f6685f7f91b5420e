"""Every module can be imported without the packages that the project does not require."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers import clean_environment

ABSENT = ["matplotlib", "pandas", "onnx", "onnxruntime", "onnxscript", "safetensors", "gdown", "pythae", "gradio"]
ABSENT += ["tensorboard", "tensorboardX", "torch_fidelity", "lpips", "mlflow", "comet_ml", "hydra", "pytest"]
CODE = """
import importlib, pkgutil, sys

from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in sys.argv[1:] else super().find_spec(name, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, Finder]
import vae_lightning
names = [module.name for module in pkgutil.walk_packages(vae_lightning.__path__, "vae_lightning.")]
for name in names:
    importlib.import_module(name)
from vae_lightning.__main__ import main
try:
    code = main(["fit", "--help"])
except SystemExit as ended:
    code = ended.code
print(len(names))
sys.exit(code)
"""


def test_every_module_and_help_without_optional_packages() -> None:
    command = [sys.executable, "-c", CODE, *ABSENT]
    done = subprocess.run(command, env=clean_environment(), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "--trainer.max_epochs" in done.stdout
    assert int(done.stdout.split()[-1]) > 30
