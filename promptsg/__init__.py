"Prompt-guided re-identification on CLIP. Submodules are imported when first used: `import promptsg` alone loads neither torch nor open_clip."
__version__ = "0.1.0"

_MODULES = ("config", "data", "synth", "backbone", "prompt", "inversion", "fusion", "heads", "losses", "model", "metrics", "evaluation",
            "training", "versions", "plots", "explorer", "pretrain", "report", "sharing", "bench", "cli")


def __getattr__(name):
    if name in _MODULES:
        import importlib
        return importlib.import_module(f"promptsg.{name}")
    raise AttributeError(f"module 'promptsg' has no attribute {name!r}")


def __dir__():
    return [*globals(), *_MODULES]
