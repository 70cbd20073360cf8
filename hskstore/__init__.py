"""Offline hidden-state distillation: run the teacher once, train any student from what was kept.

`hskstore.extract.extract` writes stores, `hskstore.store.open_store` reads one, `hskstore.distill.distill` trains from one.
"""

__version__ = "0.1.0"
