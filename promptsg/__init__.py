"Prompt-guided re-identification on CLIP. Submodules are imported when first used: `import promptsg` alone loads neither torch nor open_clip."
__version__ = "0.1.0"

import os

# Threads that wait sleep instead of spinning: alone a process is a tenth slower at most, and two on one machine no longer
# slow each other many times (`promptsg bench threads` measures both). It counts where promptsg is imported before torch;
# what the user has set stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODULES = ("config", "files", "images", "readers", "splits", "data", "synth", "backbone", "prompt", "inversion", "fusion", "heads", "losses", "model", "metrics", "evaluation", "embedding", "checkpoints", "caches", "distributed",
            "training", "versions", "plots", "explorer", "pretrain", "report", "sharing", "bench", "cli")


def __getattr__(name):
    if name in _MODULES:
        import importlib
        return importlib.import_module(f"promptsg.{name}")
    raise AttributeError(f"module 'promptsg' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_MODULES]
